"""The report's page with something beside the map: another trace, the difference to it, or the trace's knockout."""

import csv
import io

import pytest
from helpers import random_map
from pages import LEFT, RIGHT, click, colour, hover, pair, tip, values

SEGMENTS, SIZES = "qtttts", [5, 3, 2, 4, 3, 6]


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
        float(row["difference"]) == pytest.approx(float(row["other_share"]) - float(row["share"]), abs=1e-12) for row in rows
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
    page.wait_for_function("right.trace?.name === 'before/t0'")
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
