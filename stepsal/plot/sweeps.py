"""Pictures of a sweep: the effects of settings and of single heads, strengths, compute, and chain lengths.

`stepsal.ablation.effects` computes the numbers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from stepsal.ablation.effects import HeadPanel, StrengthLine
from stepsal.ablation.results import Results
from stepsal.checks import Check, checked, instance, kind_of, several, shown
from stepsal.errors import InputError
from stepsal.plot.canvas import COLOURS, MARKERS, label_places, new_axes, number_axis
from stepsal.sweeps.settings import controlled_kind, kinds, options_by_key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
else:  # matplotlib and pandas take a while to import, so they are imported where they are used
    Axes = DataFrame = Any

_GREY = "0.5"
_POINTS = "accuracy difference (points)"
_WITH_COMPUTE = ("accuracy", "low", "high", "compute")
_SMALLEST = (15.0, 8.0)  # the width and height, in points, of the smallest cell that a value is printed in


def table_check(expected: str, *, results: bool = False, optional: bool = False) -> Check:
    """A DataFrame, or where `results` are welcome, `Results`. What a DataFrame is, its columns say: pandas takes a while."""

    def check(name: str, value: Any) -> None:
        if (optional and value is None) or (results and isinstance(value, Results)):
            return
        if not hasattr(value, "columns") or not hasattr(value, "groupby"):
            raise InputError(
                f"{name}={shown(value)} is {kind_of(value)}: expected {expected}. Of the folder of a sweep, "
                "`pandas.read_parquet(folder + '/results.parquet')` reads the rows."
            )

    return check


_PANEL = "from `stepsal.ablation.effects.head_panels(results)`"


@checked(results=table_check("the rows that `stepsal.sweep` returns", results=True))
def sweep(results: "DataFrame | Results", *, ax: Axes | None = None) -> Axes:
    """Draw a forest plot of every setting's paired accuracy difference to the baseline, with its 95 % interval.

    A marker is filled where p < 0.05, corrected by Holm's method over the settings. Controls are grey, at the bottom.

    Args:
        results: the rows that `stepsal.sweep` returns.
        ax: the axes to draw into. By default they are those of a new figure.

    Raises:
        InputError: the rows have no baseline, have nothing but the baseline, or are not those of one sweep.

    >>> import tempfile
    >>> from stepsal import plot
    >>> from stepsal.sweeps.run import sweep
    >>> config = {"problems": {"count": 2}, "decoding": {"max_new_tokens": 2}, "grid": {"parts": "oeb"}}
    >>> plot.sweep(sweep(config, out=tempfile.mkdtemp(), workers=1, progress=False)).get_xlabel()
    'accuracy difference (points)'
    """
    answers = Results.of(results)
    if not answers.treated:
        raise InputError(
            "there is nothing but the baseline: the sweep needs other settings, such as parts = ['oeb', 'smi']"
        )
    table = answers.effects.iloc[1:]
    ax = ax or new_axes((3.4, 0.17 * len(table) + 0.8))
    _zero(ax.axvline)
    for height, row in enumerate(table.to_dict("records")):
        colour, marker = part_style(row["part"])
        ax.hlines(height, 100 * row["low"], 100 * row["high"], color=colour, linewidth=1.1)
        face = colour if row["p_corrected"] < 0.05 else "white"
        ax.scatter(
            [100 * row["difference"]], [height], s=16, marker=marker, edgecolors=colour, facecolors=face, zorder=3
        )
        if height and row["part"] != table["part"].iloc[height - 1]:
            ax.axhline(height - 0.5, color="0.85", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(table)), [in_math(label) for label in table["label"]])
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel(_POINTS)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


@checked(panel=instance(HeadPanel, "one HeadPanel", f"Take one {_PANEL}."))
def sweep_heads(panel: HeadPanel, *, limit: float | None = None, colorbar: bool = True, ax: Axes | None = None) -> Axes:
    """Draw a heat map of the accuracy difference that each head alone makes, with layers as rows and heads as columns.

    A strip on the right shows the difference that each layer alone makes. Blue is a gain, red is a loss, and grey cells are not
    in the sweep. A cell is outlined where p < 0.05, corrected by Holm's method over the panel. Where there is room, the values
    are printed in percentage points.

    Args:
        panel: one of the panels that `stepsal.ablation.effects.head_panels(results)` returns.
        limit: the ends of the colour scale are plus and minus this many points. By default it is the largest difference.
        colorbar: whether to draw the colour scale beside the map.
        ax: the axes to draw into. By default they are those of a new figure.
    """
    from matplotlib.patches import Rectangle

    layers, heads = panel.difference.shape
    limit = limit or head_limit([panel])
    ax = ax or new_axes((0.3 * heads + 1.8, 0.2 * layers + 0.9))
    column = heads + 0.2 if heads else 0.0  # the centre of the strip
    shown = []
    if heads:
        shown.append((panel.difference, panel.p, np.arange(heads, dtype=float), (-0.5, heads - 0.5)))
    if heads == 0 or np.isfinite(panel.alone).any():
        shown.append((panel.alone[:, None], panel.alone_p[:, None], np.array([column]), (column - 0.5, column + 0.5)))
    for values, ps, columns, (left, right) in shown:
        image = ax.imshow(
            np.ma.masked_invalid(100 * values),
            cmap=_diverging(),
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            origin="lower",
            extent=(left, right, -0.5, layers - 0.5),
        )
        for (layer, index), p in np.ndenumerate(ps):
            if p < 0.05:
                corner = (float(columns[index]) - 0.45, layer - 0.45)
                ax.add_patch(Rectangle(corner, 0.9, 0.9, fill=False, edgecolor="black", linewidth=1.1))
    ends = [end for *_, (left, right) in shown for end in (left, right)]
    ax.set_xlim(min(ends), max(ends))
    ax.set_ylim(-0.5, layers - 0.5)
    if all(size >= least for size, least in zip(_cell_size(ax), _SMALLEST, strict=True)):
        for values, _, columns, _ in shown:
            _print_values(ax, 100 * values, columns, limit)
    number_axis(ax.xaxis, range(heads), (column, "all") if len(shown) == 2 or not heads else None)
    number_axis(ax.yaxis, panel.layers)
    ax.set_xlabel("head" if heads else "heads", x=heads / 2 / (max(ends) - min(ends)) if heads else 0.5)
    ax.set_ylabel("layer")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if colorbar:
        figure: Any = ax.figure
        figure.colorbar(image, ax=ax, label=_POINTS, pad=0.03)
    return ax


@checked(panels=several(HeadPanel, "a list of HeadPanel", f"Take them {_PANEL}."))
def head_limit(panels: Sequence[HeadPanel]) -> float:
    """The end of a colour scale for several panels, in points: their largest difference, but at least 1."""
    values = np.concatenate([np.append(panel.difference.ravel(), panel.alone) for panel in panels])
    return 100 * max(0.01, float(np.nanmax(np.abs(values))))


@checked(
    lines=several(StrengthLine, "a list of StrengthLine", "Take them from `stepsal.ablation.effects.strength_lines`.")
)
def sweep_strengths(lines: Sequence[StrengthLine], *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy difference against the strength, with 95 % intervals. Controls are grey and dashed.

    A marker is filled where p < 0.05, corrected by Holm's method over the points of the picture.

    Args:
        lines: the lines of one strength, from `stepsal.ablation.effects.strength_lines(results, "tau_max")`, or of `"alpha"`.
        ax: the axes to draw into. By default they are those of a new figure.

    Raises `InputError` where there is no line.
    """
    if not lines:
        raise InputError("there is no strength to draw: the sweep needs several, such as tau_max = [0.05, 0.15, 0.3]")
    ax = ax or new_axes((3.4, 2.0))
    _zero(ax.axhline)
    name = str(lines[0].table.columns[0])
    colours = _colours(sum(not line.control for line in lines))
    for index, line in enumerate(lines):
        place = sum(not earlier.control for earlier in lines[:index])
        colour = _GREY if line.control else colours[place]
        table = line.table
        _series(
            ax,
            table[name].to_numpy(float),
            *(100 * table[column].to_numpy(float) for column in ("difference", "low", "high")),
            colour=colour,
            marker=MARKERS[index % len(MARKERS)],
            label=line.label,
            filled=table["p_corrected"].to_numpy() < 0.05,
            shift=4.0 * (index - (len(lines) - 1) / 2),
            linestyle="--" if line.control else "-",
        )
    values = sorted({float(value) for line in lines for value in line.table[name]})
    if values[0] > 0 and values[-1] / values[0] > 8:
        ax.set_xscale("log")
    ax.minorticks_off()
    label_places(ax.xaxis, {value: f"{value:g}" for value in values})
    ax.margins(x=0.12)
    ax.set_xlabel(in_math(options_by_key()[name][0][1].symbol))
    ax.set_ylabel(_POINTS)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


