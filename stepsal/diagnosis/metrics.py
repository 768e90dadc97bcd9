"""Layer-wise statistics of a step map: small named functions, each with its formula.

In: a `StepMap`. Out: one number per layer and head (for the decays: per head); NaN where the trace has no rows to measure.
`d` is the density (influence per token pair), `s` the share (a row's mass, as parts of its sum). Rows whose tokens have no
target (the last token, alone in its step) are left out. Source: method.md section 4, which makes the paper's two failures
measurable: Shallow Lock-in (`lock_in` near 1 in shallow layers) and Deep Decay (`thinking_to_summary` falling in deep ones).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from stepsal.checks import checked
from stepsal.diagnosis.registry import LABELS as LABELS
from stepsal.diagnosis.registry import METRICS as METRICS
from stepsal.diagnosis.registry import metric as metric
from stepsal.models.layer_choice import band
from stepsal.saliency.checks import a_map
from stepsal.saliency.stepmap import StepMap

LAST_STEPS = 3
FAR = 4  # the least distance in steps at which Thought Anchors count that a step is read
_ROUNDING = 1e-5
_SMALLEST_SHARE = 1e-6  # what a share of exactly zero counts as where its logarithm is needed


@metric(label="lock-in", reference=0.5)
@checked(stepmap=a_map)
def lock_in(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Mean over thinking steps `i` with two or more earlier steps of `d_ii / (d_ii + mean_{j<i} d_ij)`.

    1/2: a pair of tokens within the current step weighs as much as a pair that reaches back; towards 1: Shallow Lock-in,
    the current step alone. NaN for a trace without such a step.
    """
    rows = []
    for step in _rows(stepmap, "thinking"):
        if step < 2:
            continue
        density = stepmap.mass[:, :, step, : step + 1] / stepmap.pairs[step, : step + 1]
        own, earlier = density[:, :, step], reduce(density[:, :, :step], "layer head key_step -> layer head", "mean")
        rows.append(own / (own + earlier))
    return _mean(rows, stepmap)


