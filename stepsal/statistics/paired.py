"""The same problems under two settings: is the treated one more often right?

In: for each problem whether it was right, under a baseline and under a treatment (an intervention, another setting). Out: both
accuracies, their difference with a 95 % interval, and a p. The problem is the unit of sampling, however many samples it has.

1. d = treated - baseline, per problem: right answers out of its samples. gained: d > 0, lost: d < 0.
2. p: all 2^n ways to swap the two settings within problems, counted exactly; the part of them whose |sum d| is at least the
   observed one. With one sample a problem this is McNemar's exact test, a two-sided binomial test of gained against lost.
3. Interval, one sample a problem: Tango's score interval, all D with |T(D)| <= 1.96, where, with q the probability of a loss
   that is likeliest given D,

       T(D) = (gained - lost - n D) / sqrt(n (2 q + D (1 - D)))

4. Interval, several samples: the percentiles of the bootstrap over problems. Sums of n whole numbers have a distribution that
   can be written down, so it is the exact one (of infinitely many resamples), and has no seed.

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
"""Right or wrong, a value per problem or, several times asked, `problem sample`."""


@dataclass(frozen=True)
class Paired:
    """Two settings on the same problems.

    Attributes:
        n, samples: problems, and answers to each.
        baseline, treated: the accuracies.
        difference: treated - baseline, with its 95 % interval from `low` to `high`.
        gained, lost: problems that are right more often, less often, under the treatment.
        p: two-sided, of no difference.
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
            f"{self.n} problems: {self.baseline:.1%} -> {self.treated:.1%} ({self.difference:+.1%}, 95 % {self.low:+.1%} to "
            f"{self.high:+.1%}; {self.gained} gained, {self.lost} lost, p {self.p:.2g})"
        )


def paired(baseline: Outcomes, treated: Outcomes) -> Paired:
    """Compare which problems are right under two settings; the same problems, in the same order, in both.

    Raises:
        InputError: no problems, other shapes in one than in the other, or values that are not true or false.

    >>> print(paired([True, False, False, False, True, True], [True, True, True, True, True, False]))
    6 problems: 50.0% -> 83.3% (+33.3%, 95 % -31.1% to +75.4%; 3 gained, 1 lost, p 0.62)
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
    """p-values of several tests, adjusted by Holm's step-down method: below 0.05 with a chance of 5 % of any false one.

    The k-th smallest of m becomes p (m - k + 1), at least its predecessor, at most 1. Raises `InputError` for what is no p.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(ps, dtype=float)
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise InputError(f"ps={ps!r} must be a list of numbers from 0 to 1: leave out the tests that have no p")
    order = np.argsort(given)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)), 1)
    return adjusted


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of the proportion of right answers among `n`.

    Raises `InputError` where there is no answer, or where more are right than there are.

    >>> low, high = wilson(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    from scipy.stats import binomtest

    if not 0 <= right <= n or n == 0:
        raise InputError(f"{right} right of {n}: expected a whole number from 0 to n, and n at least 1")
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _outcomes(name: str, given: Any) -> Bool[np.ndarray, "problem sample"]:
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise InputError(f"{name} has rows of unequal length: give each problem as many samples") from error
    if array.ndim not in (1, 2) or not array.size:
        raise InputError(
            f"{name} has shape {array.shape}: expected a value per problem, or `problem sample`, and at least one of each"
        )
    if array.dtype != bool:
        odd = next(value for value in array.ravel().tolist() if not isinstance(value, bool))
        raise InputError(f"{name} holds {odd!r}: expected True (right) or False (wrong); leave out what nobody graded")
    return array.reshape(len(array), -1)


def _swaps(d: Int[np.ndarray, "problem"]) -> float:
    """The part of all ways to flip signs of `d` whose |sum| is at least the observed one."""
    sizes = np.abs(d[d != 0])
    total = int(sizes.sum())
    chance = np.zeros(2 * total + 1)  # of each sum from -total to total
    chance[total] = 1
    for size in sizes.tolist():
        chance = (np.roll(chance, size) + np.roll(chance, -size)) / 2
    return min(1.0, float(chance[np.abs(np.arange(-total, total + 1)) >= abs(int(d.sum()))].sum()))


def _tango(gained: int, lost: int, n: int) -> tuple[float, float]:
    from scipy.optimize import brentq

    def excess(difference: float, z: float) -> float:
        """T(D) = z, multiplied out; it falls with D."""
        b = (2 * n - gained + lost) * difference - gained - lost
        q = (math.sqrt(max(0.0, b * b + 8 * n * lost * difference * (1 - difference))) - b) / (4 * n)
        variance = max(0.0, n * (2 * q + difference * (1 - difference)))
        return gained - lost - n * difference - z * math.sqrt(variance)

    middle = (gained - lost) / n
    beside = 1e-9  # the estimate itself solves the equation too where all problems are alike
    low = -1.0 if middle == -1 else float(brentq(excess, -1, middle - beside, (_Z,)))
    high = 1.0 if middle == 1 else float(brentq(excess, middle + beside, 1, (-_Z,)))
    return low, high


def _bootstrap(d: Int[np.ndarray, "problem"], samples: int) -> tuple[float, float]:
    """Percentiles of the mean of `n` draws from `d` with replacement, per sample."""
    n = len(d)
    if (d == d[0]).all():  # nothing to draw from: what Wilson's interval leaves to problems of another d, at worst
        other, mean = 1 - wilson(n, n)[0], float(d[0]) / samples
        return mean - other * (mean + 1), mean + other * (1 - mean)
    lowest = int(d.min())
    one = np.bincount(d - lowest) / n
    width = n * (len(one) - 1) + 1
    chance = np.fft.irfft(np.fft.rfft(one, width) ** n, width)  # the n-fold convolution
    means = (np.arange(width) + n * lowest) / (n * samples)
    low = means[np.argmax(np.cumsum(chance) >= _TAIL)]
    high = means[width - 1 - np.argmax(np.cumsum(chance[::-1]) >= _TAIL)]
    return float(low), float(high)
