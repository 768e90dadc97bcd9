"""The report's page in a browser: maps, pointer, keys, text, lists, files and address."""

import csv
import io
import re
from dataclasses import replace
from itertools import product
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from helpers import make_map, random_map
from pages import (
    EVIL,
    LEFT,
    cell_position,
    click,
    colour,
    evil_map,
    hover,
    pair,
    shown_trace,
    tip,
    values,
    wait_until,
    with_texts,
)
from PIL import Image

from stepsal import diagnose, report
from stepsal.plot import map_values
from stepsal.statistics.paired import wilson

SEGMENTS, SIZES = "qtttts", [5, 3, 2, 4, 3, 6]
DARK, MIDDLE, BRIGHT = [68, 1, 84], [33, 145, 140], [253, 231, 37]  # viridis


# --- the map ---------------------------------------------------------------------------------------------------------
def test_the_value_stands_beside_the_pointer_with_both_steps(visit):
    stepmap = random_map(SEGMENTS, SIZES)
    page = visit([stepmap])
    assert not tip(page, ".values").is_visible()
    hover(page, 4, 2)
    assert pair(page) == "Step 4 (thinking) reads from step 2 (thinking)"
    assert tip(page, ".text").all_inner_texts() == ["4 step 4 é→🙂", "2 step 2 é→🙂"]
    mean = stepmap.mean_heads()
    assert values(page) == pytest.approx(
        [float(e.mean((0, 1))[4, 2]) for e in (mean.share(), mean.density())], rel=6e-3
    )
    page.locator(f"{LEFT} canvas").hover(position={"x": 400, "y": 60})  # above the diagonal
    assert not tip(page, ".values").is_visible()


