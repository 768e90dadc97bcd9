"""The one reader of JSONL files: traces, grades, problems.

In: a file of JSON objects, one a line. Out: its lines with their numbers, and what a line says.

1. A line ends with a line feed, before which a carriage return may stand. U+2028, U+2029 and U+0085 are characters of a text.
2. Blank lines are passed over; a byte order mark is no text.
3. A file that is one JSON list, or objects over several lines, is refused as a whole, with what makes lines of it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stepsal.errors import FileError

_MARK = b"\xef\xbb\xbf"  # of the byte order
_LONGEST_BEGINNING = 4096
"""How many bytes the first line of an indented file may have; a longer one that is no JSON is a line that was cut."""


def read_lines(path: str | Path, what: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers. `what` the file holds is said where it cannot be read.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
    >>> _ = path.write_bytes(b'\\xef\\xbb\\xbf{"id": "a"}\\r\\n\\n{"id": "b"}')
    >>> list(read_lines(path, "grades"))
    [(1, b'{"id": "a"}'), (3, b'{"id": "b"}')]
    """
    return ((number, line) for number, _, line in locate_lines(path, what))


def locate_lines(
    path: str | Path, what: str, start: int = 0, stop: int | None = None, first: int = 1
) -> Iterator[tuple[int, int, bytes]]:
    """As `read_lines`, with the offset of each line in bytes between its number and its text.

    `start`, `stop`: the offsets between which the lines begin, and `first` the number of the line at `start`.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            file.seek(start)
            begun, offset = start > 0, start
            for number, line in enumerate(file, first):
                if stop is not None and offset >= stop:
                    return
                mark = len(_MARK) if number == 1 and line.startswith(_MARK) else 0
                text, at = line[mark:].rstrip(b"\r\n"), offset + mark
                offset += len(line)
                if not text.strip():
                    continue
                if not begun:
                    _refuse_indented(path, text)
                begun = True
                yield number, at, text
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {what} from {path}: {error.strerror or error}") from error


def parse_line(line: bytes) -> Any:
    """What a line says. Raises `FileError` for a line that is no JSON, is nested too deeply, or names a field twice.

    >>> parse_line(b'{"id": 1, "id": 2}')
    Traceback (most recent call last):
    stepsal.errors.FileError: the field 'id' is there twice in one object: give one of them another name
    """
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise FileError(f"not UTF-8 (byte {error.start} of the line): save the file as UTF-8") from error
    except RecursionError as error:
        raise FileError(
            "not a whole JSON object (it is nested too deeply to be read): one object a line, with the texts as strings in it"
        ) from error
    except ValueError as error:
        raise FileError(
            f"not a whole JSON object ({error}): one object a line, and the last line may be cut"
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FileError(f"the field {twice!r} is there twice in one object: give one of them another name")
    return found


def _refuse_indented(path: Path, first: bytes) -> None:
    """Refuse a file whose first line is no JSON, but begins a list or an object that ends on a later line."""
    if first.lstrip()[:1] not in (b"[", b"{") or len(first) > _LONGEST_BEGINNING:
        return
    try:
        json.loads(first)
    except RecursionError:
        return
    except ValueError:
        pass
    else:
        return
    try:
        value, _ = json.JSONDecoder().raw_decode(path.read_bytes().decode("utf-8-sig").lstrip())
    except (ValueError, RecursionError):  # said when the line's turn comes
        return
    what, expression = ("one JSON list", "'.[]'") if isinstance(value, list) else ("JSON over several lines", ".")
    raise FileError(
        f"{path} is {what}, and it is read one object a line: `jq -c {expression} {path.name} > lines.jsonl` makes such a file"
    )
