"""Tables made of a sweep's results: by chain length and kind of error, against controls, by head, by strength, by compute.

In: `stepsal.ablation.results.Results`. Out: what `stepsal.ablation.tables` writes and `stepsal.plot` draws. The p-values of
each table are corrected by Holm's method over the tests that are shown together.
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
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any


def by_length(results: Results, settings: Sequence[Setting] | None = None) -> DataFrame:
    """Accuracy by chain length, one row for each setting and length. The p-values are corrected over all rows.

    Raises `InputError` where the problems have no chain length.
    """
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
    """The share of answers with each kind of error, one row for each setting and kind.

    The p-values are corrected over all rows. The table is empty where no answer has a kind of error.
    """
    kinds = Counter(
        kind
        for setting in results.settings
        for kind in results.values(setting, "error").ravel().tolist()
        if isinstance(kind, str)
    )
    every = np.ones(results.n, dtype=bool)
    return _cells(results, results.settings, {kind: (every, kind) for kind, _ in kinds.most_common()})


def against_controls(results: Results) -> DataFrame:
    """Paired comparisons of each setting with each of its controls, which act in the same places with the same strength.

    The p-values are corrected over all rows. The table is empty where the sweep has no controls.
    """
    rows = []
    for setting in results.treated:
        for control in results.treated:
            if control.controls_for == setting.kind and acts_alike(setting, control):
                comparison = compare_answers(results.right(control), results.right(setting), False)
                rows.append({"id": setting.id, "setting": title(setting), "control": title(control)} | comparison)
    return corrected(rows)


@dataclass(frozen=True)
class HeadPanel:
    """The settings of one intervention and strength that act on a single head, or on a single layer (`alone`).

    NaN marks heads and layers that the sweep does not have.
    """

    title: str
    layers: tuple[int, ...]
    difference: Float[np.ndarray, "layer head"]
    p: Float[np.ndarray, "layer head"]
    alone: Float[np.ndarray, "layer"]
    alone_p: Float[np.ndarray, "layer"]


def head_panels(results: Results) -> list[HeadPanel]:
    """A panel of single heads and single layers for each intervention and strength; p-values are corrected within a panel.

    Raises `InputError` where no setting acts on one head alone or on one layer alone.
    """
    groups: dict[tuple[str, str], dict[tuple[int, int | None], Setting]] = defaultdict(dict)
    for setting in results.treated:
        acted_on = {(intervention.layers, intervention.heads) for intervention in setting.interventions}
        first, own_layers = setting.interventions[0], list(heads_named(setting.interventions[0]))
        pairs = head_pairs(first)
        if len(acted_on) > 1 or len(own_layers) > 1 or (first.heads is not None and len(pairs) > 1):
            continue
        rest = "; ".join(
            describe(intervention, [name for name in shown_fields(intervention) if name not in ("layers", "heads")])
            for intervention in setting.interventions
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
    """Settings that differ in their strength alone. `table` has their rows of `effects` and the strength as first column."""

    label: str
    part: str
    table: DataFrame

    @property
    def control(self) -> bool:
        return controlled_kind(self.part) is not None


def strength_fields(results: Results) -> list[str]:
    """The names of the fields that hold the strength of the sweep's interventions, in the order of their definition."""
    used = {type(intervention) for setting in results.treated for intervention in setting.interventions}
    return list(dict.fromkeys(kind.strength for kind in INTERVENTIONS.values() if kind in used and kind.strength))


def strength_lines(results: Results, strength: str) -> list[StrengthLine]:
    """A line for each group of two or more settings that differ in `strength` (`tau_max` or `alpha`) alone."""
    by_other_options: dict[str, dict[float, Setting]] = defaultdict(dict)
    for setting in results.treated:
        values = {record[strength] for record in setting.records if strength in record}
        if len(values) == 1:
            other = [{key: value for key, value in record.items() if key != strength} for record in setting.records]
            by_other_options[json.dumps(other)][values.pop()] = setting
    groups = [dict(sorted(group.items())) for group in by_other_options.values() if len(group) > 1]
    if not groups:
        return []
    first = [next(iter(group.values())) for group in groups]
    varied = varied_fields(first, without=strength)
    every = results.some_effects([setting for group in groups for setting in group.values()]).set_index("id")
    several = len({setting.kind for setting in first}) > 1
    lines = []
    for setting, group in zip(first, groups, strict=True):
        kind = setting.kind
        names = [kind_label(kind)] if several or not any(varied[kind]) else []
        pairs = zip(setting.interventions, varied[kind], strict=True)
        names += [describe(intervention, keys) for intervention, keys in pairs if keys]
        table = every.loc[[member.id for member in group.values()]].reset_index()
        table.insert(0, strength, list(group))
        lines.append(StrengthLine(", ".join(name for name in names if name), kind, table))
    return lines


def costs(results: Results) -> DataFrame:
    """The accuracy and the compute of each setting, one row per setting.

    `accuracy` has its interval. `compute` is that of one answer, in units of a baseline answer:

        compute = tokens x cost of a token,    both relative to the baseline's, over all answers.

    The cost is measured by `results.cost_column`; without such a column it is 1. A batch takes as many decoding passes as its
    longest answer has tokens, however many of its other answers have ended. So that one endless answer does not count against
    its setting, the cost of a token is that of a decoding pass: the median over problems of its ratio to the cost of the
    baseline's pass for the same problem.
    """
    rows = []
    column = results.cost_column
    baseline = results.effects.iloc[0]
    unit = None if column is None else _cost_of_pass(results, results.baseline, column)
    if not baseline["tokens"] > 0 or (unit is not None and not (unit > 0).all()):
        raise InputError(
            "the baseline's seconds or tokens are 0, so there is no unit for the compute of the other settings: "
            "run the sweep with more tokens"
        )
    for setting, row in zip(results.settings, results.effects.to_dict("records"), strict=True):
        accuracy, low, high = accuracy_interval(results.right(setting).mean(1), results.samples)
        tokens = row["tokens"] / baseline["tokens"]
        cost = 1.0 if column is None else float(np.median(_cost_of_pass(results, setting, column) / unit))
        rows.append(
            results.about(setting)
            | {"accuracy": accuracy, "low": low, "high": high, "tokens": tokens, "cost": cost, "compute": tokens * cost}
        )
    return as_table(rows)


def _cost_of_pass(results: Results, setting: Setting, column: str) -> Shaped[np.ndarray, " answer"]:
    """For each answer, its share of the cost of one decoding pass.

    All answers of a batch have the same share of the batch's cost: that is how the batches are told apart.
    """
    import pandas as pd

    spent, tokens = (pd.Series(results.values(setting, name).astype(float).ravel()) for name in (column, "tokens"))
    passes = tokens.groupby(spent).transform("max")
    return (spent / passes).to_numpy()


def _cells(results: Results, settings: Sequence[Setting], columns: Mapping[str, tuple[Any, str | None]]) -> DataFrame:
    """Paired comparisons of the settings with the baseline, in each column: which problems, and which outcome.

    A column is a mask of problems and a kind of error, or None: the outcome is to have that error, or to be right.
    """
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
