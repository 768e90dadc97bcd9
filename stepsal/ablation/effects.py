"""Tables made of a sweep's results: by chain length and kind of error, against controls, by head, by strength, by compute.

In: `stepsal.ablation.results.Results`. Out: what `stepsal.ablation.tables` writes and `stepsal.plot` draws. Each table's p are
corrected by Holm over the tests that are shown together.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped

from stepsal.ablation.arms import (
    CONTROL_OF,
    PART_LABELS,
    Arm,
    describe,
    head_pairs,
    shared_with_control,
    shown_keys,
    varied_keys,
)
from stepsal.ablation.results import Results, accuracy_interval, as_table, compare_answers, corrected
from stepsal.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any


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
            if CONTROL_OF.get(control.part) == arm.part and shared_with_control(control) == shared_with_control(arm):
                found = compare_answers(results.right(control), results.right(arm), False)
                rows.append({"id": arm.id, "setting": arm.title, "control": control.title} | found)
    return corrected(rows)


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
        if len(acted_on) > 1 or len(layers) > 1 or (heads is not None and len(head_pairs(layers, heads)) > 1):
            continue
        rest = "; ".join(
            describe(each, [key for key in shown_keys(each) if key not in ("layers", "heads")]) for each in arm.records
        )
        place = (layers[0], None if heads is None else head_pairs(layers, heads)[0][1])
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
    varied = varied_keys([(arms[min(arms)].part, json.loads(rest)) for rest, arms in groups.items()])
    every = results.some_effects([arm for arms in groups.values() for arm in arms.values()]).set_index("id")
    several = len({arms[min(arms)].part for arms in groups.values()}) > 1
    lines = []
    for rest, arms in groups.items():
        part = arms[min(arms)].part
        names = [PART_LABELS.get(part, part)] if several or not any(varied[part]) else []
        names += [describe(each, keys) for each, keys in zip(json.loads(rest), varied[part], strict=False) if keys]
        at = sorted(arms)
        table = every.loc[[arms[value].id for value in at]].reset_index()
        table.insert(0, strength, at)
        lines.append(StrengthLine(", ".join(each for each in names if each), part, table))
    return lines


def costs(results: Results) -> DataFrame:
    """A row per setting: `accuracy` with its interval, and `compute`, an answer's, in baseline answers.

    compute = tokens x cost a token, each relative to the baseline's (over all answers). The cost is measured by
    `results.cost_column`; without one it is 1. A batch takes as many decoding passes as its longest answer has tokens, however
    many of its answers still go on: so that one endless answer does not count against its setting, a token's cost is that of
    a pass, the median over problems of its ratio to the baseline's for the same problem.
    """
    rows = []
    column = results.cost_column
    baseline = results.effects.iloc[0]
    unit = None if column is None else _each_pass(results, results.baseline, column)
    if not baseline["tokens"] > 0 or (unit is not None and not (unit > 0).all()):
        raise InputError("the baseline's seconds or tokens are 0: the compute of the other settings has no unit")
    for arm, row in zip(results.arms, results.effects.to_dict("records"), strict=True):
        accuracy, low, high = accuracy_interval(results.right(arm).mean(1), results.samples)
        tokens = row["tokens"] / baseline["tokens"]
        cost = 1.0 if column is None else float(np.median(_each_pass(results, arm, column) / unit))
        about = {name: row[name] for name in ("id", "part", "label", "control")}
        rows.append(
            about
            | {"accuracy": accuracy, "low": low, "high": high, "tokens": tokens, "cost": cost, "compute": tokens * cost}
        )
    return as_table(rows)


def _each_pass(results: Results, arm: Arm, column: str) -> Shaped[np.ndarray, " answer"]:
    """What each answer's share of a decoding pass cost. All answers of a batch have the same share, which tells batches."""
    import pandas as pd

    spent, tokens = (pd.Series(results.values(arm, name).astype(float).ravel()) for name in (column, "tokens"))
    passes = tokens.groupby(spent).transform("max")
    return (spent / passes).to_numpy()


def _cells(results: Results, arms: Sequence[Arm], columns: Mapping[str, tuple[Any, str | None]]) -> DataFrame:
    """Paired comparisons of some of the problems, and of being right or of having a kind of error."""
    rows = []
    for name, (chosen, error) in columns.items():

        def outcome(arm: Arm, chosen: Any = chosen, error: str | None = error) -> Any:
            return (results.right(arm) if error is None else results.values(arm, "error") == error)[chosen].astype(bool)

        for arm in arms:
            about = {"id": arm.id, "part": arm.part, "label": arm.label, "control": arm.control, "column": name}
            rows.append(about | compare_answers(outcome(results.baseline), outcome(arm), arm is results.baseline))
    return corrected(rows)
