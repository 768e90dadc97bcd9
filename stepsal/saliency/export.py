"""A folder of step maps as one long table, for tools that read Parquet: pandas, polars, duckdb, Spark, R.

In: the folder. Out: a Parquet file with a row for each trace, layer, head and pair of steps `key_step <= query_step`. It is
written map by map, in groups of about a million rows of which a reader can skip those that it does not need.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stepsal.checks import checked
from stepsal.checks import path as a_path
from stepsal.errors import FileError
from stepsal.files import exclusive_path
from stepsal.saliency.folder import open_step_maps
from stepsal.saliency.mapfile import triangle
from stepsal.saliency.stepmapfile import StepMapFile, dtype_of
from stepsal.saliency.tensorfile import SEGMENTS

if TYPE_CHECKING:
    from pyarrow import Schema, Table
else:  # imported where used: it takes a while
    Schema = Table = Any

_ROWS = 2**20
"""How many rows a group has at least, but for the last one."""


@checked(folder=a_path, path=a_path)
def export_step_maps(folder: str | Path, path: str | Path, *, progress: bool = True) -> Path:
    """Write all step maps of a folder into one Parquet file, and return its path.

    The columns are `trace` (the id), `correct`, `layer`, `head`, `query_step`, `key_step`, `query_segment`, `key_segment`,
    `mass` and `pairs`, as in `StepMap.to_dataframe`; the density is `mass / pairs`. Numbers are those of the maps to the bit.
    Rows are in the order of traces, layers, heads, query steps, key steps. The file is whole or not there; one map is in memory
    at a time.

    Args:
        folder: what `save_step_maps` or `stepsal saliency` wrote.
        path: the file to write. It takes about a quarter more room than the maps do.
        progress: whether to show a bar.

    Raises:
        FileError: a folder without maps, two maps of one trace, a damaged map, or a file that cannot be written.

    >>> import tempfile
    >>> import pandas as pd
    >>> from stepsal import Trace, export_step_maps, load_model, save_step_maps
    >>> model, out = load_model(), tempfile.mkdtemp()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> _ = save_step_maps(model, [trace], out, progress=False)
    >>> len(pd.read_parquet(export_step_maps(out, out + "/maps.parquet", progress=False)))  # 8 layers, 4 heads, 6 pairs
    192
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter
    from tqdm import tqdm

    files = open_step_maps(folder, progress=progress)
    ids = _ids(files)
    schema = _schema(files)
    indices = [name for name in schema.names if name != "mass"]  # few values, often repeated
    options = {"compression": "zstd", "use_dictionary": indices}
    with exclusive_path(path) as temporary, ParquetWriter(temporary, schema, **options) as writer:
        waiting: list[Table] = []
        for number, file in enumerate(tqdm(files, desc="exporting", unit="map", disable=not progress)):
            for table in _tables(file, number, ids, schema):
                waiting.append(table)
                if sum(map(len, waiting)) >= _ROWS:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=2**40)
                    waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting), row_group_size=2**40)
    return Path(path)


def _ids(files: Sequence[StepMapFile]) -> list[str]:
    """The id of each map's trace; the file's name where a map does not say it. Raises `FileError` where two are the same."""
    first: dict[str, Path] = {}
    for file in files:
        name = str(file.meta.get("trace") or file.path.stem)
        if name in first:
            raise FileError(
                f"{first[name]} and {file.path} are both maps of trace {name!r}: keep one of them in the folder, so that a row "
                "says which map it is of"
            )
        first[name] = file.path
    return list(first)


def _schema(files: Sequence[StepMapFile]) -> Schema:
    import pyarrow as pa

    wide = any(dtype_of(file) == torch.float64 for file in files)
    segment = pa.dictionary(pa.int8(), pa.string())
    return pa.schema(
        {
            "trace": pa.dictionary(pa.int32(), pa.string()),
            "correct": pa.bool_(),
            **dict.fromkeys(("layer", "head", "query_step", "key_step"), pa.int32()),
            **dict.fromkeys(("query_segment", "key_segment"), segment),
            "mass": pa.float64() if wide else pa.float32(),
            "pairs": pa.int64(),
        }
    )


def _tables(file: StepMapFile, number: int, ids: Sequence[str], schema: Schema) -> Iterator[Table]:
    """The rows of one map, layer by layer; `number` is that of its trace among the ids."""
    import pyarrow as pa

    stepmap = file.load()
    n, heads = len(stepmap.steps), stepmap.mass.shape[1]
    query, key = (each.numpy().astype(np.int32) for each in torch.tril_indices(n, n))
    segment = np.array([SEGMENTS.index(step.segment) for step in stepmap.steps], np.int8)
    rows = heads * len(query)
    of_every_layer = {
        "trace": pa.DictionaryArray.from_arrays(np.full(rows, number, np.int32), pa.array(ids)),
        "correct": pa.repeat(pa.scalar(stepmap.meta.get("correct"), pa.bool_()), rows),
        "head": np.repeat(np.arange(heads, dtype=np.int32), len(query)),
        "query_step": np.tile(query, heads),
        "key_step": np.tile(key, heads),
        "query_segment": pa.DictionaryArray.from_arrays(np.tile(segment[query], heads), pa.array(SEGMENTS)),
        "key_segment": pa.DictionaryArray.from_arrays(np.tile(segment[key], heads), pa.array(SEGMENTS)),
        "pairs": np.tile(triangle(stepmap.pairs).numpy().astype(np.int64), heads),
    }
    for layer, mass in zip(stepmap.layers, stepmap.mass, strict=True):
        columns = of_every_layer | {
            "layer": np.full(rows, layer, np.int32),
            "mass": triangle(mass).flatten().numpy().astype(schema.field("mass").type.to_pandas_dtype()),
        }
        yield pa.table([columns[name] for name in schema.names], schema=schema)
