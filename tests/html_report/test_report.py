"""The report: what is in the file, and what the page does in a browser (skipped where there is none)."""

import base64
import json
import math
import re
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from helpers import make_map, random_map
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stepsal import FileError, InputError, diagnose
from stepsal.files import locked
from stepsal.html_report.report import quantise, report
from stepsal.plot import map_values

SEGMENTS, SIZES = "qtttts", [5, 3, 2, 4, 3, 6]
EVIL = "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script><!-- {{js}}"


def evil_map():
    stepmap = random_map("qt", [3, 4], trace=EVIL[0], model="<b>model</b>")
    return replace(
        stepmap, steps=tuple(replace(step, text=text) for step, text in zip(stepmap.steps, EVIL, strict=True))
    )


def embedded(path) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"))
    return json.loads(found)


def decoded(trace: dict) -> np.ndarray:
    """The masses as the page gets them: `layer head pair`."""
    codes = np.frombuffer(base64.b64decode(trace["mass"]), "<u2")
    low, step = trace["scale"]
    mass = np.where(codes == 0, 0, np.exp(low + (codes.astype(float) - 1) * step))
    return np.where(codes == 65535, np.nan, mass).reshape(len(trace["layers"]), len(trace["heads"]), -1)


# --- the file --------------------------------------------------------------------------------------------------------
def test_the_page_needs_nothing_but_itself(tmp_path):
    page = report(tmp_path / "a.html", [random_map(SEGMENTS, SIZES)]).read_text("utf-8")
    assert re.findall(r"https?://[^\"'\s]*", page) == ["http://www.w3.org/2000/svg"]
    assert not re.findall(r"\bsrc=|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", page)
    assert re.findall(r'href="([^"]*)"', page) == ["data:,"]
    assert "default-src 'none'" in page
    assert "unsafe" not in page
    assert "{{" not in page


def test_150_steps_of_28_layers_fit_in_five_megabytes(tmp_path):
    sizes = [2] * 150
    stepmap = random_map("q" + "t" * 129 + "s" * 20, sizes, layers=28, heads=2)
    stepmap = replace(stepmap, steps=tuple(replace(step, text="推理 <b>" * 100) for step in stepmap.steps))
    small = report(tmp_path / "small.html", [stepmap]).stat().st_size
    large = report(tmp_path / "large.html", [stepmap], heads=[1]).stat().st_size
    assert small < 2e6
    assert 0.8e6 < large - small < 0.9e6


def test_text_is_data_and_never_markup(tmp_path):
    path = report(tmp_path / "a.html", [evil_map()], title="</script><b>{{data}}")
    page = path.read_text("utf-8")
    assert page.count("</script>") == 2
    assert "<img" not in page
    data = embedded(path)
    assert data["title"] == "</script><b>{{data}}"
    assert [text for _, text in data["traces"][0]["steps"]] == list(EVIL)


def test_any_text_can_be_written(tmp_path):
    texts = ["\ud800 alone", "\u2028\u2029\0\x1b", "", "a\r\nb"]
    stepmap = random_map("qttt", [2] * 4)
    stepmap = replace(stepmap, steps=tuple(replace(s, text=text) for s, text in zip(stepmap.steps, texts, strict=True)))
    (trace,) = embedded(report(tmp_path / "a.html", [stepmap]))["traces"]
    assert [text for _, text in trace["steps"]] == texts


def test_masses_of_the_mean_and_of_the_heads_asked_for_are_off_by_a_thousandth_at_most(tmp_path):
    stepmap = random_map(SEGMENTS, SIZES, layers=3, heads=5)
    mass = stepmap.mass * 10 ** torch.linspace(-20, 6, 5)[:, None, None]
    mass[2, :, 4, 1] = 0
    (trace,) = embedded(report(tmp_path / "a.html", [replace(stepmap, mass=mass)], heads=[4, 0]))["traces"]
    assert trace["heads"] == ["mean of 5", "4", "0"]
    row, column = np.tril_indices(6)
    exact = torch.cat([mass.double().mean(1, keepdim=True), mass[:, [4, 0]].double()], 1)[:, :, row, column].numpy()
    np.testing.assert_allclose(decoded(trace), exact, rtol=1e-3)
    assert (decoded(trace)[2][:, (row == 4) & (column == 1)] == 0).all()
    assert np.frombuffer(base64.b64decode(trace["pairs"]), "<u4").tolist() == stepmap.pairs[row, column].tolist()


