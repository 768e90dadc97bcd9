"""How probable the answer is without several steps at once.

In: a model, a trace, and sets of its steps. Out: for each set, the summed log-probability of the answer's tokens, in nats, with
these steps out of the sight of later steps. It is measured as a knockout is (`stepsal.causality.runs`).

    answer[subset] = sum over the answer's tokens of log p(token | ..., no later step sees the subset)
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepsal.causality.removal import Mode
from stepsal.causality.runs import run_without
from stepsal.checks import checked
from stepsal.errors import InputError
from stepsal.models import host_of
from stepsal.models.checks import a_model
from stepsal.models.host import Model
from stepsal.models.support import check_supported
from stepsal.saliency.influence import check_answer, check_trace
from stepsal.traces.checks import a_trace
from stepsal.traces.trace import Step, Trace

LEAST = 4
"""Of fewer steps, random halves tell nothing."""


@checked(model=a_model, trace=a_trace)
def answer_without(
    model: Model,
    trace: Trace,
    removed: Bool[Tensor, "subset key_step"],
    *,
    answer: tuple[int, int] | None = None,
    mode: Mode = "total",
    keep_first: bool = True,
    progress: bool = False,
) -> Float[Tensor, " subset"]:
    """The log-probability of the answer for each set of steps that no later step sees.

    Args:
        removed: for each set, which steps it removes. A set without any step gives the untouched run.
        answer: the token positions `[start, stop)` of the answer. None takes all of the summary.
        mode, keep_first, progress: as in `stepsal.step_knockout`.

    Raises as `stepsal.step_knockout` does, and `InputError` where a set does not fit the trace or there is no answer.

    >>> from stepsal import Trace, load_model
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> untouched, without = answer_without(model, trace, torch.tensor([[False, False, False], [False, True, False]]))
    >>> bool(without != untouched)
    True
    """
    check_answer(len(trace.tokens), answer)
    span, n = answer_span(trace.steps, answer), len(trace.steps)
    if span is None:
        raise InputError(
            f"trace {trace.id!r} has no summary: give the token positions of its answer, answer=(start, stop)"
        )
    if removed.dtype != torch.bool or removed.ndim != 2 or removed.shape[1] != n or removed[:, -1].any():
        raise InputError(
            f"removed is {removed.dtype} of shape {tuple(removed.shape)}: expected true or false for each set and each of the "
            f"{n} steps (subset, key_step), and false for the last step, which no later step could see"
        )
    check_trace(model, trace)
    check_supported(model)
    # Steps at or after the answer's end change nothing of it. The first row is the untouched run.
    rows = torch.cat([torch.zeros(1, n, dtype=torch.bool), removed.clone()])
    rows[:, int(trace.step_of[span[1] - 1]) :] = False
    sums = _AnswerSums(trace, span, len(rows))
    run_without(host_of(model), trace, mode, rows, keep_first, span[1] - 1, sums.add, progress)
    return (sums.untouched - sums.lost[1:]).float()


class _AnswerSums:
    """Sums over the answer's tokens, in float64: the untouched log-probability, and what each row loses of it."""

    def __init__(self, trace: Trace, answer: tuple[int, int], rows: int) -> None:
        self.tokens, self.answer = trace.tokens, answer
        self.untouched, self.lost = torch.zeros((), dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)

    def add(self, rows: Sequence[int], start: int, logits: Float[Tensor, "batch pos vocabulary"]) -> None:
        """Add a chunk; a position before a row's first removed step is in no chunk of it, and loses nothing."""
        first, last = max(self.answer[0], start + 1), min(self.answer[1], start + 1 + logits.shape[1])
        if first >= last:
            return
        targets = self.tokens[first:last].to(logits.device)
        inside = logits[:, first - 1 - start : last - 1 - start]
        wide = inside.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        of_targets = wide[:, torch.arange(last - first, device=wide.device), targets].double().sum(1).cpu()
        self.lost[list(rows)] += of_targets[0] - of_targets[1:]
        if 0 in rows:
            self.untouched += of_targets[0]


def answer_span(steps: Sequence[Step], answer: tuple[int, int] | None) -> tuple[int, int] | None:
    """The token positions of the answer: those given, or else the summary's; None where there is none."""
    summary = [step for step in steps if step.segment == "summary"]
    return answer or ((summary[0].start, summary[-1].stop) if summary else None)


def removable(steps: Sequence[Step], answer: Float[Tensor, " key_step"]) -> list[int]:
    """The thinking steps that were knocked out before the answer; `answer` is what that costs, NaN where it was not done."""
    return [step.index for step in steps if step.segment == "thinking" and not answer[step.index].isnan()]


def random_halves(
    steps: Sequence[Step], answer: Float[Tensor, " key_step"], count: int, seed: int
) -> Bool[Tensor, "subset key_step"] | None:
    """The empty set, and random halves of the removable steps (rounded down); None where there is nothing to draw.

    >>> steps = [Step(i, "thinking", i, i + 1, "") for i in range(5)]
    >>> random_halves(steps, torch.tensor([1.0, 1, 1, 1, torch.nan]), 3, 0).sum(1).tolist()
    [0, 2, 2, 2]
    """
    choice = removable(steps, answer)
    if count == 0 or len(choice) < LEAST:
        return None
    rng, removed = np.random.default_rng(seed), torch.zeros(count + 1, len(steps), dtype=torch.bool)
    for row in removed[1:]:
        row[rng.permutation(choice)[: len(choice) // 2].tolist()] = True
    return removed
