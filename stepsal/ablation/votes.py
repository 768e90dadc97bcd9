"""Self-consistency: what the baseline gains when several of its samples vote, the alternative to any setting.

In: `stepsal.ablation.results.Results` with samples. Out: the accuracy by number of votes. An answer that was cut off, or is
empty, has no vote; of equally many votes, the answer that was given first wins. The accuracy with k votes is the mean over
all ordered choices of k of the samples, counted, not drawn:

    P(right wins) = sum_i C(c, i) sum_t W(i, t) / ((t + 1) C(m, k))

c of the m samples are right, i of the k drawn; W(i, t) ways to draw the other k - i with no wrong answer above i votes and t of
them at i, each of which came first as often as the right one did.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from stepsal.ablation.results import Results, accuracy_interval, as_table
from stepsal.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any


def self_consistency(results: Results, ks: Sequence[int] = (1, 2, 4, 8), sample: float = 1.0) -> DataFrame:
    """The baseline's accuracy when `k` of its samples vote: `k` (as many as there are), `accuracy`, and its interval.

    `compute`: k times what one `sample` costs, in the answers that the settings are measured by.

    Raises `InputError`: the baseline has one answer to each problem.
    """
    if results.samples < 2:
        raise InputError(
            "self-consistency needs several samples of the baseline: samples = 8 and temperature = 0.8 in [decoding]. Or give "
            "the folder of a second sweep that has them, of the same problems: `stepsal figure compute DIR SAMPLED`"
        )
    right = results.right(results.baseline)
    answers, cut = (results.values(results.baseline, name) for name in ("answer", "truncated"))
    rows = []
    for k in (each for each in ks if each <= results.samples):
        chances = []
        for index in range(results.n):
            votes = [text for text, no in zip(answers[index], cut[index], strict=True) if not no and text]
            counts = Counter(votes)
            of_right = {text for text, yes in zip(answers[index], right[index], strict=True) if yes}
            wrong = tuple(sorted(count for text, count in counts.items() if text not in of_right))
            chances.append(majority_chance(len(votes) - sum(wrong), wrong, results.samples - len(votes), k))
        accuracy, low, high = accuracy_interval(np.array(chances), k)
        rows.append({"k": k, "compute": k * sample, "accuracy": accuracy, "low": low, "high": high})
    return as_table(rows)


@lru_cache(maxsize=100_000)
def majority_chance(right: int, wrong: tuple[int, ...], silent: int, k: int) -> float:
    """How often the right answer wins the vote of `k` samples, over all ordered choices of them.

    `right`, `silent`: how many samples are right, and have no vote; `wrong`: how many have each wrong answer. Of equally many
    votes, the answer that was given first wins.

    >>> majority_chance(2, (1,), 0, 1), majority_chance(2, (1,), 0, 2), majority_chance(2, (1,), 0, 3)
    (0.6666666666666666, 0.6666666666666666, 1.0)
    """
    total = 0.0
    for votes in range(1, min(right, k) + 1):
        ways = {(0, 0): 1}  # (samples of wrong answers, how many of those answers tie): ways to draw them
        for count in wrong:
            more: dict[tuple[int, int], int] = defaultdict(int)
            for (drawn, ties), number in ways.items():
                for each in range(min(count, votes, k - votes - drawn) + 1):
                    more[drawn + each, ties + (each == votes)] += number * math.comb(count, each)
            ways = more
        total += math.comb(right, votes) * sum(
            number * math.comb(silent, k - votes - drawn) / (ties + 1) for (drawn, ties), number in ways.items()
        )
    return total / math.comb(right + sum(wrong) + silent, k)
