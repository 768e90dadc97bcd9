"""What the rows of a sweep say: the numbers behind `plot.sweep` and every table and figure of `stepsal.sweep_figures`.

In: the rows that `stepsal.sweep` returns (`results.parquet`). Out: tables of paired differences to the baseline, by setting, by
column of a sub-table, by layer and head, by strength, and against their compute. No model is loaded.

1. A setting's answers become an array `problem answer` (an answer per seed and sample), the same problems in each setting.
2. Every comparison is `stepsal.paired` of a setting with the baseline, its p corrected by Holm over the tests shown together.
3. Self-consistency: the baseline's samples vote. An answer that was cut off, or is empty, has no vote; of equally many votes,
   the answer that was given first wins. The accuracy with k votes is the mean over all ordered choices of k of the samples,
   counted, not drawn:

       P(right wins) = sum_i C(c, i) sum_t W(i, t) / ((t + 1) C(m, k))

   c of the m samples are right, i of the k drawn; W(i, t) ways to draw the other k - i with no wrong answer above i votes and
   t of them at i, each of which came first as often as the right one did.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from stepsal.errors import FileError, InputError
from stepsal.paired import holm, paired, wilson

if TYPE_CHECKING:
    from pandas import DataFrame, Series
else:  # imported where used: it takes a while
    DataFrame = Series = Any

Records = Sequence[Mapping[str, Any]]

CONTROL_OF = {
    "random-bridge": "oeb",
    "random-momentum": "smi",
    "noise-momentum": "smi",
    "both-controls": "both",
}
PART_LABELS = {
    "none": "baseline",
    "oeb": "OEB",
    "smi": "SMI",
    "both": "OEB + SMI",
    "random-bridge": "random bridge",
    "random-momentum": "random momentum",
    "noise-momentum": "noise momentum",
    "both-controls": "random bridge + momentum",
}
STRENGTHS = {"tau_max": "τ_max", "alpha": "α"}
_ALWAYS = ("layers", "heads", *STRENGTHS)
_USUAL = {"window": None, "scope": "segment", "seed": 0}


@dataclass(frozen=True)
class Arm:
    """A setting of the sweep, as its rows describe it. `label`: what tells it from the others of its part."""

    id: str
    name: str
    part: str
    parts: str
    label: str
    common: str

    @property
    def control(self) -> bool:
        return self.part in CONTROL_OF

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.parts)
        return found

    @property
    def title(self) -> str:
        """The setting in full."""
        said = "; ".join(_describe(each, _shown(each)) for each in self.records)
        name = PART_LABELS.get(self.part, self.part) + (" (control)" if self.control else "")
        return f"{name}, {said}" if said else name


class Results:
    """The answers of a sweep by setting: the baseline first, controls last.

    Raises `InputError`: rows that lack a column, the baseline, or problems that another setting has; or a unit twice.

    `config`: the sweep's config.json, where it is known.
    """

    def __init__(self, rows: DataFrame, config: Mapping[str, Any] | None = None) -> None:
        self.config: Mapping[str, Any] = config or {}
        wanted = {"setting_id", "setting", "part", "parts", "problem", "seed", "sample", "correct"}
        if missing := sorted(wanted - set(rows.columns)):
            raise InputError(
                f"the rows have no column {missing[0]!r}: give what `stepsal.sweep` returns, or results.parquet"
            )
        groups = {str(name): group for name, group in rows.groupby("setting_id", sort=False)}
        first = {name: group.iloc[0] for name, group in groups.items()}
        baselines = [name for name, row in first.items() if row["part"] == "none"]
        if len(baselines) != 1:
            raise InputError(
                f"{len(baselines)} baselines among {len(first)} settings: give the rows of one sweep, its baseline included"
            )
        order = sorted(first, key=lambda name: (name not in baselines, first[name]["part"] in CONTROL_OF))
        self.arms = _label([first[name] for name in order])
        self._frames: dict[str, DataFrame] = {}
        for arm in self.arms:
            frame = groups[arm.id].set_index(["problem", "seed", "sample"]).sort_index()
            if not frame.index.is_unique:
                raise InputError(
                    f"setting {arm.name!r} has two rows of {frame.index[frame.index.duplicated()][0]}: give one sweep's rows"
                )
            if not frame.index.equals(self._frames.get(self.arms[0].id, frame).index):
                raise InputError(
                    f"setting {arm.name!r} has other problems or samples than the baseline: the same are needed"
                )
            self._frames[arm.id] = frame
        index = self._frames[self.arms[0].id].index
        self.problems: list[str] = list(dict.fromkeys(index.get_level_values("problem")))
        self.n = len(self.problems)
        if len(set(Counter(index.get_level_values("problem")).values())) > 1:
            raise InputError("some problems have more answers than others: give the rows of one finished sweep")
        self.samples = len(index) // self.n

    @classmethod
    def of(cls, rows: "DataFrame | Results") -> "Results":
        return rows if isinstance(rows, Results) else cls(rows)

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        """Raises `FileError` where there is no results.parquet, or what is no table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from stepsal.sweep_rows import schema

        path = Path(folder) / "results.parquet"
        if not path.exists():
            begun = (Path(folder) / "config.json").exists()
            fix = "it is not finished: run the same command again" if begun else "make it with `stepsal sweep`"
            raise FileError(f"there is no {path}: {fix}")
        try:
            there = pq.read_schema(path).names  # rows of an older version lack cpu_seconds
            table = pq.read_table(path, columns=[name for name in schema().names if name != "trace" and name in there])
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{path} is damaged ({error}): delete it, and `stepsal sweep` makes it again") from error
        try:
            config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # only captions need it
            config = {}
        return cls(table.to_pandas(), config)

    def of_problems(self, names: Sequence[str]) -> "Results":
        """The same of some of the problems."""
        import pandas as pd

        rows = pd.concat([frame.reset_index() for frame in self._frames.values()], ignore_index=True)
        return Results(rows[rows["problem"].isin(names)], self.config)

    @property
    def adaptive(self) -> bool:
        """Were settings chosen by the answers of others (forward selection)? False where that is not known."""
        return self.config.get("config", {}).get("grid", {}).get("shape") == "forward-selection"

    @property
    def model(self) -> dict[str, Any]:
        """What the rows say of the model; nothing where they do not."""
        frame = self._frames[self.baseline.id]
        said = frame["model"].iloc[0] if "model" in frame else None
        found: dict[str, Any] = json.loads(said) if said else {}
        return found

    @property
    def cost_column(self) -> str | None:
        """What an answer's cost is measured by: on the CPU processor time, which other work changes little; else the clock.

        None: the CPU's rows have no processor time (they are of an older version).
        """
        if str(self.model.get("device", "cpu")).partition(":")[0] != "cpu":
            return "seconds"
        known = all("cpu_seconds" in frame and frame["cpu_seconds"].notna().all() for frame in self._frames.values())
        return "cpu_seconds" if known else None

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def treated(self) -> list[Arm]:
        return self.arms[1:]

    @property
    def size(self) -> str:
        """`240 problems, one answer each`, for captions."""
        return f"{self.n} problems, {'one answer' if self.samples == 1 else f'{self.samples} answers'} each"

    def values(self, arm: Arm, column: str = "correct") -> Shaped[np.ndarray, "problem answer"]:
        """A column of a setting's rows, problems in the order of their ids."""
        if column not in self._frames[arm.id]:
            raise InputError(f"the rows have no column {column!r}: read them again without leaving it out")
        return self._frames[arm.id][column].to_numpy().reshape(self.n, self.samples)

    def right(self, arm: Arm) -> Bool[np.ndarray, "problem answer"]:
        return self.values(arm).astype(bool)

    @property
    def lengths(self) -> list[int]:
        """The chain lengths among the problems; none where the problems have no such thing."""
        values = self.values(self.baseline, "length")[:, 0]
        return sorted({int(each) for each in values if each == each and each is not None})

    def of_length(self, length: int) -> Bool[np.ndarray, "problem"]:
        found: Bool[np.ndarray, problem] = self.values(self.baseline, "length")[:, 0] == length
        return found

    @cached_property
    def effects(self) -> DataFrame:
        """A row per setting: accuracy, the paired difference to the baseline, tokens and seconds of an answer."""
        rows = []
        for arm in self.arms:
            about = {"id": arm.id, "setting": arm.name, "part": arm.part, "label": arm.label, "control": arm.control}
            means = {name: float(self.values(arm, name).astype(float).mean()) for name in ("tokens", "seconds")}
            rows.append(about | _compare(self.right(self.baseline), self.right(arm), arm is self.baseline) | means)
        return _corrected(rows)

    def some_effects(self, arms: Sequence[Arm]) -> DataFrame:
        """`effects` of some settings, corrected over those."""
        table = self.effects.set_index("id", drop=False).loc[[arm.id for arm in arms]]
        return _corrected(table.reset_index(drop=True).to_dict("records"))