def test_heads_are_embedded_only_on_request(tmp_path):
    (trace,) = embedded(report(tmp_path / "a.html", [random_map(SEGMENTS, SIZES)]))["traces"]
    assert trace["heads"] == ["mean of 3"]
    assert decoded(trace).shape == (2, 1, 21)
    (trace,) = embedded(report(tmp_path / "a.html", [random_map(SEGMENTS, SIZES).mean_heads()]))["traces"]
    assert trace["heads"] == ["mean of heads"]


@given(arrays.arrays(np.float64, 7, elements=st.floats(0, 3e38) | st.sampled_from([0, 1e-45, 3e38, np.nan, np.inf])))
def test_quantising_keeps_zero_and_missing_and_is_off_by_a_thousandth_at_most(mass):
    codes, low, step = quantise(mass)
    largest = mass[np.isfinite(mass)].max(initial=0)
    assert ((codes == 65535) == ~np.isfinite(mass)).all()
    for value, code in zip(mass, codes, strict=True):
        if code not in (0, 65535):
            assert math.isclose(value, math.exp(low + (int(code) - 1) * step), rel_tol=1e-3)
        elif code == 0:
            assert value <= largest * 1e-50


def test_numbers_that_a_trace_does_not_have_are_missing_and_never_zero(tmp_path):
    stepmap = make_map("qts", [3, 2, 1], torch.ones(4, 2, 3, 3))  # the summary is the last token: no target
    stepmap.mass[0, 1, 1, 0] = torch.nan
    (trace,) = embedded(report(tmp_path / "a.html", [stepmap], heads=[0]))["traces"]
    assert np.isnan(decoded(trace)[0]).sum(1).tolist() == [1, 0]
    assert [profile["values"] for profile in trace["profiles"]] == [[None] * 4, [None] * 4]
    assert {verdict["found"] for verdict in trace["verdicts"]} == {None}
    assert all(verdict["evidence"] for verdict in trace["verdicts"])


def test_bands_that_a_map_does_not_hold_whole_are_not_offered(tmp_path):
    stepmap = make_map("qt", [3, 3], torch.rand(3, 3, 2, 2), layers=(1, 6, 7), model_layers=8)
    (trace,) = embedded(report(tmp_path / "a.html", [stepmap]))["traces"]
    assert (trace["layers"], trace["bands"]) == ([1, 6, 7], {"deep": [6, 7]})


def test_the_same_maps_give_the_same_file(tmp_path):
    one, two = (report(tmp_path / name, [random_map(SEGMENTS, SIZES)]).read_bytes() for name in ("a.html", "b.html"))
    assert one == two


def test_what_cannot_be_shown_is_refused_and_leaves_no_file(tmp_path):
    path, stepmap = tmp_path / "a.html", random_map(SEGMENTS, SIZES, trace="t7", rule="signed")
    signed = replace(stepmap, mass=-stepmap.mass)
    with pytest.raises(InputError, match="no step map to report on: give one"):
        report(path, [])
    with pytest.raises(InputError, match="head 3 is not in the map of 't7', which holds heads 0 to 2. Name some"):
        report(path, [stepmap], heads=[0, 3])
    with pytest.raises(InputError, match="head -1 is not"):
        report(path, [stepmap], heads=[-1])
    with pytest.raises(InputError, match="names a head twice"):
        report(path, [stepmap], heads=[1, 1])
    with pytest.raises(InputError, match=r"'t7' holds negative influence \(rule 'signed'\).*Make it with rule='abs'"):
        report(path, [stepmap, signed])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot write"):
        report(tmp_path / "file" / "a.html", [stepmap])


# --- the page --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a report; at the end of the test: nothing on the console, no request but for the file, no dialog."""
    pages, seen = [], []

    def open_report(stepmaps, width=1280, height=900, **options):
        url = report(tmp_path / "report.html", stepmaps, **options).as_uri()
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url) if request.url != url else None)
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.goto(url)
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.evaluate("new Promise((done) => setTimeout(done, 50))")
        page.close()
    assert seen == []


