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

from stepsal.ablation.labels import acts_alike, describe, head_pairs, shown_fields, title, varied_fields
from stepsal.ablation.results import Results, accuracy_interval, as_table, compare_answers, corrected
from stepsal.errors import InputError
from stepsal.interventions.base import INTERVENTIONS
from stepsal.sweeps.settings import Setting, controlled_kind, heads_named, kind_label

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any


def by_length(results: Results, settings: Sequence[Setting] | None = None) -> DataFrame:
    """Accuracy by chain length: a row per setting and length, corrected over all. Raises `InputError` without lengths."""
    if not results.lengths:
        raise InputError(
            "these problems have no chain length: the sweep needs problems of the bundled task, such as length = [2, 3, 4, 6]"
        )
    return _cells(
        results,
        settings or results.settings,
        {f"length {length}": (results.of_length(length), None) for length in results.lengths},
    )


def by_error(results: Results) -> DataFrame:
    """The part of answers with each kind of error: a row per setting and kind, corrected over all. Empty: none has a kind."""
    kinds = Counter(
        each
        for setting in results.settings
        for each in results.values(setting, "error").ravel().tolist()
        if isinstance(each, str)
    )
    every = np.ones(results.n, dtype=bool)
    return _cells(results, results.settings, {kind: (every, kind) for kind, _ in kinds.most_common()})


def against_controls(results: Results) -> DataFrame:
    """Each setting against each of its controls (the same places and strength): paired, corrected over all. May be empty."""
    rows = []
    for setting in results.treated:
        for control in results.treated:
            if control.controls_for == setting.kind and acts_alike(setting, control):
                found = compare_answers(results.right(control), results.right(setting), False)
                rows.append({"id": setting.id, "setting": title(setting), "control": title(control)} | found)
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
    groups: dict[tuple[str, str], dict[tuple[int, int | None], Setting]] = defaultdict(dict)
    for setting in results.treated:
        acted_on = {(each.layers, each.heads) for each in setting.interventions}
        first, own_layers = setting.interventions[0], list(heads_named(setting.interventions[0]))
        pairs = head_pairs(first)
        if len(acted_on) > 1 or len(own_layers) > 1 or (first.heads is not None and len(pairs) > 1):
            continue
        rest = "; ".join(
            describe(each, [name for name in shown_fields(each) if name not in ("layers", "heads")])
            for each in setting.interventions
        )
        groups[setting.kind, rest][own_layers[0], None if first.heads is None else pairs[0][1]] = setting
    if not groups:
        raise InputError(
            'no setting acts on one head or on one layer alone: the sweep needs layers = ["each"], heads = ["each", "all"]'
        )
    layers = tuple(sorted({layer for places in groups.values() for layer, _ in places}))
    n_heads = 1 + max((head for places in groups.values() for _, head in places if head is not None), default=-1)
    panels = []
    for (kind, rest), places in groups.items():
        table = results.some_effects(list(places.values()))
        grids = {name: np.full((len(layers), n_heads + 1), np.nan) for name in ("difference", "p_corrected")}
        for row, (layer, head) in enumerate(places):
            for name, grid in grids.items():
                grid[layers.index(layer), n_heads if head is None else head] = table[name][row]
        difference, p = grids.values()
        heading = f"{kind_label(kind)}, {rest}"
        panels.append(HeadPanel(heading, layers, difference[:, :-1], p[:, :-1], difference[:, -1], p[:, -1]))
    return panels


@dataclass(frozen=True)
class StrengthLine:
    """The same places at several strengths: `table` is of `effects`, with the strength as its first column."""

    label: str
    part: str
    table: DataFrame

    @property
    def control(self) -> bool:
        return controlled_kind(self.part) is not None


def strength_fields(results: Results) -> list[str]:
    """The fields that say how strong the interventions of a sweep are, in the order of their definition."""
    used = {type(each) for setting in results.treated for each in setting.interventions}
    return list(dict.fromkeys(kind.strength for kind in INTERVENTIONS.values() if kind in used and kind.strength))


def strength_lines(results: Results, strength: str) -> list[StrengthLine]:
    """A line for each choice of everything but one strength (`tau_max` or `alpha`) that has two values of it or more."""
    found: dict[str, dict[float, Setting]] = defaultdict(dict)
    for setting in results.treated:
        values = {each[strength] for each in setting.records if strength in each}
        if len(values) == 1:
            other = [{key: value for key, value in each.items() if key != strength} for each in setting.records]
            found[json.dumps(other)][values.pop()] = setting
    groups = [dict(sorted(group.items())) for group in found.values() if len(group) > 1]
    if not groups:
        return []
    first = [next(iter(group.values())) for group in groups]
    varied = varied_fields(first, without=strength)
    every = results.some_effects([each for group in groups for each in group.values()]).set_index("id")
    several = len({each.kind for each in first}) > 1
    lines = []
    for setting, group in zip(first, groups, strict=True):
        kind = setting.kind
        names = [kind_label(kind)] if several or not any(varied[kind]) else []
        names += [describe(each, keys) for each, keys in zip(setting.interventions, varied[kind], strict=True) if keys]
        table = every.loc[[each.id for each in group.values()]].reset_index()
        table.insert(0, strength, list(group))
        lines.append(StrengthLine(", ".join(each for each in names if each), kind, table))
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
    for setting, row in zip(results.settings, results.effects.to_dict("records"), strict=True):
        accuracy, low, high = accuracy_interval(results.right(setting).mean(1), results.samples)
        tokens = row["tokens"] / baseline["tokens"]
        cost = 1.0 if column is None else float(np.median(_each_pass(results, setting, column) / unit))
        rows.append(
            results.about(setting)
            | {"accuracy": accuracy, "low": low, "high": high, "tokens": tokens, "cost": cost, "compute": tokens * cost}
        )
    return as_table(rows)


def _each_pass(results: Results, setting: Setting, column: str) -> Shaped[np.ndarray, " answer"]:
    """What each answer's share of a decoding pass cost. All answers of a batch have the same share, which tells batches."""
    import pandas as pd

    spent, tokens = (pd.Series(results.values(setting, name).astype(float).ravel()) for name in (column, "tokens"))
    passes = tokens.groupby(spent).transform("max")
    return (spent / passes).to_numpy()


def _cells(results: Results, settings: Sequence[Setting], columns: Mapping[str, tuple[Any, str | None]]) -> DataFrame:
    """Paired comparisons of some of the problems, and of being right or of having a kind of error."""
    rows = []
    for name, (chosen, error) in columns.items():

        def outcome(setting: Setting, chosen: Any = chosen, error: str | None = error) -> Any:
            right = results.right(setting) if error is None else results.values(setting, "error") == error
            return right[chosen].astype(bool)

        for setting in settings:
            about = results.about(setting) | {"column": name}
            compared = compare_answers(outcome(results.baseline), outcome(setting), setting is results.baseline)
            rows.append(about | compared)
    return corrected(rows)
