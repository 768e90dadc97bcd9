"""The folder of a sweep: what it is of, and its rows, each written exactly once.

OUT/config.json       what the sweep is: another one into the same folder is refused
OUT/rows/KEY.parquet  a finished work item: one shard, put in place whole and synced to disk, or not there
OUT/results.parquet   all rows in order, once everything is done
OUT/results.parquet.sha256   its checksum, as `sha256sum --check` reads it

What has no shard is not done; nothing else says what is. A shard holds a checksum of its rows. Both checksums are compared when
rows are read.
"""

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from stepsal.errors import FileError
from stepsal.files import agree_on_settings, atomic_path, locked, sha256_of
from stepsal.sweeps.row import Row, schema


class SweepFolder:
    """Reads and writes the folder of one sweep."""

    def __init__(self, out: str | Path) -> None:
        self.path = Path(out)
        self._config = self.path / "config.json"

    def lock(self) -> AbstractContextManager[None]:
        """Keep a second sweep out while this one is at work; the lock of a killed one is free."""
        at_work = f"another sweep is at work in {self.path}: wait for it, or use another --out"
        return locked(self._config, at_work, also=["results.parquet*", "rows/*"])

    def begin(self, record: Mapping[str, Any], resume: bool, defaults: Mapping[str, Any] | None = None) -> None:
        """Write down what the sweep is, or compare it with what was begun here.

        `defaults`: values for keys, at any depth, that the record of an older sweep lacks.

        Raises `FileError`: it is another one or of another version's format, or nothing says which, or there are rows and
        `resume` is False.
        """
        begun = any(self.path.glob("rows/*.parquet"))
        if begun and not resume:
            raise FileError(
                f"{self.path} holds rows already, and resume is False: use another folder, or move this one away"
            )
        if begun and (begun_format := self._begun().get("format")) not in (None, record.get("format")):
            raise FileError(
                f"{self.path} was begun by another version of stepsal, in the format {begun_format!r}; this one writes "
                f"{record.get('format')!r} and cannot go on there. Use another --out folder. (A finished one can be read: "
                "`stepsal figure` takes its results.parquet.)"
            )
        agree_on_settings(
            self._config,
            self._as_begun(record) if begun else record,
            begun=begun,
            refusal=f"{self.path} was begun with another configuration",
            unknown=f"{self.path} holds rows, but nothing says of which sweep",
            fix="Use another --out folder, go back to the first configuration, or move the folder away.",
            defaults=defaults,
            sort_keys=True,
        )

    def _begun(self) -> dict[str, Any]:
        """What config.json says; nothing where it cannot be read, which is said when it is compared."""
        try:
            begun = json.loads(self._config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return begun if isinstance(begun, dict) else {}

    def _as_begun(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record; but with the fingerprint of stepsal 0.1, which was of the ends of files, where the folder has one."""
        begun, model = self._begun().get("model"), record.get("model")
        if not isinstance(begun, dict) or not isinstance(model, dict):
            return record
        before, now = begun.get("fingerprint"), model.get("fingerprint")
        if not re.fullmatch(r"[0-9a-f]{64}", str(before)) or not str(now).startswith("sha256:"):
            return record
        warnings.warn(
            f"{self.path} was begun by stepsal 0.1, whose fingerprint of a model was of the first and last MiB of its files: "
            "whether the weights are those of now cannot be checked. It is gone on with as it is.",
            stacklevel=4,
        )
        return dict(record) | {"model": model | {"fingerprint": before}}

    def shard(self, key: str) -> Path:
        return self.path / "rows" / f"{key}.parquet"

    def write(self, key: str, rows: Sequence[Row]) -> None:
        """Put a finished item in place. Raises `FileError`; then there is nothing of it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        table = pa.Table.from_pylist([vars(row) for row in rows], schema=schema())
        pq.write_table(table.replace_schema_metadata({"sha256": _checksum(table)}), buffer, compression="zstd")
        with self._synced(self.shard(key)) as file:
            file.write(buffer.getvalue())

    def read(self, key: str, columns: Sequence[str] | None = None) -> Any:
        """The rows of a finished item, as a table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.shard(key)
        try:
            there, columns_of_rows = pq.read_schema(path), schema()
            as_written = pa.schema([field for field in columns_of_rows if field.name in there.names])
            table, written = pq.read_table(path, schema=as_written), (there.metadata or {}).get(b"sha256")
            if written is not None and written.decode() != _checksum(table):
                raise pa.ArrowException("its checksum differs")
            # an older version's rows lack columns
            table = pa.concat_tables([columns_of_rows.empty_table(), table], promote_options="default")
            return table if columns is None else table.select(list(columns))
        except PermissionError as error:
            raise FileError(f"cannot read {path}: {error.strerror or error}") from error
        except (OSError, ValueError, pa.ArrowException) as error:
            raise FileError(
                f"{path} is damaged ({error}): move it away, and the same command makes it again"
            ) from error

    def consolidate(self, groups: Sequence[Sequence[str]]) -> Path:
        """All rows in one file, in the order given, a row group for each group of items."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / "results.parquet"
        checksum = _checksum_path(path)
        with (
            self._synced(path) as file,
            pq.ParquetWriter(file, schema(), compression="zstd", write_page_checksum=True) as writer,
        ):
            checksum.unlink(missing_ok=True)  # a checksum beside other rows than its own would be worse than none
            for keys in groups:
                writer.write_table(pa.concat_tables([self.read(key) for key in keys]))
        with self._synced(checksum) as file:
            file.write(f"{_sha256_of_file(path)}  {path.name}\n".encode())
        return path

    @contextmanager
    def _synced(self, path: Path) -> Iterator[IO[bytes]]:
        """A file to write, put in place whole once it is on the disk. `FileError` says that what is finished is kept."""
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except FileError as error:
            cause = error.__cause__
            if (
                not isinstance(cause, OSError) or cause.errno is None
            ):  # the file was not the trouble, but a damaged shard
                raise
            raise FileError(
                f"cannot write to {self.path}: {cause.strerror or cause}. What is finished is kept: make room, and the same "
                "command goes on from there."
            ) from error


def check_results(path: Path) -> None:
    """Raise `FileError` where results.parquet is not what was written, by the checksum beside it, if there is one."""
    beside = _checksum_path(path)
    try:
        if beside.exists() and beside.read_text(encoding="utf-8", errors="replace").split()[:1] != [
            _sha256_of_file(path)
        ]:
            raise FileError(
                f"{path} is damaged: it is not what `stepsal sweep` wrote, by the checksum in {beside.name}. Run the same "
                f"sweep again, which makes both anew; or, where the rows were changed on purpose, remove {beside.name}."
            )
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot read {error.filename or path}: {error.strerror or error}") from error


def _checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(table: Any) -> str:
    return sha256_of(json.dumps(table.to_pylist(), sort_keys=True))