@pytest.mark.parametrize(("width", "steps"), [(1280, 6), (1280, 150), (900, 40), (390, 6), (390, 150)])
def test_the_value_is_in_sight_near_the_pointer_and_never_over_its_cell(visit, width, steps):
    page = visit([random_map("q" + "t" * (steps - 2) + "s", [2] * steps)], width=width)
    page.locator(LEFT).scroll_into_view_if_needed()
    for query, key in ((0, 0), (steps - 1, 0), (steps - 1, steps - 1), (steps // 2, steps // 4)):
        hover(page, query, key)
        box, frame = tip(page, "").bounding_box(), page.locator(f"{LEFT} canvas").bounding_box()
        at = cell_position(page, query, key)
        x, y = frame["x"] + at["x"], frame["y"] + at["y"]
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
        apart = (
            max(box["x"] - x, x - box["x"] - box["width"], 0),
            max(box["y"] - y, y - box["y"] - box["height"], 0),
        )
        half_cell = page.evaluate("left.place.cell") / 2
        assert half_cell <= max(apart) <= half_cell + 40


def test_selectors_change_the_map_the_numbers_and_the_scale(visit):
    stepmap = random_map(SEGMENTS, SIZES, layers=8, heads=3)
    page = visit([stepmap], heads=[2])
    options = page.locator("#layer option").all_inner_texts()
    assert options == ["mean of all 8", "mean of shallow, 0–1", "mean of deep, 6–7", *map(str, range(8))]
    assert page.locator("#head option").all_inner_texts() == ["mean of 3", "2"]
    assert page.locator("#measure").input_value() == "share"
    pictures = set()
    for layer, head, measure in product(("all", "shallow", "5"), ("mean", "2"), ("density", "share")):
        page.select_option("#layer", layer)
        page.select_option("#head", head)
        page.select_option("#measure", measure)
        hover(page, 3, 1)
        shown = (stepmap.mean_heads(), None) if head != "2" else (stepmap, 2)
        layers = layer if layer != "5" else 5
        both = [float(map_values(shown[0], layers, shown[1], each)[3, 1]) for each in ("share", "density")]
        assert values(page) == pytest.approx(both, rel=6e-3)
        pictures.add(page.evaluate("left.picture.toDataURL()"))
    assert len(pictures) == 12


def test_colours_are_viridis_on_a_logarithmic_scale_of_three_decades(visit):
    density = torch.tensor([[1.0, 0, 0, 0], [1e-9, 1e-3, 0, 0], [10**-1.5, 0, 1, 0], [1, 1, 1, 1]])
    page = visit([make_map("qttt", [2, 2, 2, 1], density)], address="#measure=density")
    assert colour(page, 0, 0) == BRIGHT
    assert colour(page, 2, 0) == pytest.approx(MIDDLE, abs=4)
    assert [colour(page, *cell) for cell in ((1, 0), (2, 1))] == [DARK, DARK]
    assert max(colour(page, 3, 0)) - min(colour(page, 3, 0)) < 30  # missing: hatched grey, no colour of the scale
    hover(page, 3, 0)
    assert tip(page, ".values b").all_inner_texts() == ["missing", "missing"]
    hover(page, 2, 1)
    assert tip(page, ".values b").all_inner_texts() == ["0 %", "0"]


def test_one_step_and_a_map_without_any_influence_can_be_shown(visit):
    page = visit([make_map("q", [2], [[1.0]]), make_map("qt", [2, 3], torch.zeros(2, 2))])
    hover(page, 0, 0)
    assert pair(page) == "Step 0 (question) reads from itself"
    page.locator("#list label").nth(1).click()
    hover(page, 1, 0)
    assert tip(page, ".values b").all_inner_texts() == ["missing", "0"]


# --- zoom ------------------------------------------------------------------------------------------------------------
def steps_in_sight(page) -> list[list[int]]:
    """The first and the last step in sight, of rows and of columns."""
    return page.evaluate("[0, 1].map((axis) => [left.place.first[axis], left.place.last[axis] - 1])")


def test_a_long_map_can_be_zoomed_and_moved_and_its_cells_stay_what_they_are(visit):
    stepmap = random_map("q" + "t" * 128 + "s" * 20, [2] * 149)
    page = visit([stepmap])
    share = stepmap.mean_heads().share().mean((0, 1))
    assert steps_in_sight(page) == [[0, 148], [0, 148]]
    hover(page, 100, 40)
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -60)
    page.keyboard.up("Control")
    wait_until(page, "state.zoom.span < 0.2")
    assert pair(page) == "Step 100 (thinking) reads from step 40 (thinking)"  # what was pointed at stays at the pointer
    rows, columns = steps_in_sight(page)
    assert rows[0] < 100 < rows[1] < 148
    assert 0 < columns[0] < 40 < columns[1]
    assert page.evaluate("left.place.cell") > 15
    for query, key in ((100, 40), (rows[0] + 1, columns[1] - 1)):
        hover(page, query, key)
        assert values(page)[0] == pytest.approx(float(share[query, key]), rel=6e-3)
    start, frame = cell_position(page, 100, 40), page.locator(f"{LEFT} canvas").bounding_box()
    page.mouse.move(frame["x"] + start["x"], frame["y"] + start["y"])
    page.mouse.down()
    page.mouse.move(frame["x"] + start["x"] - 60, frame["y"] + start["y"] - 30, steps=4)
    page.mouse.up()
    moved = cell_position(page, 100, 40)
    assert (moved["x"], moved["y"]) == pytest.approx((start["x"] - 60, start["y"] - 30), abs=1)
    assert page.locator("li.selected").count() == 0  # a drag is no click
    page.get_by_role("button", name="whole").first.click()
    assert steps_in_sight(page) == [[0, 148], [0, 148]]


def test_zoom_by_keys_and_buttons_keeps_the_cursor_in_sight_and_ends_at_the_whole_map(visit):
    page = visit([random_map("q" + "t" * 98 + "s", [2] * 100)])
    page.locator(f"{LEFT} .map").focus()
    page.keyboard.press("Home")
    for _ in range(12):
        page.keyboard.press("+")
    rows, columns = steps_in_sight(page)
    cursor = page.evaluate("left.cursor")
    assert rows[0] <= cursor[0] <= rows[1] < rows[0] + 8
    assert columns[0] <= cursor[1] <= columns[1]
    for _ in range(30):
        page.keyboard.press("ArrowUp")
    rows, _ = steps_in_sight(page)
    assert rows[0] <= page.evaluate("left.cursor")[0] <= rows[1]
    page.keyboard.press("0")
    assert steps_in_sight(page) == [[0, 99], [0, 99]]
    page.locator(f"{LEFT} [data-tool=in]").click()
    assert page.evaluate("state.zoom.span") == pytest.approx(1 / 1.5)
    page.locator(f"{LEFT} [data-tool=out]").click()
    assert steps_in_sight(page) == [[0, 99], [0, 99]]
    assert page.locator(f"{LEFT} [data-tool=out]").is_disabled()


def test_the_wheel_alone_scrolls_the_page(visit):
    page = visit([random_map("q" + "t" * 20, [2] * 21)], height=500)
    hover(page, 10, 3)
    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 100)
    wait_until(page, f"scrollY > {before}")
    assert page.evaluate("state.zoom.span") == 1


