"""Self-consistency: what the baseline gains when several of its samples vote. It is the alternative to any setting.

In: `stepsal.ablation.results.Results` with samples. Out: the accuracy by number of votes. An answer that was cut off, or that
is empty, has no vote. Where answers have equally many votes, the one that was given first wins. The accuracy with k votes is
the mean over all ordered choices of k of the samples; the choices are counted, not drawn:

    P(right wins) = sum_i C(c, i) sum_t W(i, t) / ((t + 1) C(m, k))

Of the m samples c are right, and of the k samples in a choice i are right. W(i, t) is the number of ways to choose the other
k - i samples such that no wrong answer has more than i votes and t wrong answers have i votes. Each of these t answers comes
first in as many orders as the right answer does.
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
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any


def self_consistency(results: Results, ks: Sequence[int] = (1, 2, 4, 8), sample: float = 1.0) -> DataFrame:
    """The baseline's accuracy when `k` of its samples vote, one row for each of the `ks` that the sweep has samples for.

    The columns are `k`, `accuracy` with its interval, and `compute`: k times `sample`, the cost of one sample in the unit in
    which the compute of the settings is measured (baseline answers).

    Raises `InputError` where the baseline has only one answer to each problem.
    """
    if results.samples < 2:
        raise InputError(
            "self-consistency needs several samples of the baseline: samples = 8 and temperature = 0.8 in [decoding]. Or give "
            "the folder of a second sweep that has them, of the same problems: `stepsal figure compute DIR SAMPLED`"
        )
    right = results.right(results.baseline)
    answers, cut = (results.values(results.baseline, name) for name in ("answer", "truncated"))
    rows = []
    for k in (k for k in ks if k <= results.samples):
        chances = []
        for index in range(results.n):
            votes = [text for text, is_cut in zip(answers[index], cut[index], strict=True) if not is_cut and text]
            counts = Counter(votes)
            right_texts = {text for text, is_right in zip(answers[index], right[index], strict=True) if is_right}
            wrong = tuple(sorted(count for text, count in counts.items() if text not in right_texts))
            chances.append(majority_chance(len(votes) - sum(wrong), wrong, results.samples - len(votes), k))
        accuracy, low, high = accuracy_interval(np.array(chances), k)
        rows.append({"k": k, "compute": k * sample, "accuracy": accuracy, "low": low, "high": high})
    return as_table(rows)


@lru_cache(maxsize=100_000)
def majority_chance(right: int, wrong: tuple[int, ...], silent: int, k: int) -> float:
    """The share of all ordered choices of `k` samples in whose vote the right answer wins.

    `right` samples are right, `silent` samples have no vote, and `wrong` has the number of samples of each wrong answer. Where
    answers have equally many votes, the one that was given first wins.

    >>> majority_chance(2, (1,), 0, 1), majority_chance(2, (1,), 0, 2), majority_chance(2, (1,), 0, 3)
    (0.6666666666666666, 0.6666666666666666, 1.0)
    """
    total = 0.0
    for votes in range(1, min(right, k) + 1):
        # (number of chosen samples with wrong answers, number of wrong answers that tie with the right one): ways to choose
        ways = {(0, 0): 1}
        for count in wrong:
            extended: dict[tuple[int, int], int] = defaultdict(int)
            for (chosen, ties), number in ways.items():
                for more in range(min(count, votes, k - votes - chosen) + 1):
                    extended[chosen + more, ties + (more == votes)] += number * math.comb(count, more)
            ways = extended
        total += math.comb(right, votes) * sum(
            number * math.comb(silent, k - votes - chosen) / (ties + 1) for (chosen, ties), number in ways.items()
        )
    return total / math.comb(right + sum(wrong) + silent, k)
