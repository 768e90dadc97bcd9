"""The report's page with something beside the map: another trace, the difference to it, or the trace's knockout."""

import csv
import io

import pytest
import torch
from helpers import random_map
from pages import LEFT, RIGHT, click, colour, hover, pair, tip, values, wait_until
from scipy.stats import rankdata, spearmanr

from stepsal import InputError, Knockout, report
from stepsal.causality.folder import open_knockouts

SEGMENTS, SIZES = "qtttts", [5, 3, 2, 4, 3, 6]
LONG = "qtttttsss", [5, 3, 2, 4, 3, 6, 2, 3, 4]


def two_traces():
    """Two traces of the same steps, and one of others."""
    return [
        random_map(SEGMENTS, SIZES, layers=8, trace="before/t1"),
        random_map(SEGMENTS, SIZES, layers=8, seed=1, trace="after/t1"),
        random_map("qttt", [3, 2, 4, 2], layers=8, seed=2, trace="before/t0"),
    ]


def shares(stepmap, layers=slice(None)):
    return stepmap.mean_heads().share()[layers].mean((0, 1))


def test_two_traces_stand_side_by_side_with_the_same_layer_and_measure(visit):
    maps = two_traces()
    page = visit(maps, address="#trace=before/t1")
    assert not page.locator(RIGHT).is_visible()
    page.select_option("#beside", "trace")
    assert page.locator("#with").input_value() == "after/t1"  # the same problem
    page.select_option("#layer", "3")
    boxes = [page.locator(f"{side} canvas").bounding_box() for side in (LEFT, RIGHT)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["width"] == pytest.approx(boxes[1]["width"], abs=1)
    for stepmap, side in zip(maps, (LEFT, RIGHT), strict=False):
        hover(page, 4, 1, side)
        assert values(page, side)[0] == pytest.approx(float(shares(stepmap, slice(3, 4))[4, 1]), rel=6e-3)
    page.select_option("#with", "before/t0")
    hover(page, 3, 1, RIGHT)
    assert values(page, RIGHT)[0] == pytest.approx(float(shares(maps[2], slice(3, 4))[3, 1]), rel=6e-3)
    titles = page.locator(".text-side:visible h2").all_inner_texts()
    assert titles == ["before/t1", "before/t0"]
    assert page.locator("#text-right li.step").count() == 4


def test_both_maps_have_one_colour_scale(visit):
    maps = two_traces()
    page = visit(maps, address="#trace=before/t1&beside=trace&with=after/t1")
    assert page.evaluate("[left, right].map(({ view }) => view.ticks)")[0] == page.evaluate("right.view.ticks")
    same = visit([maps[0], maps[0]], address="#beside=trace")
    assert colour(same, 4, 2) == colour(same, 4, 2, RIGHT)


def test_traces_of_as_many_steps_share_pointer_selection_and_zoom_and_others_do_not(visit):
    page = visit(two_traces(), address="#trace=before/t1&beside=trace&with=after/t1")
    click(page, 4, 2, RIGHT)
    assert page.evaluate("[left.selected, right.selected, left.cursor.join()]") == [4, 4, "4,2"]
    assert page.locator("li.selected button").all_inner_texts() == ["4", "4"]
    page.locator(f"{RIGHT} [data-tool=in]").click()
    assert page.evaluate("left.place.first.join() === right.place.first.join()")
    page.select_option("#with", "before/t0")
    click(page, 2, 1, RIGHT)
    assert page.evaluate("[left.selected, right.selected]") == [4, 2]


def test_the_difference_is_that_of_the_two_maps_and_white_where_there_is_none(visit):
    maps = two_traces()
    page = visit(maps, address="#trace=before/t1&beside=difference&with=after/t1")
    hover(page, 4, 1, RIGHT)
    difference, before, after = tip(page, ".values b", RIGHT).all_inner_texts()
    expected = float(shares(maps[1])[4, 1] - shares(maps[0])[4, 1])
    assert float(difference.replace("−", "-").removesuffix(" points")) / 100 == pytest.approx(expected, abs=3e-4)
    assert float(after[:-2]) - float(before[:-2]) == pytest.approx(100 * expected, abs=0.1)
    red, _, blue = colour(page, 4, 1, RIGHT)
    assert (red > blue) == (expected > 0)
    with page.expect_download() as waiting:
        page.locator(f"{RIGHT} [data-tool=csv]").click()
    rows = list(csv.DictReader(io.StringIO(waiting.value.path().read_text())))
    assert all(
        float(row["difference"]) == pytest.approx(float(row["other_share"]) - float(row["share"]), abs=1e-12)
        for row in rows
    )
    same = visit([maps[0], maps[0]], address="#beside=difference")
    assert min(colour(same, 4, 1, RIGHT)) > 240


def test_there_is_no_difference_between_traces_of_other_lengths_and_the_page_says_so(visit):
    page = visit(two_traces(), address="#trace=before/t1&beside=difference&with=before/t0")
    assert "as many steps: these have 6 and 4" in page.locator(f"{RIGHT} .message").inner_text()
    assert not page.locator(f"{RIGHT} canvas").is_visible()


def test_what_is_beside_comes_back_with_the_address_and_goes_with_the_back_button(visit):
    page = visit(two_traces(), address="#trace=before/t1&beside=trace&with=before/t0")
    hover(page, 2, 1, RIGHT)
    assert pair(page, RIGHT) == "Step 2 (thinking) reads from step 1 (thinking)"
    page.select_option("#beside", "")
    assert not page.locator(RIGHT).is_visible()
    page.go_back()
    wait_until(page, "right.trace?.name === 'before/t0'")
    assert page.locator(RIGHT).is_visible()


@pytest.mark.parametrize("width", [1280, 800, 390])
def test_two_maps_fit_the_window(visit, width):
    page = visit(two_traces(), width=width, address="#trace=before/t1&beside=trace")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [page.locator(f"{side} canvas").bounding_box() for side in (LEFT, RIGHT)]
    assert (boxes[1]["x"] > boxes[0]["x"]) == (width > 390)
    hover(page, 5, 5, RIGHT)
    box = tip(page, "", RIGHT).bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= width


# --- knockouts -------------------------------------------------------------------------------------------------------
def knocked_out(stepmap, seed: int = 0, **changes):
    """A knockout of the map's trace with random effects of all steps but the question."""
    n = len(stepmap.steps)
    kl = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)).tril(-1)
    kl[torch.ones(n, n).triu().bool()] = torch.nan
    kl[:, 0] = torch.nan
    parts = {"kl": kl, "loss": kl, "answer": kl[-1], "steps": stepmap.steps}
    return Knockout(**parts | changes, meta={"trace": stepmap.meta["trace"], "mode": "total"})


