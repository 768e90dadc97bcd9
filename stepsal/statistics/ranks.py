"""Rank correlation, also given other variables.

In: two variables, and the variables that are held fixed. Out: one number, NaN where it is not defined.

1. Every variable is replaced by its ranks (ties share their mean rank), less their mean.
2. From the ranks of both variables, what is linear in the ranks of the variables given is taken away (least squares).
3. The correlation is that of what is left, a and b: sum a b / sqrt(sum a^2 sum b^2). With nothing given, this is Spearman's
   rho.

Sources: Spearman, American Journal of Psychology 15 (1904) 72; Conover, Practical Nonparametric Statistics, 3rd edition (1999),
section 5.4, for the partial correlation of ranks.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

LEAST = 4
"""A rank correlation of fewer values than this says next to nothing. Every variable that is given asks for one value more."""

_ROUNDING = 1e-9


def rank_correlation(
    x: Float[np.ndarray, " value"], y: Float[np.ndarray, " value"], given: Sequence[Float[np.ndarray, " value"]] = ()
) -> float:
    """Spearman's rank correlation of `x` and `y`; the partial one, where other variables are given.

    NaN where there are too few values, and where nothing is left of a variable: it is constant, or a function of those given.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0, 9.0]), np.array([0.1, 0.2, 0.3, 0.4]))
    1.0
    >>> rank_correlation(np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.1, 0.2, 0.3, 0.4]))
    nan
    """
    from scipy.stats import rankdata

    if len(x) < LEAST + len(given):
        return math.nan
    ranks = rankdata(np.stack([x, y, *given]), axis=1) - (len(x) + 1) / 2
    left = ranks[:2]
    if len(given):
        others = ranks[2:].T
        left = left - (others @ np.linalg.lstsq(others, left.T, rcond=None)[0]).T
    squares, before = (left**2).sum(1), (ranks[:2] ** 2).sum(1)
    if (squares <= _ROUNDING**2 * np.maximum(before, 1)).any():
        return math.nan
    return float(np.clip((left[0] * left[1]).sum() / math.sqrt(squares[0] * squares[1]), -1, 1))
