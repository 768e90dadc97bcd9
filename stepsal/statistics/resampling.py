"""Bootstrap intervals and permutation tests over traces, for many columns (a metric in a layer) at once.

In: two arrays `trace column`, NaN where a trace has no value. Out: a table, a row per column.

1. Per column, over the traces that have a value: means, their difference (wrong - correct), Cliff's delta, and the area under
   the ROC curve of "a high value means wrong" (`delta = 2 AUC - 1`).
2. Intervals of difference and AUC: percentile bootstrap over traces, each group resampled by itself (scipy).
3. p: permutation of the labels, two-sided, of Welch's t. Corrected over the columns of a metric by the maximum statistic:
   each layer's |t| against the permutations' largest |t| over layers (Westfall and Young), which keeps the chance of any
   false layer at the level however the layers correlate. scipy has no such correction.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any

Correct = Float[np.ndarray, "correct column"]
Wrong = Float[np.ndarray, "wrong column"]
Columns = list[tuple[str, int | None]]
"""Metric and layer of each column; no layer for what a trace has one of."""


def statistics(columns: Columns, correct: Correct, wrong: Wrong, resamples: int, seed: int) -> DataFrame:
    """The rows of a table; columns that fewer than two traces of a group have are left missing."""
    import pandas as pd

    if min(len(correct), len(wrong)) < 2:
        return pd.DataFrame()
    counts = [np.isfinite(group).sum(0) for group in (correct, wrong)]
    usable = (counts[0] > 1) & (counts[1] > 1)
    x, y = correct[:, usable], wrong[:, usable]
    names = [name for (name, _), keep in zip(columns, usable, strict=True) if keep]
    estimate, low, high = _bootstrap(x, y, resamples, seed)
    p, p_corrected = _permute(x, y, names, resamples, seed)

    def spread(part: np.ndarray) -> np.ndarray:
        whole = np.full(len(columns), np.nan)
        whole[usable] = part
        return whole

    half = usable.sum()
    layers = pd.array([layer for _, layer in columns], dtype="Int64")
    return pd.DataFrame(
        {
            "metric": [name for name, _ in columns],
            "layer": layers,
            "correct": spread(np.nanmean(x, 0)),
            "wrong": spread(np.nanmean(y, 0)),
            "n_correct": counts[0],
            "n_wrong": counts[1],
            "difference": spread(estimate[:half]),
            "low": spread(low[:half]),
            "high": spread(high[:half]),
            "cliffs_delta": spread(2 * estimate[half:] - 1),
            "auc": spread(estimate[half:]),
            "auc_low": spread(low[half:]),
            "auc_high": spread(high[half:]),
            "p": spread(p),
            "p_corrected": spread(p_corrected),
        }
    )


def _bootstrap(x: Correct, y: Wrong, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences of means, then AUCs, of all columns: estimates, and both ends of their 95 % intervals."""
    from scipy.stats import bootstrap

    masks = [np.isfinite(group).astype(float) for group in (x, y)]
    filled = [np.nan_to_num(group) for group in (x, y)]
    # how often a wrong trace's value is the higher one (ties count half), `column correct wrong`
    higher = [
        ((a[:, None] < b) + 0.5 * (a[:, None] == b)) * np.outer(i, j)
        for a, b, i, j in zip(filled[0].T, filled[1].T, masks[0].T, masks[1].T, strict=True)
    ]

    def statistic(i: np.ndarray, j: np.ndarray, axis: int) -> np.ndarray:
        """`i` and `j` are the indices drawn from each group, along the last axis; out: `statistic resample`."""
        weights = [_counts(each, len(group)) for each, group in ((i, x), (j, y))]
        present = [w @ mask for w, mask in zip(weights, masks, strict=True)]
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample without any value gives NaN
            means = [w @ f / n for w, f, n in zip(weights, filled, present, strict=True)]
            wins = np.stack([((weights[0] @ h) * weights[1]).sum(-1) for h in higher], -1)
            out = np.concatenate([means[1] - means[0], wins / (present[0] * present[1])], -1)
        return out[0] if i.ndim == 1 else out.T

    indices = (np.arange(len(x)), np.arange(len(y)))
    batch = max(1, min(resamples, 20_000_000 // (len(x) * len(y) + 1)))
    result = bootstrap(
        indices,
        statistic,
        n_resamples=resamples,
        vectorized=True,
        method="percentile",
        batch=batch,
        rng=np.random.default_rng(seed),
    )
    drawn = result.bootstrap_distribution
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=-1)
    return statistic(*indices, axis=-1), low, high


def _counts(indices: np.ndarray, n: int) -> np.ndarray:
    """How often each of `n` items was drawn, `resample item`."""
    drawn = np.atleast_2d(indices)
    rows = np.arange(len(drawn))[:, None] * n
    return np.bincount((drawn + rows).ravel(), minlength=len(drawn) * n).reshape(len(drawn), n).astype(float)


def _permute(x: Correct, y: Wrong, names: list[str], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Permutation p-values of |Welch's t| for each column: by itself, and corrected over the columns of its metric."""
    both = np.concatenate([x, y])
    centred = both - np.nanmean(both, 0)
    scale = np.nanmax(np.abs(centred), 0)
    mask = np.isfinite(both).astype(float)
    filled = np.nan_to_num(centred / np.where(scale > 0, scale, 1))
    rng = np.random.default_rng(seed)
    labels = np.zeros((resamples + 1, len(both)))
    labels[:, : len(x)] = 1
    labels[1:] = rng.permuted(labels[1:], axis=1)  # the first row is what was observed

    def moments(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = chosen @ mask
        mean = chosen @ filled / n
        return n, mean, (chosen @ filled**2 - n * mean**2) / (n - 1)

    with np.errstate(invalid="ignore", divide="ignore"):  # groups of one or none, and columns without spread
        (n1, mean1, var1), (n2, mean2, var2) = moments(labels), moments(1 - labels)
        t = np.abs(mean1 - mean2) / np.sqrt(np.maximum(var1 / n1 + var2 / n2, 1e-24))
    t = np.nan_to_num(t, nan=0.0, posinf=0.0)
    observed = t[0] * (1 - 1e-9)  # rounding must not decide a tie
    p = (1 + (t[1:] >= observed).sum(0)) / (1 + resamples)
    corrected = np.empty_like(p)
    for name in dict.fromkeys(names):
        columns = [i for i, each in enumerate(names) if each == name]
        largest = t[1:, columns].max(1)
        corrected[columns] = (1 + (largest[:, None] >= observed[columns]).sum(0)) / (1 + resamples)
    return p, corrected
