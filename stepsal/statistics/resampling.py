"""Bootstrap intervals and permutation tests over traces, for many columns (a metric in a layer) at once.

In: two arrays `trace column`, with NaN where a trace has no value. Out: a table with a row per column.

1. For each column, over the traces that have a value: the means, their difference (wrong - correct), Cliff's delta, and the
   area under the ROC curve of "a high value means wrong" (`delta = 2 AUC - 1`).
2. The intervals of the difference and the AUC come from a percentile bootstrap over traces, in which each group is resampled by
   itself (scipy).
3. The p-value is that of a two-sided permutation test of the labels with Welch's t. It is corrected over the columns of a
   metric by the maximum statistic: the |t| of each layer is compared with the largest |t| over layers in each permutation
   (Westfall and Young). That keeps the chance of any false layer at the level, however the layers correlate. scipy has no
   such correction.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any

Correct = Float[np.ndarray, "correct column"]
Wrong = Float[np.ndarray, "wrong column"]
Columns = list[tuple[str, int | None]]
"""The metric and the layer of each column. The layer is None where a trace has a single value of the metric."""


def statistics(columns: Columns, correct: Correct, wrong: Wrong, resamples: int, seed: int) -> DataFrame:
    """The table, a row for each column. A column for which a group has fewer than two values keeps missing statistics.

    The table is empty where a group has fewer than two traces.
    """
    import pandas as pd

    if min(len(correct), len(wrong)) < 2:
        return pd.DataFrame()
    counts = [np.isfinite(group).sum(0) for group in (correct, wrong)]
    usable = (counts[0] > 1) & (counts[1] > 1)
    x, y = correct[:, usable], wrong[:, usable]
    names = [name for (name, _), keep in zip(columns, usable, strict=True) if keep]
    estimate, low, high = _bootstrap(x, y, resamples, seed)
    p, p_corrected = _permute(x, y, names, resamples, seed)

    def spread(of_usable: np.ndarray) -> np.ndarray:
        of_all = np.full(len(columns), np.nan)
        of_all[usable] = of_usable
        return of_all

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
    """The estimates and the two ends of their 95 % intervals: differences of means of all columns, then their AUCs."""
    from scipy.stats import bootstrap

    masks = [np.isfinite(group).astype(float) for group in (x, y)]
    filled = [np.nan_to_num(group) for group in (x, y)]
    sorted_columns = [_order(a, b) for a, b in zip(x.T, y.T, strict=True)]

    def statistic(i: np.ndarray, j: np.ndarray, axis: int) -> np.ndarray:
        """The statistics, `statistic resample`. `i` and `j` are the indices drawn from the groups, along the last axis."""
        weights = [counts_of_draws(indices, len(group)) for indices, group in ((i, x), (j, y))]
        present = [w @ mask for w, mask in zip(weights, masks, strict=True)]
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample without any value gives NaN
            means = [w @ f / n for w, f, n in zip(weights, filled, present, strict=True)]
            wins = np.stack([_wins(*weights, *column) for column in sorted_columns], -1)
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


def _order(correct: Float[np.ndarray, " correct"], wrong: Float[np.ndarray, " wrong"]) -> tuple[np.ndarray, ...]:
    """Of one column: the correct traces by value, the wrong traces with a value, and for each how many correct ones are below.

    The last is counted twice: those below, and those below or equal.
    """
    present = np.flatnonzero(np.isfinite(wrong))
    order = np.argsort(correct, kind="stable")[: np.isfinite(correct).sum()]
    below, upto = (np.searchsorted(correct[order], wrong[present], side) for side in ("left", "right"))
    return order, present, below, upto


def _wins(
    drawn_correct: Float[np.ndarray, "resample correct"],
    drawn_wrong: Float[np.ndarray, "resample wrong"],
    order: np.ndarray,
    present: np.ndarray,
    below: np.ndarray,
    upto: np.ndarray,
) -> Float[np.ndarray, " resample"]:
    """In how many of the drawn pairs the wrong trace has the higher value, ties counted half: exact, as sums of halves are."""
    so_far = np.pad(drawn_correct[:, order].cumsum(1), ((0, 0), (1, 0)))
    return ((so_far[:, below] + so_far[:, upto]) * 0.5 * drawn_wrong[:, present]).sum(1)


def counts_of_draws(indices: np.ndarray, n: int) -> np.ndarray:
    """How often each of `n` items was drawn in each resample: `resample item`."""
    drawn = np.atleast_2d(indices)
    rows = np.arange(len(drawn))[:, None] * n
    return np.bincount((drawn + rows).ravel(), minlength=len(drawn) * n).reshape(len(drawn), n).astype(float)


def _permute(x: Correct, y: Wrong, names: list[str], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The permutation p-values of |Welch's t| of each column, uncorrected and corrected over the columns of its metric."""
    both = np.concatenate([x, y])
    centred = both - np.nanmean(both, 0)
    scale = np.nanmax(np.abs(centred), 0)
    mask = np.isfinite(both).astype(float)
    filled = np.nan_to_num(centred / np.where(scale > 0, scale, 1))
    rng = np.random.default_rng(seed)
    labels = np.zeros((resamples + 1, len(both)))
    labels[:, : len(x)] = 1
    labels[1:] = rng.permuted(labels[1:], axis=1)  # the first row has the observed labels

    def moments(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = chosen @ mask
        mean = chosen @ filled / n
        return n, mean, (chosen @ filled**2 - n * mean**2) / (n - 1)

    # A permuted group may have one value or none, and a column may have no spread.
    with np.errstate(invalid="ignore", divide="ignore"):
        (n1, mean1, var1), (n2, mean2, var2) = moments(labels), moments(1 - labels)
        t = np.abs(mean1 - mean2) / np.sqrt(np.maximum(var1 / n1 + var2 / n2, 1e-24))
    t = np.nan_to_num(t, nan=0.0, posinf=0.0)
    observed = t[0] * (1 - 1e-9)  # rounding must not decide a tie
    p = (1 + (t[1:] >= observed).sum(0)) / (1 + resamples)
    corrected = np.empty_like(p)
    for name in dict.fromkeys(names):
        columns = [i for i, metric in enumerate(names) if metric == name]
        largest = t[1:, columns].max(1)
        corrected[columns] = (1 + (largest[:, None] >= observed[columns]).sum(0)) / (1 + resamples)
    return p, corrected
