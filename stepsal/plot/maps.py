"""Pictures of step maps and of token maps."""

import math
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from stepsal.checks import checked, instance, several
from stepsal.errors import InputError
from stepsal.plot.canvas import new_axes, number_axis, style
from stepsal.saliency.checks import a_map
from stepsal.saliency.stepmap import StepMap
from stepsal.traces.trace import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
else:  # matplotlib takes a while to import, so it is imported where it is used
    Axes = LogNorm = Any

_SEGMENT_LABELS = {"question": "Q", "thinking": "thinking", "summary": "summary"}
_NARROW = 1.6  # inches; on narrower axes the segments are named by their first letter
_DECADES = 3.0  # the most decades that a colour scale covers

MEASURES = {
    "share": "share of the row's influence",
    "density": "influence per token pair",
    "mass": "influence, summed over token pairs",
}
"""What a step map can show, with what its colours are called."""


_layer = instance(
    (int, str, Sequence), "an index, several, or 'shallow', 'deep' or 'all'", "The map's own are stepmap.layers."
)


def _tensors(name: str, value: tuple[Any, ...]) -> None:
    several(Tensor, "maps of numbers", "Give what `stepsal.plot.map_values` returns.")(name, value)


@checked(maps=_tensors)
def log_scale(*maps: Float[Tensor, "_ _"]) -> LogNorm:
    """One logarithmic colour scale for several maps. It ends at their largest value and covers at most three decades."""
    from matplotlib.colors import LogNorm

    values = torch.cat([m[torch.isfinite(m) & (m > 0)].flatten() for m in maps])
    if not len(values):
        raise InputError("there is no positive value to colour: the map is empty, or all of its influence is zero")
    top = float(values.max())
    return LogNorm(max(float(values.min()), top / 10**_DECADES) * 0.999, top, clip=True)


