"""Means over traces with intervals, and tests of differences between values that the same traces have.

In: arrays `trace column`, with NaN where a trace has no value. Out: for each column, numbers over the traces that have one.

1. The interval of a mean is given by the percentiles of a bootstrap over traces. All columns see the same resamples.
2. The p-value of a mean difference of zero is that of the two-sided sign-flip test: the share of the 2^n ways to flip the signs
   of the traces' differences whose |mean| is at least the observed one. Where there are more ways than resamples, that many
   are drawn, and the observed one is counted with them (scipy).

Source of the test: Fisher, The Design of Experiments (1935), section 21.
"""

import numpy as np
from jaxtyping import Float

from stepsal.statistics.resampling import counts_of_draws

_MOST_AT_ONCE = 5_000_000


def means_with_intervals(
    values: Float[np.ndarray, "trace column"], resamples: int, seed: int
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """For each column the mean over traces, and the ends of its 95 % interval; a column of fewer than two has no interval.

    >>> mean, low, high = means_with_intervals(np.array([[1.0], [2.0], [np.nan], [3.0]]), 999, 0)
    >>> float(mean[0]), bool(1 <= low[0] < 2 < high[0] <= 3)
    (2.0, True)
    """
    present = np.isfinite(values)
    counts, filled = present.sum(0), np.where(present, values, 0)
    traces = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    weights = counts_of_draws(traces, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample without any value gives NaN
        mean, drawn = filled.sum(0) / counts, weights @ filled / (weights @ present)
    ends = np.full((2, values.shape[1]), np.nan)
    if (usable := counts > 1).any():
        ends[:, usable] = np.nanpercentile(drawn[:, usable], [2.5, 97.5], axis=0)
    return mean, ends[0], ends[1]


def sign_flip_p(
    differences: Float[np.ndarray, "trace column"], resamples: int, seed: int
) -> Float[np.ndarray, " column"]:
    """The two-sided p-value of the sign-flip test of each column; NaN where fewer than two traces have a difference.

    >>> sign_flip_p(np.array([[1.0], [2.0], [3.0]]), 2000, 0).tolist()  # 2 of 8 ways: all signs alike
    [0.25]
    """
    from scipy.stats import permutation_test

    present = np.isfinite(differences)
    filled = np.where(present, differences, 0)  # a zero says nothing, whatever its sign

    def total(flipped: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(flipped.sum(axis=axis))

    if len(filled) < 2:
        return np.full(filled.shape[1], np.nan)
    test = permutation_test(
        (filled,),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _MOST_AT_ONCE // filled.size),
        axis=0,
        rng=np.random.default_rng(seed),
    )
    return np.where(present.sum(0) > 1, test.pvalue, np.nan)
