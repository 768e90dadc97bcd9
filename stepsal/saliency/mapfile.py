"""The file of a step map: safetensors with a JSON header and a checksum; whatever it holds is checked before it is a map.

In: the parts of a `StepMap`. Out: a file (`stepsal.saliency.tensorfile`); and back. Its header has, beside the steps and
`meta`, the model's layer of each index of the `layer` axis. A step reads from no later step, so the file holds the pairs of
steps on and below the diagonal alone, row by row: (0, 0), (1, 0), (1, 1), (2, 0), ...

    mass    layer head pair      pairs    pair

Files of stepsal 0.1 ("stepsal step map 1") hold the whole squares, `query_step key_step` in the place of `pair`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Shaped
from torch import Tensor

from stepsal.checks import shown
from stepsal.errors import InputError
from stepsal.saliency.tensorfile import (
    FileKind,
    check_count,
    damaged,
    read_header,
    read_slices,
    read_tensors,
    write_tensors,
)
from stepsal.traces.trace import Step

_SQUARES = "stepsal step map 1"
STEP_MAP = FileKind(
    "stepsal step map 2",
    "step map",
    ("format", "steps", "layers", "meta"),
    ("mass", "pairs"),
    "stepsal saliency",
    earlier=(_SQUARES,),
)
_MASS_TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_PAIR_TYPES = {"I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
_NAMES = {dtype: name for name, dtype in (_MASS_TYPES | _PAIR_TYPES).items()}
_MOST_LAYERS = 2**16


@dataclass(frozen=True)
class MapHeader:
    """What the file of a map says without being read whole: everything but the numbers, checked.

    Attributes:
        steps, layers, meta: those of the map.
        heads: how many it holds.
        dtype: of its numbers, as they are in the file.
        sha256: the checksum of the file's content; None in files of stepsal 0.1.
        squares: whether the file is of stepsal 0.1.
    """

    steps: tuple[Step, ...]
    layers: tuple[int, ...]
    meta: dict[str, Any]
    heads: int
    dtype: torch.dtype
    sha256: str | None
    squares: bool


def write_map(
    path: str | Path,
    mass: Tensor,
    pairs: Tensor,
    steps: tuple[Step, ...],
    layers: tuple[int, ...],
    meta: dict[str, Any],
) -> None:
    """Write the parts of a map, atomically. Raises `InputError` for what a file cannot hold, and `FileError`."""
    for name, square in (("mass", mass), ("pairs", pairs)):
        above = next((row for row in range(len(steps)) if (square[..., row, row + 1 :] != 0).any()), None)
        if above is not None:
            raise InputError(
                f"{name} of the step map of trace {meta.get('trace')!r} is not zero above the diagonal: step {above} reads "
                "from a later step. A file holds the causal half of a map alone: take `.tril()` of it first."
            )
    tensors = {"mass": triangle(mass), "pairs": triangle(pairs)}
    write_tensors(path, STEP_MAP, tensors, steps, layers=layers, meta=meta)


def read_map(path: str | Path, verify: bool) -> dict[str, Any]:
    """The parts of a map, by name, checked whole. Raises `FileError`. `verify=False` leaves out the checksum alone."""
    try:
        said, tensors = read_tensors(path, STEP_MAP, verify)
        shapes = {name: (_NAMES.get(each.dtype, str(each.dtype)), list(each.shape)) for name, each in tensors.items()}
        header = _header(said, shapes, None)
        mass, pairs = (tensors[name] if header.squares else square(tensors[name]) for name in ("mass", "pairs"))
        _check_numbers(tensors["mass"], pairs, header.steps)
    except (ValueError, RecursionError) as error:
        raise damaged(path, STEP_MAP, error) from error
    return {"mass": _known_to_numpy(mass), "pairs": pairs, **_about(header)}


def read_map_header(path: str | Path) -> MapHeader:
    """What a map's file says without being read whole. Raises `FileError`."""
    try:
        return _header(*read_header(path, STEP_MAP))
    except (ValueError, RecursionError) as error:
        raise damaged(path, STEP_MAP, error) from error


def read_part(path: str | Path, layers: Sequence[int] | None, heads: Sequence[int] | None) -> dict[str, Any]:
    """The parts of a map that holds these layers and heads alone (None: all); the others are not read.

    Raises `FileError`, and `InputError` for a layer or a head that the file does not hold.
    """
    header = read_map_header(path)
    chosen = _chosen("layer", header.layers if layers is None else layers, header.layers, path)
    chosen_heads = _chosen("head", range(header.heads) if heads is None else heads, range(header.heads), path)
    places = [(header.layers.index(layer), head) for layer in chosen for head in chosen_heads]
    flat = torch.stack(read_slices(path, STEP_MAP, "mass", places))
    mass = rearrange(flat, "(layer head) ... -> layer head ...", layer=len(chosen))
    (pairs,) = read_slices(path, STEP_MAP, "pairs", [()])
    try:
        squares = [each if header.squares else square(each) for each in (mass, pairs)]
        _check_numbers(mass, squares[1], header.steps)
    except ValueError as error:
        raise damaged(path, STEP_MAP, error) from error
    meta = header.meta | {"checksum": "not compared: only a part of the file was read"}
    if heads is not None:
        meta["heads"] = ", ".join(map(str, chosen_heads))
    return {"mass": _known_to_numpy(squares[0]), "pairs": squares[1], **_about(header), "layers": chosen, "meta": meta}


