"""The file of a knockout: safetensors with a JSON header and a checksum; whatever it holds is checked before it is one.

In: the parts of a `Knockout`. Out: a file (`stepsal.saliency.tensorfile`); and back.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepsal.saliency.tensorfile import FileKind, damaged, read_tensors, write_tensors
from stepsal.traces.trace import Step

KNOCKOUT = FileKind(
    "stepsal knockout 1",
    "knockout",
    ("format", "steps", "meta"),
    ("kl", "loss", "answer"),
    "stepsal knockout",
    optional=("removed", "answers"),
)


def write_knockout(
    path: str | Path, tensors: Mapping[str, Tensor], steps: Sequence[Step], meta: dict[str, Any]
) -> None:
    """Write the parts of a knockout, atomically. Raises `InputError` for what a header cannot hold, and `FileError`."""
    write_tensors(path, KNOCKOUT, tensors, steps, meta=meta)


def read_knockout(path: str | Path, verify: bool) -> dict[str, Any]:
    """The parts of a knockout, by name, checked whole. Raises `FileError`. `verify=False` leaves out the checksum alone."""
    try:
        said, tensors = read_tensors(path, KNOCKOUT, verify)
        _check_tensors(tensors, len(said["steps"]))
    except (ValueError, RecursionError) as error:
        raise damaged(path, KNOCKOUT, error) from error
    return {name: said[name] for name in ("steps", "meta")} | tensors


def _check_tensors(tensors: Mapping[str, Tensor], n: int) -> None:
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "kl": (torch.float32, (n, n)),
        "loss": (torch.float32, (n, n)),
        "answer": (torch.float32, (n,)),
    }
    if len({"removed", "answers"} & set(tensors)) == 1:
        raise ValueError("of removed and answers it holds one alone")
    if "removed" in tensors:
        subsets = len(tensors["removed"])
        expected |= {"removed": (torch.bool, (subsets, n)), "answers": (torch.float32, (subsets,))}
    for name, (dtype, shape) in expected.items():
        found = tensors[name]
        if found.dtype != dtype or tuple(found.shape) != shape:
            raise ValueError(
                f"{name} is {found.dtype} of shape {tuple(found.shape)}, expected {dtype} of shape {shape}"
            )
        if torch.isinf(found).any():
            raise ValueError(f"{name} holds an infinity")
