"""Logged runs of problems: what was scored, problem by problem, whoever logged it.

In: samples of lm-evaluation-harness (a file, or a folder of them), the folder of a sweep and one of its settings, or a JSONL
file of graded traces. Out: a `Run`.

1. A problem has an id, a check that tells whether another run means the same problem by it (the harness's hash of the document;
   the expected answer), and a score for each of its answers.
2. Traces with equal prompts are answers to one problem.
3. What has no score is refused, and so is a choice that nobody made: which setting, metric, filter, which of two files.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepsal.ablation.labels import title
from stepsal.ablation.results import Results
from stepsal.errors import FileError, InputError
from stepsal.jsonl import parse_line, read_lines
from stepsal.traces.files import parse_record

PROBLEMS = "problems"
"""What the task is called of runs that have one task without a name."""
_SAMPLES = re.compile(r"samples_(?P<task>.+?)(?:_\d{4}-\d\d-\d\dT[\d.-]+)?\.jsonl")


@dataclass(frozen=True)
class ScoredProblem:
    """The scores of a problem's answers, and what tells whether another problem of the same id is the same one."""

    scores: tuple[float, ...]
    check: str | None


@dataclass(frozen=True)
class Run:
    """A logged run.

    Attributes:
        name: what tables call it.
        source: where it was read from.
        metric: the name of the scores.
        tasks: the problems of each task, by their ids.
    """

    name: str
    source: str
    metric: str
    tasks: Mapping[str, Mapping[str, ScoredProblem]]


def read_run(path: str | Path, *, name: str | None = None, metric: str | None = None, filter: str | None = None) -> Run:
    """The run at `path`: a file of samples or of graded traces, a folder of samples, or `FOLDER:SETTING` of a sweep.

    SETTING is a kind (`none` for the baseline, `oeb`, `both`, ...) that the sweep has once, or the id of a setting.

    Args:
        name: what tables call the run; by default the path.
        metric: of the harness, for tasks that have several; of traces and sweeps `correct` (the default) or `score`.
        filter: of the harness, for tasks that have several.

    Raises:
        FileError: what cannot be read.
        InputError: what has no scores, or a choice that has to be made.
    """
    given, setting = str(path), None
    where = Path(path)
    if not where.exists() and ":" in given:
        where, setting = Path(given.rpartition(":")[0]), given.rpartition(":")[2]
    if not where.exists():
        raise FileError(
            f"there is no {path}: give samples of lm-evaluation-harness, graded traces, or a sweep, FOLDER:SETTING"
        )
    if setting is not None or (where / "results.parquet").exists():
        return _sweep(where, setting, name, metric or "correct")
    if where.is_dir():
        files = sorted(where.rglob("samples_*.jsonl"))
        if not files:
            raise FileError(f"{where} has no samples_*.jsonl: run the harness with --log_samples --output_path {where}")
        return _samples(files, given, name, metric, filter)
    first = next((parse_line(line) for _, line in read_lines(where, "answers")), None)
    if isinstance(first, dict) and "doc_id" in first and "metrics" in first:
        return _samples([where], given, name, metric, filter)
    return _traces(where, name, metric or "correct")


# --- samples of lm-evaluation-harness --------------------------------------------------------------------------------
def _samples(files: Sequence[Path], source: str, name: str | None, metric: str | None, filter: str | None) -> Run:
    tasks: dict[str, dict[str, ScoredProblem]] = {}
    read_from: dict[str, Path] = {}
    chosen: dict[str, set[str]] = {"metric": set(), "filter": set()}
    for file in files:
        match = _SAMPLES.fullmatch(file.name)
        task = match["task"] if match else file.stem
        if task in tasks:
            raise InputError(f"two files hold samples of {task}: {read_from[task]} and {file}. Give one of them")
        read_from[task] = file
        tasks[task], used = _task(file, metric, filter)
        for what, its in used.items():
            chosen[what].add(its)
    for what, given in (("metric", metric), ("filter", filter)):
        if given is not None and given not in chosen[what]:
            known = ", ".join(sorted(chosen[what]))
            raise InputError(f"no task of {source} has the {what} {given!r}; what they have is {known}")
    return Run(name or source, source, " and ".join(sorted(chosen["metric"])), tasks)


def _task(file: Path, metric: str | None, filter: str | None) -> tuple[dict[str, ScoredProblem], dict[str, str]]:
    """The problems of one file of samples, and by which metric and filter they are scored."""
    records = []
    for number, line in read_lines(file, "samples"):
        record = parse_line(line)
        if not isinstance(record, dict) or not {"doc_id", "metrics"} <= record.keys():
            raise InputError(
                f"{file}, line {number} is no sample of lm-evaluation-harness: it needs 'doc_id' and 'metrics'"
            )
        records.append(record)
    metric = _only(metric, {each for record in records for each in record["metrics"]}, f"metrics of {file}", "--metric")
    filter = _only(filter, {record.get("filter", "none") for record in records}, f"filters of {file}", "--filter")
    found: dict[str, ScoredProblem] = {}
    for record in records:
        if record.get("filter", "none") != filter:
            continue
        problem = str(record["doc_id"])
        if problem in found:
            raise InputError(
                f"{file} has the problem {problem!r} twice (filter {filter!r}): give the samples of one run"
            )
        score = _score(record.get(metric), f"{metric!r} of problem {problem!r} in {file}")
        found[problem] = ScoredProblem((score,), record.get("doc_hash"))
    return found, {"metric": metric, "filter": filter}


