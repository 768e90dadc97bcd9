"""A folder of maps as one Parquet table: every number of every map in its place, and in groups that a reader can skip."""

import os

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import random_map

import stepsal.saliency.export
from stepsal import FileError, export_step_maps
from stepsal.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*no saliency.json")
COLUMNS = ["layer", "head", "query_step", "key_step", "query_segment", "key_segment", "mass", "pairs"]


def save(folder, maps):
    for index, stepmap in enumerate(maps):
        stepmap.save(folder / "maps" / f"m{index}.safetensors")


def some_maps():
    return [
        random_map("qtts", [2, 3, 1, 5], layers=3, heads=2, trace="é/1", correct=True),
        random_map("qttss", [2, 3, 1, 5, 1], layers=3, heads=2, seed=1, trace="b", correct=False),
        random_map("qt", [4, 3], layers=1, heads=4, seed=2, trace="c"),
    ]


def test_the_table_holds_every_map_bit_for_bit(tmp_path):
    maps = some_maps()
    maps[0].mass[1, 0, 2, 1] = torch.nan
    maps[0].mass[0, 1, 1, 0] = 1e-45
    save(tmp_path, maps)
    found = pd.read_parquet(export_step_maps(tmp_path, tmp_path / "maps.parquet", progress=False))
    assert found["trace"].unique().tolist() == ["é/1", "b", "c"]
    for stepmap in maps:
        rows = found[found["trace"] == stepmap.meta["trace"]].reset_index(drop=True)
        expected = stepmap.to_dataframe()[COLUMNS]
        pd.testing.assert_frame_equal(
            rows[COLUMNS], expected, check_dtype=False, check_categorical=False, check_exact=True
        )
        assert rows["mass"].dtype == "float32"
        grade = stepmap.meta.get("correct")
        assert rows["correct"].isna().all() if grade is None else (rows["correct"] == grade).all()


def test_maps_in_double_precision_keep_it(tmp_path):
    maps = some_maps()
    wide = maps[1].mass.double() / 3
    save(tmp_path, [maps[0], type(maps[1])(wide, maps[1].pairs, maps[1].steps, maps[1].layers, maps[1].meta)])
    found = pd.read_parquet(export_step_maps(tmp_path, tmp_path / "maps.parquet", progress=False))
    row, column = torch.tril_indices(5, 5)
    assert found.loc[found["trace"] == "b", "mass"].tolist() == wide[:, :, row, column].flatten().tolist()


def test_rows_are_in_groups_of_whole_layers_that_say_what_they_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(stepsal.saliency.export, "_ROWS", 40)
    save(tmp_path, some_maps())
    file = pq.ParquetFile(export_step_maps(tmp_path, tmp_path / "maps.parquet", progress=False))
    groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
    # 3 layers of 2 heads and 10 pairs, 3 of 2 heads and 15 pairs, 1 of 4 heads and 3 pairs
    assert [group.num_rows for group in groups] == [40, 20 + 30, 60, 12]
    layer = [group.column(file.schema_arrow.names.index("layer")).statistics for group in groups]
    assert [(each.min, each.max) for each in layer] == [(0, 1), (0, 2), (1, 2), (0, 0)]


def test_two_maps_of_one_trace_are_refused(tmp_path):
    first, second, _ = some_maps()
    second.meta["trace"] = first.meta["trace"]
    save(tmp_path, [first, second])
    with pytest.raises(FileError, match="m0.safetensors and .*m1.safetensors are both maps of trace 'é/1'"):
        export_step_maps(tmp_path, tmp_path / "maps.parquet", progress=False)


def test_a_table_that_cannot_be_finished_is_not_there(tmp_path):
    save(tmp_path, some_maps())
    path = tmp_path / "maps" / "m2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileError, match="checksum differs"):
        export_step_maps(tmp_path, tmp_path / "maps.parquet", progress=False)
    assert os.listdir(tmp_path) == ["maps"]


def test_the_command_writes_the_table(tmp_path, capsys):
    save(tmp_path, some_maps())
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "maps.parquet")]) == 0
    kilobytes = (tmp_path / "maps.parquet").stat().st_size / 1e3
    assert capsys.readouterr().out.startswith(f"{tmp_path}/maps.parquet   {kilobytes:.1f} kB; pandas.read_parquet")
    assert len(pd.read_parquet(tmp_path / "maps.parquet")) == 60 + 90 + 12
    assert main(["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "b.parquet")]) == 2
