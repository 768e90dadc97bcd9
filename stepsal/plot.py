"""Pictures: data and an `Axes` in, the `Axes` out. No files, no global style, nothing computed that is not shown."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

SEGMENT_LABELS = {"question": "Q", "thinking": "thinking", "summary": "summary"}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: safe for colour blindness
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
        InputError: a layer the map does not hold, an unknown measure, or a map without any positive value.

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
    image = ax.imshow(
        values.masked_fill(~causal, torch.nan).numpy(),
        norm=norm or log_scale(values[causal]),
        cmap="viridis",
        interpolation="nearest",
        aspect="equal",
    )
    image.cmap.set_bad(alpha=0)
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
        positions = band(layer, len(stepmap.layers))
    else:
        wanted = [layer] if isinstance(layer, int) else list(layer)
        if missing := [one for one in wanted if one not in stepmap.layers]:
            raise InputError(f"layer {missing[0]} is not in this map, which holds layers {list(stepmap.layers)}")
        positions = tuple(stepmap.layers.index(one) for one in wanted)
    if head is not None and not 0 <= head < stepmap.mass.shape[1]:
        raise InputError(f"head {head} is not in this map, which holds heads 0 to {stepmap.mass.shape[1] - 1}")
    values = stepmap.density() if measure == "density" else stepmap.share()
    chosen = values[list(positions)]
    return (chosen if head is None else chosen[:, head : head + 1]).mean((0, 1))


def _mark_segments(ax: Axes, stepmap: StepMap) -> None:
    """A line between segments, their names along the top, and a bar at the left."""
    bounds = [s.index for s in stepmap.steps if s.index and s.segment != stepmap.steps[s.index - 1].segment]
    n = len(stepmap.steps)
    for bound in bounds:
        ax.plot([-0.5, bound - 0.5], [bound - 0.5, bound - 0.5], color="black", linewidth=0.8)
        ax.plot([bound - 0.5, bound - 0.5], [bound - 0.5, n - 0.5], color="black", linewidth=0.8)
    ends = [0, *bounds, n]
    for first, last in zip(ends, ends[1:], strict=False):
        # Above the diagonal the map is empty: the name stands there, at the segment's own corner.
        label = SEGMENT_LABELS[stepmap.steps[first].segment]
        ax.annotate(
            label,
            ((first + last) / 2 - 0.5, (first + last) / 2 - 0.5),
            xytext=(9, 9),
            textcoords="offset points",
            ha="left",
            va="bottom",
            fontsize="small",
            fontweight="bold",
            annotation_clip=False,
        )


def _number_steps(ax: Axes, n: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in (ax.xaxis, ax.yaxis):
        if n <= 16:
            axis.set_ticks(range(n))
        else:
            axis.set_major_locator(MaxNLocator(8, integer=True))
    ax.tick_params(labelsize="small")


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

    >>> import torch
    >>> from stepsal import plot
    >>> plot.depth_profile({"correct": torch.rand(9, 8)}, label="lock-in").get_ylabel()
    'lock-in'
    """
    groups = metrics if isinstance(metrics, Mapping) else {"": metrics}
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
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    if any(groups):
        ax.legend(frameon=False, fontsize="small")
    return ax


def _new_axes(size: tuple[float, float]) -> Axes:
    """Axes of a new figure that pyplot does not keep (nothing to close, no global state)."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()
