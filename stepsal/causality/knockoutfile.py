"""The file of a knockout: safetensors with a JSON header and a checksum; whatever it holds is checked before it is one.

In: the parts of a `Knockout`. Out: a file (`stepsal.saliency.tensorfile`); and back.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepsal.saliency.tensorfile import FileKind, damaged, read_tensors, write_tensors
from stepsal.traces.trace import Step

KNOCKOUT = FileKind(
    "stepsal knockout 1", "knockout", ("format", "steps", "meta"), ("kl", "loss", "answer"), "stepsal knockout"
)


def write_knockout(
    path: str | Path, kl: Tensor, loss: Tensor, answer: Tensor, steps: Sequence[Step], meta: dict[str, Any]
) -> None:
    """Write the parts of a knockout, atomically. Raises `InputError` for what a header cannot hold, and `FileError`."""
    write_tensors(path, KNOCKOUT, {"kl": kl, "loss": loss, "answer": answer}, steps, meta=meta)


def read_knockout(path: str | Path, verify: bool) -> dict[str, Any]:
    """The parts of a knockout, by name, checked whole. Raises `FileError`. `verify=False` leaves out the checksum alone."""
    try:
        said, tensors = read_tensors(path, KNOCKOUT, verify)
        n = len(said["steps"])
        for name, shape in (("kl", (n, n)), ("loss", (n, n)), ("answer", (n,))):
            found = tensors[name]
            if found.dtype != torch.float32 or tuple(found.shape) != shape:
                raise ValueError(
                    f"{name} is {found.dtype} of shape {tuple(found.shape)}, expected float32 of shape {shape}"
                )
            if torch.isinf(found).any():
                raise ValueError(f"{name} holds an infinity")
    except (ValueError, RecursionError) as error:
        raise damaged(path, KNOCKOUT, error) from error
    return said | tensors
