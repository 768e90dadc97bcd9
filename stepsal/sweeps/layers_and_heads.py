"""Which layers and heads a sweep's names stand for: `each`, `windows:3`, `chosen`, `top-4:lock_in`, ...

In: a name, an index or several; the interventions that it is for; the model's size. Out: every choice that it stands for:
layers for each intervention, then heads of each layer for each intervention.
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
from stepsal.models.layers import band, resolve_layers
from stepsal.sweeps.config import GridConfig

if TYPE_CHECKING:
    from stepsal.diagnosis.bands import Bands
else:  # imported where used: it takes a while
    Bands = Any

Layers = tuple[tuple[int, ...], ...]
"""Layers for each intervention."""


@dataclass(frozen=True)
class Size:
    """Layers, and heads of each, of a model."""

    layers: int
    heads: int


def layer_choices(
    spec: Any, kinds: Sequence[type[Intervention]], size: Size, grid: GridConfig, folder: Path
) -> list[Layers]:
    """Every choice of layers that a name stands for, each with layers for each intervention.

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
    """The layers that an intervention acts on by default, or the chosen ones in the place of its band."""
    default: Any = next(each.default for each in fields(kind) if each.name == "layers")  # type: ignore[arg-type]
    if default is MISSING:
        raise InputError(f"{kind.name!r} has no layers of its own: name them, such as layers = [[0, 1]]")
    if bands is not None and default in ("shallow", "deep"):
        chosen: tuple[int, ...] = getattr(bands, default)
        return chosen
    return resolve_layers(default, size.layers)


def head_choices(
    spec: Any, layers: Layers, size: Size, grid: GridConfig, folder: Path
) -> list[tuple[HeadsByLayer, ...]]:
    """Every choice of heads that a name stands for, in the given layers of each intervention.

    >>> head_choices("each", ((0, 1),), Size(8, 2), GridConfig(), Path())
    [({0: (0,)},), ({0: (1,)},), ({1: (0,)},), ({1: (1,)},)]
    """
    if not isinstance(spec, str) or spec == "all":
        given = None if isinstance(spec, str) else spec
        return [tuple(resolve_heads(each, given, size.layers, size.heads) for each in layers)]
    if spec == "each":
        if len(set(layers)) > 1:
            raise InputError(
                f"heads='each' of two interventions in other layers ({' and '.join(str(list(each)) for each in layers)}) would "
                "be all pairs: give one intervention, the same layers for both, or lists of heads"
            )
        alone: list[HeadsByLayer] = [{layer: (head,)} for layer in layers[0] for head in range(size.heads)]
        return [(each,) * len(layers) for each in alone]
    if match := re.fullmatch(r"(top|bottom)-(\d+):(\w+)", spec):
        maps = _path("maps", grid.maps, f"heads={spec!r}", folder)
        sign = 1 if match[1] == "top" else -1
        return [tuple(_ranked(sign, int(match[2]), match[3], each, size, maps) for each in layers)]
    raise InputError(
        f"unknown heads {spec!r}: expected 'all', 'each', 'top-K:METRIC' or 'bottom-K:METRIC' such as 'top-4:lock_in', an "
        "index or a list of indices"
    )


def chosen_bands(grid: GridConfig, size: Size, folder: Path) -> Bands:
    """What `choose_layers` makes of [grid] comparison, for `layers = "chosen"`: the layers, and why these."""
    path = _path("comparison", grid.comparison, "layers='chosen'", folder)
    bands, layers = _chosen(path, _written(path))
    if layers != size.layers:
        raise InputError(
            f"{path} is of a model of {layers} layers, this one has {size.layers}: compare step maps of this model"
        )
    return bands


def _path(key: str, given: str | None, use: str, folder: Path) -> Path:
    if given is None:
        raise InputError(f"{use} needs [grid] {key}: the path of what `stepsal compare` or `stepsal saliency` wrote")
    return folder / given


def _written(path: Path) -> int:
    """When a file, or what is in a folder, was written: what is read again only if it changed. 0: it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=4)
def _chosen(path: Path, written: int) -> tuple[Bands, int]:
    from stepsal.diagnosis.bands import choose_layers
    from stepsal.diagnosis.comparison import Comparison

    comparison = Comparison.load(path)
    return choose_layers(comparison), comparison.meta["model_layers"]


def _ranked(sign: int, count: int, metric: str, layers: Sequence[int], size: Size, maps: Path) -> HeadsByLayer:
    """The heads with the highest (or lowest) mean of a metric over the maps; of equals, the lower layer and head."""
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r}: expected one of {', '.join(METRICS)}")
    values = _metric_means(METRICS[metric], maps, _written(maps / "maps"))
    missing = [layer for layer in layers if layer not in values]
    if missing or any(len(values[layer]) != size.heads for layer in layers):
        raise InputError(
            f"the maps in {maps} lack layer {missing or list(layers)} or its heads: make them with this model"
        )
    pairs = [(layer, head) for layer in layers for head in range(size.heads)]
    known = [(layer, head) for layer, head in pairs if values[layer][head] == values[layer][head]]  # no NaN
    if not 1 <= count <= len(known):
        raise InputError(
            f"{count} heads by {metric!r} were asked for: there are 1 to {len(known)} in layers {list(layers)}"
        )
    best = sorted(sorted(known, key=lambda pair: -sign * values[pair[0]][pair[1]])[:count])
    heads: HeadsByLayer = {}
    for layer, head in best:
        heads[layer] = (*heads.get(layer, ()), head)
    return heads


@lru_cache(maxsize=8)
def _metric_means(metric: Metric, maps: Path, written: int) -> dict[int, list[float]]:
    """The mean of a metric over a folder's maps, by layer and head."""
    import torch

    from stepsal.saliency.folder import load_step_maps

    found = load_step_maps(maps)
    if any(each.layers != found[0].layers or each.mass.shape[1] != found[0].mass.shape[1] for each in found):
        raise FileError(f"the maps in {maps} are of other layers each: give a folder of one model's maps")
    means = torch.stack([metric(each) for each in found]).nanmean(0)
    return dict(zip(found[0].layers, means.tolist(), strict=True))