def by_length(results: Results, arms: Sequence[Arm] | None = None) -> DataFrame:
    """Accuracy by chain length: a row per setting and length, corrected over all. Raises `InputError` without lengths."""
    if not results.lengths:
        raise InputError(
            "these problems have no chain length: the sweep needs problems of the bundled task, such as length = [2, 3, 4, 6]"
        )
    return _cells(
        results,
        arms or results.arms,
        {f"length {length}": (results.of_length(length), None) for length in results.lengths},
    )


def by_error(results: Results) -> DataFrame:
    """The part of answers with each kind of error: a row per setting and kind, corrected over all. Empty: none has a kind."""
    kinds = Counter(
        each for arm in results.arms for each in results.values(arm, "error").ravel().tolist() if isinstance(each, str)
    )
    every = np.ones(results.n, dtype=bool)
    return _cells(results, results.arms, {kind: (every, kind) for kind, _ in kinds.most_common()})


def against_controls(results: Results) -> DataFrame:
    """Each setting against each of its controls (the same places and strength): paired, corrected over all. May be empty."""
    rows = []
    for arm in results.treated:
        for control in results.treated:
            if CONTROL_OF.get(control.part) == arm.part and _places(control) == _places(arm):
                found = _compare(results.right(control), results.right(arm), False)
                rows.append({"id": arm.id, "setting": arm.title, "control": control.title} | found)
    return _corrected(rows)