# --- select ----------------------------------------------------------------------------------------------------------
def test_a_click_does_what_enter_does(visit):
    page = visit([random_map(SEGMENTS, SIZES)])
    state = "JSON.stringify([left.selected, left.cursor])"
    click(page, 4, 2)
    by_click = page.evaluate(state)
    assert by_click == "[4,[4,2]]"
    click(page, 4, 2)
    cleared = page.evaluate(state)
    page.keyboard.press("Enter")
    assert page.evaluate(state) == by_click
    page.keyboard.press("Enter")
    assert page.evaluate(state) == cleared == "[null,[4,2]]"
    click(page, 3, 1)
    assert page.locator("li.selected button").inner_text() == "3"
    click(page, 3, 0)  # another cell of the same row: still selected
    assert page.locator("li.selected button").inner_text() == "3"


def test_a_page_that_nobody_has_pointed_at_shows_no_box_for_a_value(visit):
    page = visit([random_map(SEGMENTS, SIZES)])
    assert page.locator(f"{LEFT} .tip").is_hidden()


@pytest.mark.parametrize("width", [1280, 390])
def test_a_click_never_moves_what_was_clicked(visit, width):
    maps = [
        with_texts(
            random_map("q" + "t" * n + "s", [2] * (n + 2), trace=f"{name} " * 4), *["many words " * 12] * (n + 2)
        )
        for n, name in ((30, "long"), (2, "short"), (60, "longest"))
    ]
    page = visit(maps, width=width)
    targets = [
        *(page.locator("#list label").nth(i) for i in (1, 2, 0)),
        *(page.locator("li.step button").nth(i) for i in (5, 20)),
        page.locator("li.step .text").nth(25),
        page.locator(".selection .from button").first,
        page.locator(f"{LEFT} canvas"),
        page.locator(f"{LEFT} [data-tool=in]"),
        page.locator("#filter label").first,
        page.locator("#theme"),
    ]
    for target in targets:
        target.scroll_into_view_if_needed()
        before = target.bounding_box()
        target.click(position={"x": 60, "y": 120} if target.locator("xpath=self::canvas").count() else None)
        after = target.bounding_box()
        assert (after["x"], after["y"]) == (before["x"], before["y"])


def test_clicking_a_step_shows_where_it_reads_from_and_who_reads_it(visit):
    stepmap = random_map(SEGMENTS, SIZES)
    page = visit([stepmap])
    before = colour(page, 5, 0)
    page.locator("li.step .text").nth(3).click()
    assert page.locator("li.from button").all_inner_texts() == ["0", "1", "2"]
    assert page.locator("li.by button").all_inner_texts() == ["4", "5"]
    share = stepmap.mean_heads().share().mean((0, 1))
    expected = torch.cat([share[3, :4], share[4:, 3]])
    shown = [float(text.removesuffix(" %")) / 100 for text in page.locator("li.step .value").all_inner_texts()]
    assert shown == pytest.approx(expected.tolist(), rel=6e-3)
    strongest = int(share[3, :4].argmax())
    first = page.locator(".selection .from button").first
    assert first.inner_text().split(" · ")[0] == ("itself" if strongest == 3 else str(strongest))
    assert colour(page, 5, 0) != before  # in the map, all but its row and column stand back
    page.locator(".selection .by button").first.click()
    assert page.locator("li.selected button").inner_text() == str(4 + int(share[4:, 3].argmax()))
    page.get_by_role("button", name="clear").click()
    assert page.locator("li.selected, li.from, li.by").count() == 0
    assert colour(page, 5, 0) == before


