"""What all pictures share: the style, the colours, new figures and axes, numbered axes, legends."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
else:  # matplotlib takes a while to import, so it is imported where it is used
    Axes = Axis = Figure = Line2D = Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The colours of Okabe and Ito, which people with colour blindness can tell apart."""
MARKERS = "osD^vP"
COLUMN_WIDTH = 3.3
"""The width of one column of a paper, in inches."""


@contextmanager
def style() -> Iterator[None]:
    """The house style for figures, inside a `with` block: small sans-serif type, embedded fonts, 200 dots an inch.

    >>> from stepsal import plot
    >>> with plot.style():
    ...     pass
    """
    import matplotlib as mpl

    with mpl.rc_context(fname=str(Path(__file__).with_name("stepsal.mplstyle"))):
        yield


def new_axes(size: tuple[float, float]) -> Axes:
    """The axes of a new figure. `size` is its width and height in inches."""
    return _new_figure(*size).subplots()


def new_figure(height: float, width: float = COLUMN_WIDTH) -> Figure:
    """A new figure, by default one column wide, and `height` inches high."""
    return _new_figure(width, height)


def _new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not keep, so that there is nothing to close and no global state."""
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(width, height), layout="constrained")


def number_axis(axis: Axis, labels: Sequence[str | int], extra: tuple[float, str] | None = None) -> None:
    """Label the places 0, 1, 2, ... of an axis: every one, or every second, fifth, tenth, ..., as many as have room.

    How much room there is shows only when the figure is drawn, and is asked then. `extra` is the place of one more label, which
    is always there.
    """
    label_places(axis, {float(place): str(label) for place, label in enumerate(labels)}, extra)


def label_places(axis: Axis, places: Mapping[float, str], extra: tuple[float, str] | None = None) -> None:
    """Likewise for any places of an axis, each with its label."""
    from stepsal.plot.ticks import RoomyLocator, place_formatter

    axis.set_major_locator(RoomyLocator(places, extra))
    axis.set_major_formatter(place_formatter(places, extra))


def literal(text: str) -> str:
    """A text from outside as matplotlib is given it: a dollar is a dollar and begins no formula."""
    return text.replace("$", r"\$")


def legend_entry(colour: Any, marker: str, label: str, linestyle: Any = "-") -> Line2D:
    """An entry of a legend beside which filled and open markers mean something: its marker is half filled, so neither."""
    from matplotlib.lines import Line2D as MatplotlibLine

    return MatplotlibLine(
        [],
        [],
        color=colour,
        marker=marker,
        markersize=4,
        linewidth=1.1,
        linestyle=linestyle,
        fillstyle="left",
        markerfacecoloralt="white",
        label=label,
    )


def neutral(ax: Axes) -> list[Line2D]:
    """The lines of an axes that have a label, as entries of a legend whose markers are neither filled nor open."""
    lines: list[Any] = ax.get_legend_handles_labels()[0]
    return [legend_entry(line.get_color(), line.get_marker(), line.get_label(), line.get_linestyle()) for line in lines]


def significance_entries() -> list[Line2D]:
    """What filled and open markers mean, as entries of a legend."""
    from matplotlib.lines import Line2D as MatplotlibLine

    look: dict[str, Any] = {"color": "0.3", "marker": "o", "markersize": 4, "linestyle": "none"}
    return [
        MatplotlibLine([], [], **look, label="p < 0.05"),
        MatplotlibLine([], [], **look, markerfacecolor="white", label="p ≥ 0.05"),
    ]


def legend_below(figure: Any, handles: Sequence[Any], columns: int) -> None:
    """A legend below all axes, where it covers nothing; of several handles with one label, the first.

    It has as many columns as asked for or, where labels are long, as many as have room.
    """
    unique = {handle.get_label(): handle for handle in reversed(handles)}
    shown = [handle for handle in handles if unique[handle.get_label()] is handle]
    sizes = [22 + 3.9 * len(re.sub(r"\\[a-z]+|[${}]", "", handle.get_label())) for handle in shown]  # in points
    room = 72 * figure.bbox.width / figure.dpi
    while columns > 1 and _width(sizes, columns) > room:
        columns -= 1
    figure.legend(
        handles=shown,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.2,
    )


def _width(sizes: Sequence[float], columns: int) -> float:
    """The width of a legend whose entries have these widths: columns are filled one after the other."""
    least, more = divmod(len(sizes), columns)
    ends = [0, *accumulate([least + 1] * more + [least] * (columns - more))]
    return sum(max(sizes[first:last], default=0.0) for first, last in pairwise(ends))