@dataclass(frozen=True)
class HeadPanel:
    """Settings of one part and strength: on one head each, and on one layer each (`alone`). NaN: not in the sweep."""

    title: str
    layers: tuple[int, ...]
    difference: Float[np.ndarray, "layer head"]
    p: Float[np.ndarray, "layer head"]
    alone: Float[np.ndarray, "layer"]
    alone_p: Float[np.ndarray, "layer"]


def head_panels(results: Results) -> list[HeadPanel]:
    """Single heads and single layers, a panel for each part and strength; p corrected over the panel.

    Raises `InputError`: no setting acts on one head, or on one layer, alone.
    """
    groups: dict[tuple[str, str], dict[tuple[int, int | None], Arm]] = defaultdict(dict)
    for arm in results.treated:
        acted_on = {json.dumps([each["layers"], each["heads"]]) for each in arm.records}
        layers, heads = arm.records[0]["layers"], arm.records[0]["heads"]
        if len(acted_on) > 1 or len(layers) > 1 or (heads is not None and len(_pairs(layers, heads)) > 1):
            continue
        rest = "; ".join(
            _describe(each, [key for key in _shown(each) if key not in ("layers", "heads")]) for each in arm.records
        )
        place = (layers[0], None if heads is None else _pairs(layers, heads)[0][1])
        groups[arm.part, rest][place] = arm
    if not groups:
        raise InputError(
            'no setting acts on one head or on one layer alone: the sweep needs layers = ["each"], heads = ["each", "all"]'
        )
    layers = tuple(sorted({layer for places in groups.values() for layer, _ in places}))
    n_heads = 1 + max((head for places in groups.values() for _, head in places if head is not None), default=-1)
    panels = []
    for (part, rest), places in groups.items():
        table = results.some_effects(list(places.values()))
        grids = {name: np.full((len(layers), n_heads + 1), np.nan) for name in ("difference", "p_corrected")}
        for row, (layer, head) in enumerate(places):
            for name, grid in grids.items():
                grid[layers.index(layer), n_heads if head is None else head] = table[name][row]
        difference, p = grids.values()
        title = f"{PART_LABELS.get(part, part)}, {rest}"
        panels.append(HeadPanel(title, layers, difference[:, :-1], p[:, :-1], difference[:, -1], p[:, -1]))
    return panels


