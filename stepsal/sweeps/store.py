"""The folder of a sweep: what it is of, and its rows, each written exactly once.

OUT/config.json       what the sweep is: another one into the same folder is refused
OUT/rows/KEY.parquet  a finished work item: one shard, put in place whole and synced to disk, or not there
OUT/results.parquet   all rows in order, once everything is done

What has no shard is not done; nothing else says what is.
"""

import difflib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stepsal.errors import FileError
from stepsal.files import atomic_path

OPTION_COLUMNS = ("tau_max", "alpha", "window", "scope", "control_seed")
"""The options of interventions that have a column of their own; all options are in the column `parts`."""


def schema() -> Any:
    """The columns of every shard and of the results.

    >>> schema().names[:3]
    ['unit', 'setting_id', 'setting']
    """
    import pyarrow as pa

    text, whole, real, yes = pa.string(), pa.int64(), pa.float64(), pa.bool_()
    columns = {"unit": text, "setting_id": text, "setting": text, "part": text}
    columns |= {"layers": pa.list_(whole), "heads": pa.list_(pa.list_(whole)), "tau_max": real, "alpha": real}
    columns |= {"window": whole, "scope": text, "control_seed": whole, "parts": text}
    columns |= {"problem": text, "length": whole, "sample": whole, "seed": whole}
    columns |= {"max_new_tokens": whole, "batch_size": whole, "temperature": real, "top_p": real, "samples": whole}
    columns |= {"correct": yes, "error": text, "answer": text, "expected": text, "tokens": whole, "truncated": yes}
    columns |= {"seconds": real, "prompt_tokens": whole, "trace": pa.list_(pa.int32()), "notes": text}
    columns |= {"model": text, "versions": text, "cpu_seconds": real}
    return pa.schema(list(columns.items()))


class SweepFolder:
    """Reads and writes the folder of one sweep."""

    def __init__(self, out: str | Path) -> None:
        self.path = Path(out)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second sweep out while this one is at work; the lock of a killed one is free."""
        try:
            import fcntl
        except ImportError:  # Windows: two at once would do the same work twice, and write the same rows
            yield
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / ".lock", "w")  # noqa: SIM115 - closed below
        except OSError as error:
            raise FileError(
                f"cannot write to {self.path}: {error.strerror}. Choose a folder you may write to."
            ) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FileError(
                    f"another sweep is at work in {self.path}: wait for it, or use another --out"
                ) from error
            except OSError as error:
                raise FileError(
                    f"cannot lock {self.path}: {error.strerror or error}. Choose a folder on a disk that has locks."
                ) from error
            mine = [(self.path, f".{name}.*.part") for name in ("config.json", "results.parquet")]
            for folder, pattern in [*mine, (self.path / "rows", ".*.part")]:  # of a killed sweep
                for left in folder.glob(pattern):
                    left.unlink(missing_ok=True)
            yield
        finally:
            file.close()

    def begin(self, record: Mapping[str, Any], resume: bool) -> None:
        """Write down what the sweep is, or compare it with what was begun here.

        Raises `FileError`: it is another one or of another version's format, or nothing says which, or there are rows and
        `resume` is False.
        """
        path = self.path / "config.json"
        text = json.dumps(record, indent=1, sort_keys=True) + "\n"
        begun = any(self.path.glob("rows/*.parquet"))
        if begun and not resume:
            raise FileError(
                f"{self.path} holds rows already, and resume is False: use another folder, or delete this one yourself"
            )
        if not begun:
            with atomic_path(path) as part:
                part.write_text(text, encoding="utf-8")
            return
        try:
            found = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(
                f"{self.path} holds rows, but nothing says of which sweep: cannot read {path} ({error}). Use another --out "
                "folder, or delete this one yourself"
            ) from error
        if (kind := _format(found)) is not None and kind != record.get("format"):
            raise FileError(
                f"{self.path} was begun by another version of stepsal, in the format {kind!r}; this one writes "
                f"{record.get('format')!r} and cannot go on there. Use another --out folder. (A finished one can be read: "
                "`stepsal figure` takes its results.parquet.)"
            )
        if found != text:
            lines = difflib.unified_diff(
                found.splitlines(), text.splitlines(), "begun here", "given now", n=1, lineterm=""
            )
            raise FileError(
                f"{self.path} was begun with another configuration. Use another --out folder, or go back to the first one:\n"
                + "\n".join(list(lines)[:60])
            )

    def shard(self, key: str) -> Path:
        return self.path / "rows" / f"{key}.parquet"

    def write(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put a finished item in place. Raises `FileError`; then there is nothing of it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), buffer, compression="zstd")
        try:
            with atomic_path(self.shard(key)) as part, open(part, "wb") as file:
                file.write(buffer.getvalue())
                file.flush()
                os.fsync(file.fileno())
        except FileError as error:
            raise self._kept(error) from error

    def read(self, key: str, columns: Sequence[str] | None = None) -> Any:
        """The rows of a finished item, as a table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.shard(key)
        try:
            return pq.read_table(path, columns=None if columns is None else list(columns), schema=schema())
        except (OSError, pa.ArrowException) as error:
            raise FileError(f"{path} is damaged ({error}): delete it, and the same command makes it again") from error

    def consolidate(self, groups: Sequence[Sequence[str]]) -> Path:
        """All rows in one file, in the order given, a row group for each group of items."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / "results.parquet"
        try:
            with atomic_path(path) as part, open(part, "wb") as file:
                with pq.ParquetWriter(file, schema(), compression="zstd") as writer:
                    for keys in groups:
                        writer.write_table(pa.concat_tables([self.read(key) for key in keys]))
                file.flush()
                os.fsync(file.fileno())
        except FileError as error:
            raise self._kept(error) from error
        return path

    def _kept(self, error: FileError) -> FileError:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno is None:  # such as of a damaged shard
            return error
        return FileError(
            f"cannot write to {self.path}: {cause.strerror or cause}. What is finished is kept: make room, and the same "
            "command goes on from there."
        )


def _format(text: str) -> Any:
    """What a config.json says of its format; None where it says nothing or is no JSON."""
    try:
        return json.loads(text).get("format")
    except (ValueError, AttributeError):
        return None