def test_the_page_works_by_keyboard_alone(visit):
    page = visit([random_map(SEGMENTS, SIZES, trace="one"), random_map("qt", [3, 3], trace="two")])
    stops = []
    for _ in range(19):
        page.keyboard.press("Tab")
        active = "document.activeElement"
        stops.append(page.evaluate(f"{active}.id || {active}.name || {active}.dataset.tool || {active}.className"))
    finders = ["filter", "find-trace", "verdict", "sort", "trace", "layer", "head", "measure", "beside"]
    assert [stop for stop in stops if stop] == ["theme", *finders, "in", "png", "svg", "csv", "map"]
    page.locator(f"{LEFT} .map").focus()
    page.keyboard.press("End")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    assert pair(page) == "Step 5 (summary) reads from itself"
    for key, expected in (
        ("ArrowLeft", "Step 5 (summary) reads from step 4 (thinking)"),
        ("ArrowUp", "Step 4 (thinking) reads from itself"),
        ("ArrowRight", "Step 4 (thinking) reads from itself"),
        ("Home", "Step 4 (thinking) reads from step 0 (question)"),
        ("ArrowUp", "Step 3 (thinking) reads from step 0 (question)"),
        ("ArrowLeft", "Step 3 (thinking) reads from step 0 (question)"),
    ):
        page.keyboard.press(key)
        assert pair(page) == expected
    page.keyboard.press("Enter")
    assert page.locator("li.selected button").inner_text() == "3"
    page.keyboard.press("Escape")
    assert page.locator("li.selected").count() == 0
    page.locator("li.step button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("li.selected button").inner_text() == "1"
    assert page.locator("li.selected button").get_attribute("aria-pressed") == "true"
    page.locator("[name=trace]").first.focus()
    page.keyboard.press("ArrowDown")
    assert shown_trace(page) == "two"


# --- the text --------------------------------------------------------------------------------------------------------
def test_the_text_can_be_searched(visit):
    texts = ["What is (a+b)?", "First A.", "then (A+B) and (a+B)", "<b>a</b>", "Ärger", "so a+b"]
    page = visit([with_texts(random_map(SEGMENTS, SIZES), *texts)])
    box, found = page.locator(".text-side:visible input"), page.locator(".found").first
    box.fill("(a+b)")
    assert page.locator("mark").all_inner_texts() == ["(a+b)", "(A+B)", "(a+B)"]
    assert found.inner_text() == "1 of 3"
    for expected in ("2 of 3", "3 of 3", "1 of 3"):
        box.press("Enter")
        assert found.inner_text() == expected
    box.press("Shift+Enter")
    assert page.locator("mark.current").inner_text() == "(a+B)"
    assert page.locator("li.step .text").all_inner_texts() == texts
    box.fill("äRGER")
    assert page.locator("mark").all_inner_texts() == ["Ärger"]
    for hostile in ("[", "\\", "{1", "<b>", ".*"):
        box.fill(hostile)
        assert page.locator("mark").count() == (hostile == "<b>")
    assert found.inner_text() == "not found"
    box.fill("")
    assert (page.locator("mark").count(), found.inner_text()) == (0, "")


def test_what_is_found_far_below_is_scrolled_to(visit):
    texts = ["some words " * 20] * 80
    texts[70] += "needle"
    page = visit([with_texts(random_map("q" + "t" * 79, [2] * 80), *texts)])
    page.locator(".text-side:visible input").fill("needle")
    frame, hit = page.locator("ol.steps").first.bounding_box(), page.locator("mark").bounding_box()
    assert frame["y"] <= hit["y"] <= hit["y"] + hit["height"] <= frame["y"] + frame["height"]


def test_markup_in_a_trace_shows_as_text_and_runs_nothing(visit):
    page = visit([evil_map()], title="<img src=x onerror=alert(3)>", address="#trace=<img src=x onerror=alert(4)>")
    assert page.locator("li.step .text").all_inner_texts() == list(EVIL)
    assert page.locator("h1").inner_text() == page.title() == "<img src=x onerror=alert(3)>"
    assert shown_trace(page) == EVIL[0]
    assert "<img src=x onerror=alert(4)>" in page.locator("#notice").inner_text()
    hover(page, 1, 0)
    assert tip(page, ".text").all_inner_texts() == [f"1 {EVIL[1]}", f"0 {EVIL[0]}"]
    page.locator("li.step").first.click()
    page.locator(".text-side:visible input").fill("<")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3


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


# --- the list and the run --------------------------------------------------------------------------------------------
def listed(page) -> list[list[str]]:
    """Of each trace that is listed: its sign, its name, and what is said of it."""
    return [text.split("\n")[:3] for text in page.locator("#list label").all_inner_texts()]


def test_traces_are_in_natural_order(visit):
    page = visit([random_map("qt", [3, 3], trace=name) for name in ("t10", "t2", "t1", "a-3-2", "a-3-11", "a-20-1")])
    assert [line[1] for line in listed(page)] == ["a-3-2", "a-3-11", "a-20-1", "t1", "t2", "t10"]
    assert shown_trace(page) == "a-3-2"


def test_traces_are_listed_and_filtered_by_outcome_and_name_and_sorted(visit):
    outcomes = {"a": (True, 2), "b": (False, 5), "c": (None, 3), "d2": (False, 4)}
    page = visit(
        [
            random_map("q" + "t" * n, [3] * (n + 1), trace=name, correct=outcome)
            for name, (outcome, n) in outcomes.items()
        ]
    )
    assert page.locator("#filter label").all_inner_texts() == ["all 4", "right 1", "wrong 2"]
    assert [line[1] for line in listed(page)] == ["a", "b", "c", "d2"]
    page.select_option("#sort", "steps")
    assert [line[1] for line in listed(page)] == ["b", "d2", "c", "a"]
    page.get_by_text("wrong 2").click()
    assert listed(page) == [["✗", "b", "wrong, 6 steps"], ["✗", "d2", "wrong, 5 steps"]]
    assert page.locator("#listed").inner_text() == "2 of 4 listed: 0 right, 2 wrong"
    assert shown_trace(page) == "a"  # a filter changes the list, not what is shown
    page.locator("#find-trace").fill("D")
    assert [line[1] for line in listed(page)] == ["d2"]
    page.locator("#list label").click()
    assert shown_trace(page) == "d2"
    page.locator("#find-trace").fill("")
    page.get_by_text("all 4").click()
    page.select_option("#verdict", label="deep decay: not judged")
    assert [line[1] for line in listed(page)] == ["b", "d2", "c", "a"]
    page.select_option("#verdict", label="deep decay: yes")
    assert listed(page) == []


def test_the_run_on_top_says_accuracy_verdicts_and_profiles_of_right_and_wrong_traces(visit):
    grades = [True, True, False, None] * 4
    segments = ["q" + "t" * 4 + "ss"] * 15 + ["qttt"]  # the last one has no summary, so no verdict on deep decay
    maps = [
        random_map(each, [3] * len(each), layers=8, heads=6, seed=i, trace=f"t{i}", correct=grades[i])
        for i, each in enumerate(segments)
    ]
    page = visit(maps)
    low, high = wilson(8, 12)
    facts = page.locator(".facts").inner_text().replace(" %", "%")
    assert f"{8 / 12:.1%} right" in facts
    assert f"8 of 12 graded traces; 95%: {low:.1%} to {high:.1%}" in facts
    table = page.locator("#verdict-counts tr").all()
    header, *rows = ([cell.inner_text() for cell in row.locator("th, td").all()] for row in table)
    assert header == ["verdict", "right (8)", "wrong (4)", "not graded (4)"]
    diagnoses = [diagnose(each) for each in maps]
    for failure, (name, *cells) in enumerate(rows):
        assert name == diagnoses[0].verdicts[failure].failure
        for grade, cell in zip((True, False, None), cells, strict=True):
            found = [each.verdicts[failure].found for each in diagnoses if each.meta.get("correct") is grade]
            said, *unknown = cell.split("\n")
            assert said == f"{found.count(True)} of {len(found) - found.count(None)}"
            assert unknown == ([f"{found.count(None)} not judged"] if None in found else [])
    profile = page.evaluate("index.run.profiles[0].groups[1]")
    wrong = np.array([each.profile["lock_in"].tolist() for each in diagnoses if each.meta.get("correct") is False])
    assert profile["mean"] == pytest.approx(wrong.mean(0).tolist(), rel=1e-5)
    assert (wrong.min(0) <= np.array(profile["low"]) + 1e-9).all()
    assert (np.array(profile["low"]) < profile["mean"]).all()
    assert (np.array(profile["mean"]) < profile["high"]).all()
    assert page.locator("#run .interval").count() == 6
    keys = page.locator("#run [data-metric=thinking_to_summary] .key span").all_inner_texts()
    assert keys == ["right (8)", "wrong (4)", "not graded (3)"]


def test_of_one_trace_there_is_no_run(visit):
    assert not visit([random_map("qt", [3, 3])]).locator("#run").is_visible()


def test_depth_profiles_and_verdicts_are_those_of_the_diagnosis(visit):
    stepmap = random_map("q" + "t" * 6 + "ss", [3] * 9, layers=8, heads=6)
    page = visit([stepmap])
    page.locator("#numbers summary").click()
    table = diagnose(stepmap).table
    rows = [row.inner_text().split("\t") for row in page.locator("#table tbody tr").all()]
    assert [float(row[1]) for row in rows] == pytest.approx(table["lock_in"].tolist(), abs=6e-4)
    assert [float(row[3]) for row in rows] == pytest.approx(table["thinking_to_summary"].tolist(), abs=6e-4)
    assert page.locator("#depth circle").count() == 16
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
    chart = page.locator("#depth [data-metric=thinking_to_summary]")
    assert "missing" in chart.text_content()
    assert chart.locator("circle").count() == 0
    page.locator("#numbers summary").click()
    assert page.locator("#table tbody tr").first.inner_text().split("\t")[3] == "missing"
    assert "not judged" in page.locator("#verdicts").inner_text()


# --- the address, the theme, files ------------------------------------------------------------------------------------
def choices(page) -> list[str]:
    return [shown_trace(page), *(page.locator(f"#{name}").input_value() for name in ("layer", "head", "measure"))]


def test_the_address_says_what_is_shown_and_brings_it_back(visit):
    names = ("a=1&b", "t #2/é", "c")
    maps = [random_map(SEGMENTS, SIZES, layers=8, trace=name) for name in names]
    page = visit(maps, heads=[1])
    first = choices(page)
    page.locator("#list label", has_text=names[1]).click()
    page.select_option("#layer", "6")
    page.select_option("#head", "1")
    page.select_option("#measure", "density")
    chosen = choices(page)
    assert chosen == [names[1], "6", "1", "density"]
    page.locator("li.step .text").nth(2).click()
    address = page.evaluate("location.hash")
    again = visit(maps, heads=[1], address=address)
    assert choices(again) == chosen
    assert again.locator("li.selected button").inner_text() == "2"
    steps_back = [
        [names[1], "6", "1", "share"],
        [names[1], "6", "mean", "share"],
        [names[1], "all", "mean", "share"],
        first,
    ]
    for expected in steps_back:
        page.go_back()
        wait_until(page, f"location.hash === shownAddress && {len(expected)}")
        assert choices(page) == expected
    page.go_forward()
    wait_until(page, "location.hash === shownAddress")
    assert choices(page) == steps_back[-2]


def test_an_address_that_names_what_is_not_there_shows_the_usual_and_says_so(visit):
    page = visit([random_map("qt", [3, 3], trace="a")], address="#trace=gone&layer=77&head=5&measure=mass&step=9")
    assert choices(page) == ["a", "all", "mean", "share"]
    assert page.locator("li.selected").count() == 0
    assert page.locator("#notice").inner_text() == "This report holds no trace gone."


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_is_dark_where_the_system_is_and_a_button_changes_it(visit, theme):
    page = visit([random_map(SEGMENTS, SIZES)], theme=theme)

    def grounds() -> list[bool]:
        """Whether page and map are dark."""
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number)")
        label = page.evaluate("themed('paper').match(/[0-9.]+/g).map(Number)")
        return [sum(each[:3]) < 200 for each in (paper, label)]

    before = page.evaluate("left.picture.toDataURL()")
    assert grounds() == [theme == "dark"] * 2
    page.locator("#theme").click()
    assert grounds() == [theme == "light"] * 2
    assert page.evaluate("left.picture.toDataURL()") != before
    page.locator("#theme").click()
    assert page.evaluate("left.picture.toDataURL()") == before


