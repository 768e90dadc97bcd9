"""The settings of a sweep as its rows describe them, and what tables and figures call them.

In: the columns `part` and `parts` of rows (`stepsal.sweeps.store`). Out: `Arm`s, each with a label that says what tells it from
the others of its part.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import Series
else:  # imported where used: it takes a while
    Series = Any

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
        said = "; ".join(describe(each, shown_keys(each)) for each in self.records)
        name = PART_LABELS.get(self.part, self.part) + (" (control)" if self.control else "")
        return f"{name}, {said}" if said else name


def label_arms(rows: Sequence[Series]) -> list[Arm]:
    """Arms whose labels say what varies within their part; what does not is in `common`."""
    records = [(str(row["part"]), json.loads(row["parts"])) for row in rows]
    varied = varied_keys(records)
    arms = []
    for row, (part, those) in zip(rows, records, strict=True):
        said = [describe(each, keys) for each, keys in zip(those, varied[part], strict=True) if keys]
        fixed = [
            describe(each, [key for key in shown_keys(each) if key not in keys])
            for each, keys in zip(those, varied[part], strict=True)
        ]
        label = ", ".join([PART_LABELS.get(part, part), *(["; ".join(said)] if said else [])])
        common = "; ".join(each for each in fixed if each)
        arms.append(Arm(str(row["setting_id"]), str(row["setting"]), part, str(row["parts"]), label, common))
    return arms


def varied_keys(settings: Sequence[tuple[str, Records]]) -> dict[str, list[list[str]]]:
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


def shown_keys(record: Mapping[str, Any]) -> list[str]:
    """The keys worth saying: places and strength, and what is not as usual."""
    return [key for key in _ordered(record) if (key in _ALWAYS) or (key in _USUAL and record[key] != _USUAL[key])]


def describe(record: Mapping[str, Any], keys: Sequence[str]) -> str:
    """`layers 0–1, τ_max 0.15`. A single head says its layer itself."""
    from stepsal.sweeps.settings import ranges

    said = []
    for key in keys:
        value: Any = record.get(key)
        if key == "layers":
            if record.get("heads") is None or "heads" not in keys:
                said.append(f"layer{'s' * (len(value) > 1)} {ranges(value).replace('-', '–')}")
        elif key == "heads":
            if value is not None:
                pairs = head_pairs(record["layers"], value)
                said.append(f"head{'s' * (len(pairs) > 1)} " + " ".join(f"{layer}.{head}" for layer, head in pairs))
        elif key in STRENGTHS:
            said.append(f"{STRENGTHS[key]} {value:g}")
        elif key == "window":
            said.append("window " + ("the step" if value is None else str(value)))
        else:
            said.append(f"{key} {value}")
    return ", ".join(said)


def head_pairs(layers: Sequence[int], heads: Any) -> list[tuple[int, int]]:
    """(layer, head) of a record's `heads`: a list for every layer, or [layer, heads] for some."""
    if heads and isinstance(heads[0], int):
        return [(layer, head) for layer in layers for head in heads]
    return [(layer, head) for layer, those in heads for head in those]


def shared_with_control(arm: Arm) -> str:
    """All that a setting and its control have in common."""
    return json.dumps([{key: each[key] for key in sorted(each) if key not in ("part", "seed")} for each in arm.records])