def cell_position(page, query: int, key: int) -> dict[str, float]:
    """Where the middle of a cell is, in the canvas."""
    return page.evaluate(
        "([i, j]) => ({x: place.left + (j + .5) * place.size / place.n, y: place.top + (i + .5) * place.size / place.n})",
        [query, key],
    )


def hover(page, query: int, key: int) -> None:
    page.locator("canvas").hover(position=cell_position(page, query, key))


def colour(page, query: int, key: int) -> list[int]:
    """What the map shows in a cell: red, green and blue."""
    script = """({x, y}) => {
        const pen = new OffscreenCanvas(1, 1).getContext("2d");
        pen.drawImage(canvas, -Math.round(x * place.ratio) - 1, -Math.round(y * place.ratio) - 1);
        return [...pen.getImageData(0, 0, 1, 1).data];
    }"""
    return page.evaluate(script, cell_position(page, query, key))[:3]


def values(page) -> tuple[float, float]:
    """Density and share, as the page says them."""
    density, share = page.locator("#cell-values b").all_inner_texts()
    superscripts = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    digits, _, power = density.translate(superscripts).partition(" × 10")
    return float(digits) * 10 ** int(power or 0), float(share.removesuffix(" %")) / 100


def head_text(page) -> str:
    return page.locator("#cell-head").inner_text()


def test_hovering_a_cell_shows_both_steps_and_the_value(visit):
    stepmap = random_map(SEGMENTS, SIZES)
    page = visit([stepmap])
    hover(page, 4, 2)
    assert head_text(page) == "Step 4 (thinking) reads from step 2 (thinking)"
    assert page.locator("dd").all_inner_texts() == ["step 4 é→🙂", "step 2 é→🙂"]
    mean = stepmap.mean_heads()
    expected = [float(each.mean((0, 1))[4, 2]) for each in (mean.density(), mean.share())]
    assert values(page) == pytest.approx(expected, rel=6e-3)
    before = head_text(page)
    page.locator("canvas").hover(position={"x": 300, "y": 40})  # above the diagonal
    assert head_text(page) != before


def test_selectors_change_the_map_the_numbers_and_the_scale(visit):
    stepmap = random_map(SEGMENTS, SIZES, layers=8, heads=3)
    page = visit([stepmap], heads=[2])
    options = page.locator("#layer option").all_inner_texts()
    assert options == ["mean of all 8", "mean of shallow, 0–1", "mean of deep, 6–7", *map(str, range(8))]
    assert page.locator("#head option").all_inner_texts() == ["mean of 3", "2"]
    pictures = set()
    for layer, head, measure in product(("all", "shallow", "5"), ("mean of 3", "2"), ("density", "share")):
        page.select_option("#layer", layer)
        page.select_option("#head", head)
        page.select_option("#measure", measure)
        hover(page, 3, 1)
        expected = (stepmap.mean_heads(), None) if head != "2" else (stepmap, 2)
        layers = layer if layer != "5" else 5
        both = [float(map_values(expected[0], layers, expected[1], each)[3, 1]) for each in ("density", "share")]
        assert values(page) == pytest.approx(both, rel=6e-3)
        pictures.add(page.evaluate("cells.toDataURL()"))
    assert len(pictures) == 12


def test_colours_are_viridis_on_a_logarithmic_scale_of_three_decades(visit):
    density = torch.tensor([[1.0, 0, 0, 0], [1e-9, 1e-3, 0, 0], [10**-1.5, 0, 1, 0], [1, 1, 1, 1]])
    page = visit([make_map("qttt", [2, 2, 2, 1], density)])
    dark, middle, bright = [68, 1, 84], [33, 145, 140], [253, 231, 37]
    assert colour(page, 0, 0) == bright
    assert colour(page, 2, 0) == pytest.approx(middle, abs=4)
    assert [colour(page, *cell) for cell in ((1, 0), (2, 1))] == [dark, dark]
    assert max(colour(page, 3, 0)) - min(colour(page, 3, 0)) < 30  # missing: hatched grey, no colour of the scale
    hover(page, 3, 0)
    assert page.locator("#cell-values b").all_inner_texts() == ["missing", "missing"]
    hover(page, 2, 1)
    assert page.locator("#cell-values b").all_inner_texts() == ["0", "0 %"]


