"""Pictures of diagnoses and comparisons: depth profiles, layer x head heat maps and forest plots."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange, reduce

from stepsal.checks import checked, instance, kind_of, shown
from stepsal.diagnosis.comparison import Comparison
from stepsal.diagnosis.diagnosis import Diagnosis, check_alike
from stepsal.diagnosis.metrics import METRICS
from stepsal.diagnosis.registry import Metric
from stepsal.errors import InputError
from stepsal.plot.canvas import COLOURS, MARKERS, legend_entry, new_axes, number_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
else:  # matplotlib takes a while to import, so it is imported where it is used
    Axes = Any

_FEW_LAYERS = 16  # a line through more layers than these has no markers
_CONTROLS = (("table", "all traces"), ("matched", "matched pairs"), ("position_only", "distance alone"))

Diagnoses = Diagnosis | Sequence[Diagnosis]


def _diagnoses(name: str, value: Any) -> None:
    """A diagnosis, several, or groups of them by name."""
    for group in value.values() if isinstance(value, Mapping) else [value]:
        for one in [group] if isinstance(group, Diagnosis) or not isinstance(group, list | tuple) else group:
            if not isinstance(one, Diagnosis):
                raise InputError(
                    f"{name}={shown(value)} is {kind_of(value)}: expected a Diagnosis or several. Make one of a step map with "
                    "`stepsal.diagnose(stepmap)`."
                )


@checked(diagnosis=_diagnoses)
def depth_profile(
    diagnosis: Diagnoses | Mapping[str, Diagnoses], *, metric: str = "lock_in", ax: Axes | None = None
) -> Axes:
    """Draw a metric against depth: the mean over heads and traces, with its 95 % interval (normal, over traces) as a band.

    Args:
        diagnosis: one diagnosis, several, or groups of them by name (`{"right": ..., "wrong": ...}`). Names are in a legend
            above the axes.
        metric: the name of a metric, built in or defined with `stepsal.metric`.
        ax: the axes to draw into. By default they are those of a new figure.

    Raises:
        InputError: the metric is unknown or the diagnoses lack it, their maps were made differently, a group is empty, or there
            are more groups than colours.

    >>> import torch
    >>> from stepsal import Step, StepMap, diagnose, plot
    >>> steps = (Step(0, "question", 0, 2, "2+2"), Step(1, "summary", 2, 4, "= 4"))
    >>> stepmap = StepMap(torch.rand(8, 3, 2, 2).tril(), torch.tensor([[3, 0], [2, 1]]), steps, tuple(range(8)), {})
    >>> plot.depth_profile(diagnose(stepmap), metric="summary_self").get_ylabel()
    "summary's share from itself"
    """
    from matplotlib.ticker import MaxNLocator

    known = _find_metric(metric)
    groups = {
        name: [group] if isinstance(group, Diagnosis) else list(group)
        for name, group in (diagnosis.items() if isinstance(diagnosis, Mapping) else [("", diagnosis)])
    }
    if len(groups) > len(COLOURS):
        raise InputError(
            f"{len(groups)} groups; there are colours for {len(COLOURS)}. Draw the groups in several pictures."
        )
    layers = _common_layers(groups, metric)
    ax = ax or new_axes((4.2, 2.8))
    if known.reference is not None:
        ax.axhline(known.reference, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    for colour, marker, (name, group) in zip(COLOURS, MARKERS, groups.items(), strict=False):
        values = rearrange([diagnosis.profile[metric] for diagnosis in group], "trace layer -> trace layer")
        count = torch.isfinite(values).sum(0)
        mean = torch.nanmean(values, 0)
        deviation = torch.sqrt(torch.nanmean((values - mean) ** 2, 0) * count / (count - 1).clamp(min=1))
        margin = 1.96 * deviation / count.clamp(min=1).sqrt()
        shown = f"{name} (n = {int(count.max())})" if name else None
        markers: dict[str, Any] = {"marker": marker, "markersize": 3.5 if len(layers) <= _FEW_LAYERS else 0}
        ax.plot(layers, mean, color=colour, linewidth=1.4, label=shown, **markers)
        ax.fill_between(layers, mean - margin, mean + margin, color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel("layer")
    ax.set_ylabel(known.label)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    if any(groups):
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small", borderaxespad=0.2)
    return ax


@checked(diagnosis=_diagnoses)
def heads(
    diagnosis: Diagnoses,
    *,
    metric: str = "lock_in",
    limits: tuple[float | int, float | int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric as a heat map of layers (rows) and heads (columns), with the mean over traces.

    Args:
        diagnosis: one diagnosis or several.
        metric: the name of a metric, built in or defined with `stepsal.metric`.
        limits: the ends of the colour scale. By default they are the smallest and the largest value.
        ax: the axes to draw into. By default they are those of a new figure.

    Raises:
        InputError: the metric is unknown or the diagnoses lack it, their maps were made differently, or there is no diagnosis.

    >>> import torch
    >>> from stepsal import Step, StepMap, diagnose, plot
    >>> steps = (Step(0, "question", 0, 2, "2+2"), Step(1, "summary", 2, 4, "= 4"))
    >>> stepmap = StepMap(torch.rand(8, 3, 2, 2).tril(), torch.tensor([[3, 0], [2, 1]]), steps, tuple(range(8)), {})
    >>> plot.heads(diagnose(stepmap), metric="summary_self").get_xlabel()
    'head'
    """
    known = _find_metric(metric)
    group = [diagnosis] if isinstance(diagnosis, Diagnosis) else list(diagnosis)
    layers = _common_layers({"": group}, metric)
    values = reduce(
        rearrange([diagnosis.values[metric] for diagnosis in group], "trace layer head -> trace layer head"),
        "trace layer head -> layer head",
        torch.nanmean,
    )
    ax = ax or new_axes((0.28 * values.shape[1] + 1.6, 0.16 * len(layers) + 1.4))
    low, high = limits or (None, None)
    image = ax.imshow(values.numpy(), cmap="cividis", vmin=low, vmax=high, aspect="auto", origin="lower")
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    number_axis(ax.xaxis, range(values.shape[1]))
    number_axis(ax.yaxis, layers)
    ax.spines[:].set_visible(False)
    figure: Any = ax.figure
    figure.colorbar(image, ax=ax, label=known.label, pad=0.03)
    return ax


