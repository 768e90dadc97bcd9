"""The figure of a faithfulness check, from the folder that `stepsal faithfulness` wrote its tables into.

In: the folder. Out: a matplotlib figure and its caption. No model is loaded.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal import plot
from stepsal.errors import FileError
from stepsal.plot.canvas import legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
else:  # imported where used: they take a while
    DataFrame = Figure = Any

_PANELS = (
    ("per reader", "all", "per reader"),
    ("partial", "all", "partial"),
    ("per reader", "no neighbours", "per reader,\nno neighbours"),
    ("partial", "no neighbours", "partial,\nno neighbours"),
    ("LDS", "answer", "LDS"),
    ("deletion", "answer", "deletion"),
    ("insertion", "answer", "insertion"),
)
_COLUMNS = ("score", "pairs", "map", "mean", "low", "high", "n")


def faithfulness(folder: Path) -> tuple[Figure, str]:
    """How well each map and baseline ranks what knockouts measure: a panel for each score that the folder has."""
    table = _read(folder)
    defined = table.dropna(subset="mean")
    there = set(zip(defined["score"], defined["pairs"], strict=True))
    panels = [panel for panel in _PANELS if panel[:2] in there]
    names = [name for name in dict.fromkeys(table["map"]) if not name.endswith(", shuffled")]
    rows = -(-len(panels) // 2)
    figure = new_figure(rows * (0.17 * len(names) + 0.55) + 0.3)
    axes = list(figure.subplots(rows, 2, sharey=True, squeeze=False).flat)
    for ax, (score, pairs, title) in zip(axes, panels, strict=False):
        plot.faithfulness(table, score=score, pairs=pairs, ax=ax)
        ax.set_title(title, loc="left")
        ax.set_xlabel("lower is better" if score in ("deletion", "insertion") else "")
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    legend_below(figure, [handle for ax in axes for handle in ax.get_legend_handles_labels()[0]], 2)
    n = int(table["n"].max())
    return figure, (
        f"How well maps rank what step knockout measures: means over at most {n} traces, with 95 % bootstrap intervals over "
        "traces. Rank correlations for each reading step, and over all pairs of steps given their distance and the length of "
        "the step that is read (partial); 0 (dashed): no relation. Open circles: the map above them with its entries permuted "
        "among pairs that are equally far apart."
    )


def _read(folder: Path) -> DataFrame:
    import pandas as pd

    path = folder / "faithfulness.csv"
    try:
        table = pd.read_csv(path, encoding="utf-8")
        numbers = table[list(_COLUMNS)][["mean", "low", "high", "n"]].dtypes
    except FileNotFoundError as error:
        raise FileError(f"there is no {path}: make it with `stepsal faithfulness {folder}`") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError) as error:
        raise FileError(f"{path} is damaged ({error}): make it again with `stepsal faithfulness`") from error
    if not len(table) or any(kind.kind not in "if" for kind in numbers):
        raise FileError(f"{path} is damaged (it has no numbers): make it again with `stepsal faithfulness`")
    return table


CHECK_FIGURES = {"faithfulness": faithfulness}
"""The figures of a folder that `stepsal faithfulness` wrote into, by name."""