def colour_bar(figure: Any, image: Any, shown: Sequence[Float[Tensor, "_ _"]], **options: Any) -> None:
    """The colour bar of maps on a logarithmic scale. An end is pointed where values are beyond it, which have its colour.

    Powers of ten are labelled or, where fewer than two are in view, 1, 2 and 5 times these.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    norm, values = image.norm, torch.cat([each[torch.isfinite(each)].flatten() for each in shown])
    low, high = bool((values < norm.vmin).any()), bool((values > norm.vmax).any())
    ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    bar = figure.colorbar(image, extend=ends[low, high], **options)
    powers = range(math.floor(math.log10(norm.vmin)), math.ceil(math.log10(norm.vmax)) + 1)

    def in_view(*factors: int) -> list[float]:
        return [
            factor * 10.0**power
            for power in powers
            for factor in factors
            if norm.vmin <= factor * 10.0**power <= norm.vmax * (1 + 1e-6)
        ]

    axis = bar.long_axis
    axis.set_major_locator(FixedLocator(ticks if len(ticks := in_view(1)) > 1 else in_view(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axis.set_minor_locator(FixedLocator(in_view(*range(2, 10))))
    axis.set_minor_formatter(NullFormatter())


def _number(value: float) -> str:
    """A label of a colour bar.

    >>> _number(0.2), _number(1e-5)
    ('0.2', '$10^{-5}$')
    """
    power = math.floor(math.log10(value) + 1e-9)
    if -3 <= power <= 2:
        return f"{value:g}"
    factor = f"{value / 10.0**power:g}"
    return f"$10^{{{power}}}$" if factor == "1" else rf"${factor} \times 10^{{{power}}}$"


@checked(values=instance(Tensor, "a map of numbers", "Give what `stepsal.plot.map_values` returns."))
def answer_rows(values: Float[Tensor, "query key"], segments: Sequence[str]) -> Float[Tensor, "answer_query key"]:
    """The rows of the thinking and the summary, by which the colours are scaled.

    The question was given, not predicted. Its rows can be hundreds of times larger and say nothing about the reasoning, so they
    are left out, unless the other rows hold nothing positive.
    """
    chosen = values[[segment != "question" for segment in segments]]
    return chosen if (chosen > 0).any() else values


@checked(stepmap=a_map, layer=_layer)
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
    """Draw a step map: which step (row) reads from which step (column), on a logarithmic colour scale.

    The scale ends at the largest value in the rows of the thinking and the summary. The question's own row may exceed it.

    Args:
        stepmap: the step map.
        layer: a model layer, several layers, or a band (`"shallow"`, `"deep"`, `"all"`). Several layers are averaged.
        head: one head, or `None` for the mean over all heads.
        measure: `"density"` (influence per token pair), `"share"` (share of the row's influence) or `"mass"` (influence, summed
            over token pairs).
        norm: a colour scale to share between pictures, from `log_scale`.
        colorbar: whether to draw the colour scale beside the map.
        ax: the axes to draw into. By default they are those of a new figure.

    Raises:
        InputError: the map does not hold a layer or the head, the measure is unknown, or the map has negative values (rule
            `signed`) or no positive value.

    >>> from stepsal import Trace, load_model, plot, step_saliency
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> plot.step_map(step_saliency(model, trace), layer="shallow").get_ylabel()
    'reading step'
    """
    values = map_values(stepmap, layer, head, measure)
    ax = ax or new_axes((4.2, 3.6))
    n, segments = len(stepmap.steps), [step.segment for step in stepmap.steps]
    causal = torch.tril(torch.ones(n, n, dtype=torch.bool)) & torch.isfinite(values)
    if (values[causal] < 0).any():
        raise InputError("the map holds negative influence (rule 'signed'), which a logarithmic scale cannot show")
    shown = values.masked_fill(~causal, torch.nan)
    norm = norm or log_scale(answer_rows(shown, segments))
    image = ax.imshow(
        shown.numpy(),
        norm=norm,
        cmap="viridis",
        interpolation="nearest",
        aspect="equal",
    )
    _mark_segments(ax, segments)
    for axis in (ax.xaxis, ax.yaxis):
        number_axis(axis, range(n))
    ax.set_xlabel("step read from")
    ax.set_ylabel("reading step")
    ax.spines[["top", "right"]].set_visible(False)
    if colorbar:
        figure: Any = ax.figure
        colour_bar(figure, image, [shown], ax=ax, label=MEASURES[measure], fraction=0.046, pad=0.03)
    return ax


def step_map_png(stepmap: StepMap) -> bytes | None:
    """The picture of a step map that a notebook shows, the mean over layers and heads, as the bytes of a PNG file.

    None where a logarithmic scale cannot show the map: it has negative values, or no positive value.
    """
    if not (stepmap.mass > 0).any() or (stepmap.mass < 0).any():
        return None
    with style():
        figure: Any = step_map(stepmap).figure
        file = BytesIO()
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


_influence = instance(
    Tensor,
    "a token map, query x key",
    "Take a layer and a head of what `stepsal.token_influence` returns: influence[layer, head].",
)
_steps = several(Step, "the steps of a trace", "Give trace.steps.")


@checked(influence=_influence, steps=_steps)
def token_map(
    influence: Float[Tensor, "query key"],
    steps: Sequence[Step],
    *,
    norm: LogNorm | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a token-to-token map, which a step map pools, with a line at the end of each step.

    Args:
        influence: the influence of one layer and head, or a mean of several, from `token_influence`. The last token, which has
            no target, may be left out.
        steps: the steps of the trace.
        norm, colorbar, ax: as for `step_map`.

    Raises:
        InputError: the map has another number of tokens than the steps, or no positive value.

    >>> import torch
    >>> from stepsal import Step, plot
    >>> steps = [Step(0, "question", 0, 2, "2+2"), Step(1, "summary", 2, 4, "= 4")]
    >>> plot.token_map(torch.rand(4, 4).tril(), steps).get_xlabel()
    'token read from'
    """
    n = len(influence)
    if influence.shape != (n, n) or not steps or n not in (steps[-1].stop, steps[-1].stop - 1):
        raise InputError(
            f"the map is {tuple(influence.shape)} but the steps have {steps[-1].stop if steps else 0} tokens: give the "
            "influence of the trace that the steps are from, for one layer and head or as a mean of several"
        )
    causal = torch.tril(torch.ones(n, n, dtype=torch.bool))
    segments = [step.segment for step in steps for _ in range(step.start, min(step.stop, n))]
    shown = influence.masked_fill(~causal, torch.nan)
    norm = norm or log_scale(answer_rows(shown, segments))
    ax = ax or new_axes((4.2, 3.6))
    image = ax.imshow(
        shown.numpy(),
        norm=norm,
        cmap="viridis",
        interpolation="nearest",
        aspect="equal",
    )
    for step in steps[:-1]:
        end = step.stop - 0.5
        ax.plot([-0.5, end, end], [end, end, n - 0.5], color="white", linewidth=min(0.3, 6 / len(steps)), alpha=0.7)
    _mark_segments(ax, segments)
    for axis in (ax.xaxis, ax.yaxis):
        number_axis(axis, range(n))
    ax.set_xlabel("token read from")
    ax.set_ylabel("reading token")
    ax.spines[["top", "right"]].set_visible(False)
    if colorbar:
        figure: Any = ax.figure
        colour_bar(figure, image, [shown], ax=ax, label="influence", fraction=0.046, pad=0.03)
    return ax


