"""The picture of a benchmark: accuracies of settings, task by task. `stepsal.ablation.paired_runs` computes the numbers."""

from typing import TYPE_CHECKING, Any

import numpy as np

from stepsal.checks import checked
from stepsal.errors import InputError
from stepsal.plot.canvas import COLOURS, MARKERS, legend_entry, literal, new_axes
from stepsal.plot.sweeps import in_math, table_check

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
else:  # matplotlib and pandas take a while to import, so they are imported where they are used
    Axes = DataFrame = Any


@checked(table=table_check("a table of accuracies by task and setting"))
def benchmark(table: DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of each setting in each task, with 95 % intervals; the baseline is black and comes first.

    A marker is filled where a setting differs from the baseline with p < 0.05, and for the baseline itself.

    Args:
        table: a row for each task and setting, with the columns `task`, `setting`, `accuracy`, `low`, `high` and `p_corrected`
            (NaN for the baseline, which is the first setting).
        ax: the axes to draw into. By default they are those of a new figure.

    Raises `InputError` where there are more settings than colours.
    """
    settings, tasks = list(dict.fromkeys(table["setting"])), list(dict.fromkeys(table["task"]))
    if len(settings) > 1 + len(COLOURS):
        raise InputError(
            f"{len(settings)} settings; there are colours for {1 + len(COLOURS)}. Choose some of the settings."
        )
    ax = ax or new_axes((3.4, 0.5 + len(tasks) * (0.1 + 0.13 * len(settings))))
    spread = min(0.18, 0.8 / len(settings))
    for index, setting in enumerate(settings):
        rows = table[table["setting"] == setting]
        heights = np.array([tasks.index(task) for task in rows["task"]]) + spread * (index - (len(settings) - 1) / 2)
        colour = COLOURS[index - 1] if index else "black"
        marker = MARKERS[(index - 1) % len(MARKERS)] if index else "*"
        accuracy, low, high = (100 * rows[name].to_numpy(float) for name in ("accuracy", "low", "high"))
        ax.hlines(heights, low, high, color=colour, linewidth=1.0)
        filled = (rows["p_corrected"].to_numpy(float) < 0.05) | (index == 0)
        look: dict[str, Any] = {"marker": marker, "edgecolors": colour, "s": 16 if index else 30, "zorder": 3}
        ax.scatter(accuracy, heights, facecolors=[colour if yes else "white" for yes in filled], **look)
        entry = legend_entry(colour, marker, in_math(literal(setting)))
        entry.set_fillstyle("left" if index else "full")
        ax.add_line(entry)
    for between in range(1, len(tasks)):
        ax.axhline(between - 0.5, color="0.85", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(tasks)), [literal(task) for task in tasks])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(tasks) - 0.5, -0.5)
    ax.set_xlabel("accuracy (%)")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