def test_the_page_works_by_keyboard_alone(visit):
    page = visit([random_map(SEGMENTS, SIZES, trace="one"), random_map("qt", [3, 3], trace="two")])
    stops = []
    for _ in range(7):
        page.keyboard.press("Tab")
        stops.append(
            page.evaluate("document.activeElement.id || document.activeElement.name || document.activeElement.tagName")
        )
    assert stops == ["filter", "trace", "layer", "head", "measure", "map", "BUTTON"]
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("End")
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    assert head_text(page) == "Step 5 (summary) reads from itself"
    for key, expected in (
        ("ArrowLeft", "Step 5 (summary) reads from step 4 (thinking)"),
        ("ArrowUp", "Step 4 (thinking) reads from itself"),
        ("ArrowRight", "Step 4 (thinking) reads from itself"),
        ("Home", "Step 4 (thinking) reads from step 0 (question)"),
        ("ArrowUp", "Step 3 (thinking) reads from step 0 (question)"),
        ("ArrowLeft", "Step 3 (thinking) reads from step 0 (question)"),
    ):
        page.keyboard.press(key)
        assert head_text(page) == expected
    page.keyboard.press("Enter")
    assert page.locator("li.selected button").inner_text() == "3"
    page.keyboard.press("Escape")
    assert page.locator("li.selected").count() == 0
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("li.selected button").inner_text() == "1"
    assert page.locator("li.selected button").get_attribute("aria-pressed") == "true"
    page.locator("[name=trace]").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("#text-title").inner_text() == "two"


def test_clicking_a_step_shows_where_it_reads_from_and_who_reads_it(visit):
    stepmap = random_map(SEGMENTS, SIZES)
    page = visit([stepmap])
    page.select_option("#measure", "share")
    before = colour(page, 5, 0)
    page.locator("li.step .text").nth(3).click()
    assert page.locator("li.from button").all_inner_texts() == ["0", "1", "2"]
    assert page.locator("li.by button").all_inner_texts() == ["4", "5"]
    share = stepmap.mean_heads().share().mean((0, 1))
    expected = torch.cat([share[3, :4], share[4:, 3]])
    shown = [float(text.removesuffix(" %")) / 100 for text in page.locator("li.step .value").all_inner_texts()]
    assert shown == pytest.approx(expected.tolist(), rel=6e-3)
    strongest = int(share[3, :4].argmax())
    first = page.locator("#selection .from button").first
    assert first.inner_text().split(" · ")[0] == ("itself" if strongest == 3 else str(strongest))
    assert colour(page, 5, 0) != before  # in the map, all but its row and column stand back
    page.locator("#selection .by button").first.click()
    assert page.locator("li.selected button").inner_text() == str(4 + int(share[4:, 3].argmax()))
    page.get_by_role("button", name="clear").click()
    assert page.locator("li.selected, li.from, li.by").count() == 0
    assert colour(page, 5, 0) == before


def test_traces_are_listed_and_filtered_by_outcome(visit):
    outcomes = {"a": True, "b": False, "c": None, "d": False}
    page = visit([random_map("qt", [3, 3], trace=name, correct=outcome) for name, outcome in outcomes.items()])
    shown = lambda: [text.split("\n")[:3] for text in page.locator("#list label").all_inner_texts()]  # noqa: E731
    assert page.locator("#filter label").all_inner_texts() == ["all 4", "correct 1", "wrong 2"]
    assert [line[1] for line in shown()] == ["a", "b", "c", "d"]
    page.get_by_text("wrong 2").click()
    assert shown() == [["✗", "b", "wrong"], ["✗", "d", "wrong"]]
    assert page.locator("#text-title").inner_text() == "b"
    page.get_by_text("correct 1").click()
    assert shown() == [["✓", "a", "correct"]]
    assert page.locator("#text-title").inner_text() == "a"


