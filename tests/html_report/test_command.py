"""`stepsal report`: several folders, knockouts, and what it prints."""

import pytest
from helpers import random_map
from test_beside import knocked_out
from test_report import embedded

from stepsal.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:.*no (saliency|knockout).json says:UserWarning")


def folder_of_maps(path, *maps, knockouts=()):
    for kind, results in (("maps", maps), ("knockouts", knockouts)):
        (path / kind).mkdir(parents=True, exist_ok=True)
        for each in results:
            each.save(path / kind / f"{each.meta['trace']}.safetensors")
    return path


def maps_of(seed: int):
    about = {"model": "org/tiny-7B", "rule": "abs"}
    return [random_map("qtttts", [5, 3, 2, 4, 3, 6], seed=seed + i, trace=f"t{i}", **about) for i in range(3)]


def test_the_title_names_model_and_folder_and_traces_of_several_folders_are_told_apart(tmp_path, capsys):
    before, after = (folder_of_maps(tmp_path / name, *maps_of(seed)) for name, seed in (("before", 0), ("after", 9)))
    assert main(["report", str(before), str(after), "--quiet"]) == 0
    assert capsys.readouterr().out.startswith(f"{before}/report.html   6 traces, ")
    index = embedded(before / "report.html")
    assert index["title"] == "tiny-7B · before · after"
    assert [trace["name"] for trace in index["traces"]] == [
        f"{folder}/t{i}" for folder in ("before", "after") for i in range(3)
    ]
    assert main(["report", str(after), "--quiet"]) == 0
    index = embedded(after / "report.html")
    assert (index["title"], [trace["name"] for trace in index["traces"]]) == ("tiny-7B · after", ["t0", "t1", "t2"])


def test_knockouts_go_with_the_traces_that_are_shown(tmp_path):
    maps = maps_of(0)
    folder = folder_of_maps(tmp_path / "run", *maps, knockouts=[knocked_out(maps[0]), knocked_out(maps[2])])
    assert main(["report", str(folder), "--knockouts", str(folder), "--quiet"]) == 0
    assert [trace["knockout"] for trace in embedded(folder / "report.html")["traces"]] == [True, False, True]
    assert main(["report", str(folder), "--knockouts", str(folder), "--traces", "t1", "t2", "--quiet"]) == 0
    assert [trace["knockout"] for trace in embedded(folder / "report.html")["traces"]] == [False, True]


def test_files_beside_the_page_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("stepsal.html_report.report.PAGE_LIMIT", 100)
    folder = folder_of_maps(tmp_path / "run", *maps_of(0))
    assert main(["report", str(folder), "--quiet"]) == 0
    assert f"\n{folder}/report_files   the traces" in capsys.readouterr().out


def test_a_trace_that_is_not_there_is_named(tmp_path, capsys):
    folder = folder_of_maps(tmp_path / "run", *maps_of(0))
    assert main(["report", str(folder), "--traces", "gone", "--quiet"]) == 2
    assert "there is no trace 'gone' in" in capsys.readouterr().err
