"""The file of a comparison: JSON with a checksum, checked whole before it is a comparison.

In: the tables of a `Comparison` as records, its pairs and its `meta`. Out: a file; and back.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepsal.errors import FileError
from stepsal.files import exclusive_path, sha256_of

TABLES = ("table", "matched", "position_only")
_FORMAT = "stepsal comparison 1"
_NUMBERS = (
    *("correct", "wrong", "n_correct", "n_wrong", "difference", "low", "high", "cliffs_delta"),
    *("auc", "auc_low", "auc_high", "p", "p_corrected"),
)


def write_comparison(path: str | Path, meta: Mapping[str, Any], pairs: Any, tables: Mapping[str, Any]) -> None:
    """Write the parts of a comparison, atomically; `tables` are lists of records, without NaN."""
    content = json.loads(json.dumps({"format": _FORMAT, "meta": meta, "pairs": pairs} | dict(tables)))
    text = json.dumps(content | {"sha256": _checksum(content)}, indent=1)
    with exclusive_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_comparison(path: str | Path, verify: bool) -> dict[str, Any]:
    """The parts of a comparison, by name. Raises `FileError`. `verify=False` leaves out the checksum alone."""
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder, and a comparison is a file: give {path / 'comparison.json'}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _check(content)
    except FileNotFoundError as error:
        raise FileError(f"there is no comparison at {path}: make it with `stepsal compare`") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not a comparison this version can read ({error}). Make it again.") from error
    if verify and content.get("sha256", expected := _checksum(content)) != expected:
        raise FileError(
            f"{path} is damaged: it does not hold what was written to it, its checksum differs. Copy it anew from where it "
            "came, or make it again with `stepsal compare`. (verify=False reads it as it is.)"
        )
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return sha256_of(json.dumps({name: each for name, each in content.items() if name != "sha256"}, sort_keys=True))


def _check(content: Any) -> None:
    """Raise a `ValueError` that says what keeps this from being a comparison."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, expected an object")
    if content.get("format") != _FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}, expected {_FORMAT!r}")
    for name in TABLES:
        records = content.get(name)
        if not isinstance(records, list):
            raise ValueError(f"{name!r} is no list of rows")
        for index, record in enumerate(records):
            _check_row(record, f"row {index} of {name!r}")
    if not content["table"]:
        raise ValueError("'table' has no row")
    _check_meta(content.get("meta"))
    pairs = content.get("pairs")
    if not isinstance(pairs, list) or not all(isinstance(each, list) and len(each) == 2 for each in pairs):
        raise ValueError("'pairs' is no list of pairs")
    if not all(_is_count(index) for pair in pairs for index in pair):
        raise ValueError("'pairs' holds something else than indices")


def _check_row(record: Any, name: str) -> None:
    if not isinstance(record, dict) or set(record) != {"metric", "layer", *_NUMBERS}:
        raise ValueError(f"{name} has not the columns metric, layer, {', '.join(_NUMBERS)}")
    if not isinstance(record["metric"], str) or not (record["layer"] is None or _is_count(record["layer"])):
        raise ValueError(f"{name} has metric {record['metric']!r} and layer {record['layer']!r}")
    for column in _NUMBERS:
        value = record[column]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{column!r} in {name} is {value!r}, expected a number or null")


def _check_meta(meta: Any) -> None:
    if not isinstance(meta, dict):
        raise ValueError("'meta' is no object")
    for name in ("correct", "wrong"):
        if not _is_count(meta.get(name)):
            raise ValueError(f"{name!r} of its meta is {meta.get(name)!r}, expected a number of traces")
    layers = meta.get("layers")
    if not isinstance(layers, list) or not layers or not all(map(_is_count, layers)):
        raise ValueError(f"'layers' of its meta is {layers!r}, expected a list of layers")
    if not (meta.get("model_layers") is None or _is_count(meta["model_layers"])):
        raise ValueError(f"'model_layers' of its meta is {meta['model_layers']!r}, expected a number")
    traces = meta.get("traces", [])
    if not isinstance(traces, list) or not all(isinstance(group, list) for group in traces):
        raise ValueError("'traces' of its meta is no list of two groups")
    if not all(name is None or isinstance(name, str) for group in traces for name in group):
        raise ValueError("'traces' of its meta holds something else than ids")
    if not isinstance(meta.get("matched_on"), str):
        raise ValueError(f"'matched_on' of its meta is {meta.get('matched_on')!r}, expected text")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16
