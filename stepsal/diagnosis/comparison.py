"""Correct against wrong traces: what differs, by how much, how certain it is, and what else could explain it.

In: two groups of step maps (or diagnoses). Out: a `Comparison`, with one row per metric and layer. The trace is the unit of
sampling: layers and heads of one trace are never counted as independent.

1. For each metric and layer, over the traces that have a value: both means, their difference (wrong - correct), Cliff's delta,
   and the area under the ROC curve of "a high value means wrong" (`delta = 2 AUC - 1`).
2. Intervals come from a bootstrap, and p-values from permutations, corrected over layers: `stepsal.statistics.resampling`.
3. There are two controls. Since wrong traces are often longer, the same rows are computed for pairs of traces that are matched
   on their number of steps and, within 10 %, on their number of tokens (one to one, by scipy's optimal assignment). And they
   are computed for what the metrics would be if influence depended on distance alone (`metrics.position_only`).

Source: method.md section 4.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stepsal._version import __version__
from stepsal.checks import checked, path, several, whole
from stepsal.diagnosis.comparisonfile import TABLES, read_comparison, write_comparison
from stepsal.diagnosis.diagnosis import Diagnosis, check_alike, diagnose
from stepsal.diagnosis.metrics import LABELS
from stepsal.errors import InputError
from stepsal.markdown import markdown_table, significant, with_interval
from stepsal.saliency.stepmap import StepMap
from stepsal.statistics.resampling import Columns, statistics

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any

LENGTH_TOLERANCE = 0.1
_READING_AID = (
    "Each row is the layer that tells right from wrong traces best. An AUC above 1/2 means that the metric is higher in wrong "
    'traces. "Matched" compares pairs of traces of equal length; "distance alone" is what the metric would give if influence '
    "depended on distance only. p is corrected over layers, not over metrics."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """The comparison of two groups of traces.

    Attributes:
        table: a row per metric and layer. The decays and lengths have no layer, since a trace has a single value of each. The
            columns are `correct` and `wrong` (the groups' means), `n_correct` and `n_wrong` (how many traces have a value),
            `difference` (wrong - correct) with its 95 % interval from `low` to `high`, `cliffs_delta`, `auc` with its
            interval from `auc_low` to `auc_high`, `p`, and `p_corrected`.
        matched: the same table for the traces of `pairs`. It is empty where fewer than two pairs could be matched.
        position_only: the same table for what the metrics would be if influence depended on distance alone. The decays and
            lengths are not in it.
        pairs: the indices (correct, wrong) of the matched traces.
        meta: the numbers of traces and resamples, the seed, the version of stepsal, and what the maps have in common.
    """

    table: DataFrame
    matched: DataFrame
    position_only: DataFrame
    pairs: tuple[tuple[int, int], ...]
    meta: dict[str, Any]

    def __repr__(self) -> str:
        return (
            f"Comparison({self.meta['correct']} correct, {self.meta['wrong']} wrong, {len(self.pairs)} matched pairs)"
        )

    def to_dataframe(self) -> DataFrame:
        """All three tables in one. The column `control` names the table of a row: `none`, `matched` or `position only`."""
        import pandas as pd

        tables = {"none": self.table, "matched": self.matched, "position only": self.position_only}
        frames = [table.assign(control=name) for name, table in tables.items() if len(table)]
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> str:
        """A Markdown table with, for each metric, the layer that tells wrong from right traces best, its controls, and what
        follows.
        """
        header = ["metric", "layer", "right", "wrong", "difference (95 %)", "AUC (95 %)", "p, corrected"]
        header += ["AUC matched (95 %)", "p matched, corrected", "AUC, distance alone"]
        tables = [self._records(name) for name in TABLES]
        lines, found, missing = [], [], []
        for metric in dict.fromkeys(name for name, _ in tables[0]):
            rows = {layer: row for (name, layer), row in tables[0].items() if name == metric and row["auc"] is not None}
            if not rows:
                missing.append(LABELS.get(metric, metric))
                continue
            layer, best = max(rows.items(), key=lambda item: abs(item[1]["auc"] - 0.5))
            matched, alone = (table.get((metric, layer)) for table in tables[1:])
            if matched is not None and matched["auc"] is not None and matched["p_corrected"] < 0.05:
                found.append(LABELS.get(metric, metric))
            lines.append(
                [
                    LABELS.get(metric, metric),
                    "" if layer is None else str(layer),
                    significant(best["correct"]),
                    significant(best["wrong"]),
                    with_interval(best["difference"], best["low"], best["high"]),
                    *_auc(best),
                    *_auc(matched),
                    _auc(alone)[0].split(" ")[0],
                ]
            )
        counts = (
            f"{self.meta['correct']} right and {self.meta['wrong']} wrong traces; {len(self.pairs)} pairs matched on "
            f"{self.meta['matched_on']}."
        )
        parts = [counts, markdown_table(header, lines), _READING_AID]
        if missing:
            left_out = f"Not in the table, since too few traces have a value: {', '.join(missing)}."
            parts.append(f"{left_out} docs/method.md says what each metric needs.")
        return "\n\n".join([*parts, _conclusion(found, len(lines))])

    def _records(self, table: str) -> dict[tuple[str, int | None], dict[str, Any]]:
        """The rows of a table by metric and layer, as in JSON, where a missing value is None."""
        records = json.loads(getattr(self, table).to_json(orient="records", double_precision=12))
        return {(record["metric"], record["layer"]): record for record in records}

    @checked(path=path)
    def save(self, path: str | Path) -> None:
        """Write the comparison as JSON with a checksum, atomically."""
        tables = {
            name: json.loads(getattr(self, name).to_json(orient="records", double_precision=12)) for name in TABLES
        }
        write_comparison(path, self.meta, self.pairs, tables)

    @classmethod
    @checked(path=path)
    def load(cls, path: str | Path, *, verify: bool = True) -> "Comparison":
        """Read a comparison that `save` wrote, and check it whole; `verify=False` does not compare its checksum.

        Raises `FileError` for anything else.
        """
        import pandas as pd

        content = read_comparison(path, verify)
        tables = {name: pd.DataFrame(content[name]) for name in TABLES}
        for table in tables.values():
            for column in table.columns.drop("metric", errors="ignore"):
                table[column] = table[column].astype("Int64" if column == "layer" else float)
        return cls(pairs=tuple((i, j) for i, j in content["pairs"]), meta=content["meta"], **tables)

    def _repr_html_(self) -> str:
        shown = self.table.assign(metric=[LABELS.get(name, name) for name in self.table["metric"]])
        table = shown.to_html(float_format="{:.3f}".format, na_rep="", index=False, max_rows=60)
        return f"<b>{self.meta['correct']} correct and {self.meta['wrong']} wrong traces</b>{table}"


_group = several(
    (StepMap, Diagnosis),
    "a list of the step maps (or diagnoses) of a group of traces",
    "Give two lists, compare(correct, error), with two traces in each at least; `stepsal.StepMap.load(path)` reads a file.",
)


@checked(correct=_group, error=_group, resamples=whole(1), seed=whole(0))
def compare(
    correct: Sequence[StepMap | Diagnosis],
    error: Sequence[StepMap | Diagnosis],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare the step maps of correct and of wrong traces, for each metric and layer, with controls.

    Args:
        correct, error: the step maps or diagnoses of the right and of the wrong traces, all made with the same model, layers,
            rule and objective.
        resamples: the number of resamples that the bootstrap draws, and of permutations that the test draws.
        seed: the seed of the bootstrap and of the permutations.

    Raises:
        InputError: a group has fewer than two traces, there are too few resamples for a 95 % interval, or the maps were made
            differently.

    >>> import torch
    >>> from stepsal import Step, StepMap, compare
    >>> steps = tuple(Step(i, s, 2 * i, 2 * i + 2, s) for i, s in enumerate(["question", "thinking", "thinking", "summary"]))
    >>> pairs = torch.tensor([[3, 0, 0, 0], [4, 3, 0, 0], [4, 4, 3, 0], [2, 2, 2, 1]])
    >>> maps = [StepMap(torch.rand(8, 3, 4, 4).tril(), pairs, steps, tuple(range(8)), {}) for _ in range(8)]
    >>> compare(maps[:4], maps[4:], resamples=99)
    Comparison(4 correct, 4 wrong, 4 matched pairs)
    """
    if resamples < 99:
        raise InputError(f"resamples={resamples} are too few for 95 % intervals: give at least 99, better 2,000")
    groups = [[one if isinstance(one, Diagnosis) else diagnose(one) for one in group] for group in (correct, error)]
    for name, group in zip(("correct", "error"), groups, strict=True):
        if len(group) < 2:
            raise InputError(
                f"{name} holds {len(group)} trace(s): a comparison needs two in each group, and should have dozens"
            )
        for diagnosis in group:
            check_alike(groups[0][0], diagnosis)
    columns, values = _values(groups)
    null_columns, null_values = _position_only(groups)
    pairs = _match(*groups)
    return Comparison(
        table=statistics(columns, values[0], values[1], resamples, seed),
        matched=statistics(
            columns,
            values[0][[i for i, _ in pairs]],
            values[1][[j for _, j in pairs]],
            resamples,
            seed,
        ),
        position_only=statistics(null_columns, null_values[0], null_values[1], resamples, seed),
        pairs=pairs,
        meta={
            "correct": len(groups[0]),
            "wrong": len(groups[1]),
            "resamples": resamples,
            "seed": seed,
            "matched_on": f"the number of steps, and tokens within {LENGTH_TOLERANCE:.0%}",
            "traces": [[diagnosis.meta.get("trace") for diagnosis in group] for group in groups],
            "layers": list(groups[0][0].layers),
            "stepsal": __version__,
        }
        | {key: groups[0][0].meta.get(key) for key in ("model", "model_layers", "rule", "objective", "score")},
    )


def _conclusion(found: Sequence[str], metrics: int) -> str:
    """One sentence on the metrics whose difference is there between matched pairs, too."""
    if not found:
        return f"None of the {metrics} metrics tells matched pairs apart (corrected p below 0.05)."
    tell = f"{'tells' if len(found) == 1 else 'tell'} matched pairs apart"
    return f"{len(found)} of {metrics} metrics {tell} (corrected p below 0.05): {', '.join(found)}."


def _auc(row: dict[str, Any] | None) -> tuple[str, str]:
    """The AUC of a row with its interval, and its corrected p-value. Both texts are empty where the row has no AUC."""
    if row is None or row["auc"] is None:
        return "", ""
    return f"{row['auc']:.2f} ({row['auc_low']:.2f} to {row['auc_high']:.2f})", significant(row["p_corrected"], 2)


def _values(groups: list[list[Diagnosis]]) -> tuple[Columns, list[np.ndarray]]:
    """The columns (metric and layer), and for each group an array `trace column`, with NaN where a trace has no value."""
    first = groups[0][0]
    columns: Columns = [(name, layer) for name in first.profile for layer in first.layers]
    columns += [(name, None) for name in (*first.decay, "steps", "tokens")]
    values = [
        np.array(
            [
                [*torch.cat(list(d.profile.values())).tolist(), *d.decay.values(), d.meta["steps"], d.meta["tokens"]]
                for d in group
            ],
            dtype=np.float64,
        )
        for group in groups
    ]
    return columns, values


def _position_only(groups: list[list[Diagnosis]]) -> tuple[Columns, list[np.ndarray]]:
    """The same as `_values`, for what the metrics would be if influence depended on distance alone."""
    first = groups[0][0]
    columns: Columns = [(name, layer) for name in first.position_only for layer in first.layers]
    values = [np.array([torch.cat(list(d.position_only.values())).double().numpy() for d in group]) for group in groups]
    return columns, values


def _match(correct: list[Diagnosis], wrong: list[Diagnosis]) -> tuple[tuple[int, int], ...]:
    """One-to-one pairs of a correct and a wrong trace with equally many steps and nearly equal lengths.

    There are as many pairs as possible and, among such choices, their lengths differ the least.
    """
    from scipy.optimize import linear_sum_assignment

    steps = [
        np.array([[d.meta["steps_of"][s] for s in ("thinking", "summary")] for d in group])
        for group in (correct, wrong)
    ]
    tokens = [np.log([float(d.meta["tokens"]) for d in group]) for group in (correct, wrong)]
    apart = np.abs(tokens[0][:, None] - tokens[1])
    allowed = (steps[0][:, None] == steps[1]).all(-1) & (apart <= np.log1p(LENGTH_TOLERANCE))
    forbidden = 1e3  # a cost that no saving among the allowed pairs could outweigh
    rows, columns = linear_sum_assignment(np.where(allowed, apart, forbidden))
    return tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True) if allowed[i, j])
