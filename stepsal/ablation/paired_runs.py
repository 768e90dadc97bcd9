"""Two logged runs of the same problems, compared task by task.

In: two runs (`stepsal.ablation.runs`). Out: a `PairedRuns`.

1. Both must have the same tasks, problems and numbers of answers. Nothing is intersected: what one of them lacks is named.
2. Where every score is 0 or 1, a task is compared by `stepsal.paired`: with one answer to each problem by Tango's interval and
   McNemar's exact test, with several by the exact bootstrap over problems and the exact test of swapping the runs within them.
3. Other scores are averaged within each problem. The interval of their mean difference is that of a bootstrap over problems,
   and the p-value that of the sign-flip test (`stepsal.statistics.same_traces`).
4. The p-values are corrected by Holm's method over the tasks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepsal._version import __version__
from stepsal.ablation.results import accuracy_interval, corrected
from stepsal.ablation.runs import Run, ScoredProblem, read_run
from stepsal.ablation.tables import Table, p_value, percent, points, star
from stepsal.checks import checked, instance, whole
from stepsal.checks import path as check_path
from stepsal.errors import FileError, InputError
from stepsal.resultfile import check_frame, frame_of_record, frame_to_record, read_result, write_result
from stepsal.statistics.paired import paired
from stepsal.statistics.same_traces import means_with_intervals, sign_flip_p

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any

_FORMAT = "stepsal paired 1"
_COLUMNS = (
    *("task", "metric", "unit", "test", "n", "samples", "baseline", "treated", "difference", "low", "high"),
    *("gained", "lost", "p", "p_corrected"),
)
_TESTS = {
    "McNemar": "Tango's score interval and McNemar's exact p",
    "swaps": "the exact bootstrap over problems and the exact p of swapping the runs within problems",
    "sign flip": "a bootstrap over problems and the p of sign flips",
}


@dataclass(frozen=True, eq=False)
class PairedRuns:
    """The comparison of two runs on the same problems.

    Attributes:
        table: a row for each task. `n` problems with `samples` answers each; the mean scores `baseline` and `treated`, each
            with its 95 % interval (`baseline_low` ...); their `difference` with its interval from `low` to `high`; how many
            problems are `gained` and `lost`; `p`, and `p_corrected` over the tasks; the `test`; the `metric`.
        names: what the two runs are called.
        meta: the runs' sources, the number of resamples, the seed and the version of stepsal.
    """

    table: DataFrame
    names: tuple[str, str]
    meta: dict[str, Any]

    def __repr__(self) -> str:
        return f"PairedRuns({self.names[1]!r} against {self.names[0]!r}; tasks {', '.join(self.table['task'])})"

    def _repr_html_(self) -> str:
        return str(self.table.to_html(float_format="{:.3f}".format, na_rep="", index=False))

    def to_dataframe(self) -> DataFrame:
        """The table: a row for each task."""
        return self.table.copy()

    def summary(self) -> str:
        """The table in Markdown, with what its columns mean."""
        return self.formatted().markdown()

    def formatted(self) -> Table:
        """The table for a paper: `.markdown()`, or `.latex(label)`."""
        rows = []
        for row in self.table.to_dict("records"):
            share = row["unit"] == "share"
            value, change = (percent, points) if share else (_number, _signed)
            rows.append(
                (
                    row["task"],
                    value(row["baseline"]),
                    value(row["treated"]),
                    change(row["difference"]) + star(row["p_corrected"]),
                    f"{change(row['low'])} to {change(row['high'])}" if row["low"] == row["low"] else "–",
                    f"{row['gained']:.0f}/{row['lost']:.0f}",
                    p_value(row["p"]),
                    p_value(row["p_corrected"]),
                    f"{row['n']}" + (f" × {row['samples']}" if row["samples"] > 1 else ""),
                )
            )
        tests = "; ".join(f"{_TESTS[test]}" for test in dict.fromkeys(self.table["test"]))
        metrics = ", ".join(dict.fromkeys(self.table["metric"]))
        caption = (
            f"{metrics} of {self.names[1]} less that of {self.names[0]}, paired by problem (in per cent and percentage points "
            f"where scores are from 0 to 1), with 95 % intervals: {tests}. Gained/lost: problems with a higher, a lower score; "
            f"p Holm: corrected over the {len(rows)} task{'s' * (len(rows) != 1)} (* below 0.05)."
        )
        header = ("Task", *self.names, "Difference", "95 % interval", "Gained/lost", "p", "p Holm", "n")
        return Table("Paired comparison", caption, header, tuple(rows))

    @checked(path=check_path)
    def save(self, path: str | Path) -> None:
        """Write it as JSON with a checksum, atomically."""
        content = {"names": list(self.names), "meta": self.meta, "table": frame_to_record(self.table)}
        write_result(path, _FORMAT, content)

    @classmethod
    @checked(path=check_path)
    def load(cls, path: str | Path, *, verify: bool = True) -> "PairedRuns":
        """Read what `save` wrote, and check it whole; `verify=False` does not compare its checksum. Raises `FileError`."""
        made_by = "`stepsal paired A B --out FILE.json`"
        content = read_result(path, _FORMAT, "comparison of runs", made_by, _check_content, verify=verify)
        first, second = content["names"]
        return cls(frame_of_record(content["table"]), (first, second), content["meta"])


def _check_content(content: dict[str, Any]) -> None:
    """Raise a `ValueError` that says what keeps a file's content from being a `PairedRuns`."""
    check_frame(content.get("table"), "table", _COLUMNS)
    names = content.get("names")
    if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the names of its runs are {names!r}, expected two")
    if not isinstance(content.get("meta"), dict):
        raise ValueError("'meta' is no object")