def saved(page, kind: str, side: str = LEFT) -> tuple[str, bytes]:
    """The name and the content of the file that a button saves."""
    with page.expect_download() as waiting:
        page.locator(f"{side} [data-tool={kind}]").click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def test_the_numbers_shown_are_saved_as_csv(visit):
    stepmap = random_map(SEGMENTS, SIZES, layers=8, trace="=a/../b c")
    page = visit([stepmap], address="#layer=deep")
    name, content = saved(page, "csv")
    assert re.fullmatch(r"[\w-]+\.csv", name)
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert len(rows) == 21
    mean = stepmap.mean_heads()
    for row in rows:
        query, key = int(row["query_step"]), int(row["key_step"])
        assert [row["query_segment"], row["key_segment"]] == [stepmap.steps[step].segment for step in (query, key)]
        for measure in ("share", "density"):
            expected = float(map_values(mean, "deep", None, measure)[query, key])
            assert float(row[measure]) == pytest.approx(expected, rel=2.1e-3)


def test_missing_numbers_are_empty_in_csv(visit):
    page = visit([make_map("qts", [3, 2, 1], torch.ones(3, 3))])
    rows = list(csv.DictReader(io.StringIO(saved(page, "csv")[1].decode())))
    assert [row["share"] == "" for row in rows] == [row["query_step"] == "2" for row in rows]


