"""How well entries for pairs of steps rank what knocking steps out does, for one trace.

In: the pairs of a reader `i` and an earlier step `j` that a knockout measured, with its value `kl[i, j]`, and the entries of
maps for the same pairs. Out: a number for each score, NaN where it is not defined. A map's entry is its influence for each
query of the reader, summed over layers, heads and the tokens of `j`, since the knockout removes the whole step:

    entry[i, j] = sum over layers and heads of mass[layer, head, i, j] / queries(i)

The scores, all of them rank correlations of the entries with the knockout (`stepsal.statistics.ranks`):

    per reader   over the earlier steps of each reader (at least 4), averaged over the readers
    overall      over all pairs of the trace
    partial      over all pairs, given log(i - j) and the number of tokens of j: what is known beyond distance and size

Each is computed on `PAIRS`: all pairs; without neighbours (j < i - 1); and, where the question was knocked out, without it.
Source: causal.md section 2.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int

from stepsal.causality.knockout import Knockout
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile, loaded
from stepsal.statistics.ranks import rank_correlation
from stepsal.traces.trace import Step

Entries = Float[np.ndarray, " pair"]


@dataclass(frozen=True, eq=False)
class PairsOfTrace:
    """The pairs of a trace that were knocked out and that every map has an entry for.

    Attributes:
        reader, source: the steps of each pair.
        length: the number of tokens of the source.
        effect: what the knockout says.
        entries: what each map says, by the name of the map.
    """

    reader: Int[np.ndarray, " pair"]
    source: Int[np.ndarray, " pair"]
    length: Int[np.ndarray, " pair"]
    effect: Entries
    entries: dict[str, Entries]

    @property
    def distance(self) -> Int[np.ndarray, " pair"]:
        return self.reader - self.source

    def only(self, chosen: Bool[np.ndarray, " pair"]) -> "PairsOfTrace":
        """The chosen pairs alone."""
        parts = {name: getattr(self, name)[chosen] for name in ("reader", "source", "length", "effect")}
        return replace(self, **parts, entries={name: each[chosen] for name, each in self.entries.items()})


PAIRS: dict[str, Callable[[PairsOfTrace], Bool[np.ndarray, " pair"]]] = {
    "all": lambda pairs: pairs.distance >= 1,
    "no neighbours": lambda pairs: pairs.distance > 1,
    "no question": lambda pairs: pairs.source > 0,
    "no neighbours, no question": lambda pairs: (pairs.distance > 1) & (pairs.source > 0),
}
"""Which pairs are scored. The last two differ from the first two only where the question was knocked out."""


def queries_of(steps: Sequence[Step]) -> Float[torch.Tensor, " query_step"]:
    """The number of queries of each step. The last token has no target, so it is none."""
    last = steps[-1].stop - 1
    return torch.tensor([max(0, min(step.stop, last) - step.start) for step in steps], dtype=torch.float64)


def summed(stepmap: StepMap | StepMapFile) -> Float[torch.Tensor, "query_step key_step"]:
    """A map's influence, summed over layers and heads."""
    return reduce(loaded(stepmap).mass.double(), "layer head query_step key_step -> query_step key_step", "sum").cpu()


def entries_of(stepmap: StepMap | StepMapFile) -> Float[torch.Tensor, "query_step key_step"]:
    """A map's influence for each query, summed over layers and heads; NaN for a reader without any query."""
    counts = queries_of(stepmap.steps)[:, None]
    return (summed(stepmap) / counts).masked_fill(counts == 0, torch.nan)


def pairs_of_trace(
    knockout: Knockout,
    stepmaps: Mapping[str, StepMap | StepMapFile],
    reference: Mapping[str, Knockout] | None = None,
) -> PairsOfTrace:
    """The pairs below the diagonal for which the knockout, all the maps and the reference have a value."""
    effect = knockout.kl.double()
    entries = {name: entries_of(stepmap) for name, stepmap in stepmaps.items()}
    entries |= {name: each.kl.double() for name, each in (reference or {}).items()}
    known = torch.isfinite(effect).tril(-1)
    for each in entries.values():
        known &= torch.isfinite(each)
    reader, source = torch.where(known)
    length = torch.tensor([step.stop - step.start for step in knockout.steps])[source]
    return PairsOfTrace(
        reader.numpy(),
        source.numpy(),
        length.numpy(),
        effect[known].numpy(),
        {name: each[known].numpy() for name, each in entries.items()},
    )


def per_reader(entries: Entries, pairs: PairsOfTrace) -> float:
    """The mean over readers of the rank correlation over their earlier steps."""
    ends = np.flatnonzero(np.diff(pairs.reader)) + 1  # pairs are in the order of their readers
    parts = zip(np.split(entries, ends), np.split(pairs.effect, ends), strict=True)
    known = [value for value in (rank_correlation(x, y) for x, y in parts) if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def overall(entries: Entries, pairs: PairsOfTrace) -> float:
    """The rank correlation over all pairs."""
    return rank_correlation(entries, pairs.effect)


def partial(entries: Entries, pairs: PairsOfTrace) -> float:
    """The rank correlation over all pairs, given the distance and the length of the source."""
    return rank_correlation(entries, pairs.effect, [np.log(pairs.distance), pairs.length.astype(float)])


SCORES: dict[str, Callable[[Entries, PairsOfTrace], float]] = {
    "per reader": per_reader,
    "overall": overall,
    "partial": partial,
}
