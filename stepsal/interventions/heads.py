"""Which heads of which layers: from what a user writes to the one canonical form, a mapping from layers to heads.

In: `layers` and `heads` of an intervention, as a user or a file gives them. Out: `resolve_heads`, layer -> its heads, all
indices spelled out. An intervention keeps what it was given as tuples (`freeze_layers`, `freeze_heads`), so that it can be
compared and hashed.
"""

import operator
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from stepsal.errors import InputError
from stepsal.models.layer_choice import LayerSpec, band, resolve_layers

HeadsByLayer = dict[int, tuple[int, ...]]
"""The canonical form: each chosen layer of a model, in ascending order, with its chosen heads."""

FrozenHeads = tuple[tuple[int, tuple[int, ...]], ...]
HeadSpec = None | Sequence[int] | Mapping[int, Sequence[int]] | FrozenHeads
"""None selects all heads. A sequence selects the same heads in every chosen layer. A mapping selects heads layer by layer;
chosen layers that it does not mention keep all their heads."""


def resolve_heads(
    layers: LayerSpec, heads: HeadSpec, n_layers: int, n_heads: int, attention: Collection[int] | None = None
) -> HeadsByLayer:
    """The chosen layers of a model, ascending, each with its chosen heads; negative indices count from the end.

    `attention` names the layers that have attention, where not all of them have (see `resolve_layers`).

    Raises `InputError` for a layer or head out of range, one named twice, or heads of a layer that is not chosen.

    >>> resolve_heads([0, 2], {2: [-1]}, n_layers=8, n_heads=4)
    {0: (0, 1, 2, 3), 2: (3,)}
    """
    chosen_layers = resolve_layers(layers, n_layers, attention)
    frozen: Any = freeze_heads(heads)
    if not frozen or not isinstance(frozen[0], tuple):
        return dict.fromkeys(chosen_layers, _indices_of(frozen, n_heads))
    chosen = dict.fromkeys(chosen_layers, tuple(range(n_heads)))
    named: set[int] = set()
    for written, those in frozen:
        (layer,) = resolve_layers(written, n_layers)
        if layer not in chosen or layer in named:
            raise InputError(
                f"heads={dict(frozen)} names layer {written}, but the chosen layers are {list(chosen_layers)}: name only "
                "those, each once"
            )
        named.add(layer)
        chosen[layer] = _indices_of(those, n_heads)
    return chosen


def named_heads(layers: Sequence[int], heads: HeadSpec) -> dict[int, tuple[int, ...] | None]:
    """Layer -> the heads that are named for it, None where the layer keeps all its heads; `layers` are indices.

    >>> named_heads((0, 2), {2: (3,)})
    {0: None, 2: (3,)}
    """
    frozen: Any = freeze_heads(heads)
    if frozen and not isinstance(frozen[0], tuple):
        return dict.fromkeys(layers, frozen)
    return dict.fromkeys(layers) | dict(frozen or ())


def freeze_layers(layers: Any) -> LayerSpec:
    """The same choice of layers, a sequence of them as a tuple of Python's integers. Raises `InputError` for no choice of
    layers.
    """
    if isinstance(layers, str):
        band(layers, 1)
        return layers
    several = isinstance(layers, Iterable)
    indices = _frozen_indices("layers", layers if several else [layers])
    return indices if several else indices[0]


def freeze_heads(heads: Any) -> HeadSpec:
    """The same choice of heads as tuples of Python's integers. Raises `InputError` for no choice of heads."""
    if heads is None:
        return None
    if isinstance(heads, Mapping):
        heads = tuple(heads.items())
    if not isinstance(heads, Iterable) or isinstance(heads, str):
        raise InputError(f"heads={heads!r}: expected None (all), several indices, or a mapping from layers to indices")
    items: tuple[Any, ...] = tuple(heads)
    if items and all(isinstance(item, tuple) and len(item) == 2 for item in items):
        return tuple((_frozen_indices("heads", [layer])[0], _frozen_indices("heads", those)) for layer, those in items)
    return _frozen_indices("heads", items)


def _indices_of(heads: Sequence[int] | None, n_heads: int) -> tuple[int, ...]:
    if heads is None:
        return tuple(range(n_heads))
    for head in heads:
        if not -n_heads <= head < n_heads:
            raise InputError(f"head {head!r} does not exist: each layer has heads 0 to {n_heads - 1}")
    indices = sorted(head % n_heads for head in heads)
    if not indices or len(set(indices)) < len(indices):
        raise InputError(f"heads {list(heads)} must name at least one head and none twice; None means all")
    return tuple(indices)


def _frozen_indices(name: str, items: Any) -> tuple[int, ...]:
    try:
        if any(isinstance(item, bool) for item in items):
            raise TypeError
        return tuple(operator.index(item) for item in items)
    except TypeError:
        kinds = "'shallow', 'deep', 'all', an index or several indices" if name == "layers" else "indices of heads"
        raise InputError(f"{name}={items!r}: expected {kinds}") from None