@dataclass(frozen=True)
class StrengthLine:
    """The same places at several strengths: `table` is of `effects`, with the strength as its first column."""

    label: str
    part: str
    table: DataFrame

    @property
    def control(self) -> bool:
        return self.part in CONTROL_OF


def strength_lines(results: Results, strength: str) -> list[StrengthLine]:
    """A line for each choice of everything but one strength (`tau_max` or `alpha`) that has two values of it or more."""
    found: dict[str, dict[float, Arm]] = defaultdict(dict)
    for arm in results.treated:
        values = {each[strength] for each in arm.records if strength in each}
        if len(values) == 1:
            other = [{key: value for key, value in each.items() if key != strength} for each in arm.records]
            found[json.dumps(other)][values.pop()] = arm
    groups = {rest: arms for rest, arms in found.items() if len(arms) > 1}
    if not groups:
        return []
    varied = _varied([(arms[min(arms)].part, json.loads(rest)) for rest, arms in groups.items()])
    every = results.some_effects([arm for arms in groups.values() for arm in arms.values()]).set_index("id")
    several = len({arms[min(arms)].part for arms in groups.values()}) > 1
    lines = []
    for rest, arms in groups.items():
        part = arms[min(arms)].part
        names = [PART_LABELS.get(part, part)] if several or not any(varied[part]) else []
        names += [_describe(each, keys) for each, keys in zip(json.loads(rest), varied[part], strict=False) if keys]
        at = sorted(arms)
        table = every.loc[[arms[value].id for value in at]].reset_index()
        table.insert(0, strength, at)
        lines.append(StrengthLine(", ".join(each for each in names if each), part, table))
    return lines


def costs(results: Results) -> DataFrame:
    """A row per setting: `accuracy` with its interval, and `compute`, an answer's, in baseline answers.

    compute = tokens x cost a token, each relative to the baseline's (over all answers). The cost is measured by
    `results.cost_column`; without one it is 1.
    """
    rows = []
    column = results.cost_column

    def spent(arm: Arm) -> float:
        return float(results.values(arm, column or "tokens").astype(float).mean())

    baseline = results.effects.iloc[0]
    unit = spent(results.baseline)
    if not unit > 0 or not baseline["tokens"] > 0:
        raise InputError("the baseline's seconds or tokens are 0: the compute of the other settings has no unit")
    for arm, row in zip(results.arms, results.effects.to_dict("records"), strict=True):
        accuracy, low, high = accuracy_interval(results.right(arm).mean(1), results.samples)
        tokens = row["tokens"] / baseline["tokens"]
        cost = (spent(arm) / row["tokens"]) / (unit / baseline["tokens"])
        about = {name: row[name] for name in ("id", "part", "label", "control")}
        rows.append(
            about
            | {"accuracy": accuracy, "low": low, "high": high, "tokens": tokens, "cost": cost, "compute": tokens * cost}
        )
    return _table(rows)