_run = instance(
    (str, Path, Run), "a logged run", "Give the path of samples, of graded traces, or FOLDER:SETTING of a sweep."
)


@checked(baseline=_run, treated=_run, resamples=whole(99), seed=whole(0))
def paired_runs(
    baseline: str | Path | Run,
    treated: str | Path | Run,
    *,
    tasks: Sequence[str] | None = None,
    metric: str | None = None,
    filter: str | None = None,
    names: tuple[str, str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedRuns:
    """Compare two logged runs of the same problems, task by task.

    Args:
        baseline, treated: samples of lm-evaluation-harness (a file or a folder), a JSONL file of graded traces, or
            `FOLDER:SETTING` of a sweep.
        tasks: the tasks to compare; by default all, and both runs must have the same.
        metric, filter: as in `stepsal.ablation.runs.read_run`.
        names: what tables call the two runs.
        resamples, seed: of the bootstrap and of sign flips, for scores that are not 0 or 1.

    Raises:
        FileError: what cannot be read.
        InputError: a task, a problem or an answer that one of the runs lacks; or one id for two problems.

    >>> import tempfile
    >>> from stepsal import load_tokenizer, write_traces
    >>> folder, tokenizer = Path(tempfile.mkdtemp()), load_tokenizer()
    >>> from stepsal import Trace
    >>> for name, right in (("a", [True, False, False, False]), ("b", [True, True, True, True])):
    ...     made = [Trace.from_text(tokenizer, f"{i}+1?", "So.", id=f"p{i}", correct=yes) for i, yes in enumerate(right)]
    ...     write_traces(folder / f"{name}.jsonl", made)
    >>> paired_runs(folder / "a.jsonl", folder / "b.jsonl").table[["difference", "gained", "lost", "p"]].values.tolist()
    [[0.75, 3.0, 0.0, 0.25]]
    """
    given = zip((baseline, treated), names or (None, None), strict=True)
    one, two = (
        run if isinstance(run, Run) else read_run(run, name=name, metric=metric, filter=filter) for run, name in given
    )
    chosen = _common_tasks(one, two, tasks)
    rows = []
    for task in chosen:
        problems = _common_problems(task, one, two)
        rows.append({"task": task, "metric": one.metric} | _compare(problems, resamples, seed))
    meta = {"sources": [one.source, two.source], "resamples": resamples, "seed": seed, "stepsal": __version__}
    return PairedRuns(corrected(rows), names or (one.name, two.name), meta)


def _common_tasks(one: Run, two: Run, chosen: Sequence[str] | None) -> list[str]:
    every = list(one.tasks) if chosen is None else list(chosen)
    for run, other in ((one, two), (two, one)):
        expected = every if chosen is not None else other.tasks
        if missing := [task for task in expected if task not in run.tasks]:
            raise InputError(
                f"{run.source} has no task {', '.join(map(repr, missing))}; it has {', '.join(map(repr, run.tasks))}. Run it, "
                "or choose among those that both have with --tasks"
            )
    if one.metric != two.metric:
        raise InputError(
            f"{one.source} is scored by {one.metric}, {two.source} by {two.metric}: choose one with --metric"
        )
    return every


def _common_problems(task: str, one: Run, two: Run) -> list[tuple[ScoredProblem, ScoredProblem]]:
    """The problems of a task in both runs, in one order."""
    problems, others = one.tasks[task], two.tasks[task]
    for run, there, lacking in ((one, problems, others), (two, others, problems)):
        if alone := [problem for problem in there if problem not in lacking]:
            raise InputError(
                f"task {task}: {len(alone)} of {len(there)} problems are in {run.source} alone, such as "
                f"{', '.join(map(repr, alone[:3]))}. A paired comparison needs the same problems in both runs: finish the "
                "other one, or run it on these"
            )
    for name, problem in problems.items():
        checks = problem.check, others[name].check
        if None not in checks and checks[0] != checks[1]:
            raise InputError(
                f"task {task}: the problem {name!r} is another one in {two.source} than in {one.source} ({checks[0]!r}, "
                f"{checks[1]!r}): both runs need the same problems under the same ids"
            )
        if len(problem.scores) != len(others[name].scores):
            raise InputError(
                f"task {task}: the problem {name!r} has {len(problem.scores)} answer(s) in {one.source} and "
                f"{len(others[name].scores)} in {two.source}: give as many in both"
            )
    return [(problem, others[name]) for name, problem in problems.items()]


def _compare(problems: Sequence[tuple[ScoredProblem, ScoredProblem]], resamples: int, seed: int) -> dict[str, Any]:
    """The columns of a task."""
    sizes = {len(problem.scores) for problem, _ in problems}
    if len(sizes) > 1:
        raise InputError(f"some problems have {min(sizes)} answers, some {max(sizes)}: give each as many")
    before, after = (np.array([pair[which].scores for pair in problems]) for which in (0, 1))
    every = np.stack([before, after])
    columns: dict[str, Any] = {"n": len(before), "samples": sizes.pop()}
    columns["unit"] = "share" if bool(((every >= 0) & (every <= 1)).all()) else "score"
    if np.isin(every, (0, 1)).all():
        result = paired(before.astype(bool), after.astype(bool))
        for name, scores in (("baseline", before), ("treated", after)):
            mean, low, high = accuracy_interval(scores.mean(1), scores.shape[1])
            columns |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        columns |= {name: getattr(result, name) for name in ("difference", "low", "high", "gained", "lost", "p")}
        return columns | {"test": "McNemar" if columns["samples"] == 1 else "swaps"}
    means = np.stack([before.mean(1), after.mean(1), after.mean(1) - before.mean(1)], axis=1)
    values, lows, highs = means_with_intervals(means, resamples, seed)
    for name, value, low, high in zip(("baseline", "treated"), values, lows, highs, strict=False):
        columns |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    columns |= {"difference": float(values[2]), "low": float(lows[2]), "high": float(highs[2])}
    columns |= {"gained": int((means[:, 2] > 0).sum()), "lost": int((means[:, 2] < 0).sum())}
    return columns | {"p": float(sign_flip_p(means[:, 2:], resamples, seed)[0]), "test": "sign flip"}


def _number(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def read_comparisons(folder: str | Path) -> Mapping[str, PairedRuns]:
    """The comparisons in a folder, by the names of their files. Raises `FileError` where there is none."""
    files = sorted(Path(folder).glob("*.json"))
    found = {file.stem: PairedRuns.load(file) for file in files}
    if not found:
        raise FileError(f"{folder} holds no comparison: make them with `stepsal paired A B --out {folder}/NAME.json`")
    return found