_comparison = instance(
    Comparison,
    "a Comparison",
    "Make it with `stepsal.compare(correct, wrong)`, or read it with `stepsal.Comparison.load(path)`.",
)


@checked(comparison=_comparison)
def comparison(comparison: Comparison, *, metric: str = "lock_in", ax: Axes | None = None) -> Axes:
    """Draw a comparison as a forest plot of how well the metric tells wrong traces from correct ones in each layer.

    The picture shows the area under the ROC curve with its 95 % interval, for all traces, for the matched pairs, and for what
    the metric would be if influence depended on distance alone. A marker is filled where p < 0.05, corrected over layers.

    Args:
        comparison: the comparison that `compare` returned.
        metric: the name of a metric, built in or defined with `stepsal.metric`.
        ax: the axes to draw into. By default they are those of a new figure.

    Raises:
        InputError: the comparison does not hold the metric by layer.

    >>> import torch
    >>> from stepsal import Step, StepMap, compare, plot
    >>> steps = tuple(Step(i, s, 2 * i, 2 * i + 2, s) for i, s in enumerate(["question", "thinking", "thinking", "summary"]))
    >>> pairs = torch.tensor([[3, 0, 0, 0], [4, 3, 0, 0], [4, 4, 3, 0], [2, 2, 2, 1]])
    >>> maps = [StepMap(torch.rand(8, 3, 4, 4).tril(), pairs, steps, tuple(range(8)), {}) for _ in range(8)]
    >>> plot.comparison(compare(maps[:4], maps[4:], resamples=99)).get_xlabel()
    'AUC: a high value means wrong'
    """
    layers = comparison.meta["layers"]
    by_layer = comparison.table.dropna(subset="layer")["metric"].unique()
    if metric not in by_layer:
        _find_metric(metric)
        raise InputError(
            f"the comparison has no metric {metric!r} by layer, only {', '.join(by_layer)}: it was made before that metric was "
            "defined. Make it again with `compare`."
        )
    ax, few = ax or new_axes((3.4, 0.24 * len(layers) + 1.0)), len(layers) <= _FEW_LAYERS
    ax.axvline(0.5, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    for index, (table_name, name) in enumerate(_CONTROLS):
        table = getattr(comparison, table_name)
        if not len(table):
            continue
        rows = table[table["metric"] == metric].set_index("layer").loc[layers]
        height = torch.arange(len(layers)).numpy() + 0.24 * (1 - index)
        colour = COLOURS[index]
        ax.hlines(height, rows["auc_low"], rows["auc_high"], color=colour, linewidth=1.1 if few else 0.7)
        significant = (rows["p_corrected"] < 0.05).to_numpy()
        ax.scatter(
            rows["auc"],
            height,
            s=14 if few else 5,
            marker=MARKERS[index],
            edgecolors=colour,
            facecolors=[colour if filled else "white" for filled in significant],
            linewidths=1 if few else 0.7,
            zorder=3,
        )
        ax.add_line(legend_entry(colour, MARKERS[index], name))
    number_axis(ax.yaxis, layers)
    ax.set_ylim(-0.6, len(layers) - 0.4)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    ax.set_xlabel("AUC: a high value means wrong")
    ax.set_ylabel("layer")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _find_metric(name: str) -> Metric:
    if name not in METRICS:
        raise InputError(f"unknown metric {name!r}: expected one of {', '.join(METRICS)}")
    return METRICS[name]


def _common_layers(groups: Mapping[str, Sequence[Diagnosis]], metric: str) -> tuple[int, ...]:
    """The layers that all diagnoses have.

    Raises `InputError` where the diagnoses differ in them or lack the metric, and where a group is empty.
    """
    for name, group in groups.items():
        if not group:
            raise InputError(f"there is no diagnosis{f' in group {name!r}' if name else ''} to draw")
    diagnoses = [diagnosis for group in groups.values() for diagnosis in group]
    for diagnosis in diagnoses:
        check_alike(diagnoses[0], diagnosis)
    if metric not in diagnoses[0].values:
        raise InputError(
            f"the diagnoses were made before the metric {metric!r} was defined: make them again with `diagnose`"
        )
    return diagnoses[0].layers
