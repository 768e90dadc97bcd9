"""The settings of a sweep: which parts of StepFlow, in which layers and heads, how strong.

In: `[grid]` and the model's size. Out: `Setting`s, the baseline first, none twice.

1. A choice of parts, layers, heads and options becomes parts with every layer and head named; an option that a part does not
   have is left out, so two choices that come to the same are one setting.
2. `product`: all combinations. `one-at-a-time`: the centre, and the centre with one key changed, for each value of each key.
   The centre has what `[grid.centre]` says, else the first value given, else the default; of several `parts`, both.
3. `forward-selection`, in rounds: the chosen heads (at first none) with each other head added. The one with the most right
   answers stays; it ends at `k` heads, or when no head adds a right answer.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from typing import Any

from stepsal.errors import InputError
from stepsal.interventions.stepflow import (
    NoiseMomentum,
    OddsEqualBridge,
    Part,
    RandomBridge,
    RandomMomentum,
    StepMomentum,
    part_record,
)
from stepsal.sweeps.config import VARIED, GridConfig
from stepsal.sweeps.places import Heads, Size, head_choices, layer_choices

KINDS: dict[str, tuple[type[Part], ...]] = {
    "none": (),
    "oeb": (OddsEqualBridge,),
    "smi": (StepMomentum,),
    "both": (OddsEqualBridge, StepMomentum),
    "random-bridge": (RandomBridge,),
    "random-momentum": (RandomMomentum,),
    "noise-momentum": (NoiseMomentum,),
    "both-controls": (RandomBridge, RandomMomentum),
}
_CLASSES: dict[str, type[Part]] = {kind.__name__: kind for kinds in KINDS.values() for kind in kinds}


@dataclass(frozen=True)
class Setting:
    """Parts with explicit layers and heads; none of them is the baseline.

    >>> Setting((OddsEqualBridge(layers=(0, 1)),)).name
    'oeb layers 0-1, tau_max 0.15'
    """

    parts: tuple[Part, ...] = ()

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The parts as plain data, as JSON has it."""
        records: list[dict[str, Any]] = json.loads(json.dumps([part_record(part) for part in self.parts]))
        return records

    @cached_property
    def id(self) -> str:
        """A hash of what the setting does."""
        return hashlib.sha256(json.dumps(self.records, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def part(self) -> str:
        """The name of its parts in the configuration; `none` is the baseline."""
        kinds = tuple(map(type, self.parts))
        return next(name for name, known in KINDS.items() if known == kinds)

    @property
    def name(self) -> str:
        """Readable, and another one for each setting of a sweep."""
        if not self.parts:
            return "baseline"
        said = [_describe(part) for part in self.parts]
        return f"{self.part} " + " + ".join(said)

    @cached_property
    def columns(self) -> dict[str, Any]:
        """What a row says of the setting; None where it does not apply.

        `layers`: of all parts. `heads`: None where each part acts on all heads of its layers, else pairs (layer, head).
        """
        places = [_places(part) for part in self.parts]
        options: dict[str, Any] = dict.fromkeys(("tau_max", "alpha", "window", "scope", "control_seed"))
        for part in self.parts:
            options |= {name: value for name, value in asdict(part).items() if name in options}
            options["control_seed"] = getattr(part, "seed", None)
        named = any(heads is not None for each in places for heads in each.values())
        pairs = {(layer, head) for each in places for layer, heads in each.items() for head in heads or ()}
        return {
            "setting_id": self.id,
            "setting": self.name,
            "part": self.part,
            "layers": sorted({layer for each in places for layer in each}) if self.parts else None,
            "heads": [list(pair) for pair in sorted(pairs)] if named else None,
            **options,
            "parts": json.dumps(self.records),
        }


def parts_from_records(records: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    """The inverse of `Setting.records`.

    >>> parts_from_records(Setting((StepMomentum(layers=(7,), heads={7: (1,)}),)).records)[0].heads
    ((7, (1,)),)
    """
    parts = []
    for record in records:
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        kind, heads = _CLASSES[values.pop("part")], values["heads"]
        if heads and isinstance(heads[0], list):
            values["heads"] = {layer: tuple(those) for layer, those in heads}
        parts.append(kind(**values))
    return tuple(parts)


def next_round(
    grid: GridConfig, size: Size, folder: Path, right: Callable[[Setting], int], done: Sequence[Sequence[Setting]]
) -> list[Setting]:
    """The settings to run after those of the rounds that are `done`; none is the end.

    `right` says how many answers were right under a setting of a round that is done. The baseline opens the first round.

    >>> grid = GridConfig(parts=("oeb",), tau_max=(0.1, 0.2))
    >>> [each.name for each in next_round(grid, Size(8, 4), Path(), lambda setting: 0, [])]
    ['baseline', 'oeb layers 0-1, tau_max 0.1', 'oeb layers 0-1, tau_max 0.2']
    """
    if grid.shape == "forward-selection":
        found = _select(grid, size, folder, right, done)
    elif done:
        found = []
    elif grid.shape == "one-at-a-time":
        found = _around(grid, size, folder)
    else:
        choices = [
            dict(zip(VARIED, values, strict=True)) for values in product(*(getattr(grid, key) for key in VARIED))
        ]
        found = [setting for choice in choices for setting in _resolve(choice, size, grid, folder)]
    return list(dict.fromkeys(found if done else [Setting(), *found]))


def _around(grid: GridConfig, size: Size, folder: Path) -> list[Setting]:
    centre: dict[str, Any] = {key: getattr(grid if key in grid.given else GridConfig(), key)[0] for key in VARIED}
    if len(grid.parts) > 1:
        centre["parts"] = "both"
    centre |= grid.centre
    found = _resolve(centre, size, grid, folder)
    if len(found) != 1:
        raise InputError(
            f"the centre of one-at-a-time must be one setting; layers={centre['layers']!r} with heads={centre['heads']!r} are "
            f"{len(found)}: say in [grid.centre] which, such as layers='default', heads='all'"
        )
    (middle,) = found
    for key in grid.given:
        values = [value for value in getattr(grid, key) if value != centre[key]]
        others = [setting for value in values for setting in _resolve(centre | {key: value}, size, grid, folder)]
        if values and not set(others) - {middle, Setting()}:
            raise InputError(
                f"[grid] {key}={values} changes nothing about the centre ({middle.name}): leave it out, or give another "
                "[grid.centre]"
            )
        found += others
    return found


def _resolve(choice: Mapping[str, Any], size: Size, grid: GridConfig, folder: Path) -> list[Setting]:
    """A choice of one value for each key; `each` and `windows` make several settings of it."""
    kinds = KINDS[choice["parts"]]
    if not kinds:
        return [Setting()]
    options = {
        "tau_max": choice["tau_max"],
        "alpha": choice["alpha"],
        "window": choice["window"],
        "scope": choice["scope"],
        "seed": choice["control_seed"],
    }
    return [
        Setting(tuple(_part(*each, options, size) for each in zip(kinds, heads, strict=True)))
        for layers in layer_choices(choice["layers"], kinds, size, grid, folder)
        for heads in head_choices(choice["heads"], layers, size, grid, folder)
    ]


def _part(kind: type[Part], heads: Heads, options: Mapping[str, Any], size: Size) -> Part:
    known = kind.__dataclass_fields__
    given: Any = {name: value for name, value in options.items() if name in known}
    every = all(len(those) == size.heads for those in heads.values())
    return kind(layers=tuple(heads), heads=None if every else tuple(heads.items()), **given)


def _select(
    grid: GridConfig, size: Size, folder: Path, right: Callable[[Setting], int], done: Sequence[Sequence[Setting]]
) -> list[Setting]:
    single = {key: getattr(grid, key) for key in VARIED if key != "layers"}
    for key, values in single.items():
        if len(values) > 1 or (key == "parts" and len(KINDS[values[0]]) != 1):
            raise InputError(
                f"[grid] {key}={list(values)}: forward selection takes one, such as parts='oeb', tau_max=0.15"
            )
    choice = {key: values[0] for key, values in single.items()} | {"heads": "all"}
    alone = [setting for layers in grid.layers for setting in _resolve(choice | {"layers": layers}, size, grid, folder)]
    template = alone[0].parts[0]
    candidates = sorted(
        {(layer, head) for each in alone for layer in _places(each.parts[0]) for head in range(size.heads)}
    )

    def with_heads(chosen: Sequence[tuple[int, int]]) -> Setting:
        heads = {
            layer: tuple(head for _, head in those) for layer, those in groupby(sorted(chosen), lambda pair: pair[0])
        }
        every = all(len(those) == size.heads for those in heads.values())
        return Setting((replace(template, layers=tuple(heads), heads=None if every else tuple(heads.items())),))

    chosen: list[tuple[int, int]] = []
    best = right(Setting()) if done else 0
    for _ in done:
        scores = {pair: right(with_heads([*chosen, pair])) for pair in candidates if pair not in chosen}
        winner = max(scores, key=lambda pair: scores[pair])
        if scores[winner] <= best:
            return []
        best = scores[winner]
        chosen.append(winner)
    if len(chosen) >= min(grid.k, len(candidates)):
        return []
    return [with_heads([*chosen, pair]) for pair in candidates if pair not in chosen]


def _places(part: Part) -> dict[int, tuple[int, ...] | None]:
    """Layer -> its heads, None where all."""
    layers: Any = part.layers
    heads: Any = part.heads
    return dict.fromkeys(layers) | dict(heads or ())


def _describe(part: Part) -> str:
    layers: Any = part.layers
    said = f"layer{'s' * (len(layers) > 1)} {ranges(layers)}"
    if part.heads is not None:
        heads: Any = part.heads
        said += " heads " + " ".join(f"{layer}.{head}" for layer, those in heads for head in those)
    if isinstance(part, OddsEqualBridge):
        said += f", tau_max {part.tau_max:g}" + (f", scope {part.scope}" if part.scope != "segment" else "")
    elif isinstance(part, StepMomentum):
        said += f", alpha {part.alpha:g}" + (f", window {part.window}" if part.window is not None else "")
    return said + (f", seed {seed}" if (seed := getattr(part, "seed", 0)) else "")


def ranges(numbers: Sequence[int]) -> str:
    runs = groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(each) for _, each in runs)]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
