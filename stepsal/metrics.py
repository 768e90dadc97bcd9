"""Layer-wise statistics of a step map: small named functions, each with its formula.

In: a `StepMap`. Out: one number per layer and head; NaN where the trace has no rows to measure. `d` is the density
(influence per token pair), `s` the share (a row's mass, as parts of its sum). Source: method.md section 4, which makes the
paper's two failures measurable: Shallow Lock-in (`lock_in` near 1 in shallow layers) and Deep Decay (`thinking_to_summary`
falling in deep layers).
"""

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from stepsal.stepmap import StepMap


def lock_in(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Mean over thinking steps `i` with two or more earlier steps of `d_ii / (d_ii + mean_{j<i} d_ij)`.

    1/2: a pair of tokens within the current step weighs as much as a pair that reaches back; towards 1: Shallow Lock-in,
    the current step alone. NaN for a trace without such a step.
    """
    density = stepmap.density()
    rows = []
    for step in stepmap.segment("thinking"):
        if step < 2 or not stepmap.pairs[step, step]:
            continue
        own = density[:, :, step, step]
        earlier = reduce(density[:, :, step, :step], "layer head key_step -> layer head", "mean")
        rows.append(own / (own + earlier))
    return _mean(rows, stepmap)


def thinking_to_summary(stepmap: StepMap) -> Float[Tensor, "layer head"]:
    """Mean over summary steps `i` of `sum_{j in thinking} s_ij`: the share of its influence that comes from the thinking.

    Falling towards 0 in deep layers: Deep Decay. NaN for a trace without summary or without thinking.
    """
    thinking = stepmap.segment("thinking")
    if not thinking:
        return _mean([], stepmap)
    share = stepmap.share()
    rows = [
        reduce(share[:, :, step][:, :, thinking], "layer head key_step -> layer head", "sum")
        for step in stepmap.segment("summary")
        if stepmap.pairs[step, step]
    ]
    return _mean(rows, stepmap)


METRICS = {"lock_in": lock_in, "thinking_to_summary": thinking_to_summary}


def _mean(rows: list[Float[Tensor, "layer head"]], stepmap: StepMap) -> Float[Tensor, "layer head"]:
    if not rows:
        return torch.full(stepmap.mass.shape[:2], torch.nan)
    return reduce(rearrange(rows, "row layer head -> row layer head"), "row layer head -> layer head", torch.nanmean)