def nats(text: str) -> float:
    return float(text.removesuffix(" nats"))


def test_the_knockout_stands_beside_the_map_on_the_same_axes(visit):
    stepmap = random_map(*LONG, trace="t")
    knockout = knocked_out(stepmap)
    page = visit([stepmap, random_map(SEGMENTS, SIZES, trace="other")], knockouts=[knockout], address="#trace=t")
    page.select_option("#beside", "knockout")
    boxes = [page.locator(f"{side} canvas").bounding_box() for side in (LEFT, RIGHT)]
    assert boxes[0]["y"] == boxes[1]["y"]
    hover(page, 7, 3, LEFT)
    assert page.evaluate("right.hover.join()") == "7,3"
    hover(page, 7, 3, RIGHT)
    shown = tip(page, ".values b", RIGHT).all_inner_texts()
    assert nats(shown[0]) == pytest.approx(float(knockout.kl[7, 3]), rel=6e-3)
    assert float(shown[1].removesuffix(" %")) / 100 == pytest.approx(float(shares(stepmap)[7, 3]), rel=6e-3)
    hover(page, 7, 0, RIGHT)
    assert tip(page, ".values b", RIGHT).first.inner_text() == "missing"  # the question was not knocked out
    click(page, 6, 2, RIGHT)
    assert page.evaluate("[left.selected, right.selected]") == [6, 6]
    assert page.locator("li.selected").count() == 1  # one text for both
    page.locator("#list label", has_text="other").click()
    assert "no knockout of other" in page.locator(f"{RIGHT} .message").inner_text()


