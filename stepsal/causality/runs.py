"""Forward passes in which later steps do not see chosen steps: what knockouts and removed subsets of steps are measured with.

In: a model's host, a trace, and for each row the steps that are removed together. Out: calls of `receive` with the logits of
some rows, a chunk of queries at a time.

1. Several rows run at once, in a batch. The first row of each batch is the untouched run, so what is compared with it comes
   from the same pass, and nothing is kept of the vocabulary.
2. Positions up to the end of the first step that is removed cannot change. They run once, alone, into a cache which each batch
   takes a copy of. A row joins its batch where its own first removed step ends, or up to `WAIT` positions before: until then it
   is the untouched run, whose part of the cache it takes.
3. A batch runs in chunks of queries over its cache, so memory does not grow with the square of the length.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepsal.causality.removal import Mode, StepRemoval
from stepsal.errors import UnsupportedModelError
from stepsal.models.host import Host
from stepsal.models.memory import free_bytes, spread
from stepsal.models.support import reads_in_chunks
from stepsal.saliency.attention import in_float32
from stepsal.saliency.gradients import check_logits
from stepsal.traces.trace import Trace

MAX_BATCH = 16
"""Rows that run at once beside the untouched one, which each batch has."""
CHUNK = 128
WAIT = 64
"""Rows join a batch together whose first removed steps end within so many positions: each time the cache is copied."""

Receive = Callable[[Sequence[int], int, Float[Tensor, "batch pos vocabulary"]], None]
"""Takes in a chunk: the rows, the position of the first query, and the logits, of which the first row is the untouched run."""


def run_without(
    host: Host,
    trace: Trace,
    mode: Mode,
    removed: Bool[Tensor, "row step"],
    keep_first: bool,
    stop: int,
    receive: Receive,
    progress: bool = False,
) -> None:
    """Run, for all rows, the queries before position `stop` that a row's removed steps can change.

    A row that removes nothing runs from the beginning. No row may remove the last step, which has no later one. The model has
    passed `check_supported`.

    Raises `UnsupportedModelError` for `direct` with a model whose rows depend on each other all the same.
    """
    from tqdm import tqdm

    if mode == "direct" and not reads_in_chunks(host.model):
        raise UnsupportedModelError(
            f"mode='direct' is not exact with {host.describe()['model']}: its tokens meet elsewhere than in attention, or its "
            "scores are of another kind than a query times a key. mode='total' is."
        )
    tokens, prefix, alone = trace.tokens[None].to(host.device), _Prefix(host), not host.has_hooks()
    first = removed.int().argmax(1)  # the first step that a row removes
    ends = torch.tensor([step.stop for step in trace.steps])[first]
    starts = ends.masked_fill(~removed.any(1), 0).tolist()
    left = sorted(range(len(removed)), key=starts.__getitem__)
    with (
        torch.no_grad(),
        host.frozen(),
        tqdm(total=len(left), desc="knockout", unit="run", disable=not progress) as bar,
    ):
        while left:
            size = _batch_size(host, len(trace.tokens))
            batch, left = left[:size], left[size:]
            rows = torch.cat([torch.zeros_like(removed[:1]), removed[batch]])
            # What hooks of others keep of a sequence belongs to all rows of a batch, so under them the whole trace runs anew.
            joins = _joins([starts[row] for row in batch]) if alone else [(0, len(batch))]
            cache = prefix.copy_of(tokens[:, : joins[0][0]])
            removal = StepRemoval(host, mode, trace.step_of, rows, keep_first)
            for at, logits in passes(host, tokens[:, :stop], joins, cache, removal):
                check_logits(host, logits[:1], tokens[:, : at + logits.shape[1]], at)
                receive(batch[: len(logits) - 1], at, logits)
            bar.update(len(batch))


def _joins(starts: Sequence[int]) -> list[tuple[int, int]]:
    """Where rows join, and how many have joined then. The starts are in order.

    >>> _joins([10, 20, 90, 500])
    [(10, 2), (90, 3), (500, 4)]
    """
    joins: list[tuple[int, int]] = []
    for count, start in enumerate(starts, 1):
        begins = start if not joins or start >= joins[-1][0] + WAIT else joins.pop()[0]
        joins.append((begins, count))
    return joins


def passes(
    host: Host, tokens: Int[Tensor, "1 pos"], joins: Sequence[tuple[int, int]], cache: Any, removal: StepRemoval
) -> Iterator[tuple[int, Float[Tensor, "batch pos vocabulary"]]]:
    """The position of the first query of each chunk of the tokens, and the logits of the rows that have joined, the untouched
    one first."""
    removed, ends = removal.removed, [start for start, _ in joins[1:]] + [tokens.shape[1]]
    with host.hooks_first(removal.hooks_of_base()), host.hooks(in_float32(host, removal.hooks())):
        there = 1
        for (start, count), end in zip(joins, ends, strict=True):
            host.take_rows(cache, [*range(there), *[0] * (1 + count - there)])
            there, removal.removed = 1 + count, removed[: 1 + count]
            for at in range(start, end, CHUNK):
                stop = min(at + CHUNK, end)
                removal.at(at, stop)
                yield at, host.forward(tokens[:, at:stop].expand(there, -1), [], cache)


class _Prefix:
    """The untouched run up to a position that only grows, in a cache."""

    def __init__(self, host: Host) -> None:
        self.host, self.cache, self.length = host, host.new_cache(), 0

    def copy_of(self, tokens: Int[Tensor, "1 pos"]) -> Any:
        """A cache of these tokens. They begin with those of the call before."""
        for at in range(self.length, tokens.shape[1], CHUNK):
            chunk = tokens[:, at : at + CHUNK]
            check_logits(
                self.host, self.host.forward(chunk, in_float32(self.host, []), self.cache), tokens[:, : at + CHUNK], at
            )
        self.length = tokens.shape[1]
        return copy.deepcopy(self.cache)


def _batch_size(host: Host, length: int) -> int:
    """How many rows run at once. Each takes a copy of the cache, and a chunk's scores (thrice) and logits."""
    size = host.shape
    cache = 2 * length * size.layers * size.kv_heads * size.d_head * max(4, host.dtype.itemsize)
    chunk = min(CHUNK, length)
    per_row = cache + 4 * chunk * (3 * size.heads * length + 2 * size.vocabulary)
    free = min(free_bytes(device) / share for device, share in spread(host.model).items())
    return max(1, min(MAX_BATCH, int(0.5 * free / per_row) - 1))
