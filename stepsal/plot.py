"""Pictures: data and an `Axes` in, the `Axes` out. No files, no global style, nothing computed that is not shown."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepsal.errors import InputError
from stepsal.stepmap import StepMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
else:  # imported where used: it takes a while
    Axes = LogNorm = Any

_SEGMENT_LABELS = {"question": "Q", "thinking": "thinking", "summary": "summary"}
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito: safe for colour blindness
_DECADES = 3.0


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


def log_scale(*maps: Float[Tensor, "query_step key_step"]) -> LogNorm:
    """One logarithmic colour scale for several maps: up to their largest value, three decades down at most."""
    from matplotlib.colors import LogNorm

    values = torch.cat([m[torch.isfinite(m) & (m > 0)].flatten() for m in maps])
    if not len(values):
        raise InputError("there is no positive value to colour: the step map is empty or all zero")
    top = float(values.max())
    return LogNorm(max(float(values.min()), top / 10**_DECADES) * 0.999, top, clip=True)


def step_map(
    stepmap: StepMap,
    *,
    layer: int | str | Sequence[int] = "all",
    head: int | None = None,
    measure: str = "density",
    norm: LogNorm | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a step map: which step (row) reads from which (column), on a logarithmic colour scale.

    Args:
        stepmap: the map.
        layer: a model layer, several, or a band (`"shallow"`, `"deep"`, `"all"`); several are averaged.
        head: one head, or `None` for the mean of all.
        measure: `"density"` (influence per token pair) or `"share"` (of the row's influence).
        norm: a colour scale to share between pictures, from `log_scale`.
        colorbar: draw the scale beside the map.
        ax: where to draw; by default a new figure.

    Raises:
        InputError: a layer the map does not hold, an unknown measure, a map without any positive value or with negative
            ones (rule `signed`).

    >>> from stepsal import Trace, load_model, plot, step_saliency
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> plot.step_map(step_saliency(model, trace), layer="shallow").get_ylabel()
    'reading step'
    """
    values = map_values(stepmap, layer, head, measure)
    ax = ax or _new_axes((4.2, 3.6))
    n = len(stepmap.steps)
    causal = torch.tril(torch.ones(n, n, dtype=torch.bool)) & torch.isfinite(values)
    if (values[causal] < 0).any():
        raise InputError("the map holds negative influence (rule 'signed'), which a logarithmic scale cannot show")
    image = ax.imshow(
        values.masked_fill(~causal, torch.nan).numpy(),
        norm=norm or log_scale(values[causal][None]),
        cmap="viridis",
        interpolation="nearest",
        aspect="equal",
    )
    _mark_segments(ax, stepmap)
    _number_steps(ax, n)
    ax.set_xlabel("step read from")
    ax.set_ylabel("reading step")
    ax.spines[["top", "right"]].set_visible(False)
    if colorbar:
        label = "influence per token pair" if measure == "density" else "share of the row's influence"
        figure: Any = ax.figure
        figure.colorbar(image, ax=ax, label=label, fraction=0.046, pad=0.03, extend="min")
    return ax


def map_values(
    stepmap: StepMap, layer: int | str | Sequence[int], head: int | None, measure: str
) -> Float[Tensor, "query_step key_step"]:
    """The numbers that `step_map` draws: the chosen measure, averaged over the chosen layers and heads."""
    from stepsal.layers import band

    if measure not in ("density", "share"):
        raise InputError(f"unknown measure {measure!r}: expected 'density' or 'share'")
    if isinstance(layer, str):
        model_layers = stepmap.meta.get("model_layers", max(stepmap.layers) + 1)  # a map may hold some of them only
        wanted = list(stepmap.layers) if layer == "all" else list(band(layer, model_layers))
    else:
        wanted = [layer] if isinstance(layer, int) else list(layer)
    if not wanted:
        raise InputError("no layer is named: give an index, several, or a band")
    if missing := [one for one in wanted if one not in stepmap.layers]:
        raise InputError(f"layer {missing[0]} is not in this map, which holds layers {list(stepmap.layers)}")
    positions = [stepmap.layers.index(one) for one in wanted]
    if head is not None and not 0 <= head < stepmap.mass.shape[1]:
        raise InputError(f"head {head} is not in this map, which holds heads 0 to {stepmap.mass.shape[1] - 1}")
    values = stepmap.density() if measure == "density" else stepmap.share()
    chosen = values[positions]
    return (chosen if head is None else chosen[:, head : head + 1]).mean((0, 1))


