"""The file of a step map: safetensors with a JSON header and a checksum; whatever it holds is checked before it is a map.

In: the parts of a `StepMap`. Out: a file; and back. A header has

    format       which format this is
    steps        the steps: index, segment, start, stop, text
    layers       the model's layer of each index of the `layer` axis
    meta         how the map was made
    sha256       of all of these and of both tensors; files of stepsal 0.1 have none
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from stepsal.errors import FileError, InputError
from stepsal.files import atomic_path, sha256_of
from stepsal.traces.trace import Step

_FORMAT = "stepsal step map 1"
_ENTRIES = ("format", "steps", "layers", "meta")
_SEGMENTS = ("question", "thinking", "summary")
_MASS_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PAIR_TYPES = (torch.int16, torch.int32, torch.int64)
_TEXTS = (
    "trace",
    "model",
    "architecture",
    "dtype",
    "device",
    "host",
    "objective",
    "rule",
    "heads",
    "control",
    "stepsal",
    "torch",
)
_COUNTS = ("tokens", "model_layers", "chunk")
_MOST = 2**31 - 1
_MOST_LAYERS = 2**16
_CURE = "Copy it anew from where it came, or move it away and make it again with `stepsal saliency`."


def write_map(
    path: str | Path,
    mass: Tensor,
    pairs: Tensor,
    steps: tuple[Step, ...],
    layers: tuple[int, ...],
    meta: dict[str, Any],
) -> None:
    """Write the parts of a map, atomically. Raises `InputError` for what a header cannot hold, and `FileError`."""
    from safetensors.torch import save

    tensors = {"mass": mass.contiguous().cpu(), "pairs": pairs.contiguous().cpu()}
    try:
        header = {
            "format": _FORMAT,
            "steps": json.dumps([asdict(step) for step in steps], ensure_ascii=False),
            "layers": json.dumps(layers),
            "meta": json.dumps(meta, ensure_ascii=False),
        }
        header["sha256"] = _checksum(header, tensors)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the map of trace {meta.get('trace')!r} cannot be written: {error}. Its meta must be text, numbers, true, false, "
            "null, lists and dicts of these, and all text whole Unicode."
        ) from error
    with atomic_path(
        path
    ) as part:  # safetensors itself would write to a file of its own beside it, for its own eyes only
        part.write_bytes(save(tensors, header))


def read_map(path: str | Path, verify: bool) -> dict[str, Any]:
    """The parts of a map, by name, checked whole. Raises `FileError`. `verify=False` leaves out the checksum alone."""
    path = Path(path)
    header, tensors = _open(path)
    try:
        if verify:
            _verify(header, tensors)
        return _checked(header, tensors)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is cut short or damaged ({error}). {_CURE}") from error


def _verify(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    if "sha256" not in header:  # of stepsal 0.1
        return
    try:
        same = header["sha256"] == _checksum(header, tensors)
    except (KeyError, RuntimeError, TypeError):
        same = False
    if not same:
        raise ValueError(
            "it does not hold what was written to it: its checksum differs, as where a bit flipped; verify=False reads it so"
        )


def _open(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise FileError(
            f"{path} is a folder, and a step map is a file: give one of the *.safetensors in it (or in its folder maps)"
        )
    try:
        with path.open("rb"):  # safetensors calls whatever it cannot open missing
            pass
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if (found := header.get("format")) != _FORMAT:
                raise FileError(
                    f"{path} is not a step map this version can read: its format is {found!r}, expected {_FORMAT!r}. "
                    "Make it again with `stepsal saliency`, or read it with the version of stepsal that wrote it."
                )
            names = file.keys()
            return header, {name: file.get_tensor(name) for name in names}
    except FileError:
        raise
    except FileNotFoundError as error:
        raise FileError(f"there is no step map at {path}") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        raise FileError(f"{path} is cut short or damaged ({error}). {_CURE}") from error


def _checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    parts: list[str | memoryview] = [header[name] for name in _ENTRIES]
    for name in ("mass", "pairs"):
        flat = rearrange(tensors[name], "... -> (...)")
        parts += [f"{name} {flat.dtype} {list(tensors[name].shape)}", flat.view(torch.uint8).numpy().data]
    return sha256_of(*parts)


def _checked(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The parts of a map, or a `ValueError` that says what is wrong with them."""
    if missing := [name for name in _ENTRIES if name not in header]:
        raise ValueError(f"its header has no {missing[0]!r}")
    if set(tensors) != {"mass", "pairs"}:
        raise ValueError(f"its tensors are {', '.join(sorted(tensors)) or 'none'}, expected mass and pairs")
    steps = _steps(_parse(header, "steps"))
    layers = _layers(_parse(header, "layers"))
    meta = _meta(_parse(header, "meta"), layers, steps)
    mass, pairs = tensors["mass"], tensors["pairs"]
    _check_tensors(mass, pairs, steps, layers)
    if mass.dtype == torch.bfloat16:  # unknown to NumPy, which tables and pictures are made with
        mass = mass.float()
    return {"mass": mass, "pairs": pairs, "steps": steps, "layers": layers, "meta": meta}