def test_depth_profiles_and_verdicts_are_those_of_the_diagnosis(visit):
    stepmap = random_map("q" + "t" * 6 + "ss", [3] * 9, layers=8, heads=6)
    page = visit([stepmap])
    page.locator("summary").click()
    table = diagnose(stepmap).table
    rows = [row.inner_text().split("\t") for row in page.locator("tbody tr").all()]
    assert [float(row[1]) for row in rows] == pytest.approx(table["lock_in"].tolist(), abs=6e-4)
    assert [float(row[3]) for row in rows] == pytest.approx(table["thinking_to_summary"].tolist(), abs=6e-4)
    assert page.locator("circle").count() == 16
    said = page.locator("#verdicts li").all_inner_texts()
    for verdict, text in zip(diagnose(stepmap).verdicts, said, strict=True):
        assert text.startswith(f"{verdict.failure}: {'yes' if verdict.found else 'no'}")
        assert f"{verdict.value:.3f}" in text
        assert verdict.reference in text
    assert page.locator(".chosen").count() == 0
    page.select_option("#layer", "3")
    assert page.locator(".chosen").count() == 2


def test_a_trace_without_summary_says_so_instead_of_showing_zero(visit):
    page = visit([random_map("qttt", [3, 2, 4, 3], layers=4)])
    chart = page.locator("[data-metric=thinking_to_summary]")
    assert "missing" in chart.text_content()
    assert chart.locator("circle").count() == 0
    page.locator("summary").click()
    assert page.locator("tbody tr").first.inner_text().split("\t")[3] == "missing"
    assert "not judged" in page.locator("#verdicts").inner_text()


def test_markup_in_a_trace_shows_as_text_and_runs_nothing(visit):
    page = visit([evil_map()], title="<img src=x onerror=alert(3)>")
    assert page.locator("li.step .text").all_inner_texts() == list(EVIL)
    assert page.locator("h1").inner_text() == page.title() == "<img src=x onerror=alert(3)>"
    assert page.locator("#text-title").inner_text() == EVIL[0]
    hover(page, 1, 0)
    assert page.locator("dd").all_inner_texts() == [EVIL[1], EVIL[0]]
    page.locator("li.step").first.click()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_a_script_that_got_in_anyway_would_not_run(browser, tmp_path):
    path = report(tmp_path / "a.html", [random_map("qt", [3, 3])])
    path.write_text(
        path.read_text("utf-8").replace("<body>", "<body><img src=x onerror='ran=1'><script>ran=1</script>"), "utf-8"
    )
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("typeof ran") == "undefined"
    assert page.locator("li.step").count() == 2
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(visit, width):
    stepmap = random_map("q" + "t" * 30 + "ss", [2] * 33, trace="a-very-long-name-" * 8)
    long = replace(stepmap.steps[1], text="https" + "x" * 500)
    page = visit([replace(stepmap, steps=(stepmap.steps[0], long, *stepmap.steps[2:]))], width=width, title="w" * 90)
    page.locator("li.step").nth(1).click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = {name: page.locator(name).bounding_box() for name in ("#map", "#steps", "#depth")}
    beside = boxes["#steps"]["x"] >= boxes["#map"]["x"] + boxes["#map"]["width"]
    assert beside == (width == 1280)
    assert boxes["#map"]["width"] > 0.4 * width
    page.set_viewport_size({"width": 320, "height": 600})
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_one_step_and_a_map_without_any_influence_can_be_shown(visit):
    page = visit([make_map("q", [2], [[1.0]]), make_map("qt", [2, 3], torch.zeros(2, 2))])
    assert head_text(page) == "Step 0 (question) reads from itself"
    page.locator("#list label").nth(1).click()
    hover(page, 1, 0)
    assert page.locator("#cell-values b").all_inner_texts() == ["0", "missing"]


def test_a_report_goes_through_a_link_and_a_second_one_at_the_same_time_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "page.html").write_text("old")
    link = tmp_path / "link.html"
    link.symlink_to("real/page.html")
    report(link, [random_map(SEGMENTS, SIZES)])
    assert link.is_symlink()
    assert (tmp_path / "real" / "page.html").read_text().startswith("<!")
    with locked(tmp_path / "real" / "page.html", "at work"), pytest.raises(FileError, match="another run is writing"):
        report(link, [random_map(SEGMENTS, SIZES)])
