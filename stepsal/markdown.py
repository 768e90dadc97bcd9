"""Tables in Markdown: every table that stepsal prints or writes comes from this one function."""

from collections.abc import Iterable, Sequence

from stepsal.errors import InputError


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