def test_the_picture_shown_is_saved_as_png_and_as_svg(visit):
    page = visit([random_map(SEGMENTS, SIZES, trace="t")], title="<x>")
    name, content = saved(page, "png")
    assert name == "t-layer-all-head-mean-share.png"
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    width = page.evaluate("left.place.width")
    assert picture.width == 3 * width
    for cell in ((3, 1), (5, 0)):
        at = cell_position(page, *cell)
        assert list(picture.getpixel((round(3 * at["x"]) + 9, round(3 * at["y"]) + 9))) == colour(page, *cell)
    name, content = saved(page, "svg")
    assert name.endswith(".svg")
    root = ElementTree.fromstring(content)
    space = "{http://www.w3.org/2000/svg}"
    fills = [rect.get("fill") for rect in root.iter(f"{space}rect")]
    red, green, blue = colour(page, 3, 1)
    assert f"rgb({red},{green},{blue})" in fills
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"step read from", "reading step", "thinking", "5", "share of the row's influence"} <= set(texts)


# --- the window ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(visit, width):
    stepmap = random_map("q" + "t" * 30 + "ss", [2] * 33, trace="a-very-long-name-" * 8, model="m" * 90)
    long = replace(stepmap.steps[1], text="https" + "x" * 500)
    page = visit(
        [replace(stepmap, steps=(stepmap.steps[0], long, *stepmap.steps[2:]))] * 2, width=width, title="w" * 90
    )
    page.locator("li.step").nth(1).click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = {name: page.locator(name).first.bounding_box() for name in (f"{LEFT} .map", "ol.steps", "#depth")}
    beside = boxes["ol.steps"]["x"] >= boxes[f"{LEFT} .map"]["x"] + boxes[f"{LEFT} .map"]["width"]
    assert beside == (width == 1280)
    assert boxes[f"{LEFT} .map"]["width"] > 0.4 * width
    page.set_viewport_size({"width": 320, "height": 600})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
