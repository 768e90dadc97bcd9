"""The picture of a faithfulness check: how well each map and baseline ranks what knockouts measure."""

from typing import TYPE_CHECKING, Any

from stepsal.checks import checked, kind_of, shown
from stepsal.errors import InputError
from stepsal.plot.canvas import COLOURS, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
else:  # imported where used: they take a while
    Axes = DataFrame = Any

_COLUMNS = {"score", "pairs", "map", "mean", "low", "high"}
_SHUFFLED = ", shuffled"
_LOWER_IS_BETTER = ("deletion", "insertion")


def _table(name: str, value: Any) -> None:
    """The table of a `Faithfulness`. That it is one, its columns say: pandas takes a while."""
    if not set(getattr(value, "columns", ())) >= _COLUMNS:
        raise InputError(
            f"{name}={shown(value)} is {kind_of(value)}: expected the table of a faithfulness check. Give `check.table` "
            "of what `stepsal.faithfulness` returned, or read its faithfulness.csv with pandas."
        )


@checked(table=_table)
def faithfulness(table: DataFrame, *, score: str = "per reader", pairs: str = "all", ax: Axes | None = None) -> Axes:
    """Draw a score of every map and baseline as a point with its 95 % interval over traces.

    Maps are filled circles. An open circle below a map is the same map with its entries permuted within each distance: what it
    knows of distance alone. Grey points are the baselines that need no map, and a green one is the reference.

    Args:
        table: `Faithfulness.table`, or the file `faithfulness.csv` of `stepsal faithfulness`, read with pandas.
        score: the name of a score in the table.
        pairs: which pairs of steps the score is of; `answer` for LDS, deletion and insertion.
        ax: the axes to draw into. By default they are those of a new figure.

    Raises:
        InputError: the table has no defined value of that score.

    >>> import pandas as pd
    >>> from stepsal import plot
    >>> row = {"score": "overall", "pairs": "all", "map": "abs", "mean": 0.4, "low": 0.3, "high": 0.5, "n": 20}
    >>> plot.faithfulness(pd.DataFrame([row]), score="overall").get_xlabel()
    'overall'
    """
    names = [name for name in dict.fromkeys(table["map"]) if not name.endswith(_SHUFFLED)]
    rows = table[(table["score"] == score) & (table["pairs"] == pairs)].dropna(subset="mean").set_index("map")
    if not len(rows):
        known = table.dropna(subset="mean")[["score", "pairs"]].drop_duplicates().itertuples(index=False, name=None)
        raise InputError(
            f"the table has no value of score={score!r} for pairs={pairs!r}: it has {', '.join(map(str, known))}"
        )
    maps = {name.removesuffix(_SHUFFLED) for name in table["map"] if name.endswith(_SHUFFLED)}
    ax = ax or new_axes((3.4, 0.22 * len(names) + 0.7))
    if score not in _LOWER_IS_BETTER:
        ax.axvline(0, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    for place, name in enumerate(names):
        other = name.startswith("knockout ")
        colour = COLOURS[0] if name in maps else COLOURS[2] if other else "0.4"
        shown = "map" if name in maps else "another knockout" if other else "baseline"
        _point(ax, rows, name, place - 0.12 * (name in maps), colour, colour, shown)
        _point(ax, rows, name + _SHUFFLED, place + 0.24, COLOURS[1], "white", "map, shuffled within each distance")
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(f"{score} (lower is better)" if score in _LOWER_IS_BETTER else score)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _point(ax: Axes, rows: DataFrame, name: str, place: float, colour: str, face: str, shown: str) -> None:
    if name not in rows.index:
        return
    row = rows.loc[name]
    ax.hlines(place, row["low"], row["high"], color=colour, linewidth=1.1)
    known = ax.get_legend_handles_labels()[1]
    label = None if shown in known else shown
    ax.scatter(row["mean"], place, s=14, edgecolors=colour, facecolors=face, linewidths=1, zorder=3, label=label)
