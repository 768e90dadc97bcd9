"""The layers and heads that the names in a sweep's configuration stand for: `each`, `windows:3`, `chosen`, `top-4:lock_in`, ...

In: a name, an index or several indices; the interventions that should act there; the size of the model. Out: every choice that
the name stands for: the layers of each intervention, and then the heads of each of these layers.
"""

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal.diagnosis.metrics import METRICS
from stepsal.diagnosis.registry import Metric
from stepsal.errors import FileError, InputError
from stepsal.interventions.base import Intervention
from stepsal.interventions.heads import HeadsByLayer, resolve_heads
from stepsal.models.layer_choice import band, resolve_layers
from stepsal.sweeps.config import GridConfig

if TYPE_CHECKING:
    from stepsal.diagnosis.bands import Bands
else:  # this module takes a while to import, so it is imported where it is used
    Bands = Any

Layers = tuple[tuple[int, ...], ...]
"""The layers of each intervention."""


@dataclass(frozen=True)
class Size:
    """The number of layers of a model, and the number of heads of each layer."""

    layers: int
    heads: int


def layer_choices(
    spec: Any, kinds: Sequence[type[Intervention]], size: Size, grid: GridConfig, folder: Path
) -> list[Layers]:
    """Every choice of layers that a name stands for. A choice has layers for each intervention.

    >>> from stepsal import OddsEqualBridge
    >>> layer_choices("windows:7", [OddsEqualBridge], Size(8, 4), GridConfig(), Path())
    [((0, 1, 2, 3, 4, 5, 6),), ((1, 2, 3, 4, 5, 6, 7),)]
    """

    def same(*choices: tuple[int, ...]) -> list[Layers]:
        return [(layers,) * len(kinds) for layers in choices]

    if not isinstance(spec, str):
        return same(resolve_layers(spec, size.layers))
    if spec in ("default", "chosen"):
        bands = chosen_bands(grid, size, folder) if spec == "chosen" else None
        return [tuple(_own_layers(kind, size, bands) for kind in kinds)]
    if spec == "each":
        return same(*((layer,) for layer in range(size.layers)))
    if match := re.fullmatch(r"windows:(\d+)", spec):
        width = int(match[1])
        if not 1 <= width <= size.layers:
            raise InputError(f"layers={spec!r}: a window has 1 to {size.layers} layers of this model")
        return same(*(tuple(range(start, start + width)) for start in range(size.layers - width + 1)))
    if spec in ("shallow", "deep", "all"):
        return same(band(spec, size.layers))
    raise InputError(
        f"unknown layers {spec!r}: expected 'default', 'shallow', 'deep', 'all', 'each', 'windows:N', 'chosen', an index or "
        "a list of indices"
    )


def _own_layers(kind: type[Intervention], size: Size, bands: Bands | None) -> tuple[int, ...]:
    """The layers that an intervention acts on by default. Where `bands` are given, they replace the default band."""
    default: Any = next(field.default for field in fields(kind) if field.name == "layers")  # type: ignore[arg-type]
    if default is MISSING:
        raise InputError(f"{kind.name!r} has no default layers: name its layers, such as layers = [[0, 1]]")
    if bands is not None and default in ("shallow", "deep"):
        chosen: tuple[int, ...] = getattr(bands, default)
        return chosen
    return resolve_layers(default, size.layers)


