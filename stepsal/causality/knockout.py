"""What each later step loses when a step is knocked out of its sight: the causal counterpart of a step map.

In: a model and a `Trace`. Out: a `Knockout`. For a source step `j`, no token of a later step may attend to `j`, in any layer or
head (`stepsal.causality.removal`). For every later query `t` with a target, in nats, p' being the prediction without `j`:

    kl[t, j]   = KL(p_t || p'_t)                  over the whole vocabulary
    loss[t, j] = -log p'_t(x[t+1]) + log p_t(x[t+1])
    answer[j]  = sum of loss over the tokens of the answer

A step's entry is the mean over its queries. Two modes:

- `total`: keys and values of later steps change with what they can no longer read, so indirect paths count.
- `direct`: keys and values of all other positions are those of the untouched run, so only what a query itself takes from `j`
  counts. It is the finite counterpart of the per-token objective of saliency.

`stepsal.causality.runs` says how it runs. With `subsets`, the log-probability of the answer is also measured with many steps
removed together (`stepsal.causality.subsets`).

Where a recurrence stands beside attention, it still carries what a step said: attention alone is cut.

Source: causal.md section 1; attention suppression of Thought Anchors (arXiv 2506.19143).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepsal.causality.knockoutfile import read_knockout, write_knockout
from stepsal.causality.removal import Mode
from stepsal.causality.runs import run_without
from stepsal.causality.subsets import answer_span, answer_without, random_halves
from stepsal.checks import checked, whole
from stepsal.checks import path as check_path
from stepsal.errors import InputError
from stepsal.markdown import markdown_table, significant
from stepsal.models import host_of
from stepsal.models.checks import a_model
from stepsal.models.host import Model
from stepsal.models.support import check_supported
from stepsal.saliency.influence import check_answer, check_trace, record_of_run
from stepsal.traces.checks import a_trace
from stepsal.traces.trace import Step, Trace

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any


@dataclass(frozen=True, eq=False)
class Knockout:
    """What later steps lose without a step. All values are in nats, in float32.

    Attributes:
        kl: how far the predictions of a step move without an earlier one, `query_step key_step`: the mean over the reading
            step's tokens of KL(untouched || knocked out). NaN where nothing was computed: on and above the diagonal, for a
            source that was not asked for, and for a step without a next token to predict.
        loss: by how much the loss of the reading step's actual next tokens rises (it may fall), likewise.
        answer: by how much the summed loss of the answer's tokens rises, for each source; NaN for a source at or after the
            answer.
        steps: the trace's steps, in order.
        meta: how it was made: model, mode, sources, the answer's token positions, versions, seconds, peak memory.
        removed: sets of steps that were removed together, `subset key_step`. The first removes nothing; the next
            `meta["subsets"]` ones are random halves of the thinking. None where nothing of the kind was measured.
        answers: the summed log-probability of the answer's tokens with each of these sets removed.
    """

    kl: Float[Tensor, "query_step key_step"]
    loss: Float[Tensor, "query_step key_step"]
    answer: Float[Tensor, " key_step"]
    steps: tuple[Step, ...]
    meta: dict[str, Any]
    removed: Bool[Tensor, "subset key_step"] | None = None
    answers: Float[Tensor, " subset"] | None = None

    def __repr__(self) -> str:
        known = int((~torch.isnan(self.kl)).any(0).sum())
        return f"Knockout({self.meta.get('mode')}, {known} of {len(self.steps)} steps knocked out)"

    def to_dataframe(self) -> DataFrame:
        """A row for each pair of steps that was measured: the reader, `query_step`, the source, `key_step`, `kl` and `loss`."""
        import pandas as pd

        query, key = torch.nonzero(~torch.isnan(self.kl), as_tuple=True)
        columns = {"kl": self.kl, "loss": self.loss}
        return pd.DataFrame(
            {
                "query_step": query.numpy(),
                "key_step": key.numpy(),
                "query_segment": [self.steps[i].segment for i in query.tolist()],
                "key_segment": [self.steps[j].segment for j in key.tolist()],
                **{name: values[query, key].numpy() for name, values in columns.items()},
            }
        )

    def summary(self, most: int = 5) -> str:
        """A Markdown table of the steps that matter most: what later steps lose without them, and what the answer loses."""
        mean = self.kl.nanmean(0)
        order = [j for j in mean.nan_to_num(nan=-torch.inf).argsort(descending=True).tolist() if not mean[j].isnan()][
            :most
        ]
        rows = [
            [
                str(j),
                self.steps[j].segment,
                significant(float(mean[j])),
                significant(float(self.answer[j])) if not self.answer[j].isnan() else "",
                _beginning(self.steps[j].text),
            ]
            for j in order
        ]
        header = ["step", "segment", "later steps move (nats)", "the answer loses (nats)", "text"]
        known = int((~self.kl.isnan()).any(0).sum())
        return (
            f"{known} of {len(self.steps)} steps knocked out ({self.meta.get('mode')}). The steps without which later steps "
            f"move most:\n\n{markdown_table(header, rows)}\n\nA later step moves by KL(untouched || without the step), here "
            "the mean over all later steps. What the answer loses is the rise of its loss, which may be negative."
        )

    def _repr_html_(self) -> str:
        table = self.to_dataframe().sort_values("kl", ascending=False)
        return f"<b>{escape(repr(self))}</b>{table.to_html(float_format='{:.3g}'.format, index=False, max_rows=20)}"

    @checked(path=check_path)
    def save(self, path: str | Path) -> None:
        """Write it as safetensors with a JSON header and a checksum, atomically: the file is whole or not there.

        Raises `InputError` for what a header cannot hold, and `FileError` where the file cannot be written.
        """
        tensors = {name: getattr(self, name) for name in ("kl", "loss", "answer", "removed", "answers")}
        write_knockout(path, {name: each for name, each in tensors.items() if each is not None}, self.steps, self.meta)

    @classmethod
    @checked(path=check_path)
    def load(cls, path: str | Path, *, verify: bool = True) -> "Knockout":
        """Read what `save` wrote, and check it whole; `verify=False` does not compare the checksum. Raises `FileError`."""
        return cls(**read_knockout(path, verify))


def _beginning(text: str, characters: int = 60) -> str:
    said = " ".join(text.split())
    return said if len(said) <= characters else f"{said[: characters - 3]}..."


@checked(model=a_model, trace=a_trace, subsets=whole(0), seed=whole(0))
def step_knockout(
    model: Model,
    trace: Trace,
    *,
    mode: Mode = "total",
    sources: Literal["all"] | Sequence[int] = "all",
    answer: tuple[int, int] | None = None,
    keep_first: bool = True,
    subsets: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Knockout:
    """Knock steps out of the sight of all later steps, one at a time, and measure what these lose.

    Args:
        model: a `TransformerBridge`, from `load_model` or booted by you, or a `HookedTransformer` of TransformerLens 3.9.
        trace: the trace. Its tokens are fed to the model as they are.
        mode: `total` counts indirect paths through other steps, too; `direct` counts only what a query itself takes from the
            step.
        sources: the indices of the steps that are knocked out. `"all"` is every step but the question that has a later step.
            The question holds the first token, which most models cannot do without, so it is knocked out only where it is
            named.
        answer: the token positions `[start, stop)` of the answer. None takes all of the summary.
        keep_first: whether the first token stays in sight when the question is knocked out.
        subsets: the number of random halves of the thinking steps that are removed together, for the score LDS of
            `faithfulness`; none are where there is no answer, or where fewer than four thinking steps were knocked out.
        seed: the seed of these halves.
        progress: whether to show a progress bar.

    Raises:
        InputError: an option is unknown, a source has no later step, a token is not in the model's vocabulary, or the trace is
            longer than the model's context.
        UnsupportedModelError: the result would not be exact with this model (`direct`: where tokens meet elsewhere than in
            attention). It is raised before any work is done.
        NumericalError: a logit of the untouched run is NaN or infinite.

    >>> from stepsal import Trace, load_model, step_knockout
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.\\n\\nThen 37.</think>So 37.")
    >>> step_knockout(model, trace)
    Knockout(total, 2 of 4 steps knocked out)
    """
    chosen = check_knockout(trace.steps, mode, sources, answer)
    check_trace(model, trace)
    check_supported(model)
    return _knock_out(model, trace, mode, chosen, answer, keep_first, subsets, seed, progress)


def _knock_out(
    model: Model,
    trace: Trace,
    mode: Mode,
    chosen: tuple[int, ...],
    answer: tuple[int, int] | None,
    keep_first: bool,
    subsets: int,
    seed: int,
    progress: bool,
) -> Knockout:
    started, span = time.monotonic(), answer_span(trace.steps, answer)
    host, sums = host_of(model), _Sums(trace, span, chosen)
    removed = torch.zeros(len(chosen), len(trace.steps), dtype=torch.bool)
    removed[range(len(chosen)), chosen] = True
    run_without(host, trace, mode, removed, keep_first, len(trace.tokens) - 1, sums.add, progress)
    kl, loss, of_answer = sums.means()
    halves = random_halves(trace.steps, of_answer, subsets, seed)
    answers = None
    if halves is not None:
        answers = answer_without(model, trace, halves, answer=span, mode=mode, keep_first=keep_first, progress=progress)
    about = {
        "mode": mode,
        "sources": list(chosen),
        "answer": list(span) if span else None,
        "keep_first": keep_first,
        "subsets": 0 if halves is None else subsets,
        "seed": seed,
    }
    meta = about | record_of_run(host, trace, started)
    return Knockout(kl, loss, of_answer, trace.steps, meta, halves, answers)


def check_knockout(steps: Sequence[Step], mode: str, sources: str | Sequence[int], answer: object) -> tuple[int, ...]:
    """The sources, in order. Raises `InputError` for options that are unknown or do not fit the steps."""
    check_mode(mode)
    last = len(steps) - 1
    check_answer(steps[-1].stop, answer)
    if isinstance(sources, str):
        if sources != "all":
            raise InputError(f"sources={sources!r} must be 'all' or the indices of steps")
        return tuple(range(1, last))
    for source in sources:
        if isinstance(source, bool) or not isinstance(source, int) or not 0 <= source < last:
            raise InputError(
                f"sources holds {source!r}: expected indices of steps that have a later step, 0 to {last - 1}"
            )
    return tuple(sorted(set(sources)))


def check_mode(mode: str) -> None:
    """Raise `InputError` for a mode that is not known."""
    if mode not in get_args(Mode):
        raise InputError(f"unknown mode {mode!r}: expected one of {', '.join(get_args(Mode))}")


class _Sums:
    """Sums over the queries of each step, for each source, in float64."""

    def __init__(self, trace: Trace, answer: tuple[int, int] | None, sources: Sequence[int]) -> None:
        n, self.sources = len(trace.steps), sources
        self.targets, self.step_of, self.answer = trace.tokens[1:], trace.step_of, answer
        self.kl, self.loss = (torch.zeros(n, n, dtype=torch.float64) for _ in range(2))
        self.of_answer = torch.zeros(n, dtype=torch.float64)

    def add(self, rows: Sequence[int], start: int, logits: Float[Tensor, "batch pos vocabulary"]) -> None:
        """Add a chunk. The first row of the logits is the untouched run, and the others are those of sources.

        `rows` are the indices of these sources, and `start` is the position of the chunk's first query.
        """
        stop = start + logits.shape[1]
        steps, targets = self.step_of[start:stop], self.targets[start:stop].to(logits.device)[:, None]
        wide = torch.promote_types(logits.dtype, torch.float32)
        base = logits[0].to(wide).log_softmax(-1)
        probability, of_target = base.exp(), base.gather(1, targets)[:, 0]
        for row, source in enumerate([self.sources[index] for index in rows], 1):
            other = logits[row].to(wide).log_softmax(-1)
            kl = (probability * (base - other)).sum(-1).double().cpu()
            loss = (of_target - other.gather(1, targets)[:, 0]).double().cpu()
            self.kl[:, source].index_add_(0, steps, kl)
            self.loss[:, source].index_add_(0, steps, loss)
            if self.answer is not None:
                positions = torch.arange(start + 1, stop + 1)  # of the tokens that are predicted
                inside = (positions >= self.answer[0]) & (positions < self.answer[1])
                self.of_answer[source] += loss[inside].sum()

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """The means over the queries of each step, and the sums over the answer, with NaN where nothing was computed."""
        n = len(self.of_answer)
        queries = torch.bincount(self.step_of[:-1], minlength=n)
        known = torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor(self.sources, dtype=torch.long), True)
        pairs = torch.ones(n, n, dtype=torch.bool).tril(-1) & known & (queries > 0)[:, None]
        maps = [(sums / queries[:, None]).masked_fill(~pairs, torch.nan).float() for sums in (self.kl, self.loss)]
        if self.answer is not None:
            known = known & (torch.arange(n) < int(self.step_of[self.answer[1] - 1]))
        answered = known if self.answer is not None else torch.zeros_like(known)
        return maps[0], maps[1], self.of_answer.masked_fill(~answered, torch.nan).float()
