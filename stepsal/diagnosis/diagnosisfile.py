"""The file of one diagnosis: JSON with a checksum, checked whole before it is a diagnosis.

In: the parts of a `Diagnosis`. Out: a file; and back.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stepsal.resultfile import read_result, write_result

PARTS = ("values", "position_only", "decay", "layers", "verdicts", "meta")
_FORMAT = "stepsal diagnosis 1"
_VERDICT = {"failure", "found", "layers", "metric", "value", "threshold", "reference"}


def write_diagnosis(path: str | Path, parts: Mapping[str, Any]) -> None:
    """Write the parts of a diagnosis, atomically. Raises `FileError`."""
    content = {name: parts[name] for name in ("decay", "layers", "meta")}
    content |= {name: {key: each.tolist() for key, each in parts[name].items()} for name in ("values", "position_only")}
    content["verdicts"] = [asdict(verdict) for verdict in parts["verdicts"]]
    write_result(path, _FORMAT, _without_nan(content))


def read_diagnosis(path: str | Path, verify: bool) -> dict[str, Any]:
    """The parts of a diagnosis by name, its verdicts as records. Raises `FileError`. `verify=False` leaves out the checksum."""

    def check(content: dict[str, Any]) -> None:
        try:
            _parts(content)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"a part is missing or is something else: {error}") from error

    return _parts(read_result(path, _FORMAT, "diagnosis", "`diagnosis.save(path)`", check, verify=verify))


def _parts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Raise an error that says what keeps this from being a diagnosis."""
    layers = tuple(int(layer) for layer in content["layers"])
    values = {name: _tensor(rows) for name, rows in content["values"].items()}
    position_only = {name: _tensor(rows) for name, rows in content["position_only"].items()}
    if not values or any(each.ndim != 2 or len(each) != len(layers) for each in values.values()):
        raise ValueError(f"its values are no tables of {len(layers)} layers")
    if any(each.shape != (len(layers),) for each in position_only.values()):
        raise ValueError(f"its values by distance alone are not of {len(layers)} layers")
    verdicts = content["verdicts"]
    if any(set(each) != _VERDICT for each in verdicts):
        raise ValueError(f"its verdicts have not the fields {', '.join(sorted(_VERDICT))}")
    return {
        "values": values,
        "position_only": position_only,
        "decay": {name: _number(value) for name, value in content["decay"].items()},
        "layers": layers,
        "verdicts": [
            each
            | {
                "layers": tuple(each["layers"]),
                "value": _number(each["value"]),
                "threshold": _number(each["threshold"]),
            }
            for each in verdicts
        ],
        "meta": dict(content["meta"]),
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _tensor(values: Any) -> torch.Tensor:
    """Lists of numbers, of any depth, where null is NaN."""

    def filled(each: Any) -> Any:
        return [filled(inner) for inner in each] if isinstance(each, list) else _number(each)

    return torch.tensor(filled(values), dtype=torch.float32)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