def head_choices(
    spec: Any, layers: Layers, size: Size, grid: GridConfig, folder: Path
) -> list[tuple[HeadsByLayer, ...]]:
    """Every choice of heads that a name stands for, within the layers of each intervention.

    >>> head_choices("each", ((0, 1),), Size(8, 2), GridConfig(), Path())
    [({0: (0,)},), ({0: (1,)},), ({1: (0,)},), ({1: (1,)},)]
    """
    if not isinstance(spec, str) or spec == "all":
        heads_spec = None if isinstance(spec, str) else spec
        return [tuple(resolve_heads(own_layers, heads_spec, size.layers, size.heads) for own_layers in layers)]
    if spec == "each":
        if len(set(layers)) > 1:
            raise InputError(
                "heads='each' of two interventions in different layers "
                f"({' and '.join(str(list(own_layers)) for own_layers in layers)}) would be all pairs of heads: give one "
                "intervention, the same layers for both, or lists of heads"
            )
        single_heads: list[HeadsByLayer] = [{layer: (head,)} for layer in layers[0] for head in range(size.heads)]
        return [(head,) * len(layers) for head in single_heads]
    if match := re.fullmatch(r"(top|bottom)-(\d+):(\w+)", spec):
        maps = _path("maps", grid.maps, f"heads={spec!r}", folder)
        sign = 1 if match[1] == "top" else -1
        return [tuple(_ranked(sign, int(match[2]), match[3], own_layers, size, maps) for own_layers in layers)]
    raise InputError(
        f"unknown heads {spec!r}: expected 'all', 'each', 'top-K:METRIC' or 'bottom-K:METRIC' such as 'top-4:lock_in', an "
        "index or a list of indices"
    )


def chosen_bands(grid: GridConfig, size: Size, folder: Path) -> Bands:
    """The layers that `choose_layers` chooses from the comparison of [grid] for `layers = "chosen"`, with the reasons."""
    path = _path("comparison", grid.comparison, "layers='chosen'", folder)
    bands, layers = _chosen(path, _written(path))
    if layers != size.layers:
        raise InputError(
            f"{path} is of a model of {layers} layers, this one has {size.layers}: make the comparison from step maps of this "
            "model"
        )
    return bands


def _path(key: str, value: str | None, use: str, folder: Path) -> Path:
    """The path that the configuration has for `key`, relative to its folder. Raises `InputError` where it has none."""
    if value is None:
        raise InputError(f"{use} needs [grid] {key}: the path of the output of `stepsal compare` or `stepsal saliency`")
    return folder / value


def _written(path: Path) -> int:
    """The time when a file, or the list of a folder's files, was last written; 0 where there is none.

    The caches below have it as an argument, so that a file is read again only after it changed.
    """
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=4)
def _chosen(path: Path, written: int) -> tuple[Bands, int]:
    from stepsal.diagnosis.bands import choose_layers
    from stepsal.diagnosis.comparison import Comparison

    comparison = Comparison.load(path)
    return choose_layers(comparison), comparison.meta["model_layers"]


def _ranked(sign: int, count: int, metric: str, layers: Sequence[int], size: Size, maps: Path) -> HeadsByLayer:
    """The heads with the highest (or lowest) mean of a metric over the maps. Where means are equal, lower layers come first."""
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}: expected one of {', '.join(METRICS)}")
    values = _metric_means(METRICS[metric], maps, _written(maps / "maps"))
    missing = [layer for layer in layers if layer not in values]
    if missing or any(len(values[layer]) != size.heads for layer in layers):
        raise InputError(
            f"the maps in {maps} lack layer {missing or list(layers)} or its heads: make the maps with this model"
        )
    pairs = [(layer, head) for layer in layers for head in range(size.heads)]
    known = [(layer, head) for layer, head in pairs if values[layer][head] == values[layer][head]]  # without NaN
    if not 1 <= count <= len(known):
        raise InputError(f"{count} heads by {metric!r} were asked for: layers {list(layers)} allow 1 to {len(known)}")
    best = sorted(sorted(known, key=lambda pair: -sign * values[pair[0]][pair[1]])[:count])
    heads: HeadsByLayer = {}
    for layer, head in best:
        heads[layer] = (*heads.get(layer, ()), head)
    return heads


@lru_cache(maxsize=8)
def _metric_means(metric: Metric, maps: Path, written: int) -> dict[int, list[float]]:
    """The mean of a metric over the maps of a folder, by layer and head."""
    import torch

    from stepsal.saliency.folder import open_step_maps

    files = open_step_maps(maps)
    first = files[0]
    if any((file.layers, file.header.heads) != (first.layers, first.header.heads) for file in files):
        raise FileError(f"the maps in {maps} differ in their layers or heads: give a folder of one model's maps")
    means = torch.stack([metric(file.load()) for file in files]).nanmean(0)
    return dict(zip(first.layers, means.tolist(), strict=True))
