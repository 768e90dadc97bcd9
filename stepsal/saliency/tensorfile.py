"""Files that hold tensors on the steps of a trace: safetensors with a JSON header and a checksum.

In: a `FileKind`, tensors by name, and what the header says. Out: a file; and back, once everything that the rest of stepsal
reads of it was found to be what it expects. A header has

    format       which kind of file this is
    steps        the steps: index, segment, start, stop, text
    ...          entries of the kind's own
    meta         how the tensors were made
    sha256       of all of these and of the tensors; step maps of stepsal 0.1 have none

`read_tensors` reads a file whole; `read_header` what its header says, `read_slices` parts of a tensor, without the rest.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor

from stepsal.checks import shown
from stepsal.errors import FileError, InputError
from stepsal.files import atomic_path, sha256_of
from stepsal.traces.trace import Step

_Read = TypeVar("_Read")
MOST = 2**31 - 1
SEGMENTS = ("question", "thinking", "summary")
_TEXTS = (
    *(
        "trace",
        "model",
        "architecture",
        "dtype",
        "device",
        "host",
        "objective",
        "rule",
        "score",
        "mode",
        "heads",
        "control",
    ),
    *("stepsal", "torch"),
)
_COUNTS = ("tokens", "model_layers", "chunk")


@dataclass(frozen=True)
class FileKind:
    """A kind of file. `entries` are the names of its header, in order; `command` is the command that makes such files.

    `optional` tensors may be missing. Files of the `earlier` formats are read, too.
    """

    format: str
    name: str
    entries: tuple[str, ...]
    tensors: tuple[str, ...]
    command: str
    optional: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()


def write_tensors(
    path: str | Path, kind: FileKind, tensors: Mapping[str, Tensor], steps: Sequence[Step], **said: Any
) -> None:
    """Write a file, atomically; `said` holds the header's other entries, `meta` among them.

    Raises `InputError` for what a header cannot hold, and `FileError`.
    """
    from safetensors.torch import save

    names = [name for name in (*kind.tensors, *kind.optional) if name in tensors or name not in kind.optional]
    held = {name: tensors[name].contiguous().cpu() for name in names}
    for one, other in pairwise(sorted(held, key=lambda name: held[name].untyped_storage().data_ptr())):
        if held[one].untyped_storage().data_ptr() == held[other].untyped_storage().data_ptr():
            held[one] = held[one].clone()  # safetensors refuses tensors that share their memory
    try:
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in said.items()}
        texts["steps"] = json.dumps([asdict(step) for step in steps], ensure_ascii=False)
        header = {"format": kind.format} | {name: texts[name] for name in kind.entries if name != "format"}
        header["sha256"] = _checksum(kind, header, held)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the {kind.name} of trace {said['meta'].get('trace')!r} cannot be written: {error}. Its meta must be text, "
            "numbers, true, false, null, lists and dicts of these, and all text whole Unicode."
        ) from error
    with atomic_path(path) as temporary:  # safetensors itself would write to a file that its owner alone may read
        temporary.write_bytes(save(held, header))


def read_tensors(path: str | Path, kind: FileKind, verify: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What the header says, with `steps` and `meta` checked, and the tensors. `verify=False` leaves out the checksum alone.

    Raises `FileError` for what is no such file, and `ValueError` for one that is damaged; see `damaged`.
    """
    header, tensors = _open(Path(path), kind, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    if verify:
        _verify(kind, header, tensors)
    return _said(kind, header, set(tensors)), tensors


def read_header(
    path: str | Path, kind: FileKind
) -> tuple[dict[str, Any], dict[str, tuple[str, list[int]]], str | None]:
    """What the header says, as `read_tensors` gives it; each tensor's type, as safetensors names it, and shape; the checksum.

    The tensors are not read, so the checksum is not compared. Raises what `read_tensors` raises.
    """

    def shapes(file: Any) -> dict[str, tuple[str, list[int]]]:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (each.get_dtype(), each.get_shape()) for name, each in slices.items()}

    header, found = _open(Path(path), kind, shapes)
    return _said(kind, header, set(found)), found, header.get("sha256")


