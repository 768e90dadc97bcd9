"""From a configuration to the settings of a sweep: which interventions, in which layers and heads, how strong.

In: `[grid]` and `[[settings]]` of a configuration, and the model's size. Out: `Setting`s, the baseline first, none twice.

1. A choice of interventions, layers, heads and options becomes interventions with every layer and head named; an option that an
   intervention does not have is left out, so two choices that come to the same are one setting.
2. `product`: all combinations. `one-at-a-time`: the centre, and the centre with one key changed, for each value of each key.
   The centre has what `[grid.centre]` says, else the first value given, else the default; of several `parts`, both.
3. `forward-selection`, in rounds: the chosen heads (at first none) with each other head added. The one with the most right
   answers stays; it ends at `k` heads, or when no head adds a right answer.
4. `[[settings]]` are added as they are written.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

from stepsal.errors import InputError
from stepsal.interventions.base import Intervention
from stepsal.interventions.heads import HeadsByLayer
from stepsal.sweeps.config import GridConfig, SettingConfig
from stepsal.sweeps.layers_and_heads import Size, head_choices, layer_choices
from stepsal.sweeps.settings import Setting, heads_named, kind_classes

Rounds = Sequence[Sequence[Setting]]


def next_round(
    grid: GridConfig,
    size: Size,
    folder: Path,
    right: Callable[[Setting], int],
    done: Rounds,
    explicit: Sequence[SettingConfig] = (),
) -> list[Setting]:
    """The settings that follow the rounds that are `done`. An empty list ends the sweep.

    `right` says how many answers were right under a setting of a round that is done. The baseline opens the first round.

    >>> grid = GridConfig(parts=("oeb",), tau_max=(0.1, 0.2))
    >>> [each.name for each in next_round(grid, Size(8, 4), Path(), lambda setting: 0, [])]
    ['baseline', 'oeb layers 0-1, tau_max 0.1', 'oeb layers 0-1, tau_max 0.2']
    """
    if grid.shape == "forward-selection":
        found = _select(grid, size, folder, right, done)
    elif done:
        return []
    elif grid.shape == "one-at-a-time":
        found = _around(grid, size, folder)
    else:
        values = grid.values()
        choices = [dict(zip(values, each, strict=True)) for each in product(*values.values())]
        found = [setting for choice in choices for setting in _resolve(choice, size, grid, folder)]
    if done:
        return list(dict.fromkeys(found))
    return list(dict.fromkeys([Setting(), *found, *(_explicit(each, size) for each in explicit)]))


def _explicit(config: SettingConfig, size: Size) -> Setting:
    """A setting that is written out, as it is."""
    chosen = [(each, each.heads_by_layer(size.layers, size.heads)) for each in config.made()]
    return Setting.of(chosen, size.heads)


def _around(grid: GridConfig, size: Size, folder: Path) -> list[Setting]:
    defaults = GridConfig().values()
    centre: dict[str, Any] = {
        key: (values if key in grid.written else defaults[key])[0] for key, values in grid.values().items()
    }
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
    for key, every in grid.values().items():
        if key not in grid.written:
            continue
        values = [value for value in every if value != centre.get(key)]
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
    kinds = kind_classes(choice["parts"])
    if not kinds:
        return [Setting()]
    return [
        Setting.of([(_make(kind, choice, those), those) for kind, those in zip(kinds, heads, strict=True)], size.heads)
        for layers in layer_choices(choice["layers"], kinds, size, grid, folder)
        for heads in head_choices(choice["heads"], layers, size, grid, folder)
    ]


def _make(kind: type[Intervention], choice: Mapping[str, Any], heads: HeadsByLayer) -> Intervention:
    """The intervention with those of the chosen options that it has."""
    options = kind.options()
    if missing := [option.key for option in options.values() if option.required and option.key not in choice]:
        raise InputError(f"{kind.name!r} needs [grid] {missing[0]}: it has no default")
    known: Any = kind
    values = {field: choice[option.key] for field, option in options.items() if option.key in choice}
    try:
        made: Intervention = known(layers=tuple(heads), **values)
    except InputError as error:
        raise InputError(f"[grid] {error}") from error
    return made


def _select(grid: GridConfig, size: Size, folder: Path, right: Callable[[Setting], int], done: Rounds) -> list[Setting]:
    candidates, with_heads = _selection(grid, size, folder)
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


def _selection(
    grid: GridConfig, size: Size, folder: Path
) -> tuple[list[tuple[int, int]], Callable[[Sequence[tuple[int, int]]], Setting]]:
    """Forward selection's candidates, pairs (layer, head), and what makes a setting of some of them."""
    single = {key: values for key, values in grid.values().items() if key != "layers"}
    for key, values in single.items():
        if len(values) > 1 or (key == "parts" and len(kind_classes(values[0])) != 1):
            raise InputError(
                f"[grid] {key}={list(values)}: forward selection takes one, such as parts='oeb', tau_max=0.15"
            )
    choice = {key: values[0] for key, values in single.items()} | {"heads": "all"}
    alone = [setting for layers in grid.layers for setting in _resolve(choice | {"layers": layers}, size, grid, folder)]
    template = alone[0].interventions[0]
    layers = {layer for setting in alone for layer in heads_named(setting.interventions[0])}
    candidates = sorted((layer, head) for layer in layers for head in range(size.heads))

    def with_heads(chosen: Sequence[tuple[int, int]]) -> Setting:
        heads = {
            layer: tuple(head for _, head in those) for layer, those in groupby(sorted(chosen), lambda pair: pair[0])
        }
        return Setting.of([(template, heads)], size.heads)

    return candidates, with_heads
