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

How it runs:

1. Several sources are knocked out at once, each in its own row of a batch. The first row of each batch is the untouched run:
   both predictions come from the same pass, so nothing is kept of the vocabulary.
2. Rows before the end of the first source cannot change. They run once, alone, into a cache which each batch takes a copy of.
3. A batch runs in chunks of queries over its cache, so memory does not grow with the square of the length.

Where a recurrence stands beside attention, it still carries what a step said: attention alone is cut.

Source: causal.md section 1; attention suppression of Thought Anchors (arXiv 2506.19143).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.causality.knockoutfile import read_knockout, write_knockout
from stepsal.causality.removal import Mode, StepRemoval
from stepsal.checks import checked
from stepsal.checks import path as check_path
from stepsal.errors import InputError, UnsupportedModelError
from stepsal.models import host_of
from stepsal.models.checks import a_model
from stepsal.models.host import Host, Model
from stepsal.models.memory import free_bytes, peak_bytes, spread
from stepsal.models.support import check_supported, reads_in_chunks
from stepsal.saliency.attention import in_float32
from stepsal.saliency.gradients import check_logits
from stepsal.saliency.influence import check_trace
from stepsal.traces.checks import a_trace
from stepsal.traces.trace import Step, Trace

MAX_BATCH = 8
"""Sources that are knocked out at once. Larger batches were no faster on a CPU."""
CHUNK = 256


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
    """

    kl: Float[Tensor, "query_step key_step"]
    loss: Float[Tensor, "query_step key_step"]
    answer: Float[Tensor, " key_step"]
    steps: tuple[Step, ...]
    meta: dict[str, Any]

    def __repr__(self) -> str:
        known = int((~torch.isnan(self.kl)).any(0).sum())
        return f"Knockout({self.meta.get('mode')}, {known} of {len(self.steps)} steps knocked out)"

    @checked(path=check_path)
    def save(self, path: str | Path) -> None:
        """Write it as safetensors with a JSON header and a checksum, atomically: the file is whole or not there.

        Raises `InputError` for what a header cannot hold, and `FileError` where the file cannot be written.
        """
        write_knockout(path, self.kl, self.loss, self.answer, self.steps, self.meta)

    @classmethod
    @checked(path=check_path)
    def load(cls, path: str | Path, *, verify: bool = True) -> "Knockout":
        """Read what `save` wrote, and check it whole; `verify=False` does not compare the checksum. Raises `FileError`."""
        return cls(**read_knockout(path, verify))


@checked(model=a_model, trace=a_trace)
def step_knockout(
    model: Model,
    trace: Trace,
    *,
    mode: Mode = "total",
    sources: Literal["all"] | Sequence[int] = "all",
    answer: tuple[int, int] | None = None,
    keep_first: bool = True,
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
    from stepsal._version import __version__

    chosen = check_knockout(trace.steps, mode, sources, answer)
    check_trace(model, trace)
    check_supported(model)
    if mode == "direct" and not reads_in_chunks(model):
        raise UnsupportedModelError(
            f"mode='direct' is not exact with {host_of(model).describe()['model']}: its tokens meet elsewhere than in attention, "
            "or its scores are of another kind than a query times a key. mode='total' is."
        )
    started, span = time.monotonic(), answer or _summary(trace.steps)
    host, sums = host_of(model), _Sums(trace, span)
    with torch.no_grad(), host.frozen():
        _run(host, trace, mode, chosen, keep_first, progress, sums)
    kl, loss, of_answer = sums.means(chosen)
    meta = host.describe() | {
        "mode": mode,
        "sources": list(chosen),
        "answer": list(span) if span else None,
        "keep_first": keep_first,
        "tokens": len(trace.tokens),
        "trace": trace.id,
        "correct": trace.correct,
        "stepsal": __version__,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_bytes": peak_bytes(spread(model)),
    }
    return Knockout(kl, loss, of_answer, trace.steps, meta)


def check_knockout(steps: Sequence[Step], mode: str, sources: str | Sequence[int], answer: object) -> tuple[int, ...]:
    """The sources, in order. Raises `InputError` for options that are unknown or do not fit the steps."""
    if mode not in get_args(Mode):
        raise InputError(f"unknown mode {mode!r}: expected one of {', '.join(get_args(Mode))}")
    length, last = steps[-1].stop, len(steps) - 1
    if answer is not None and not (isinstance(answer, tuple | list) and [type(each) for each in answer] == [int, int]):
        raise InputError(f"answer={answer!r} must be two token positions, (start, stop)")
    if isinstance(answer, tuple | list) and not 1 <= answer[0] < answer[1] <= length:
        raise InputError(f"answer {answer} must be token positions [start, stop) within 1 to {length}")
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


def _summary(steps: Sequence[Step]) -> tuple[int, int] | None:
    """The token positions of the summary; None where there is none."""
    summary = [step for step in steps if step.segment == "summary"]
    return (summary[0].start, summary[-1].stop) if summary else None


class _Sums:
    """Sums over the queries of each step, for each source, in float64."""

    def __init__(self, trace: Trace, answer: tuple[int, int] | None) -> None:
        n = len(trace.steps)
        self.targets, self.step_of, self.answer = trace.tokens[1:], trace.step_of, answer
        self.kl, self.loss = (torch.zeros(n, n, dtype=torch.float64) for _ in range(2))
        self.of_answer = torch.zeros(n, dtype=torch.float64)

    def add(self, sources: Sequence[int], start: int, logits: Float[Tensor, "batch pos vocabulary"]) -> None:
        """Add a chunk. The first row of the logits is the untouched run, and the others are the sources'.

        `start` is the position of the chunk's first query.
        """
        stop = start + logits.shape[1]
        steps, targets = self.step_of[start:stop], self.targets[start:stop].to(logits.device)[:, None]
        wide = torch.promote_types(logits.dtype, torch.float32)
        base = logits[0].to(wide).log_softmax(-1)
        probability, of_target = base.exp(), base.gather(1, targets)[:, 0]
        for row, source in enumerate(sources, 1):
            other = logits[row].to(wide).log_softmax(-1)
            kl = (probability * (base - other)).sum(-1).double().cpu()
            loss = (of_target - other.gather(1, targets)[:, 0]).double().cpu()
            self.kl[:, source].index_add_(0, steps, kl)
            self.loss[:, source].index_add_(0, steps, loss)
            if self.answer is not None:
                positions = torch.arange(start + 1, stop + 1)  # of the tokens that are predicted
                inside = (positions >= self.answer[0]) & (positions < self.answer[1])
                self.of_answer[source] += loss[inside].sum()

    def means(self, sources: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """The means over the queries of each step, and the sums over the answer, with NaN where nothing was computed."""
        n = len(self.of_answer)
        queries = torch.bincount(self.step_of[:-1], minlength=n)
        known = torch.zeros(n, dtype=torch.bool).index_fill(0, torch.tensor(sources, dtype=torch.long), True)
        pairs = torch.ones(n, n, dtype=torch.bool).tril(-1) & known & (queries > 0)[:, None]
        maps = [(sums / queries[:, None]).masked_fill(~pairs, torch.nan).float() for sums in (self.kl, self.loss)]
        if self.answer is not None:
            known = known & (torch.arange(n) < int(self.step_of[self.answer[1] - 1]))
        answered = known if self.answer is not None else torch.zeros_like(known)
        return maps[0], maps[1], self.of_answer.masked_fill(~answered, torch.nan).float()


def _run(
    host: Host, trace: Trace, mode: Mode, sources: Sequence[int], keep_first: bool, progress: bool, sums: _Sums
) -> None:
    from tqdm import tqdm

    tokens, prefix, alone = trace.tokens[None].to(host.device), _Prefix(host), not host.has_hooks()
    with tqdm(total=len(sources), desc="knockout", unit="step", disable=not progress) as bar:
        left = list(sources)
        while left:
            size = _batch_size(host, len(trace.tokens))
            batch, left = left[:size], left[size:]
            removed = torch.zeros(len(batch) + 1, len(trace.steps), dtype=torch.bool)
            removed[range(1, len(batch) + 1), batch] = True
            # What hooks of others keep of a sequence belongs to all rows of a batch, so under them the whole trace runs anew.
            start = trace.steps[batch[0]].stop if alone else 0
            cache = prefix.copies(tokens[:, :start], len(removed))
            removal = StepRemoval(host, mode, trace.step_of, removed, keep_first)
            for logits, at in _passes(host, tokens, start, cache, removal):
                check_logits(host, logits[:1], tokens[:, : at + logits.shape[1]], at)
                sums.add(batch, at, logits)
            bar.update(len(batch))


def _passes(
    host: Host, tokens: Int[Tensor, "1 pos"], start: int, cache: Any, removal: StepRemoval
) -> Iterator[tuple[Float[Tensor, "batch pos vocabulary"], int]]:
    """The logits of each chunk of queries from `start` on, and the position of its first query."""
    rows, last = len(removal.removed), tokens.shape[1] - 1
    with host.hooks_first(removal.hooks_of_base()), host.hooks(in_float32(host, removal.hooks())):
        for at in range(start, last, CHUNK):
            stop = min(at + CHUNK, last)
            removal.at(at, stop)
            yield host.forward(tokens[:, at:stop].expand(rows, -1), [], cache), at


class _Prefix:
    """The untouched run up to a position that only grows, in a cache."""

    def __init__(self, host: Host) -> None:
        self.host, self.cache, self.length = host, host.new_cache(), 0

    def copies(self, tokens: Int[Tensor, "1 pos"], rows: int) -> Any:
        """A cache of these tokens for each row of a batch. The tokens begin with those of the call before."""
        for at in range(self.length, tokens.shape[1], CHUNK):
            chunk = tokens[:, at : at + CHUNK]
            check_logits(
                self.host, self.host.forward(chunk, in_float32(self.host, []), self.cache), tokens[:, : at + CHUNK], at
            )
        self.length = tokens.shape[1]
        return self.host.repeated_cache(self.cache, rows)


def _batch_size(host: Host, length: int) -> int:
    """How many sources are knocked out at once. Each takes a copy of the cache, and a chunk's scores (thrice) and logits."""
    size = host.shape
    cache = 2 * length * size.layers * size.kv_heads * size.d_head * max(4, host.dtype.itemsize)
    chunk = min(CHUNK, length)
    per_row = cache + 4 * chunk * (3 * size.heads * length + 2 * size.vocabulary)
    free = min(free_bytes(device) / share for device, share in spread(host.model).items())
    return max(1, min(MAX_BATCH, int(0.5 * free / per_row) - 1))
