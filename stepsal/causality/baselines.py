"""What a map must beat: entries that know nothing of the model, for the same pairs of steps.

In: the pairs of a trace. Out: entries by name; those that are drawn have several draws, over which their scores are averaged.

    random      drawn anew for every pair
    recency     1 / (i - j)
    length      the number of tokens of the source j
    shuffled    of each map: its entries, permuted within each distance i - j, so that what it knows of distance is kept
"""

import hashlib

import numpy as np
from jaxtyping import Float, Int

from stepsal.causality.scores import Entries, PairsOfTrace

DRAWS = 8
"""How often what is random is drawn for each trace."""

BASELINES, SHUFFLED = ("random", "recency", "length"), "shuffled"

Draws = Float[np.ndarray, "draw pair"]


def generator(seed: int, trace_id: str) -> np.random.Generator:
    """The random numbers of a trace: they do not depend on which other traces there are."""
    digest = hashlib.sha256(trace_id.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def baselines(pairs: PairsOfTrace, rng: np.random.Generator) -> dict[str, Draws]:
    """The entries of the baselines that need no map."""
    drawn = (rng.random((DRAWS, len(pairs.reader))), 1 / pairs.distance[None], pairs.length[None].astype(float))
    return dict(zip(BASELINES, drawn, strict=True))


def shuffled(entries: Entries, distance: Int[np.ndarray, " pair"], rng: np.random.Generator) -> Draws:
    """The entries, permuted within each distance.

    >>> shuffled(np.array([5.0, 7.0, 9.0]), np.array([1, 2, 1]), np.random.default_rng(0))[:, 1].tolist()
    [7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0]
    """
    drawn = np.empty((DRAWS, len(entries)))
    places = np.argsort(distance, kind="stable")
    for each in drawn:
        each[places] = entries[np.lexsort((rng.random(len(entries)), distance))]
    return drawn
