"""What the tests of the page share: maps with hostile text, and how to point at a map and read what it shows."""

import time
from dataclasses import replace

from helpers import random_map

EVIL = "<img src=x onerror=alert(1)>", "</script><script>alert(2)</script><!-- {{js}}"
LEFT, RIGHT = "#map-left", "#map-right"


def with_texts(stepmap, *texts):
    """The map with these texts of its steps."""
    return replace(
        stepmap, steps=tuple(replace(step, text=text) for step, text in zip(stepmap.steps, texts, strict=True))
    )


def evil_map():
    return with_texts(random_map("qt", [3, 4], trace=EVIL[0], model="<b>model</b>"), *EVIL)


def cell_position(page, query: int, key: int, side: str = LEFT) -> dict[str, float]:
    """Where the middle of a cell is, in the canvas."""
    name = {LEFT: "left", RIGHT: "right"}[side]
    script = f"([i, j]) => ({{x: {name}.place.x(j + .5), y: {name}.place.y(i + .5)}})"
    return page.evaluate(script, [query, key])


def hover(page, query: int, key: int, side: str = LEFT) -> None:
    page.locator(f"{side} canvas").hover(position=cell_position(page, query, key, side))


def click(page, query: int, key: int, side: str = LEFT) -> None:
    page.locator(f"{side} canvas").click(position=cell_position(page, query, key, side))


def colour(page, query: int, key: int, side: str = LEFT) -> list[int]:
    """What the map shows in a cell: red, green and blue."""
    name = {LEFT: "left", RIGHT: "right"}[side]
    script = """({x, y}) => {
        const pen = new OffscreenCanvas(1, 1).getContext("2d"), ratio = devicePixelRatio;
        pen.drawImage(SIDE.canvas, -Math.round(x * ratio) - 1, -Math.round(y * ratio) - 1);
        return [...pen.getImageData(0, 0, 1, 1).data];
    }""".replace("SIDE", name)
    return page.evaluate(script, cell_position(page, query, key, side))[:3]


def tip(page, part: str, side: str = LEFT):
    """A part of what stands beside the cell that is pointed at."""
    return page.locator(f"{side} .tip {part}")


def values(page, side: str = LEFT) -> tuple[float, float]:
    """Share and density beside the pointer."""
    share, density = tip(page, ".values b", side).all_inner_texts()[:2]
    superscripts = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    digits, _, power = density.translate(superscripts).partition(" × 10")
    return float(share.removesuffix(" %")) / 100, float(digits) * 10 ** int(power or 0)


def pair(page, side: str = LEFT) -> str:
    """Which two steps stand beside the cell that is pointed at."""
    return tip(page, ".pair", side).inner_text()


def shown_trace(page) -> str:
    return page.locator("#text-left h2").inner_text()


def wait_until(page, condition: str, seconds: float = 30) -> None:
    """Wait until the condition, in JavaScript, holds.

    Playwright's own `wait_for_function` looks again from within the page, by `eval`, which the page's content security
    policy forbids: it fails wherever the condition does not hold at the first look.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"within {seconds} s it did not come true that {condition}"
        page.wait_for_timeout(20)
