"""Tick labels that never touch: as many as have room when the picture is drawn.

This file imports matplotlib, so what uses it imports it inside functions.
"""

from collections.abc import Mapping
from itertools import count, pairwise
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, Locator

_CHARACTER = 0.66  # the width of a digit, as a part of the size of the type
_GAPS = {"x": 0.7, "y": 0.35}  # the least room between two labels, likewise
_LINE = 1.0  # the height of a label, likewise


class RoomyLocator(Locator):
    """Puts ticks at known places of an axis: at all, or at every second, fifth, tenth, ..., so that no two labels touch.

    Args:
        places: place -> label, ascending.
        extra: a place and a label that is always there; labels that would touch it are left out.
    """

    def __init__(self, places: Mapping[float, str], extra: tuple[float, str] | None = None) -> None:
        self._places, self._labels = list(places), list(places.values())
        self._extra = extra

    def __call__(self) -> Any:
        sizes = [self._size(label) for label in self._labels]
        at = self._points(self._places)
        for step in (unit * 10**power for power in count() for unit in (1, 2, 5)):
            chosen = range(0, len(at), step)
            if all(self._apart(at[a], sizes[a], at[b], sizes[b]) for a, b in pairwise(chosen)):
                break
        if self._extra is None:
            return [self._places[index] for index in chosen]
        place, label = self._extra
        (there,), size = self._points([place]), self._size(label)
        free = [index for index in chosen if self._apart(at[index], sizes[index], there, size)]
        return [*(self._places[index] for index in free), place]

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The places, whatever is in view: `Locator` asks for this."""
        return self()

    def _points(self, places: Any) -> Any:
        """Where places are along the axis, in points."""
        axis: Any = self.axis
        along, ax = "xy".index(axis.axis_name), axis.axes
        points = np.zeros((len(places), 2))
        points[:, along] = places
        transform = ax.get_xaxis_transform() if along == 0 else ax.get_yaxis_transform()
        return transform.transform(points)[:, along] * 72 / ax.figure.dpi

    def _size(self, label: str) -> float:
        """How long a label is along the axis, in points."""
        axis: Any = self.axis
        type_size = axis.get_major_ticks(1)[0].label1.get_fontsize()
        lines = label.split("\n")
        size = _CHARACTER * max(map(len, lines)) if axis.axis_name == "x" else _LINE * len(lines)
        return float((size + _GAPS[axis.axis_name]) * type_size)

    @staticmethod
    def _apart(one: float, size: float, other: float, other_size: float) -> bool:
        return bool(abs(one - other) >= (size + other_size) / 2)


def place_formatter(places: Mapping[float, str], extra: tuple[float, str] | None = None) -> FuncFormatter:
    """Gives each place its label, and any other place none."""
    labels = {round(place, 9): label for place, label in places.items()} | (
        {} if extra is None else {round(extra[0], 9): extra[1]}
    )
    return FuncFormatter(lambda value, _: labels.get(round(float(value), 9), ""))
