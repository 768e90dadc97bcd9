"""Tables of results as JSON, where a missing number is null; and back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal.errors import FileError
from stepsal.files import read_settings, write_settings

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any


def write_frames(path: str | Path, kind: str, tables: Mapping[str, DataFrame], others: Mapping[str, Any]) -> None:
    """Write tables, and what else a result holds, as one JSON file that says its kind, atomically."""
    records = {name: _records(table) for name, table in tables.items()}
    write_settings(path, {"kind": kind, **others, "tables": records})


def read_frames(
    path: str | Path, kind: str, names: tuple[str, ...], fix: str
) -> tuple[dict[str, DataFrame], dict[str, Any]]:
    """The tables of these names, and what else the file holds. Raises `FileError`; `fix` says how such a file is made."""
    import pandas as pd

    content = read_settings(path, f"{path} is no {kind}", fix)
    tables = content.pop("tables", None)
    if content.pop("kind", None) != kind or not isinstance(tables, dict) or not set(names) <= set(tables):
        raise FileError(f"{path} is no {kind}. {fix}")
    frames = {}
    for name in names:
        if not isinstance(tables[name], dict) or set(tables[name]) != {"columns", "data", "dtypes"}:
            raise FileError(f"{path} is damaged: its table {name!r} has not the fields columns, data and dtypes. {fix}")
        try:
            frame = pd.DataFrame(tables[name]["data"], columns=tables[name]["columns"])
            frames[name] = frame.astype(dict(zip(frame.columns, tables[name]["dtypes"], strict=True)))
        except (ValueError, TypeError) as error:
            raise FileError(f"{path} is damaged: its table {name!r} cannot be read ({error}). {fix}") from error
    return frames, content


def _records(table: DataFrame) -> dict[str, Any]:
    content = json.loads(table.to_json(orient="split", index=False, double_precision=15))
    return {"columns": content["columns"], "data": content["data"], "dtypes": [str(each) for each in table.dtypes]}