def _parse(header: Mapping[str, str], name: str) -> Any:
    try:
        return json.loads(header[name])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name!r} of its header is no JSON: {error}") from error


def _steps(found: Any) -> tuple[Step, ...]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"'steps' is {_shown(found)}, expected a list of one step at least")
    steps = []
    for index, record in enumerate(found):
        if not isinstance(record, dict) or set(record) != {"index", "segment", "start", "stop", "text"}:
            raise ValueError(f"step {index} is {_shown(record)}, expected index, segment, start, stop and text")
        for name in ("index", "start", "stop"):
            _check_count(record[name], f"{name!r} of step {index}", least=0)
        if record["index"] != index or record["segment"] not in _SEGMENTS:
            raise ValueError(f"step {index} is {_shown(record)}, expected that index and one of {', '.join(_SEGMENTS)}")
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
        if _SEGMENTS.index(other.segment) < _SEGMENTS.index(one.segment):
            raise ValueError(f"step {other.index} is of the {other.segment}, but comes after one of the {one.segment}")
    return tuple(steps)


def _layers(found: Any) -> tuple[int, ...]:
    if not isinstance(found, list) or not found:
        raise ValueError(f"'layers' is {_shown(found)}, expected a list of one layer at least")
    for layer in found:
        _check_count(layer, "a layer", least=0)
    if max(found) >= _MOST_LAYERS:
        raise ValueError(f"layer {max(found)} is beyond the {_MOST_LAYERS} that a model may have")
    if len(set(found)) < len(found):
        raise ValueError(f"'layers' is {_shown(found)}, which names a layer twice")
    return tuple(found)


def _meta(found: Any, layers: tuple[int, ...], steps: tuple[Step, ...]) -> dict[str, Any]:
    """What the rest of stepsal reads of `meta` has the type that it expects; the rest is the caller's own."""
    if not isinstance(found, dict):
        raise ValueError(f"'meta' is {_shown(found)}, expected an object")
    if not isinstance(found.get("made_of", {}), dict):
        raise ValueError(f"'made_of' of its meta is {_shown(found['made_of'])}, expected an object")
    for name in _TEXTS:
        if found.get(name) is not None:
            _check_text(found[name], f"{name!r} of its meta")
    for name in _COUNTS:
        if found.get(name) is not None:
            _check_count(found[name], f"{name!r} of its meta", least=1)
    if found.get("correct") not in (None, True, False) or type(found.get("correct")) in (int, float):
        raise ValueError(f"'correct' of its meta is {_shown(found['correct'])}, expected true, false or null")
    for name in ("tokens", "model_layers"):
        if name in found and found[name] is None:
            raise ValueError(f"{name!r} of its meta is null, expected a number")
    if found.get("tokens", steps[-1].stop) != steps[-1].stop:
        raise ValueError(f"its meta says {found['tokens']} tokens, its steps hold {steps[-1].stop}")
    if not max(layers) < found.get("model_layers", _MOST_LAYERS) <= _MOST_LAYERS:
        raise ValueError(
            f"its meta says {found['model_layers']} layers of the model, and the map holds layer {max(layers)}"
        )
    return found


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


def _check_count(value: Any, name: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST:
        raise ValueError(f"{name} is {_shown(value)}, expected a whole number, {least} to {_MOST}")


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_shown(value)}, expected text")
    value.encode()  # half a surrogate pair: a ValueError that says so


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