@checked(stepmap=a_map, layer=_layer)
def map_values(
    stepmap: StepMap, layer: int | str | Sequence[int], head: int | None, measure: str
) -> Float[Tensor, "query_step key_step"]:
    """The values that `step_map` draws: the chosen measure, averaged over the chosen layers and heads.

    Of a band, those layers are meant that the map holds: layers without attention are in none.
    """
    from stepsal.models.layer_choice import band

    if measure not in MEASURES:
        raise InputError(f"unknown measure {measure!r}: expected one of {', '.join(MEASURES)}")
    if isinstance(layer, str):
        model_layers = stepmap.meta.get("model_layers", max(stepmap.layers) + 1)  # a map may hold only some layers
        of_band = list(stepmap.layers) if layer == "all" else list(band(layer, model_layers))
        wanted = [index for index in of_band if index in stepmap.layers] or of_band
    else:
        wanted = [layer] if isinstance(layer, int) else list(layer)
    if not wanted:
        raise InputError("no layer is named: give an index, several indices, or a band such as 'shallow'")
    if missing := [index for index in wanted if index not in stepmap.layers]:
        raise InputError(f"layer {missing[0]} is not in this map, which holds layers {list(stepmap.layers)}")
    positions = [stepmap.layers.index(index) for index in wanted]
    if head is not None and not 0 <= head < stepmap.mass.shape[1]:
        raise InputError(f"head {head} is not in this map, which holds heads 0 to {stepmap.mass.shape[1] - 1}")
    if measure == "mass":
        values = stepmap.mass.masked_fill(stepmap.pairs == 0, torch.nan)
    else:
        values = stepmap.density() if measure == "density" else stepmap.share()
    chosen = values[positions]
    return (chosen if head is None else chosen[:, head : head + 1]).mean((0, 1))


def _mark_segments(ax: Axes, segments: Sequence[str]) -> None:
    """Draw lines between the segments, and a bar and a name for each segment above the map.

    The first name starts where the map starts and the last name ends where the map ends, so that both fit however narrow their
    segments are.
    """
    n = len(segments)
    figure: Any = ax.figure
    labels = (
        {name: label[0].upper() for name, label in _SEGMENT_LABELS.items()}
        if ax.bbox.width / figure.dpi < _NARROW
        else _SEGMENT_LABELS
    )
    bounds = [index for index in range(1, n) if segments[index] != segments[index - 1]]
    width = max(0.4, min(1.2, 24 / n))  # narrow enough that a segment of one step stays visible beside the line
    for bound in bounds:
        ax.plot([-0.5, bound - 0.5], [bound - 0.5, bound - 0.5], color="white", linewidth=width)
        ax.plot([bound - 0.5, bound - 0.5], [bound - 0.5, n - 0.5], color="white", linewidth=width)
    ends = [0, *bounds, n]
    places: list[tuple[float, Literal["left", "center", "right"]]] = []
    for index, (first, last) in enumerate(pairwise(ends)):
        ax.plot(
            [first - 0.5, last - 0.5],
            [1.02, 1.02],
            transform=ax.get_xaxis_transform(),  # x is in steps, y is a fraction of the height
            color="0.6" if index % 2 else "black",
            linewidth=2,
            solid_capstyle="butt",
            clip_on=False,
        )
        middle = min(max((first + last) / 2, 0.25 * n), 0.55 * n) - 0.5
        places.append((-0.5, "left") if first == 0 else (n - 0.5, "right") if last == n else (middle, "center"))
    names = ax.secondary_xaxis("top")  # the names belong to an axis, so that a title stays above them
    names.set_xticks([x for x, _ in places], [labels[segments[first]] for first in ends[:-1]])
    names.tick_params(length=0, pad=5)
    names.spines[:].set_visible(False)
    for text, (_, alignment) in zip(names.get_xticklabels(), places, strict=True):
        text.set_horizontalalignment(alignment)
