"""The file of a step map: safetensors with a JSON header and a checksum; whatever it holds is checked before it is a map.

In: the parts of a `StepMap`. Out: a file (`stepsal.saliency.tensorfile`); and back. Its header has, beside the steps and
`meta`, the model's layer of each index of the `layer` axis.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from stepsal.saliency.tensorfile import FileKind, check_count, damaged, read_tensors, shown, write_tensors
from stepsal.traces.trace import Step

STEP_MAP = FileKind(
    "stepsal step map 1", "step map", ("format", "steps", "layers", "meta"), ("mass", "pairs"), "stepsal saliency"
)
_MASS_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PAIR_TYPES = (torch.int16, torch.int32, torch.int64)
_MOST_LAYERS = 2**16


def write_map(
    path: str | Path,
    mass: Tensor,
    pairs: Tensor,
    steps: tuple[Step, ...],
    layers: tuple[int, ...],
    meta: dict[str, Any],
) -> None:
    """Write the parts of a map, atomically. Raises `InputError` for what a header cannot hold, and `FileError`."""
    write_tensors(path, STEP_MAP, {"mass": mass, "pairs": pairs}, steps, layers=layers, meta=meta)


def read_map(path: str | Path, verify: bool) -> dict[str, Any]:
    """The parts of a map, by name, checked whole. Raises `FileError`. `verify=False` leaves out the checksum alone."""
    try:
        said, tensors = read_tensors(path, STEP_MAP, verify)
        layers = _layers(said["layers"])
        _check_depth(said["meta"], layers)
        mass, pairs = tensors["mass"], tensors["pairs"]
        _check_tensors(mass, pairs, said["steps"], layers)
    except (ValueError, RecursionError) as error:
        raise damaged(path, STEP_MAP, error) from error
    if mass.dtype == torch.bfloat16:  # unknown to NumPy, which tables and pictures are made with
        mass = mass.float()
    return said | {"mass": mass, "pairs": pairs, "layers": layers}


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


def _check_tensors(mass: Tensor, pairs: Tensor, steps: tuple[Step, ...], layers: tuple[int, ...]) -> None:
    if mass.dtype not in _MASS_TYPES or pairs.dtype not in _PAIR_TYPES:
        raise ValueError(f"mass is {mass.dtype} and pairs {pairs.dtype}, expected floating-point and whole numbers")
    n = len(steps)
    if mass.ndim != 4 or not mass.shape[1] or tuple(mass.shape) != (len(layers), mass.shape[1], n, n):
        raise ValueError(
            f"mass has shape {tuple(mass.shape)}, expected ({len(layers)} layers, heads, {n} steps, {n} steps)"
        )
    if tuple(pairs.shape) != (n, n):
        raise ValueError(f"pairs has shape {tuple(pairs.shape)}, expected ({n} steps, {n} steps)")
    if torch.isinf(mass).any():
        raise ValueError("mass holds an infinity")
    sizes = torch.tensor([step.stop - step.start for step in steps], dtype=torch.float64)
    most = rearrange(sizes, "query_step -> query_step 1") * sizes
    if (pairs < 0).any() or (pairs > most).any():
        raise ValueError("pairs holds a number that steps of these sizes cannot have")