@checked(costs=table_check("a table of costs"), votes=table_check("a table of votes"))
def sweep_compute(costs: DataFrame, votes: DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the accuracy of settings, and of the baseline with more samples (self-consistency), with 95 % intervals.

    Each has a row, with its compute on the right, in answers of the baseline.

    Args:
        costs: the table that `stepsal.ablation.effects.costs(results)` returns.
        votes: the table that `stepsal.ablation.votes.self_consistency(results)` returns.
        ax: the axes to draw into. By default they are those of a new figure.
    """
    rows = [
        (in_math(row["label"]), *part_style(row["part"]), *(row[name] for name in _WITH_COMPUTE))
        for row in costs.to_dict("records")
    ]
    rows += [
        (
            f"vote of {row['k']}" if row["k"] > 1 else "one sample",
            COLOURS[4],
            "D",
            *(row[name] for name in _WITH_COMPUTE),
        )
        for row in votes.to_dict("records")
    ]
    ax = ax or new_axes((3.4, 0.17 * len(rows) + 0.75))
    for height, (_, colour, marker, accuracy, low, high, _) in enumerate(rows):
        ax.hlines(height, 100 * low, 100 * high, color=colour, linewidth=1.1)
        ax.scatter([100 * accuracy], [height], s=16, marker=marker, color=colour, zorder=3)
    if len(rows) > len(costs):
        ax.axhline(len(costs) - 0.5, color="0.85", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("accuracy (%)")
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), [f"{row[-1]:.2f}" for row in rows])
    right.set_ylabel("compute (baseline answers)")
    for axis in (ax.yaxis, right.yaxis):
        axis.set_tick_params(length=0)
    right.spines[:].set_visible(False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


@checked(table=table_check("a table of accuracies"), others=table_check("a table of accuracies", optional=True))
def sweep_lengths(table: DataFrame, others: DataFrame | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the paired accuracy difference to the baseline by chain length, a line for each setting, with 95 % intervals.

    A marker is filled where the setting differs from the baseline with p < 0.05. Below each length stands the accuracy of the
    baseline.

    Args:
        table: the table that `stepsal.ablation.effects.by_length(results, settings)` returns for up to seven settings, of which
            the baseline is the first.
        others: the same table of other settings, which are drawn as thin grey lines without a name.
        ax: the axes to draw into. By default they are those of a new figure.

    Raises `InputError` where there are more settings than colours.
    """
    baseline, *groups = [group for _, group in table.groupby("id", sort=False)]
    if len(groups) > len(COLOURS):
        raise InputError(f"{len(groups)} settings; there are colours for {len(COLOURS)}. Choose some of the settings.")
    ax = ax or new_axes((3.4, 2.6))
    _zero(ax.axhline)
    places = {name: int(name.split()[-1]) for name in table["column"]}
    if others is not None:
        for _, group in others.groupby("id", sort=False):
            ax.plot([places[name] for name in group["column"]], 100 * group["difference"], color="0.85", linewidth=0.6)
    colours = iter(COLOURS)
    for index, group in enumerate(groups):
        _series(
            ax,
            np.array([places[name] for name in group["column"]], dtype=float),
            *(100 * group[column].to_numpy(float) for column in ("difference", "low", "high")),
            colour=_GREY if group["control"].iloc[0] else next(colours),
            marker=MARKERS[index % len(MARKERS)],
            label=group["label"].iloc[0],
            filled=group["p_corrected"].to_numpy() < 0.05,
            shift=min(4.0, 16 / len(groups)) * (index - (len(groups) - 1) / 2),
            linestyle="--" if group["control"].iloc[0] else "-",
        )
    accuracies = zip(baseline["column"], baseline["accuracy"], strict=True)
    label_places(ax.xaxis, {float(places[name]): f"{places[name]}\n{100 * value:.0f} %" for name, value in accuracies})
    ax.margins(x=0.1)
    ax.set_xlabel("chain length, accuracy of the baseline")
    ax.set_ylabel(_POINTS)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


@checked(text=instance(str, "a text", "Give the label of a setting."))
def in_math(text: str) -> str:
    r"""The text with τ_max as matplotlib's formula for it.

    >>> print(in_math("OEB, τ_max 0.15"))
    OEB, $\tau_{\mathrm{max}}$ 0.15
    """
    return text.replace("τ_max", r"$\tau_{\mathrm{max}}$")


def part_style(part: str) -> tuple[str, str]:
    """The colour and the marker of a kind of setting, by its place among all kinds. The baseline is black, controls are grey.

    The first control of a kind has that kind's marker; each further control of it has a marker of its own.
    """
    if part == "none":
        return "black", "*"
    if (treated := controlled_kind(part)) is not None:
        its_controls = [name for name in kinds() if controlled_kind(name) == treated]
        further = its_controls.index(part) if part in its_controls else 0
        return _GREY, "^v<>"[(further - 1) % 4] if further else part_style(treated)[1]
    treatments = [name for name in kinds() if name != "none" and controlled_kind(name) is None]
    place = treatments.index(part if part in treatments else part.split("+")[-1])
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def _series(
    ax: Axes,
    x: Float[np.ndarray, "point"],
    y: Float[np.ndarray, "point"],
    low: Float[np.ndarray, "point"],
    high: Float[np.ndarray, "point"],
    *,
    colour: Any,
    marker: str,
    label: str,
    filled: Any,
    shift: float,
    linestyle: str,
) -> None:
    """Draw a line with intervals, moved sideways by `shift` points so that no line hides another. The data stay as they are."""
    from matplotlib.transforms import ScaledTranslation

    figure: Any = ax.figure
    moved = ax.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
    look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "transform": moved}
    face = colour if filled.all() else "white"
    ax.plot(x, y, linewidth=1.1, linestyle=linestyle, markerfacecolor=face, label=in_math(label), **look)
    ax.plot(x[filled], y[filled], linestyle="none", zorder=3, **look)
    ax.vlines(x, low, high, color=colour, linewidth=0.8, transform=moved)
    ax.update_datalim(np.column_stack([np.concatenate([x, x]), np.concatenate([low, high])]))
    ax.autoscale_view()


def _zero(draw: Any) -> None:
    draw(0, color="0.6", linewidth=0.8, linestyle="--", zorder=0)


def _colours(number: int) -> list[Any]:
    if number <= len(COLOURS):
        return list(COLOURS[:number])
    from matplotlib import colormaps

    return [colormaps["viridis"](place) for place in np.linspace(0, 0.95, number)]


def _diverging() -> Any:
    from matplotlib import colormaps

    return colormaps["RdBu"].with_extremes(bad="0.88")


def _cell_size(ax: Axes) -> tuple[float, float]:
    """The width and height of a cell in points. The axes may still shrink a little when the figure is drawn."""
    figure: Any = ax.figure
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    scale = 72 / figure.dpi
    return ax.bbox.width * scale / (right - left), ax.bbox.height * scale / (top - bottom)


def _print_values(ax: Axes, values: Float[np.ndarray, "layer column"], columns: Any, limit: float) -> None:
    for (layer, index), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:+.1f}".replace("-", "−")
            text = "0" if float(f"{value:.1f}") == 0 else text
            colour = "white" if abs(value) > 0.6 * limit else "black"
            ax.text(columns[index], layer, text, ha="center", va="center", fontsize=5.5, color=colour)