def _mark_segments(ax: Axes, stepmap: StepMap) -> None:
    """Lines between segments; above the map a bar and a name for each.

    The first name starts and the last one ends with the map, so that they fit however narrow their segments are.
    """
    steps, n = stepmap.steps, len(stepmap.steps)
    bounds = [step.index for step in steps[1:] if step.segment != steps[step.index - 1].segment]
    width = max(0.4, min(1.2, 24 / n))  # a segment of one step stays visible beside the line
    for bound in bounds:
        ax.plot([-0.5, bound - 0.5], [bound - 0.5, bound - 0.5], color="white", linewidth=width)
        ax.plot([bound - 0.5, bound - 0.5], [bound - 0.5, n - 0.5], color="white", linewidth=width)
    ends = [0, *bounds, n]
    places: list[tuple[float, Literal["left", "center", "right"]]] = []
    for index, (first, last) in enumerate(pairwise(ends)):
        ax.plot(
            [first - 0.5, last - 0.5],
            [1.02, 1.02],
            transform=ax.get_xaxis_transform(),  # x in steps, y in parts of the height
            color="0.6" if index % 2 else "black",
            linewidth=2,
            solid_capstyle="butt",
            clip_on=False,
        )
        middle = min(max((first + last) / 2, 0.25 * n), 0.55 * n) - 0.5
        places.append((-0.5, "left") if first == 0 else (n - 0.5, "right") if last == n else (middle, "center"))
    names = ax.secondary_xaxis("top")  # an axis, so that a title knows to stay above it
    names.set_xticks([x for x, _ in places], [_SEGMENT_LABELS[steps[first].segment] for first in ends[:-1]])
    names.tick_params(length=0, pad=5)
    names.spines[:].set_visible(False)
    for text, (_, alignment) in zip(names.get_xticklabels(), places, strict=True):
        text.set_horizontalalignment(alignment)


def _number_steps(ax: Axes, n: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in (ax.xaxis, ax.yaxis):
        if n <= 10:
            axis.set_ticks(range(n))
        else:
            axis.set_major_locator(MaxNLocator(8, integer=True))


def depth_profile(
    metrics: Mapping[str, Float[Tensor, "trace layer"]] | Float[Tensor, "trace layer"],
    *,
    label: str = "",
    reference: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a metric against depth: the mean over traces, with a 95 % interval (normal, over traces) as a band.

    Args:
        metrics: one row per trace and one column per layer (NaN where a trace has no value), or several such groups by
            name (`{"correct": ..., "wrong": ...}`).
        label: the metric's name, for the vertical axis.
        reference: a value worth a dashed line (1/2 for lock-in).
        ax: where to draw; by default a new figure.

    Raises:
        InputError: more groups than can be told apart.

    >>> import torch
    >>> from stepsal import plot
    >>> plot.depth_profile({"correct": torch.rand(9, 8)}, label="lock-in").get_ylabel()
    'lock-in'
    """
    from matplotlib.ticker import MaxNLocator

    groups = metrics if isinstance(metrics, Mapping) else {"": metrics}
    if len(groups) > len(_COLOURS):
        raise InputError(f"{len(groups)} groups; there are colours for {len(_COLOURS)}. Draw them in several pictures.")
    ax = ax or _new_axes((4.2, 2.8))
    if reference is not None:
        ax.axhline(reference, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    for colour, marker, (name, values) in zip(_COLOURS, "osD^vP", groups.items(), strict=False):
        count = torch.isfinite(values).sum(0)
        mean = torch.nanmean(values, 0)
        deviation = torch.sqrt(torch.nanmean((values - mean) ** 2, 0) * count / (count - 1).clamp(min=1))
        margin = 1.96 * deviation / count.clamp(min=1).sqrt()
        layers = torch.arange(values.shape[1])
        shown = f"{name} (n = {int(count.max())})" if name else None
        ax.plot(layers, mean, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=shown)
        ax.fill_between(layers, mean - margin, mean + margin, color=colour, alpha=0.2, linewidth=0)
    ax.set_xlabel("layer")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    if any(groups):
        ax.legend(frameon=False, fontsize="small")
    return ax


def _new_axes(size: tuple[float, float]) -> Axes:
    """Axes of a new figure that pyplot does not keep (nothing to close, no global state)."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()
