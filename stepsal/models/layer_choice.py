"""Specifications of layers: the name of a depth band, one index or several indices -> indices."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from stepsal.errors import InputError

LayerSpec = str | int | Sequence[int]


def band(name: str, n_layers: int) -> tuple[int, ...]:
    """`shallow` is the bottom quarter of the layers and `deep` the top quarter (at least one layer); `all` is every layer.

    Source: the paper's defaults; method.md section 4.

    >>> band("shallow", 28), band("deep", 3)
    ((0, 1, 2, 3, 4, 5, 6), (2,))
    """
    quarter = max(1, n_layers // 4)
    bands = {"shallow": range(quarter), "deep": range(n_layers - quarter, n_layers), "all": range(n_layers)}
    if name not in bands:
        raise InputError(f"unknown layers {name!r}: expected 'shallow', 'deep', 'all', an index or several indices")
    return tuple(bands[name])


def resolve_layers(layers: LayerSpec, n_layers: int, attention: Collection[int] | None = None) -> tuple[int, ...]:
    """A layer specification as ascending indices. Negative indices count from the top.

    `attention` names the layers that have attention, where not all of them have (a recurrence in the others): of a band they
    alone are taken.

    Raises `InputError` for a name that is no band, an index out of range, an index that is given twice, no index at all, or a
    layer or band without attention.

    >>> resolve_layers([-1, 0], 8), resolve_layers("deep", 8, attention=[3, 7])
    ((0, 7), (7,))
    """
    if isinstance(layers, str):
        chosen = tuple(layer for layer in band(layers, n_layers) if attention is None or layer in attention)
        if not chosen:
            raise InputError(
                f"layers={layers!r}: none of them has attention; the layers that have are {list(attention or ())}"
            )
        return chosen
    wanted = list(layers) if isinstance(layers, Iterable) else [layers]
    for layer in wanted:
        if isinstance(layer, bool) or not isinstance(layer, int | np.integer) or not -n_layers <= layer < n_layers:
            raise InputError(f"layer {layer!r} does not exist: the model has layers 0 to {n_layers - 1}")
    indices = sorted(int(layer) % n_layers for layer in wanted)
    if not indices or len(set(indices)) < len(indices):
        raise InputError(f"layers {wanted} must name at least one layer and none twice")
    if attention is not None and (without := [layer for layer in indices if layer not in attention]):
        raise InputError(f"layers {without} have no attention; the layers that have are {list(attention)}")
    return tuple(indices)