def _only(chosen: str | None, known: set[str], what: str, option: str) -> str:
    """The only name that there is, or of several the chosen one."""
    if len(known) == 1:
        return next(iter(known))
    if chosen not in known:
        said = "several" if chosen is None else f"no {chosen!r}"
        raise InputError(
            f"there is {said} among the {what}: {', '.join(sorted(known)) or 'none'}. Choose with {option} NAME"
        )
    return chosen


# --- sweeps ----------------------------------------------------------------------------------------------------------
def _sweep(folder: Path, setting: str | None, name: str | None, metric: str) -> Run:
    results = Results.read(folder)
    chosen = [each for each in results.settings if setting in (each.kind, each.id, each.name)]
    if len(chosen) != 1:
        listed = "; ".join(f"{each.id} ({each.name})" for each in results.settings)
        said = "no setting was named" if setting is None else f"{len(chosen)} settings are called {setting!r}"
        raise InputError(
            f"{folder}: {said}. Give FOLDER:SETTING, with the kind or the id of one of its settings: {listed}"
        )
    scores = results.values(chosen[0], _column(metric))
    expected = results.values(chosen[0], "expected")[:, 0]
    problems = {}
    for row, problem in enumerate(results.problems):
        read = tuple(_score(value, f"{metric!r} of problem {problem!r} in {folder}") for value in scores[row])
        check = expected[row]  # None, or NaN, where the task has no one answer
        problems[problem] = ScoredProblem(read, str(check) if isinstance(check, str) else None)
    task = results.config.get("config", {}).get("problems", {}).get("task") or PROBLEMS
    return Run(name or title(chosen[0]), f"{folder}:{chosen[0].id}", metric, {task: problems})


def _column(metric: str) -> str:
    if metric not in ("correct", "score"):
        raise InputError(
            f"metric={metric!r}: traces and sweeps have 'correct' and, where their grader gives it, 'score'"
        )
    return metric


# --- graded traces ---------------------------------------------------------------------------------------------------
def _traces(path: Path, name: str | None, metric: str) -> Run:
    _column(metric)
    by_prompt: dict[tuple[str, str], list[tuple[str, float, str | None]]] = defaultdict(list)
    for number, line in read_lines(path, "traces"):
        try:
            record = parse_record(line, verify=True)
        except (FileError, InputError) as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if "id" not in record or "prompt" not in record:
            raise InputError(f"{path}, line {number} is no trace with an id: it needs 'id', 'prompt' and 'correct'")
        meta = record.get("meta") or {}
        value = record.get("correct") if metric == "correct" else meta.get("score")
        score = _score(value, f"{metric!r} of trace {record['id']!r} in {path}")
        answer = record.get("answer")
        task = meta["task"]["task"] if isinstance(meta.get("task"), dict) and "task" in meta["task"] else PROBLEMS
        key = (str(task), repr(record["prompt"]))
        by_prompt[key].append((str(record["id"]), score, None if answer is None else str(answer)))
    tasks: dict[str, dict[str, ScoredProblem]] = defaultdict(dict)
    for (task, _), answers in by_prompt.items():
        tasks[task][_problem([id for id, _, _ in answers])] = ScoredProblem(
            tuple(score for _, score, _ in answers), answers[0][2]
        )
    if not tasks:
        raise InputError(f"{path} holds no trace: give graded traces, such as `stepsal generate` writes")
    return Run(name or str(path), str(path), metric, tasks)


def _problem(ids: Sequence[str]) -> str:
    """The name of a problem with answers of these ids: `sum` of `sum-0` and `sum-1`, as `stepsal generate` numbers samples.

    >>> _problem(["test-4-0"]), _problem(["test-4-0-0", "test-4-0-1"])
    ('test-4-0', 'test-4-0')
    """
    begins = {id.rpartition("-")[0] for id in ids}
    return begins.pop() if len(ids) > 1 and len(begins) == 1 and "" not in begins else ids[0]


def _score(value: Any, what: str) -> float:
    """A score as a number. Raises `InputError` where it is none."""
    number = getattr(value, "item", lambda: value)()  # numpy's
    if not isinstance(number, int | float) or math.isnan(number):
        raise InputError(
            f"{what} is {value!r}: expected true, false or a number. Grade all answers, or choose another metric"
        )
    return float(number)
