"""Right against wrong answers to the same problems: `python -m experiments.same_problem DIR`.

In: a folder of step maps whose traces come in pairs, `PROBLEM-correct` and `PROBLEM-incorrect`. Out: a Markdown table. For each
metric it has a row, of the layer in which the pairs differ most.

1. The difference of a pair is the metric of the wrong trace less that of the right trace. The problem is the same, so nothing
   that belongs to the problem can explain the difference; the lengths of the two traces can.
2. What the lengths explain is the same difference, of the metric that each map would have if influence depended on distance
   alone (`position_only`). "Beyond distance" is the first difference less the second, and it is tested, too.
3. The interval is a percentile bootstrap over pairs. The p-value is exact: it is the share of all 2^n ways to swap right and
   wrong within pairs whose largest |t| over layers is at least the observed |t| of the layer (Westfall and Young), so it is
   corrected over layers. The smallest p that n pairs can give is 2 / 2^n.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from stepsal import Diagnosis
from stepsal.diagnosis.folder import diagnose_files
from stepsal.diagnosis.metrics import LABELS
from stepsal.errors import InputError
from stepsal.markdown import markdown_table
from stepsal.saliency.folder import open_step_maps

WRONG, RIGHT = "-incorrect", "-correct"
MOST_PAIRS = 16


def pairs_of(diagnoses: Sequence[Diagnosis]) -> list[tuple[Diagnosis, Diagnosis]]:
    """The (right, wrong) pairs by the traces' ids. Raises `InputError` where a trace has no partner.

    >>> pairs_of([])
    []
    """
    by_id = {str(diagnosis.meta["trace"]): diagnosis for diagnosis in diagnoses}
    problems = {name.removesuffix(WRONG).removesuffix(RIGHT) for name in by_id}
    expected = {problem + ending for problem in problems for ending in (RIGHT, WRONG)}
    if expected != set(by_id):
        raise InputError(
            f"the traces do not come in pairs PROBLEM{RIGHT}, PROBLEM{WRONG}: {sorted(expected ^ set(by_id))[:4]} are missing"
        )
    return [(by_id[problem + RIGHT], by_id[problem + WRONG]) for problem in sorted(problems)]


def sign_flips(differences: Float[np.ndarray, "pair layer"]) -> Float[np.ndarray, " layer"]:
    """The exact p-value of each layer, two-sided, corrected over layers by the largest |t|.

    >>> sign_flips(np.ones((3, 2)) + np.arange(3)[:, None] / 10)
    array([0.25, 0.25])
    """
    n = len(differences)
    if n > MOST_PAIRS:
        raise InputError(f"{n} pairs have 2^{n} ways to be swapped: {MOST_PAIRS} pairs at most can be counted exactly")
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    mean = signs @ differences / n
    spread = np.sqrt(np.maximum((differences**2).mean(0) - mean**2, 1e-24))
    t = np.abs(mean) / spread
    observed = t[0] * (1 - 1e-9)  # rounding must not decide a tie
    return (t.max(1)[:, None] >= observed).mean(0)


def table(pairs: Sequence[tuple[Diagnosis, Diagnosis]], resamples: int = 2000, seed: int = 0) -> str:
    """The Markdown table of all metrics."""
    first = pairs[0][0]
    header = ["metric", "layer", "right", "wrong", "difference (95 %)", "higher in the wrong trace", "p, corrected"]
    header += ["difference by distance alone", "beyond distance (95 %)", "p, corrected"]
    rows = []
    for name in first.profile:
        right, wrong = (np.array([pair[side].profile[name].double().numpy() for pair in pairs]) for side in (0, 1))
        alone = np.array([(w.position_only[name] - r.position_only[name]).double().numpy() for r, w in pairs])
        difference = wrong - right
        known = np.isfinite(difference).all(1)
        if known.sum() < 2:
            continue
        draws = np.random.default_rng(seed).integers(known.sum(), size=(resamples, known.sum()))
        difference, alone, right, wrong = difference[known], alone[known], right[known], wrong[known]
        beyond = difference - alone
        p, p_beyond = sign_flips(difference), sign_flips(beyond)
        at = int(np.argmin(p_beyond))
        cells = []
        for values in (difference[:, at], beyond[:, at]):
            low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
            cells.append(f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})")
        rows.append(
            [
                LABELS.get(name, name),
                str(first.layers[at]),
                f"{right[:, at].mean():.3f}",
                f"{wrong[:, at].mean():.3f}",
                cells[0],
                f"{(difference[:, at] > 0).sum()} of {known.sum()}",
                f"{p[at]:.3f}",
                f"{alone[:, at].mean():+.3f}",
                cells[1],
                f"{p_beyond[at]:.3f}",
            ]
        )
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `stepsal saliency` wrote")
    folder = parser.parse_args().folder
    pairs = pairs_of(diagnose_files(open_step_maps(folder, progress=True), progress=True))
    print(f"{len(pairs)} problems, each answered right once and wrong once\n\n{table(pairs)}")


if __name__ == "__main__":
    main()