def self_consistency(results: Results, ks: Sequence[int] = (1, 2, 4, 8), sample: float = 1.0) -> DataFrame:
    """The baseline's accuracy when `k` of its samples vote: `k` (as many as there are), `accuracy`, and its interval.

    `compute`: k times what one `sample` costs, in the answers that the settings are measured by.

    Raises `InputError`: the baseline has one answer to each problem.
    """
    if results.samples < 2:
        raise InputError(
            "self-consistency needs several samples of the baseline: samples = 8 and temperature = 0.8 in [decoding]. Or give "
            "the folder of a second sweep that has them, of the same problems: `stepsal figure compute DIR SAMPLED`"
        )
    right = results.right(results.baseline)
    answers, cut = (results.values(results.baseline, name) for name in ("answer", "truncated"))
    rows = []
    for k in (each for each in ks if each <= results.samples):
        chances = []
        for index in range(results.n):
            votes = [text for text, no in zip(answers[index], cut[index], strict=True) if not no and text]
            counts = Counter(votes)
            of_right = {text for text, yes in zip(answers[index], right[index], strict=True) if yes}
            wrong = tuple(sorted(count for text, count in counts.items() if text not in of_right))
            chances.append(majority_chance(len(votes) - sum(wrong), wrong, results.samples - len(votes), k))
        accuracy, low, high = accuracy_interval(np.array(chances), k)
        rows.append({"k": k, "compute": k * sample, "accuracy": accuracy, "low": low, "high": high})
    return _table(rows)


@lru_cache(maxsize=100_000)
def majority_chance(right: int, wrong: tuple[int, ...], silent: int, k: int) -> float:
    """How often the right answer wins the vote of `k` samples, over all ordered choices of them.

    `right`, `silent`: how many samples are right, and have no vote; `wrong`: how many have each wrong answer. Of equally many
    votes, the answer that was given first wins.

    >>> majority_chance(2, (1,), 0, 1), majority_chance(2, (1,), 0, 2), majority_chance(2, (1,), 0, 3)
    (0.6666666666666666, 0.6666666666666666, 1.0)
    """
    total = 0.0
    for votes in range(1, min(right, k) + 1):
        ways = {(0, 0): 1}  # (samples of wrong answers, how many of those answers tie): ways to draw them
        for count in wrong:
            more: dict[tuple[int, int], int] = defaultdict(int)
            for (drawn, ties), number in ways.items():
                for each in range(min(count, votes, k - votes - drawn) + 1):
                    more[drawn + each, ties + (each == votes)] += number * math.comb(count, each)
            ways = more
        total += math.comb(right, votes) * sum(
            number * math.comb(silent, k - votes - drawn) / (ties + 1) for (drawn, ties), number in ways.items()
        )
    return total / math.comb(right + sum(wrong) + silent, k)


def accuracy_interval(per_problem: Float[np.ndarray, "problem"], answers: int) -> tuple[float, float, float]:
    """Mean accuracy and its 95 % interval over problems: Wilson's for one answer each, else normal.

    >>> [round(each, 3) for each in accuracy_interval(np.array([1.0, 1.0, 0.0, 1.0]), 1)]
    [0.75, 0.301, 0.954]
    """
    n, mean = len(per_problem), float(per_problem.mean())
    deviation = float(per_problem.std(ddof=1)) if n > 1 else 0.0
    if answers == 1 and np.isin(per_problem, (0.0, 1.0)).all():
        return (mean, *wilson(round(per_problem.sum()), n))
    if deviation == 0:  # nothing varies: what Wilson's interval leaves open
        low, high = wilson(round(mean * n), n)
        return mean, min(low, mean), max(high, mean)
    margin = 1.96 * deviation / math.sqrt(n)
    return mean, max(0.0, mean - margin), min(1.0, mean + margin)


def _compare(
    before: Bool[np.ndarray, "problem answer"], after: Bool[np.ndarray, "problem answer"], same: bool
) -> dict[str, Any]:
    """`same`: it is the baseline itself, which has no difference."""
    accuracy, low, high = accuracy_interval(after.mean(1), after.shape[1])
    found: dict[str, Any] = {"n": len(after), "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    if same:
        return found | dict.fromkeys(("difference", "low", "high", "gained", "lost", "p"), math.nan)
    result = paired(before, after)
    return found | {name: getattr(result, name) for name in ("difference", "low", "high", "gained", "lost", "p")}


def _cells(results: Results, arms: Sequence[Arm], columns: Mapping[str, tuple[Any, str | None]]) -> DataFrame:
    """Paired comparisons of some of the problems, and of being right or of having a kind of error."""
    rows = []
    for name, (chosen, error) in columns.items():

        def outcome(arm: Arm, chosen: Any = chosen, error: str | None = error) -> Any:
            return (results.right(arm) if error is None else results.values(arm, "error") == error)[chosen].astype(bool)

        for arm in arms:
            about = {"id": arm.id, "part": arm.part, "label": arm.label, "control": arm.control, "column": name}
            rows.append(about | _compare(outcome(results.baseline), outcome(arm), arm is results.baseline))
    return _corrected(rows)


def _corrected(rows: Sequence[Mapping[Any, Any]]) -> DataFrame:
    """A table, with p corrected over its tests."""
    ps = np.array([row["p"] for row in rows], dtype=float)
    adjusted = np.full(len(rows), math.nan)
    tested = ~np.isnan(ps)
    adjusted[tested] = holm(ps[tested])
    return _table([{**row, "p_corrected": float(p)} for row, p in zip(rows, adjusted, strict=True)])


def _table(rows: Sequence[Mapping[Any, Any]]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows))


