"""A result in a JSON file: what it is, its content, and a checksum. It is read whole, or refused with the reason.

In: plain data, and tables (`frame_to_record`). Out: a file; and back. A missing number is null.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal.errors import FileError
from stepsal.files import exclusive_path, sha256_of

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any


def write_result(path: str | Path, format: str, content: Mapping[str, Any]) -> None:
    """Write a result, atomically. Raises `FileError`."""
    held = json.loads(json.dumps({"format": format} | dict(content)))
    text = json.dumps(held | {"sha256": _checksum(held)}, indent=1)
    with exclusive_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_result(
    path: str | Path, format: str, what: str, made_by: str, check: Callable[[dict[str, Any]], None], *, verify: bool
) -> dict[str, Any]:
    """What `write_result` wrote in this format, once `check` has found nothing wrong with it.

    Args:
        what: what the result is called, in one word or a few.
        made_by: how such a file is made, as a command or a call in backquotes.
        check: raises a `ValueError` that says what keeps the content from being such a result.
        verify: False does not compare the checksum.

    Raises `FileError`.
    """
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder, and a {what} is a file: give {path / f'{what}.json'}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected an object")
        if content.get("format") != format:
            raise ValueError(f"its format is {content.get('format')!r}, expected {format!r}")
        check(content)
    except FileNotFoundError as error:
        raise FileError(f"there is no {what} at {path}: make it with {made_by}") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is not a {what} this version can read ({error}). Make it again.") from error
    if verify and content.get("sha256", expected := _checksum(content)) != expected:
        raise FileError(
            f"{path} is damaged: it does not hold what was written to it, its checksum differs. Copy it anew from where it "
            f"came, or make it again with {made_by}. (verify=False reads it as it is.)"
        )
    return content


def frame_to_record(table: DataFrame) -> dict[str, Any]:
    """A table as plain data: its columns, their types, and its rows.

    >>> import pandas as pd
    >>> frame_to_record(pd.DataFrame({"layer": [0, 1], "auc": [0.5, float("nan")]}))
    {'columns': ['layer', 'auc'], 'dtypes': ['int64', 'float64'], 'rows': [[0, 0.5], [1, None]]}
    """
    import pandas as pd

    def plain(value: Any) -> Any:
        return None if pd.isna(value) else getattr(value, "item", lambda: value)()

    rows = [[plain(value) for value in row] for row in table.astype(object).itertuples(index=False)]
    return {"columns": list(table.columns), "dtypes": [str(each) for each in table.dtypes], "rows": rows}


def frame_of_record(record: Any) -> DataFrame:
    """The table that `frame_to_record` made a record of."""
    import pandas as pd

    frame = pd.DataFrame(record["rows"], columns=record["columns"])
    return frame.astype(dict(zip(frame.columns, record["dtypes"], strict=True)))


def check_frame(record: Any, name: str, columns: Collection[str]) -> None:
    """Raise a `ValueError` unless this is the record of a table with these columns."""
    if not isinstance(record, dict) or not {"columns", "dtypes", "rows"} <= set(record):
        raise ValueError(f"{name!r} is no table")
    if missing := set(columns) - set(map(str, record["columns"])):
        raise ValueError(f"{name!r} has no column {min(missing)!r}")
    try:
        frame_of_record(record)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"{name!r} cannot be made a table: {error}") from error


def _checksum(content: Mapping[str, Any]) -> str:
    return sha256_of(json.dumps({name: each for name, each in content.items() if name != "sha256"}, sort_keys=True))
