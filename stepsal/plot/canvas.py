"""What all pictures share: the style, the colours, new axes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:  # imported where used: it takes a while
    Axes = Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's: safe for colour blindness."""
MARKERS = "osD^vP"


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
    """Axes of a new figure that pyplot does not keep (nothing to close, no global state)."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()
