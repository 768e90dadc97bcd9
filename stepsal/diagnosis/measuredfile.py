"""The metrics of a map, kept in a file of some kilobytes, so that a map that did not change need not be read again.

In: the metrics of a map, and a key that says what they are of. Out: a file (safetensors with the key and a checksum in its
header); and back, unless the key is another one by now or anything is wrong with the file: then they are measured again.

The key of a map has

    map     the checksum, the size and the time of change of the map's file
    code    the SHA-256 of the source files that define the built-in metrics, and the versions of stepsal and torch
"""

import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

import stepsal.diagnosis.diagnosis
import stepsal.diagnosis.metrics
import stepsal.models.layer_choice
import stepsal.saliency.mapfile
import stepsal.saliency.stepmap
from stepsal._version import __version__
from stepsal.diagnosis.diagnosis import Measured
from stepsal.files import atomic_path, sha256_of
from stepsal.saliency.stepmapfile import StepMapFile

FORMAT = "stepsal metrics 1"
_PARTS = ("values", "position_only")
_DEFINED_IN = (
    stepsal.diagnosis.metrics,
    stepsal.diagnosis.diagnosis,
    stepsal.saliency.stepmap,
    stepsal.saliency.mapfile,
    stepsal.models.layer_choice,
)


def key_of(file: StepMapFile) -> str:
    """What metrics of the map, as it is in its file at this moment, are kept under."""
    stat = file.path.stat()
    return json.dumps({"map": [file.header.sha256, stat.st_size, stat.st_mtime_ns], "code": _code()})


@cache
def _code() -> str:
    try:
        sources = [inspect.getsource(module) for module in _DEFINED_IN]
    except OSError:  # installed without its source: then the version says it all
        sources = []
    return sha256_of(__version__, torch.__version__, *sources)


def write_measured(path: Path, key: str, measured: Measured) -> None:
    """Keep metrics under a key, atomically. Raises `FileError`."""
    from safetensors.torch import save

    tensors = {f"{part} {name}": each.contiguous() for part in _PARTS for name, each in getattr(measured, part).items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"format": FORMAT, "key": key, "sha256": _checksum(key, tensors)}))


def read_measured(path: Path, key: str) -> Measured | None:
    """The metrics that are kept under this key; None where there are none, or where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb"), safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if (header.get("format"), header.get("key")) != (FORMAT, key):
                return None
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if header.get("sha256") != _checksum(key, tensors):
            return None
    except (OSError, SafetensorError, ValueError, TypeError, RuntimeError):
        return None
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, metric = name.partition(" ")
        parts[part][metric] = tensor
    return Measured(**parts)


def _checksum(key: str, tensors: dict[str, torch.Tensor]) -> str:
    parts: list[str | memoryview] = [FORMAT, key]
    for name in sorted(tensors):
        flat = tensors[name].flatten()
        parts += [f"{name} {flat.dtype} {list(tensors[name].shape)}", flat.view(torch.uint8).numpy().data]
    return sha256_of(*parts)
