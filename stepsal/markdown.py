"""Tables: every table that stepsal prints or writes is made here, in Markdown, and so are the numbers in its cells.

In: texts and numbers. Out: Markdown, and the same text with its tables aligned for a terminal (`plain_text`).
"""

import math
import re
import textwrap
from collections.abc import Iterable, Sequence

from stepsal.errors import InputError

_NUMBER = re.compile(r"[-+−]?\d")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, align_numbers: bool = False) -> str:
    r"""A Markdown table without a line break at its end. A `|` in a cell is escaped.

    Args:
        header: the columns' names.
        rows: the cells of each row, as many as there are columns.
        align_numbers: align all columns to the right but the first one, which names the row.

    Raises:
        InputError: a row that has more or fewer cells than there are columns.

    >>> print(markdown_table(["layer", "lock-in"], [["0", "0.484"], ["1", ""]]))
    | layer | lock-in |
    |---|---|
    | 0 | 0.484 |
    | 1 |  |
    >>> print(markdown_table(["Setting", "p | n"], [["baseline", "–"]], align_numbers=True))
    | Setting | p \| n |
    | --- | ---: |
    | baseline | – |
    """
    columns = len(header)
    lines = [_line(header), _line(["---", *["---:"] * (columns - 1)]) if align_numbers else "|---" * columns + "|"]
    for number, row in enumerate(rows):
        if len(row) != columns:
            raise InputError(f"row {number} of the table has {len(row)} cells, but the header names {columns} columns")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def significant(value: float, digits: int = 3, *, sign: str = "") -> str:
    """A number with as many significant digits, so that a small one does not become 0.000. NaN is an empty text.

    Args:
        value: the number.
        digits: how many of its digits are shown; whole digits are never cut.
        sign: "+" writes a plus before positive numbers.

    >>> [significant(value) for value in (0.66651, 0.0000312, 168.239, 16384.2, 0.0, float("nan"))]
    ['0.667', '3.12e-05', '168', '16384', '0', '']
    """
    return "" if math.isnan(value) else _text(value, _decimals(value, digits), digits, sign)


def with_interval(value: float, low: float, high: float, digits: int = 3, *, sign: str = "+") -> str:
    """A number with its interval, all to the same decimal: the largest of the three has as many significant digits.

    An interval that is not defined (NaN) is left out; a number that is not defined is an empty text.

    >>> with_interval(-0.1017, -0.1172, -0.0861)
    '-0.102 (-0.117 to -0.086)'
    """
    if math.isnan(value):
        return ""
    if math.isnan(low) or math.isnan(high):
        return significant(value, digits, sign=sign)
    decimals = _decimals(max(map(abs, (value, low, high))), digits)
    text, start, end = (_text(number, decimals, digits, sign) for number in (value, low, high))
    return f"{text} ({start} to {end})"


def _decimals(largest: float, digits: int) -> int | None:
    """The number of decimals that shows so many digits of a number; None for one so small that it takes an exponent."""
    if largest == 0:
        return 0
    exponent = math.floor(math.log10(abs(float(f"{largest:.{digits - 1}e}"))))
    return None if exponent < -4 else max(0, digits - 1 - exponent)


def _text(value: float, decimals: int | None, digits: int, sign: str) -> str:
    return f"{value:{sign}.{digits - 1}e}" if decimals is None else f"{value:{sign}.{decimals}f}"


def plain_text(markdown: str, width: int) -> str:
    """A text in Markdown as it is read in a terminal: its tables aligned, its long lines wrapped, its bold text plain.

    A table that is wider than `width` goes on below, with its first column again, and the names of columns are wrapped.

    >>> print(plain_text(markdown_table(["layer", "lock-in"], [["0", "0.48"], ["11", ""]]), 80))
    layer  lock-in
    -----  -------
        0     0.48
       11
    """
    blocks: list[str] = []
    lines = markdown.split("\n")
    while lines:
        table = 0
        while table < len(lines) and lines[table].startswith("|"):
            table += 1
        if table >= 2:
            blocks.append(_aligned([_cells(line) for line in (lines[0], *lines[2:table])], width))
            del lines[:table]
        else:
            line = re.sub(r"\*\*(.+?)\*\*", r"\1", lines.pop(0))
            # A line with a gap in it is laid out by hand: a file and what it holds.
            blocks.append(line if "   " in line else textwrap.fill(line, width, break_long_words=False))
    return "\n".join(blocks)


def _cells(line: str) -> list[str]:
    """The cells of a line that `markdown_table` wrote."""
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _aligned(rows: Sequence[Sequence[str]], width: int) -> str:
    """Rows of cells, the first of them the header, in aligned columns: numbers to the right, other texts to the left."""
    columns = [_column(column) for column in zip(*rows, strict=True)]
    parts, room = [[0]], width - len(columns[0][0])
    for index in range(1, len(columns)):
        needed = 2 + len(columns[index][0])
        if needed > room and len(parts[-1]) > 1:
            parts.append([0])
            room = width - len(columns[0][0])
        parts[-1].append(index)
        room -= needed
    heights = [max(len(columns[index]) for index in part) for part in parts]
    return "\n\n".join(
        "\n".join(
            "  ".join(cells).rstrip()
            for cells in zip(*(_filled(columns[index], height) for index in part), strict=True)
        )
        for part, height in zip(parts, heights, strict=True)
    )


def _column(cells: Sequence[str]) -> list[str]:
    """The lines of a column, all of one width: its name, wrapped where its cells are narrower, a rule, and its cells."""
    name, *body = cells
    numbers = all(_NUMBER.match(cell) for cell in body if cell)
    words = max((len(word) for word in name.split()), default=1)
    names = textwrap.wrap(name, max(words, 12, *map(len, body)), break_long_words=False) or [""]
    wide = max(map(len, (*names, *body)))
    texts = [*names, "-" * wide, *body]
    return [text.rjust(wide) if numbers else text.ljust(wide) for text in texts]


def _filled(column: list[str], height: int) -> list[str]:
    """The column with empty lines above it, so that the rules of all columns are on one line."""
    return [" " * len(column[0])] * (height - len(column)) + column