def test_disagreement_is_the_difference_of_ranks_in_each_row(visit):
    stepmap = random_map(*LONG, trace="t")
    knockout = knocked_out(stepmap)
    page = visit([stepmap], knockouts=[knockout], address="#beside=ranks")
    share = shares(stepmap)
    differences, correlations = {}, []
    for query in range(3, 9):
        effect, entry = knockout.kl[query, 1:query].double().numpy(), share[query, 1:query].double().numpy()
        ranks = [(rankdata(each) - 1) / (query - 2) for each in (effect, entry)]
        differences |= {(query, key + 1): value for key, value in enumerate(ranks[0] - ranks[1])}
        if query > 4:
            correlations.append(spearmanr(effect, entry).statistic)
    shown = page.evaluate("[...right.view.values]")
    for query in range(9):
        for key in range(query + 1):
            value = shown[query * (query + 1) // 2 + key]
            if (query, key) in differences:
                assert value == pytest.approx(differences[query, key], abs=1e-9)
            else:
                assert value != value
    said = page.locator(".disagreement p").first.inner_text().replace("−", "-")
    assert float(said.split(" ")[0]) == pytest.approx(sum(correlations) / len(correlations), abs=0.0051)
    assert f"mean over {len(correlations)} reading steps" in said
    far = [value for value in differences.values() if abs(value) >= 0.5]
    missed, idle = sum(value > 0 for value in far), sum(value < 0 for value in far)
    assert f"causes that the map misses ({missed})" in page.locator(".missed").inner_text()
    assert f"map entries that cause nothing ({idle})" in page.locator(".idle").inner_text()
    (query, key), _ = max(differences.items(), key=lambda item: item[1])
    red, _, blue = colour(page, query, key, RIGHT)
    assert red > blue + 50
    first = page.locator(".missed button").first
    first.click()
    query, key = map(int, first.inner_text().split(" · ")[0].split(" ← "))
    assert differences[query, key] == pytest.approx(max(differences.values()))
    assert page.evaluate("[left.cursor.join(), right.cursor.join()]") == [f"{query},{key}"] * 2
    assert tip(page, ".pair", RIGHT).inner_text().startswith(f"Step {query} ")


def test_where_map_and_knockout_agree_nothing_is_pointed_out(visit):
    stepmap = random_map(*LONG, trace="t")
    kl = shares(stepmap).clone().tril(-1)
    kl[torch.ones(9, 9).triu().bool()] = torch.nan
    page = visit([stepmap], knockouts=[knocked_out(stepmap, kl=kl)], address="#beside=knockout")
    assert page.locator(".disagreement p").first.inner_text().startswith("1.00")
    assert page.locator(".disagreement button").count() == 0
    opposite = visit([stepmap], knockouts=[knocked_out(stepmap, kl=-kl + 1)], address="#beside=knockout")
    assert opposite.locator(".disagreement p").first.inner_text().startswith("−1.00")
    assert opposite.locator(".missed button").count() > 0


def test_without_knockouts_none_is_offered(visit):
    page = visit([random_map(SEGMENTS, SIZES)])
    assert page.locator("#beside option").all_inner_texts() == ["nothing"]
    assert not page.locator("#beside-label").is_visible()
    elsewhere = visit([random_map(SEGMENTS, SIZES)], address="#beside=knockout")
    assert not elsewhere.locator(RIGHT).is_visible()


def test_a_knockout_that_no_map_goes_with_is_refused(tmp_path):
    stepmap = random_map(SEGMENTS, SIZES, trace="t")
    path, knockout = tmp_path / "a.html", knocked_out(stepmap)
    with pytest.raises(InputError, match="two knockouts are of trace 't'"):
        report(path, [stepmap], knockouts=[knockout, knockout])
    with pytest.raises(InputError, match="the knockout of trace 't' has no step map in the report"):
        report(path, [random_map(SEGMENTS, SIZES, trace="other")], knockouts=[knockout])
    with pytest.raises(InputError, match=r"'t' have other steps \(4 and 6\)"):
        report(path, [random_map("qttt", [2] * 4, trace="t")], knockouts=[knockout])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_knockouts_is_opened_by_its_headers_and_read_when_it_is_needed(tmp_path):
    stepmap = random_map(SEGMENTS, SIZES, trace="t")
    (tmp_path / "knockouts").mkdir()
    knocked_out(stepmap).save(tmp_path / "knockouts" / "t.safetensors")
    with pytest.warns(UserWarning, match=r"no knockout\.json"):
        (file,) = open_knockouts(tmp_path)
    assert (file.steps, file.meta["mode"]) == (stepmap.steps, "total")
    torch.testing.assert_close(file.load().kl, knocked_out(stepmap).kl, equal_nan=True)
    page = report(tmp_path / "a.html", [stepmap], knockouts=[file]).read_bytes()
    assert page == report(tmp_path / "b.html", [stepmap], knockouts=[knocked_out(stepmap)]).read_bytes()
