"""What all pictures share: the style, the colours, new figures and axes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # matplotlib takes a while to import, so it is imported where it is used
    Axes = Figure = Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""The colours of Okabe and Ito, which people with colour blindness can tell apart."""
MARKERS = "osD^vP"
COLUMN_WIDTH = 3.4
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


def new_figure(height: float) -> Figure:
    """A new figure, one column wide and `height` inches high."""
    return _new_figure(COLUMN_WIDTH, height)


def _new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not keep, so that there is nothing to close and no global state."""
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(width, height), layout="constrained")
