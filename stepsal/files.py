"""Files that are whole or not there, folders that one run at a time writes, and settings that every run into them shares.

`atomic_path`: everything stepsal writes goes through it.
`locked`: keeps a second run out of a file or folder while a first one is at work; `exclusive_path` is both, for one file.
`agree_on_settings`: a run that goes on from an earlier one must have the earlier one's settings.
`sha256_of`: the checksum that goes into what is written, and is compared when it is read.
"""

import difflib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from stepsal.errors import FileError

DIFF_LINES = 60
"""How many lines of a difference between settings a message shows."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def sha256_of(*parts: str | bytes | memoryview) -> str:
    """The SHA-256 of several texts and buffers, none of which can pass for a part of its neighbour.

    >>> sha256_of("ab", b"c") == sha256_of("a", b"bc")
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        data = memoryview(part.encode() if isinstance(part, str) else part).cast("B")
        digest.update(f"{data.nbytes}:".encode())
        digest.update(data)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of `path` when the block ends without an error.

    A symbolic link is written through: the file that it leads to is replaced, and the link stays. Missing parent folders are
    made. Raises `FileError` when the file cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> (folder / "a.txt").read_text()
    'whole'
    """
    path = Path(path)
    try:
        target = _followed(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except FileError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def _followed(path: Path) -> Path:
    """Where a symbolic link leads, over however many links; any other path as it is."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


@contextmanager
def exclusive_path(path: str | Path) -> Iterator[Path]:
    """`atomic_path` under a lock: a second run that writes the same file at the same time is refused with a `FileError`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with exclusive_path(path) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [each.name for each in path.parent.iterdir()]
    ['a.txt']
    """
    at_work = f"another run is writing {path}: wait for it, or write to another file"
    with locked(path, at_work), atomic_path(path) as temporary:
        yield temporary


@contextmanager
def locked(path: str | Path, at_work: str, *, also: Sequence[str] = ()) -> Iterator[None]:
    """Keep every other run from writing `path`, and what belongs to it, while the block runs; the lock of a killed run is free.

    The lock is `.NAME.lock` beside `path`, or beside the file that it leads to if it is a symbolic link. It is gone when the
    block ends, and so are the temporary files that killed runs left behind. Missing parent folders are made.

    Args:
        at_work: what to say where another run holds the lock.
        also: the other files that only the holder of the lock writes, as glob patterns seen from the folder of `path`.

    Raises `FileError`, without waiting: another run holds the lock, or the folder cannot be written or locked.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with locked(path, "another run writes a.txt: wait for it"):
    ...     with locked(path, "another run writes a.txt: wait for it"):
    ...         pass
    Traceback (most recent call last):
    stepsal.errors.FileError: another run writes a.txt: wait for it
    >>> list(path.parent.iterdir())
    []
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    try:
        target = _followed(path)
        lock_file = target.with_name(f".{target.name}.lock")
        # A soft lock, which is a file that says who holds it, would survive a killed run on another machine.
        lock = FileLock(lock_file, blocking=False, fallback_to_soft=False)
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise FileError(at_work) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise cannot_write(path, error) from error
        raise FileError(
            f"cannot lock {path}: {error.strerror or error}. Choose a folder on a disk that has locks."
        ) from error
    try:
        _remove_temporaries(target.parent, [escape(target.name)])
        _remove_temporaries(path.parent, also)
        yield
    finally:
        with suppress(OSError):  # left by workers that were killed while the block ran
            _remove_temporaries(path.parent, also)
        with suppress(OSError):  # Windows removes no open file; filelock itself removes it there
            lock_file.unlink()  # still locked: whoever opened it meanwhile sees that it is gone, and fails or makes its own
        lock.release()


def _remove_temporaries(folder: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        below, _, name = pattern.rpartition("/")
        for temporary in (folder / below).glob(f".{name}.*.part"):
            temporary.unlink(missing_ok=True)


def cannot_write(path: str | Path, error: OSError) -> FileError:
    """What to tell of a file that could not be written, with the fix that its reason has."""
    fix = "Make room, and run the same again." if error.errno in _NO_ROOM else "Choose a folder you may write to."
    return FileError(f"cannot write {path}: {error.strerror or error}. {fix}")


def agree_on_settings(
    path: str | Path,
    settings: Mapping[str, Any],
    *,
    begun: bool,
    refusal: str,
    unknown: str,
    fix: str,
    defaults: Mapping[str, Any] | None = None,
    beside: Sequence[str] = (),
    indent: int = 1,
    sort_keys: bool = False,
) -> None:
    """Write settings down in a JSON file where nothing was begun with others; else compare them with what the file says.

    Args:
        begun: is there work already that was done with the settings in `path`? If not, they are written anew.
        refusal: the message's beginning where the settings differ; the differences and the fix follow.
        unknown: the message's beginning where the file cannot be read; the reason and the fix follow.
        fix: a whole sentence.
        defaults: values for keys that the file lacks, at any depth: what holds where a file was written before there was
            such a key.
        beside: keys of the file that are no settings: they are not compared.
        indent, sort_keys: how the file is written, as in `json.dumps`.

    Raises `FileError`: the settings differ, the file cannot be read, or it cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "settings.json"
    >>> texts = {"refusal": "begun with other settings", "unknown": "nothing says of what", "fix": "Use another folder."}
    >>> agree_on_settings(path, {"rule": "abs"}, begun=False, **texts)
    >>> agree_on_settings(path, {"rule": "abs", "chunk": 4}, begun=True, defaults={"chunk": 4}, **texts)
    >>> agree_on_settings(path, {"rule": "grad"}, begun=True, **texts)
    Traceback (most recent call last):
    stepsal.errors.FileError: begun with other settings (rule 'abs' -> 'grad'). Use another folder.
    """
    if not begun:
        write_settings(path, settings, indent=indent, sort_keys=sort_keys)
        return
    before = {key: value for key, value in read_settings(path, unknown, fix).items() if key not in beside}
    before, now = _with_defaults(before, json.loads(json.dumps(defaults or {}))), json.loads(json.dumps(settings))
    if before != now:
        raise FileError(f"{refusal} {_differences(before, now, fix)}")


def write_settings(path: str | Path, settings: Mapping[str, Any], *, indent: int = 1, sort_keys: bool = False) -> None:
    """Write settings as a JSON file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=indent, sort_keys=sort_keys) + "\n", encoding="utf-8")