@metric(label="share from earlier steps")
def context_share(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Mean over thinking steps `i` of `sum_{j<i} s_ij`: what all earlier steps, the question included, give to a step."""
    rows = _rows(stepmap, "thinking")
    own = [stepmap.mass[:, :, step, step] / _sum(stepmap.mass[:, :, step]) for step in rows]
    return 1 - _mean(own, stepmap)


@metric(label="share from the question")
def question_share(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Mean over thinking steps `i` of `sum_{j in question} s_ij`."""
    return _share_of(stepmap, "thinking", stepmap.segment("question"))


@metric(label="thinking → summary share")
@checked(stepmap=a_map)
def thinking_to_summary(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Mean over summary steps `i` of `sum_{j in thinking} s_ij`: the share of its influence that comes from the thinking.

    Falling towards 0 in deep layers: Deep Decay. NaN for a trace without summary or without thinking.
    """
    return _share_of(stepmap, "summary", stepmap.segment("thinking"))


@metric(label="summary's share from itself")
def summary_self(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Mean over summary steps `i` of `sum_{j in summary} s_ij`: the share that the summary takes from itself."""
    return _share_of(stepmap, "summary", stepmap.segment("summary"))


@metric(label="last 3 steps' part")
def last_steps(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Mean over summary steps `i` of `sum_{j in last 3 of thinking} s_ij / sum_{j in thinking} s_ij`.

    How much of what the summary takes from the thinking comes from its end. NaN with three thinking steps or fewer: it would
    be 1 whatever the model does.
    """
    thinking = stepmap.segment("thinking")
    if len(thinking) <= LAST_STEPS:
        return _mean([], stepmap)
    mass = stepmap.mass
    rows = [
        _sum(mass[:, :, step][:, :, thinking[-LAST_STEPS:]]) / _sum(mass[:, :, step][:, :, thinking])
        for step in _rows(stepmap, "summary")
    ]
    return _mean(rows, stepmap)


@metric(label="receiver head: kurtosis")
@checked(stepmap=a_map)
def receiver_kurtosis(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Excess kurtosis, over thinking steps `j`, of what `j` gives far later ones: `mean_{i >= j + 4} d_ij`, `i` in thinking.

    High where a head picks out a few steps that many later ones read: a receiver head (Thought Anchors, arXiv 2506.19143, who
    have it of attention: `rule="attention"`). The last steps are read from near by alone, so a head that looks at nothing but
    nearness has a high value, too: see `receiver_kurtosis_beyond_distance`. NaN with fewer than 8 thinking steps.
    """
    received = _received(stepmap, by_distance=False)
    return _kurtosis(received, received.abs().mean(-1))


@metric(label="receiver head: kurtosis beyond distance")
@checked(stepmap=a_map)
def receiver_kurtosis_beyond_distance(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """`receiver_kurtosis` with distance divided out: of `sqrt(n_j) * mean_{i >= j + 4} (r_ij - 1)`.

    `r_ij = d_ij / mean_{i' - j' = i - j} d_i'j'` is a density over the mean of all that are as far apart, and `n_j` is the
    number of readers `i`: a mean over few of them varies more, and would stand out for that alone. NaN also where nothing is
    left: a head whose density depends on the distance in steps alone.
    """
    return _kurtosis(_received(stepmap, by_distance=True), 1.0)


@metric(label="final block intensity (official)")
def final_block_intensity(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """The official code's mean of the summary x summary block, the non-causal half averaged in as zeros."""
    return _block(stepmap, "summary")


@metric(label="analysis block intensity (official)")
def analysis_block_intensity(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """The official code's mean of the thinking x thinking block, the non-causal half averaged in as zeros."""
    return _block(stepmap, "thinking")


@metric(label="final heat anomaly (official)")
def final_heat_anomaly(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """The official code's `final_block_intensity / analysis_block_intensity`. (It averages heads first: `mean_heads()`.)"""
    analysis = analysis_block_intensity(stepmap)
    return final_block_intensity(stepmap) / torch.where(analysis > 0, analysis, torch.nan)


def decay_slope(values: Float[Tensor, "layer *head"], layers: Sequence[int], n_layers: int) -> Float[Tensor, "*head"]:
    """Least-squares slope of `log thinking_to_summary` against the layer, over the deep band; per layer, below 0 = decay.

    A share of zero counts as one part in a million. NaN where the deep band is one layer, or the map does not hold it whole.
    """
    deep = band("deep", n_layers)
    if len(deep) < 2 or not set(deep) <= set(layers):
        return torch.full(values.shape[1:], torch.nan)
    logs = values[[layers.index(layer) for layer in deep]].clamp(min=_SMALLEST_SHARE).log()
    depth = torch.tensor(deep, dtype=logs.dtype, device=logs.device)
    depth = depth - depth.mean()
    return einsum(depth / depth.square().sum(), logs, "layer, layer ... -> ...")


def decay_ratio(values: Float[Tensor, "layer *head"], layers: Sequence[int], n_layers: int) -> Float[Tensor, "*head"]:
    """Mean `thinking_to_summary` of the deep band over that of the middle half; below 1 = decay.

    NaN where there is no middle half (fewer than three layers), where the map does not hold the layers, or over a zero.
    """
    deep, middle = band("deep", n_layers), middle_half(n_layers)
    if not middle or not {*deep, *middle} <= set(layers):
        return torch.full(values.shape[1:], torch.nan)
    top, rest = (values[[layers.index(layer) for layer in part]].mean(0) for part in (deep, middle))
    return top / torch.where(rest > 0, rest, torch.nan)


def middle_half(n_layers: int) -> tuple[int, ...]:
    """The layers between the shallow and the deep band.

    >>> middle_half(8)
    (2, 3, 4, 5)
    """
    outer = {*band("shallow", n_layers), *band("deep", n_layers)}
    return tuple(layer for layer in range(n_layers) if layer not in outer)


def position_only(stepmap: StepMap) -> StepMap:
    """The map as it would be if influence depended on distance alone: a control for every metric.

    Two steps' distance is the mean distance of their token pairs. Within each layer and head, all pairs of steps whose
    distances fall into the same half octave get the same density, the mean over them; mass is conserved in each class. The
    question's own row stays as it is and counts for nothing: it was given, not predicted, and can outweigh all others by far.

    >>> import torch
    >>> from stepsal import Step, StepMap
    >>> steps = tuple(Step(i, "thinking", i, i + 1, "x") for i in range(3))
    >>> pairs = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 0]])
    >>> mass = torch.tensor([[[[2.0, 0, 0], [3, 4, 0], [1, 5, 0]]]])
    >>> position_only(StepMap(mass, pairs, steps, (0,), {})).mass[0, 0]
    tensor([[3., 0., 0.],
            [4., 3., 0.],
            [1., 4., 0.]])
    """
    starts = torch.tensor([step.start for step in stepmap.steps], dtype=torch.float64)
    stops = torch.tensor([step.stop for step in stepmap.steps], dtype=torch.float64)
    middles = (starts + stops - 1) / 2
    distance = rearrange(middles, "query_step -> query_step 1") - middles
    own = (stops - starts - 1) / 3  # the mean of t - k over k <= t < n is (n - 1) / 3
    distance = torch.where(torch.eye(len(own), dtype=torch.bool), own, distance)
    classes = (2 * torch.log2(distance.clamp(min=0) + 1)).round().long()
    question = torch.tensor([step.segment == "question" for step in stepmap.steps])
    classes[question] = -1
    flat = rearrange(stepmap.mass, "layer head query_step key_step -> layer head (query_step key_step)")
    pairs, classes = stepmap.pairs.flatten(), classes.flatten()
    where = torch.zeros_like(classes)  # the column of `densities` for each pair of steps; the first one is zero
    densities = [flat.new_zeros(*flat.shape[:2], 1)]
    for number in set(classes.unique().tolist()) - {-1}:
        chosen = torch.nonzero((classes == number) & (pairs > 0)).flatten()
        if not len(chosen):
            continue
        total = reduce(flat.index_select(2, chosen.to(flat.device)), "layer head pair -> layer head 1", "sum")
        where[chosen] = len(densities)
        densities.append(total / pairs[chosen].sum())
    mass = torch.cat(densities, -1).index_select(2, where.to(flat.device)).mul_(pairs)
    mass = mass.unflatten(-1, stepmap.pairs.shape)
    mass[:, :, question] = stepmap.mass[:, :, question]
    return replace(stepmap, mass=mass, meta=stepmap.meta | {"control": "position only"})


def _received(stepmap: StepMap, *, by_distance: bool) -> Float[Tensor, "layer head key_step"]:
    """What each thinking step gives to those at least `FAR` steps later, as a mean over them; in float64.

    With `by_distance`, what is summed up is `r - 1` of `receiver_kurtosis_beyond_distance`, over the square root of the number.
    """
    thinking = torch.tensor(stepmap.segment("thinking"), dtype=torch.long)
    rows = [place for place, step in enumerate(thinking.tolist()) if place >= FAR and stepmap.pairs[step, step]]
    sums, at_distance = (torch.zeros(*stepmap.mass.shape[:2], len(thinking), dtype=torch.float64) for _ in range(2))
    counts, pairs_at = (torch.zeros(len(thinking), dtype=torch.float64) for _ in range(2))

    def density(place: int) -> Float[Tensor, "layer head key_step"]:
        step, keys = thinking[place], thinking[: place - FAR + 1]
        return (stepmap.mass[:, :, step].cpu().index_select(-1, keys) / stepmap.pairs[step, keys].cpu()).double()

    for place in rows if by_distance else ():
        at_distance[:, :, FAR : place + 1] += density(place).flip(-1)
        pairs_at[FAR : place + 1] += 1
    mean = at_distance / pairs_at.clamp(min=1)
    for place in rows:  # row by row: a long trace's map is large
        values = density(place)
        if by_distance:
            expected = mean[:, :, FAR : place + 1].flip(-1)
            values = torch.where(expected > 0, values / expected - 1, 0.0)
        sums[:, :, : place - FAR + 1] += values
        counts[: place - FAR + 1] += 1
    counted = counts[counts > 0]
    return sums[:, :, counts > 0] / (counted.sqrt() if by_distance else counted)


def _kurtosis(
    values: Float[Tensor, "layer head key_step"], size: Float[Tensor, "layer head"] | float
) -> Float[Tensor, "layer head"]:
    """The excess kurtosis (that of a normal distribution is 0); NaN for fewer than four values.

    NaN also where they differ by no more than rounding, `size` being the size of what was rounded.
    """
    if values.shape[-1] < 4:
        return torch.full(values.shape[:2], torch.nan)
    mean = reduce(values, "layer head key_step -> layer head 1", "mean")
    second, fourth = (reduce((values - mean) ** power, "layer head key_step -> layer head", "mean") for power in (2, 4))
    differ = second.sqrt() > _ROUNDING * size
    return torch.where(differ, fourth / second**2 - 3, torch.nan).float()


def _rows(stepmap: StepMap, segment: str) -> list[int]:
    """The steps of a segment that have a query with a target."""
    return [step for step in stepmap.segment(segment) if stepmap.pairs[step, step]]


def _share_of(stepmap: StepMap, segment: str, keys: list[int]) -> Float[Tensor, "layer head"]:
    """Mean over the steps of a segment of the share that they take from the steps `keys`."""
    mass, rows = stepmap.mass, _rows(stepmap, segment) if keys else []  # row by row: a long trace's map is large
    return _mean([_sum(mass[:, :, step][:, :, keys]) / _sum(mass[:, :, step]) for step in rows], stepmap)


def _sum(row: Float[Tensor, "layer head key_step"]) -> Float[Tensor, "layer head"]:
    return reduce(row, "layer head key_step -> layer head", "sum")


def _block(stepmap: StepMap, segment: str) -> Float[Tensor, "layer head"]:
    steps = stepmap.segment(segment)
    sizes = [stepmap.steps[step].stop - stepmap.steps[step].start for step in steps]
    weights = 1 / (len(steps) * torch.tensor(sizes).to(stepmap.mass))
    rows = [
        einsum(stepmap.mass[:, :, step][:, :, steps], weights, "layer head key_step, key_step -> layer head") / size
        for step, size in zip(steps, sizes, strict=True)
    ]
    return _mean(rows, stepmap)


def _mean(rows: list[Float[Tensor, "layer head"]], stepmap: StepMap) -> Float[Tensor, "layer head"]:
    if not rows:
        return torch.full(stepmap.mass.shape[:2], torch.nan)
    return reduce(rearrange(rows, "row layer head -> row layer head"), "row layer head -> layer head", torch.nanmean)