def read_slices(path: str | Path, kind: FileKind, name: str, places: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """A tensor's parts at these places of its first axes, without the rest. No checksum covers them. Raises `FileError`."""
    return _open(Path(path), kind, lambda file: [file.get_slice(name)[place or ...] for place in places])[1]


def _said(kind: FileKind, header: Mapping[str, str], tensors: set[str]) -> dict[str, Any]:
    """The entries of a header, checked."""
    if missing := [name for name in kind.entries if name not in header]:
        raise ValueError(f"its header has no {missing[0]!r}")
    if tensors - set(kind.optional) != set(kind.tensors):
        raise ValueError(
            f"its tensors are {', '.join(sorted(tensors)) or 'none'}, expected {' and '.join(kind.tensors)}"
        )
    said: dict[str, Any] = {name: header[name] if name == "format" else _parse(header, name) for name in kind.entries}
    said["steps"] = _steps(said["steps"])
    _check_meta(said["meta"], said["steps"])
    return said


def damaged(path: str | Path, kind: FileKind, error: Exception) -> FileError:
    """The error that says what is wrong with a file, and how to get a good one."""
    return FileError(
        f"{path} is cut short or damaged ({error}). Copy it anew from where it came, or move it away and make it again with "
        f"`{kind.command}`."
    )


def _open(path: Path, kind: FileKind, read: Callable[[Any], _Read]) -> tuple[dict[str, str], _Read]:
    """The header of a file, and what `read` reads of it."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise FileError(
            f"{path} is a folder, and a {kind.name} is a file: give one of the *.safetensors in it (or in its subfolder)"
        )
    try:
        with path.open("rb"):  # safetensors calls whatever it cannot open missing
            pass
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if (found := header.get("format")) not in (kind.format, *kind.earlier):
                raise FileError(
                    f"{path} is not a {kind.name} this version can read: its format is {found!r}, expected {kind.format!r}. "
                    f"Make it again with `{kind.command}`, or read it with the version of stepsal that wrote it."
                )
            return header, read(file)
    except FileError:
        raise
    except FileNotFoundError as error:
        raise FileError(f"there is no {kind.name} at {path}") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        raise damaged(path, kind, error) from error


def _verify(kind: FileKind, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    if "sha256" not in header:  # of stepsal 0.1
        return
    try:
        same = header["sha256"] == _checksum(kind, header, tensors)
    except (KeyError, RuntimeError, TypeError):
        same = False
    if not same:
        raise ValueError(
            "it does not hold what was written to it: its checksum differs, as where a bit flipped; verify=False reads it so"
        )


def _checksum(kind: FileKind, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    parts: list[str | memoryview] = [header[name] for name in kind.entries]
    for name in (*kind.tensors, *(name for name in kind.optional if name in tensors)):
        flat = rearrange(tensors[name], "... -> (...)")
        parts += [f"{name} {flat.dtype} {list(tensors[name].shape)}", flat.view(torch.uint8).numpy().data]
    return sha256_of(*parts)


def _parse(header: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(header[name])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name!r} of its header is no JSON: {error}") from error


def _steps(found: Any) -> tuple[Step, ...]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"'steps' is {shown(found)}, expected a list of one step at least")
    steps = []
    for index, record in enumerate(found):
        if not isinstance(record, dict) or set(record) != {"index", "segment", "start", "stop", "text"}:
            raise ValueError(f"step {index} is {shown(record)}, expected index, segment, start, stop and text")
        for name in ("index", "start", "stop"):
            check_count(record[name], f"{name!r} of step {index}", least=0)
        if record["index"] != index or record["segment"] not in SEGMENTS:
            raise ValueError(f"step {index} is {shown(record)}, expected that index and one of {', '.join(SEGMENTS)}")
        _check_text(record["text"], f"the text of step {index}")
        steps.append(Step(**record))
    if steps[0].start != 0:
        raise ValueError(f"the first step begins at token {steps[0].start}, expected 0")
    for step in steps:
        if step.stop <= step.start:
            raise ValueError(f"step {step.index} holds tokens {step.start} to {step.stop}, expected one at least")
    for one, other in pairwise(steps):
        if other.start != one.stop:
            raise ValueError(
                f"step {other.index} begins at token {other.start}, expected {one.stop}, where the last one ends"
            )
        if SEGMENTS.index(other.segment) < SEGMENTS.index(one.segment):
            raise ValueError(f"step {other.index} is of the {other.segment}, but comes after one of the {one.segment}")
    return tuple(steps)


def _check_meta(found: Any, steps: Sequence[Step]) -> None:
    """Raise `ValueError` unless what the rest of stepsal reads of `meta` has the type that it expects."""
    if not isinstance(found, dict):
        raise ValueError(f"'meta' is {shown(found)}, expected an object")
    if not isinstance(found.get("made_of", {}), dict):
        raise ValueError(f"'made_of' of its meta is {shown(found['made_of'])}, expected an object")
    for name in _TEXTS:
        if found.get(name) is not None:
            _check_text(found[name], f"{name!r} of its meta")
    for name in _COUNTS:
        if found.get(name) is not None:
            check_count(found[name], f"{name!r} of its meta", least=1)
    if found.get("correct") not in (None, True, False) or type(found.get("correct")) in (int, float):
        raise ValueError(f"'correct' of its meta is {shown(found['correct'])}, expected true, false or null")
    for name in ("tokens", "model_layers"):
        if name in found and found[name] is None:
            raise ValueError(f"{name!r} of its meta is null, expected a number")
    if found.get("tokens", steps[-1].stop) != steps[-1].stop:
        raise ValueError(f"its meta says {found['tokens']} tokens, its steps hold {steps[-1].stop}")


def check_count(value: Any, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
        raise ValueError(f"{name} is {shown(value)}, expected a whole number, {least} to {MOST}")


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, expected text")
    value.encode()  # half a surrogate pair: a ValueError that says so