def read_settings(path: str | Path, unknown: str, fix: str) -> dict[str, Any]:
    """The object that a JSON file of settings holds. Raises `FileError`: `unknown`, the reason, `fix`."""
    try:
        written = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(written, dict):
            raise ValueError(f"it holds a {type(written).__name__}, expected an object")
        if not written:
            raise ValueError("it holds an empty object, and no settings")
    except (OSError, ValueError, RecursionError) as error:
        problem = f"cannot read {path}" if isinstance(error, OSError) else f"{path} is damaged"
        raise FileError(f"{unknown}: {problem} ({error}). {fix}") from error
    return written


def _with_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(value := merged.get(key, {}), Mapping):
            merged[key] = _with_defaults(value, default)
        else:
            merged.setdefault(key, default)
    return merged


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], fix: str) -> str:
    """`(key before -> now, ...). Fix`; values that are records of their own are named, and shown by a unified diff below."""
    names, nested = [], False
    for key in sorted(before.keys() | now.keys()):
        values = [record[key] for record in (before, now) if key in record]
        if len(values) == 2 and values[0] == values[1]:
            continue
        if key.endswith("_sha256") and len(values) == 2:
            names.append(f"{key.removesuffix('_sha256')}: what is in it differs, by its hash")
        elif any(map(_is_nested, values)):
            names.append(key)
            nested = True
        else:
            shown = [repr(record[key]) if key in record else "absent" for record in (before, now)]
            names.append(f"{key} {' -> '.join(shown)}")
    message = f"({', '.join(names)}). {fix}"
    if not nested:
        return message
    old, new = (json.dumps(record, indent=1, sort_keys=True).splitlines() for record in (before, now))
    lines = list(difflib.unified_diff(old, new, "begun here", "given now", n=1, lineterm=""))
    return "\n".join([message, *lines[:DIFF_LINES]])


def _is_nested(value: Any) -> bool:
    """Is this an object, or a list that holds one?"""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_is_nested, value)))