def triangle(square: Shaped[Tensor, "*axes query_step key_step"]) -> Shaped[Tensor, "*axes pair"]:
    """The entries on and below the diagonal, row by row.

    >>> triangle(torch.tensor([[1, 0, 0], [2, 3, 0], [4, 5, 6]])).tolist()
    [1, 2, 3, 4, 5, 6]
    """
    return torch.cat([square[..., row, : row + 1] for row in range(square.shape[-1])], -1)


def square(triangle: Shaped[Tensor, "*axes pair"]) -> Shaped[Tensor, "*axes query_step key_step"]:
    """The square of which these are the entries on and below the diagonal, with zeros above it.

    >>> square(torch.tensor([1, 2, 3])).tolist()
    [[1, 0], [2, 3]]
    """
    n = round((2 * triangle.shape[-1] + 0.25) ** 0.5 - 0.5)
    whole = triangle.new_zeros(*triangle.shape[:-1], n, n)
    for row, entries in enumerate(triangle.split([*range(1, n + 1)], -1)):
        whole[..., row, : row + 1] = entries
    return whole


def _about(header: MapHeader) -> dict[str, Any]:
    return {"steps": header.steps, "layers": header.layers, "meta": header.meta}


def _header(said: dict[str, Any], shapes: dict[str, tuple[str, list[int]]], sha256: str | None) -> MapHeader:
    """What a file says, from its header and the types and shapes of its tensors. Raises `ValueError`."""
    layers, n = _layers(said["layers"]), len(said["steps"])
    _check_depth(said["meta"], layers)
    (mass, shape), (pairs, shape_of_pairs) = shapes["mass"], shapes["pairs"]
    if mass not in _MASS_TYPES or pairs not in _PAIR_TYPES:
        raise ValueError(f"mass is {mass} and pairs {pairs}, expected floating-point and whole numbers")
    squares = said["format"] == _SQUARES
    last, axes = ([n, n], f"{n} steps, {n} steps") if squares else ([n * (n + 1) // 2], f"{n * (n + 1) // 2} pairs")
    heads = shape[1] if len(shape) == 2 + len(last) else 0
    if not heads or shape != [len(layers), heads, *last]:
        raise ValueError(f"mass has shape {tuple(shape)}, expected ({len(layers)} layers, heads, {axes})")
    if shape_of_pairs != last:
        raise ValueError(f"pairs has shape {tuple(shape_of_pairs)}, expected ({axes})")
    return MapHeader(said["steps"], layers, said["meta"], heads, _MASS_TYPES[mass], sha256, squares)


def _chosen(name: str, wanted: Sequence[int], held: Sequence[int], path: str | Path) -> tuple[int, ...]:
    if missing := [each for each in wanted if each not in held]:
        raise InputError(f"{path} does not hold {name} {missing[0]}: it holds {', '.join(map(str, held))}")
    if not len(wanted) or len(set(wanted)) < len(wanted):
        raise InputError(f"{name}s={list(wanted)} must name one {name} at least, and none twice")
    return tuple(wanted)


def _layers(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"'layers' is {shown(found)}, expected a list of one layer at least")
    for layer in found:
        check_count(layer, "a layer", least=0)
    if max(found) >= _MOST_LAYERS:
        raise ValueError(f"layer {max(found)} is beyond the {_MOST_LAYERS} that a model may have")
    if len(set(found)) < len(found):
        raise ValueError(f"'layers' is {shown(found)}, which names a layer twice")
    return tuple(found)


def _check_depth(meta: dict[str, Any], layers: Sequence[int]) -> None:
    if not max(layers) < meta.get("model_layers", _MOST_LAYERS) <= _MOST_LAYERS:
        raise ValueError(
            f"its meta says {meta['model_layers']} layers of the model, and the map holds layer {max(layers)}"
        )


def _check_numbers(mass: Tensor, pairs: Tensor, steps: tuple[Step, ...]) -> None:
    if torch.isinf(mass).any():
        raise ValueError("mass holds an infinity")
    sizes = torch.tensor([step.stop - step.start for step in steps], dtype=torch.float64)
    most = rearrange(sizes, "query_step -> query_step 1") * sizes
    if (pairs < 0).any() or (pairs > most).any():
        raise ValueError("pairs holds a number that steps of these sizes cannot have")


def _known_to_numpy(mass: Tensor) -> Tensor:
    """NumPy, which tables and pictures are made with, knows no bfloat16."""
    return mass.float() if mass.dtype == torch.bfloat16 else mass