def _label(rows: Sequence[Series]) -> list[Arm]:
    """Arms whose labels say what varies within their part; what does not is in `common`."""
    records = [(str(row["part"]), json.loads(row["parts"])) for row in rows]
    varied = _varied(records)
    arms = []
    for row, (part, those) in zip(rows, records, strict=True):
        said = [_describe(each, keys) for each, keys in zip(those, varied[part], strict=True) if keys]
        fixed = [
            _describe(each, [key for key in _shown(each) if key not in keys])
            for each, keys in zip(those, varied[part], strict=True)
        ]
        label = ", ".join([PART_LABELS.get(part, part), *(["; ".join(said)] if said else [])])
        common = "; ".join(each for each in fixed if each)
        arms.append(Arm(str(row["setting_id"]), str(row["setting"]), part, str(row["parts"]), label, common))
    return arms


def _varied(settings: Sequence[tuple[str, Records]]) -> dict[str, list[list[str]]]:
    """For each part, for each of its records, the keys that differ among the settings of that part."""
    groups: dict[str, list[Records]] = defaultdict(list)
    for part, records in settings:
        groups[part].append(records)
    return {
        part: [
            [key for key in _ordered(same[0]) if len({json.dumps(each.get(key)) for each in same}) > 1]
            for same in zip(*group, strict=True)
        ]
        for part, group in groups.items()
    }


def _ordered(record: Mapping[str, Any]) -> list[str]:
    return sorted((key for key in record if key != "part"), key=lambda key: (*_ALWAYS, *_USUAL, key).index(key))


def _shown(record: Mapping[str, Any]) -> list[str]:
    """The keys worth saying: places and strength, and what is not as usual."""
    return [key for key in _ordered(record) if (key in _ALWAYS) or (key in _USUAL and record[key] != _USUAL[key])]


def _describe(record: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`layers 0–1, τ_max 0.15`. A single head says its layer itself."""
    from stepsal.sweep_settings import _ranges

    said = []
    for key in keys:
        value: Any = record.get(key)
        if key == "layers":
            if record.get("heads") is None or "heads" not in keys:
                said.append(f"layer{'s' * (len(value) > 1)} {_ranges(value).replace('-', '–')}")
        elif key == "heads":
            if value is not None:
                pairs = _pairs(record["layers"], value)
                said.append(f"head{'s' * (len(pairs) > 1)} " + " ".join(f"{layer}.{head}" for layer, head in pairs))
        elif key in STRENGTHS:
            said.append(f"{STRENGTHS[key]} {value:g}")
        elif key == "window":
            said.append("window " + ("the step" if value is None else str(value)))
        else:
            said.append(f"{key} {value}")
    return ", ".join(said)


def _pairs(layers: Sequence[int], heads: Any) -> list[tuple[int, int]]:
    """(layer, head) of a record's `heads`: a list for every layer, or [layer, heads] for some."""
    if heads and isinstance(heads[0], int):
        return [(layer, head) for layer in layers for head in heads]
    return [(layer, head) for layer, those in heads for head in those]


def _places(arm: Arm) -> str:
    """All that a setting and its control have in common."""
    return json.dumps([{key: each[key] for key in sorted(each) if key not in ("part", "seed")} for each in arm.records])
