"""The same problems under two settings: are they more often answered right under the second setting?

In: for each problem, whether its answers are right under a baseline and under a treatment (an intervention, another setting).
Out: both accuracies, their difference with its 95 % interval, and a p-value. The problem is the unit of sampling, however many
samples it has.

1. For each problem, d is the number of its right answers under the treatment less that under the baseline. A problem is gained
   where d > 0 and lost where d < 0.
2. The p-value is the share of all 2^n ways to swap the two settings within problems whose |sum d| is at least the observed
   one. The ways are counted exactly. With one sample for each problem this is McNemar's exact test, a two-sided binomial test
   of gained against lost.
3. With one sample for each problem, the interval is Tango's score interval: all D with |T(D)| <= 1.96, where q is the most
   likely probability of a loss given D, and

       T(D) = (gained - lost - n D) / sqrt(n (2 q + D (1 - D)))

4. With several samples, the interval is given by the percentiles of the bootstrap over problems. The distribution of a sum of n
   whole numbers can be written down, so this is the exact bootstrap (of infinitely many resamples) and has no seed.

Sources: McNemar, Psychometrika 12 (1947) 153; Tango, Statistics in Medicine 17 (1998) 891; Holm, Scandinavian Journal of
Statistics 6 (1979) 65; Wilson, Journal of the American Statistical Association 22 (1927) 209.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from stepsal.errors import InputError

_Z = 1.959964
_TAIL = 0.025

Outcomes = Sequence[bool] | Sequence[Sequence[bool]] | Bool[np.ndarray, "problem"] | Bool[np.ndarray, "problem sample"]
"""Right or wrong: one value per problem or, where each problem was asked several times, an array `problem sample`."""


@dataclass(frozen=True)
class Paired:
    """The comparison of two settings on the same problems.

    Attributes:
        n, samples: the number of problems, and the number of answers to each problem.
        baseline, treated: the accuracies under the two settings.
        difference: treated - baseline. Its 95 % interval is from `low` to `high`.
        gained, lost: the numbers of problems that are right more often, and less often, under the treatment.
        p: the two-sided p-value of no difference.
    """

    n: int
    samples: int
    baseline: float
    treated: float
    difference: float
    low: float
    high: float
    gained: int
    lost: int
    p: float

    def __str__(self) -> str:
        return (
            f"{self.n} problems: {self.baseline:.1%} -> {self.treated:.1%} ({100 * self.difference:+.1f} points, 95 % "
            f"{100 * self.low:+.1f} to {100 * self.high:+.1f}; {self.gained} gained, {self.lost} lost, p {self.p:.2g})"
        )


def paired(baseline: Outcomes, treated: Outcomes) -> Paired:
    """Compare which problems are right under two settings. Both arguments have the same problems in the same order.

    Raises:
        InputError: there is no problem, the shapes differ, or a value is not true or false.

    >>> print(paired([True, False, False, False, True, True], [True, True, True, True, True, False]))
    6 problems: 50.0% -> 83.3% (+33.3 points, 95 % -31.1 to +75.4; 3 gained, 1 lost, p 0.62)
    """
    before, after = _outcomes("baseline", baseline), _outcomes("treated", treated)
    if before.shape != after.shape:
        raise InputError(
            f"baseline has shape {before.shape}, treated {after.shape} (problems, samples): give the same problems in both, in "
            "the same order, and as many samples of each"
        )
    n, samples = before.shape
    d = after.sum(1) - before.sum(1)
    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    low, high = _tango(gained, lost, n) if samples == 1 else _bootstrap(d, samples)
    accuracies = float(before.mean()), float(after.mean())
    difference = float(d.sum() / before.size)
    return Paired(n, samples, *accuracies, difference, low, high, gained, lost, _swaps(d))


def holm(ps: Sequence[float] | Float[np.ndarray, "test"]) -> Float[np.ndarray, "test"]:
    """The p-values of several tests, adjusted by Holm's step-down method.

    Among true null hypotheses, the chance that any adjusted p-value is below 0.05 is at most 5 %. The k-th smallest of m
    p-values becomes p (m - k + 1), but at least its predecessor and at most 1.

    Raises `InputError` for a value that is no p-value.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(ps, dtype=float)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"ps={ps!r} must be a list of numbers from 0 to 1: leave out the tests that have no p-value")
    order = np.argsort(values)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1)
    return adjusted


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of the proportion of right answers among `n` answers.

    Raises `InputError` where `n` is 0, or where `right` is negative or more than `n`.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    from scipy.stats import binomtest

    if not 0 <= right <= n or n == 0:
        raise InputError(f"{right} right of {n} answers: expected a whole number from 0 to n, and n at least 1")
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _outcomes(name: str, outcomes: Any) -> Bool[np.ndarray, "problem sample"]:
    """The outcomes as an array. Raises `InputError`, which names the argument, where they are none."""
    try:
        array = np.asarray(outcomes)
    except ValueError as error:
        raise InputError(f"{name} has rows of unequal length: give every problem the same number of samples") from error
    if array.ndim not in (1, 2) or not array.size:
        raise InputError(
            f"{name} has shape {array.shape}: expected a value per problem, or an array `problem sample`, with at least one "
            "problem and one sample"
        )
    if array.dtype != bool:
        odd = next(value for value in array.ravel().tolist() if not isinstance(value, bool))
        raise InputError(
            f"{name} holds {odd!r}: expected True (right) or False (wrong); leave out problems that nobody graded"
        )
    return array.reshape(len(array), -1)


