"""A setting of a sweep: the interventions that act, with every layer and head spelled out.

From a configuration (`stepsal.sweeps.grid`) to the columns of a row (`Setting.columns`), and back from a row to the setting
(`Setting.from_row`). What configurations call a combination of interventions is its *kind*: the names of the interventions
joined by `+`, or a name of its own (`none`, `both`, `both-controls`).
"""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

from stepsal.errors import InputError
from stepsal.interventions.base import INTERVENTIONS, Intervention, Option, from_record, short_number
from stepsal.interventions.heads import HeadsByLayer, named_heads
from stepsal.sweeps.row import OPTION_COLUMNS

Kind = tuple[type[Intervention], ...]

_NAMED: dict[str, tuple[str, ...]] = {
    "none": (),
    "both": ("oeb", "smi"),
    "both-controls": ("random-bridge", "random-momentum"),
}
"""Combinations with a name of their own, by the names of their interventions."""
_LABELS = {"none": "baseline", "both-controls": "random bridge + momentum"}


@dataclass(frozen=True)
class Setting:
    """Interventions with explicit layers and heads; without any it is the baseline.

    >>> from stepsal import OddsEqualBridge
    >>> Setting((OddsEqualBridge(layers=(0, 1)),)).name
    'oeb layers 0-1, tau_max 0.15'
    """

    interventions: tuple[Intervention, ...] = ()

    @classmethod
    def of(cls, chosen: Sequence[tuple[Intervention, HeadsByLayer]], n_heads: int) -> "Setting":
        """A setting of interventions in these heads of these layers."""
        made = []
        for intervention, heads in chosen:
            every = all(len(those) == n_heads for those in heads.values())
            known: Any = intervention
            made.append(replace(known, layers=tuple(heads), heads=None if every else tuple(heads.items())))
        return cls(tuple(made))

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Setting":
        """The setting of a row, from its column `parts`.

        Raises `InputError` for a row whose interventions are not defined here.

        >>> from stepsal import StepMomentum
        >>> setting = Setting((StepMomentum(layers=(7,), heads={7: (1,)}),))
        >>> Setting.from_row(setting.columns) == setting
        True
        """
        return cls(tuple(from_record(record) for record in json.loads(row["parts"])))

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The interventions as plain data, as JSON has it."""
        records: list[dict[str, Any]] = json.loads(json.dumps([each.record for each in self.interventions]))
        return records

    @cached_property
    def id(self) -> str:
        """A hash of what the setting does."""
        return hashlib.sha256(json.dumps(self.records, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def kind(self) -> str:
        """What configurations call its interventions; `none` is the baseline."""
        return kind_name(tuple(map(type, self.interventions)))

    @property
    def controls_for(self) -> str | None:
        """The kind of setting that this one is a negative control of; None where it is none."""
        return controlled_kind(self.kind)

    @property
    def name(self) -> str:
        """A readable name that differs from setting to setting."""
        if not self.interventions:
            return "baseline"
        return f"{self.kind} " + " + ".join(map(_describe, self.interventions))

    @cached_property
    def columns(self) -> dict[str, Any]:
        """What a row says of the setting; None where it does not apply, or where two interventions differ.

        `layers`: of all interventions. `heads`: None where each acts on all heads of its layers, else pairs (layer, head).
        `parts`: the interventions with all of their options, as JSON; `from_row` reads it.
        """
        heads = [heads_named(each) for each in self.interventions]
        options: dict[str, Any] = dict.fromkeys(OPTION_COLUMNS)
        for key in OPTION_COLUMNS:
            values = [
                getattr(intervention, field)
                for intervention in self.interventions
                for field, option in intervention.options().items()
                if option.key == key and intervention.built_in()
            ]
            options[key] = values[0] if values and all(value == values[0] for value in values) else None
        named = any(those is not None for each in heads for those in each.values())
        pairs = {(layer, head) for each in heads for layer, those in each.items() for head in those or ()}
        return {
            "setting_id": self.id,
            "setting": self.name,
            "part": self.kind,
            "layers": sorted({layer for each in heads for layer in each}) if self.interventions else None,
            "heads": [list(pair) for pair in sorted(pairs)] if named else None,
            **options,
            "parts": json.dumps(self.records),
        }


# --- kinds: combinations of interventions by name ---------------------------------------------------------------------
def kinds() -> dict[str, Kind]:
    """Every kind that has a name of its own, in the order in which the interventions are defined.

    >>> list(kinds())[:5]
    ['none', 'oeb', 'smi', 'both', 'random-bridge']
    """
    found: dict[str, Kind] = {}
    for name, kind in [("none", None), *INTERVENTIONS.items()]:
        if kind is not None:
            found[name] = (kind,)
        for combination, names in _NAMED.items():
            if combination not in found and all(each in found for each in names):
                found[combination] = tuple(INTERVENTIONS[each] for each in names)
    return found


def kind_classes(name: str) -> Kind:
    """The classes of the interventions of a kind. Raises `InputError` for a name that is not known.

    >>> [each.__name__ for each in kind_classes("starvation+oeb")]
    ['Starvation', 'OddsEqualBridge']
    """
    known = kinds()
    if name in known:
        return known[name]
    found: list[type[Intervention]] = []
    for single in name.split("+"):
        if single not in INTERVENTIONS:
            near = difflib.get_close_matches(single, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"the intervention {single!r} is unknown: expected one of {', '.join(map(repr, known))}, or several joined by "
                f"'+'.{hint}"
            )
        found.append(INTERVENTIONS[single])
    return tuple(found)


def kind_name(classes: Kind) -> str:
    """The name of a kind; the inverse of `kind_classes`."""
    names = tuple(each.name for each in classes)
    return next((name for name, those in _NAMED.items() if those == names), "+".join(names))


def kind_label(name: str) -> str:
    """What tables and figures call a kind; a name that is not known stands for itself.

    >>> kind_label("both"), kind_label("starvation+oeb")
    ('OEB + SMI', 'starvation + OEB')
    """
    if name in _LABELS:
        return _LABELS[name]
    try:
        return " + ".join(each.label for each in kind_classes(name))
    except InputError:
        return name


def controlled_kind(name: str) -> str | None:
    """The kind of which a kind is a negative control; None where it is none.

    >>> controlled_kind("both-controls"), controlled_kind("starvation+random-bridge"), controlled_kind("oeb")
    ('both', 'starvation+oeb', None)
    """
    try:
        classes = kind_classes(name)
    except InputError:
        return None
    if not any(each.control_of for each in classes):
        return None
    return kind_name(tuple(each.control_of or each for each in classes))


# --- options and their words ------------------------------------------------------------------------------------------
def options_by_key() -> dict[str, list[tuple[type[Intervention], Option]]]:
    """The keys of a configuration for all options of all interventions, with whose options they are.

    Options that have a column of their own come first, in the order of the columns.
    """
    found: dict[str, list[tuple[type[Intervention], Option]]] = {key: [] for key in OPTION_COLUMNS}
    for kind in INTERVENTIONS.values():
        for option in kind.options().values():
            found.setdefault(option.key, []).append((kind, option))
    return found


def heads_named(intervention: Intervention) -> dict[int, tuple[int, ...] | None]:
    """Layer -> its heads, None where all, of an intervention whose layers are indices."""
    layers: Any = intervention.layers
    return named_heads(layers, intervention.heads)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers, neighbours put together.

    >>> ranges([0, 1, 2, 5])
    '0-2,5'
    """
    runs = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(each) for _, each in runs)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def _describe(intervention: Intervention) -> str:
    """Layers, heads, the strength, and the options that are not at their default."""
    layers: Any = intervention.layers
    words = f"layer{'s' * (len(layers) > 1)} {ranges(layers)}"
    pairs = [(layer, head) for layer, those in heads_named(intervention).items() for head in those or ()]
    if intervention.heads is not None:
        words += " heads " + " ".join(f"{layer}.{head}" for layer, head in pairs)
    for field, option in intervention.options().items():
        value = getattr(intervention, field)
        if field == intervention.strength or option.required or value != option.default:
            words += f", {field} {short_number(value) if isinstance(value, float) else value}"
    return words
