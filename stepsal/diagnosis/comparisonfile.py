"""The file of a comparison: JSON with a checksum, checked whole before it is a comparison.

In: the tables of a `Comparison` as records, its pairs and its `meta`. Out: a file; and back.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepsal.resultfile import read_result, write_result

TABLES = ("table", "matched", "position_only")
_FORMAT = "stepsal comparison 1"
_NUMBERS = (
    *("correct", "wrong", "n_correct", "n_wrong", "difference", "low", "high", "cliffs_delta"),
    *("auc", "auc_low", "auc_high", "p", "p_corrected"),
)


def write_comparison(path: str | Path, meta: Mapping[str, Any], pairs: Any, tables: Mapping[str, Any]) -> None:
    """Write the parts of a comparison, atomically; `tables` are lists of records, without NaN."""
    write_result(path, _FORMAT, {"meta": meta, "pairs": pairs} | dict(tables))


def read_comparison(path: str | Path, verify: bool) -> dict[str, Any]:
    """The parts of a comparison, by name. Raises `FileError`. `verify=False` leaves out the checksum alone."""
    return read_result(path, _FORMAT, "comparison", "`stepsal compare`", _check, verify=verify)


def _check(content: dict[str, Any]) -> None:
    """Raise a `ValueError` that says what keeps this from being a comparison."""
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