def _swaps(d: Int[np.ndarray, "problem"]) -> float:
    """The share of all ways to flip the signs of `d` that give a |sum| of at least the observed one."""
    sizes = np.abs(d[d != 0])
    total = int(sizes.sum())
    chance = np.zeros(2 * total + 1)  # the probability of each sum from -total to total
    chance[total] = 1
    for size in sizes.tolist():
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    return min(1.0, float(chance[np.abs(np.arange(-total, total + 1)) >= abs(int(d.sum()))].sum()))


def _tango(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The ends of Tango's score interval."""
    from scipy.optimize import brentq

    def excess(difference: float, z: float) -> float:
        """T(D) - z, multiplied by its denominator. It falls with D and is zero where T(D) = z."""
        b = (2 * n - gained + lost) * difference - gained - lost
        q = (math.sqrt(max(0.0, b * b + 8 * n * lost * difference * (1 - difference))) - b) / (4 * n)
        variance = max(0.0, n * (2 * q + difference * (1 - difference)))
        return gained - lost - n * difference - z * math.sqrt(variance)

    middle = (gained - lost) / n
    beside = 1e-9  # where all problems are alike, the estimate itself solves the equation too, so the search starts beside it
    low = -1.0 if middle == -1 else float(brentq(excess, -1, middle - beside, (_Z,)))
    high = 1.0 if middle == 1 else float(brentq(excess, middle + beside, 1, (-_Z,)))
    return low, high


def _bootstrap(d: Int[np.ndarray, "problem"], samples: int) -> tuple[float, float]:
    """The percentiles of the mean of `n` draws from `d` with replacement, divided by the number of samples."""
    n = len(d)
    # Where all d are equal, all draws are. Wilson's interval says how large a share of problems may have another d, which at
    # worst is extreme.
    if (d == d[0]).all():
        other, mean = 1 - wilson(n, n)[0], float(d[0]) / samples
        return mean - other * (mean + 1), mean + other * (1 - mean)
    lowest = int(d.min())
    chance_of_one = np.bincount(d - lowest) / n
    width = n * (len(chance_of_one) - 1) + 1
    chance = np.fft.irfft(np.fft.rfft(chance_of_one, width) ** n, width)  # the n-fold convolution
    means = (np.arange(width) + n * lowest) / (n * samples)
    low = means[np.argmax(np.cumsum(chance) >= _TAIL)]
    high = means[width - 1 - np.argmax(np.cumsum(chance[::-1]) >= _TAIL)]
    return float(low), float(high)
