"""How well a map's entries for the answer say what the answer loses when several steps are removed at once.

In: a knockout with measured sets of steps (`stepsal.causality.subsets`), and entries of its thinking steps `j` for the answer.
Out: a number for each score, NaN where it is not defined. A map's entry is what queries of the answer's steps `i` read of `j`:

    entry[j] = sum over i > j of mass[i, j] / sum over i of queries(i)

    LDS          rank correlation, over random halves of the thinking, of the summed entries of the steps that are removed with
                 the log-probability that the answer loses
    deletion     steps are removed one after the other, the largest entry first: the area A under the answer's log-probability,
                 as (A - A of the knockout's own order) / (A of its reverse - A of its own order). The knockout's own order has
                 the step first that costs the answer most, alone. 0 is as good as that order, 1 as bad as its reverse
    insertion    all are removed and then shown again, the largest entry first; normalised in the same way

Deletion and insertion need the sets along an order, which `measure_orders` measures.
Sources: ContextCite (arXiv 2409.00729) for LDS, NAOPC (arXiv 2408.08137) for normalised areas; causal.md section 2.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float

from stepsal.causality.baselines import BASELINES, DRAWS, generator
from stepsal.causality.knockout import Knockout
from stepsal.causality.scores import queries_of, summed
from stepsal.causality.subsets import removable
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile
from stepsal.statistics.ranks import rank_correlation

Entries = Float[np.ndarray, " step"]

_ROUNDING = 1e-6
"""Areas, in nats, that differ by no more than this do not differ."""


@dataclass(frozen=True, eq=False)
class MeasuredSets:
    """The sets of thinking steps of which a knockout knows what the answer loses without them.

    Attributes:
        steps: the thinking steps that were knocked out alone.
        cost: what the answer loses without each of them alone.
        log_probability: the answer's, by the set of places in `steps` that is removed.
        halves: the random halves, as places in `steps`.
    """

    steps: list[int]
    cost: Entries
    log_probability: dict[frozenset[int], float]
    halves: list[frozenset[int]]

    @classmethod
    def of(cls, knockout: Knockout) -> "MeasuredSets | None":
        """None where the knockout has no such sets."""
        if knockout.removed is None or knockout.answers is None:
            return None
        steps = removable(knockout.steps, knockout.answer)
        sets = [frozenset(np.flatnonzero(row).tolist()) for row in knockout.removed[:, steps].numpy()]
        known = dict(zip(sets, knockout.answers.tolist(), strict=True))
        cost = knockout.answer[steps].double().numpy()
        return cls(steps, cost, known, sets[1 : 1 + knockout.meta.get("subsets", 0)])


def answer_entries(
    knockout: Knockout, stepmaps: Mapping[str, StepMap | StepMapFile], seed: int, trace_id: str
) -> dict[str, Float[np.ndarray, "draw step"]]:
    """The entries of every step for the answer, of the maps and of the baselines; empty where there is no answer."""
    if (span := knockout.meta.get("answer")) is None:
        return {}
    readers = [step.index for step in knockout.steps if step.start < span[1] and step.stop > span[0]]
    sizes = np.array([step.stop - step.start for step in knockout.steps])
    distance = np.maximum(readers[0] - np.arange(len(sizes)), 1)
    queries = queries_of(knockout.steps)[readers].sum()
    given = {kind: summed(stepmap).tril(-1)[readers].sum(0) / queries for kind, stepmap in stepmaps.items()}
    drawn = (generator(seed, trace_id).random((DRAWS, len(sizes))), 1 / distance[None], sizes[None].astype(float))
    return {kind: each[None].numpy() for kind, each in given.items()} | dict(zip(BASELINES, drawn, strict=True))


def order_of(entries: Entries) -> list[int]:
    """The places of the entries, the largest first."""
    return np.argsort(-entries, kind="stable").tolist()


def along(order: Sequence[int]) -> list[frozenset[int]]:
    """The sets that are removed one after the other: none, the first, the first two, ..., all."""
    return [frozenset(order[:count]) for count in range(len(order) + 1)]


def lds(entries: Entries, sets: MeasuredSets) -> float:
    removed = np.array([sum(entries[place] for place in half) for half in sets.halves])
    lost = np.array([-sets.log_probability[half] for half in sets.halves])
    return rank_correlation(removed, lost)


def deletion(entries: Entries, sets: MeasuredSets) -> float:
    if np.isnan(entries).any():
        return math.nan
    own = order_of(sets.cost)
    return _normalised(_area(order_of(entries), sets), _area(own, sets), _area(own[::-1], sets))


def insertion(entries: Entries, sets: MeasuredSets) -> float:
    """Showing steps in an order is removing them in its reverse, seen from the end."""
    if np.isnan(entries).any():
        return math.nan
    own = order_of(sets.cost)
    return _normalised(_area(order_of(entries)[::-1], sets), _area(own[::-1], sets), _area(own, sets))


ANSWER_SCORES: dict[str, Callable[[Entries, MeasuredSets], float]] = {
    "LDS": lds,
    "deletion": deletion,
    "insertion": insertion,
}


def _area(order: Sequence[int], sets: MeasuredSets) -> float:
    """The mean log-probability along the order, both ends counted half; NaN where a set was not measured."""
    curve = np.array([sets.log_probability.get(each, math.nan) for each in along(order)])
    return float((curve[1:] + curve[:-1]).mean() / 2) if len(order) else math.nan


def _normalised(area: float, own: float, reverse: float) -> float:
    return (area - own) / (reverse - own) if abs(reverse - own) > _ROUNDING else math.nan


def sets_to_measure(
    knockout: Knockout, entries: Mapping[str, Float[np.ndarray, "draw step"]]
) -> Bool[torch.Tensor, "subset key_step"]:
    """The sets that deletion and insertion need, of the first draw of each map and baseline; those known are left out."""
    steps = removable(knockout.steps, knockout.answer)
    known = MeasuredSets.of(knockout)
    orders = [
        order_of(knockout.answer[steps].double().numpy()),
        *(order_of(each[0, steps]) for each in entries.values()),
    ]
    sets = {each: None for order in orders for way in (order, order[::-1]) for each in along(way)}
    new = [each for each in sets if known is None or each not in known.log_probability]
    removed = torch.zeros(len(new), len(knockout.steps), dtype=torch.bool)
    for row, places in zip(removed, new, strict=True):
        row[[steps[place] for place in places]] = True
    return removed
