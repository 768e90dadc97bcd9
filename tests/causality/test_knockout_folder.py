"""Folders of knockouts: resumed, checked, beside maps; and the commands that write and read them."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import random_trace, unchecked

import stepsal.causality.folder
from stepsal import (
    FileError,
    InputError,
    Knockout,
    read_traces,
    save_knockouts,
    save_step_maps,
    step_knockout,
    write_traces,
)
from stepsal.causality import measure_orders
from stepsal.causality.folder import load_knockouts
from stepsal.cli import main
from stepsal.saliency.folder import load_step_maps


def some_traces(count=3):
    return [replace(random_trace(20 + i, [4, 9, 13]), id=f"t{i}") for i in range(count)]


@pytest.fixture
def computed(monkeypatch):
    """The ids of the traces whose knockout was computed, as it happens."""
    ids, compute = [], stepsal.causality.folder.step_knockout

    def counted(model, trace, **options):
        ids.append(trace.id)
        return compute(model, trace, **options)

    monkeypatch.setattr(stepsal.causality.folder, "step_knockout", counted)
    return ids


def test_every_trace_gets_its_knockout_once_and_an_interrupted_run_goes_on(qwen2, tmp_path, computed, monkeypatch):
    traces, counted = some_traces(), stepsal.causality.folder.step_knockout

    def interrupted(model, trace, **options):
        if trace.id == "t1":
            raise KeyboardInterrupt
        return counted(model, trace, **options)

    monkeypatch.setattr(stepsal.causality.folder, "step_knockout", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_knockouts(qwen2, traces, tmp_path, mode="direct", progress=False)
    monkeypatch.setattr(stepsal.causality.folder, "step_knockout", counted)
    paths = save_knockouts(qwen2, traces, tmp_path, mode="direct", progress=False)
    assert computed == ["t2", "t1", "t0"]  # the longest first; none twice
    assert save_knockouts(qwen2, traces, tmp_path, mode="direct", progress=False) == paths
    assert computed == ["t2", "t1", "t0"]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"knockouts/t{i}.safetensors" for i in range(3)
    ]
    for trace, path, read in zip(traces, paths, load_knockouts(tmp_path), strict=True):
        expected = step_knockout(qwen2, trace, mode="direct")
        torch.testing.assert_close(read.kl, expected.kl, equal_nan=True)
        assert (read.steps, read.meta["trace"], read.meta["mode"]) == (trace.steps, trace.id, "direct")
        assert Knockout.load(path).meta["made_of"]["mode"] == "direct"


def test_knockouts_and_maps_share_a_folder(qwen2, tmp_path):
    save_step_maps(qwen2, some_traces(), tmp_path, progress=False)
    save_knockouts(qwen2, some_traces(), tmp_path, progress=False)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["knockout.json", "knockouts", "maps", "saliency.json"]
    assert len(stepsal.saliency.folder.load_step_maps(tmp_path)) == len(load_knockouts(tmp_path)) == 3


def test_what_was_made_otherwise_is_refused_by_name(qwen2, tmp_path, computed):
    traces = some_traces()
    save_knockouts(qwen2, traces[:1], tmp_path, progress=False)
    with pytest.raises(FileError, match=r"holds knockouts made with other settings \(mode 'total' -> 'direct'\)"):
        save_knockouts(qwen2, traces, tmp_path, mode="direct", progress=False)
    other = replace(traces[0], tokens=traces[0].tokens.flip(0))
    with pytest.raises(FileError, match="from another trace with the id 't0': its tokens differ"):
        save_knockouts(qwen2, [other], tmp_path, progress=False)
    with pytest.raises(FileError, match="had correct=None when .* was made. Use another --out folder"):
        save_knockouts(qwen2, [replace(traces[0], correct=True)], tmp_path, progress=False)
    assert computed == ["t0"]
    with pytest.raises(InputError, match="unknown mode 'both'"):
        unchecked(save_knockouts)(qwen2, traces, tmp_path / "new", mode="both", progress=False)
    with pytest.raises(InputError, match="two traces have the id 't0'"):
        save_knockouts(qwen2, [traces[0], traces[0]], tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_a_folder_says_what_it_lacks_and_what_is_not_its_own(qwen2, tmp_path):
    with pytest.raises(FileError, match="there are no knockouts in .*: make them with `stepsal knockout`"):
        load_knockouts(tmp_path)
    first, second, third = save_knockouts(qwen2, some_traces(), tmp_path, progress=False)
    third.rename(tmp_path / "moved")
    with pytest.warns(
        UserWarning, match=r"lacks the knockouts of 1 of its 3 traces \('t2', ...\): run `stepsal knockout`"
    ):
        assert len(load_knockouts(tmp_path)) == 2
    (tmp_path / "moved").rename(third)
    second.write_bytes(first.read_bytes())
    with pytest.raises(FileError, match="no knockout of this folder: .*it is the knockout of trace 't0'"):
        load_knockouts(tmp_path)


# --- the commands -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory, reasoner):
    """A file of traces of the bundled model, with maps by two rules."""
    from stepsal import Trace
    from stepsal.reasoner import make_problem

    folder = tmp_path_factory.mktemp("faithfulness")
    problems = [make_problem("test", i) for i in range(2)]
    traces = [
        Trace.from_text(reasoner.tokenizer, problem.messages, problem.response, id=f"p{i}")
        for i, problem in enumerate(problems)
    ]
    write_traces(folder / "traces.jsonl", traces)
    save_step_maps(reasoner, traces, folder / "out", progress=False)
    save_step_maps(reasoner, traces, folder / "attention", rule="attention", progress=False)
    return folder


def test_the_commands_knock_out_and_score(folder, capsys):
    command = ["knockout", str(folder / "traces.jsonl"), "--model", "bundled", "--out", str(folder / "out")]
    command += ["--subsets", "5"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"2 knockouts in {folder}/out/knockouts (stepsal.Knockout.load)\n"
    assert json.loads((folder / "out" / "knockout.json").read_text())["mode"] == "total"
    assert all(knockout.meta["subsets"] in (0, 5) for knockout in load_knockouts(folder / "out"))
    assert main(["faithfulness", str(folder / "out"), str(folder / "attention"), "--resamples", "99"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 traces; rank correlation with step knockout (total)")
    table = pd.read_csv(folder / "out" / "faithfulness.csv")
    assert {"abs", "attention", "recency"} <= set(table["map"])
    assert set(pd.read_csv(folder / "out" / "faithfulness_traces.csv")["trace"]) == {"p0", "p1"}
    assert main([*command, "--mode", "direct"]) == 2
    assert "made with other settings (mode 'total' -> 'direct')" in capsys.readouterr().err
    assert main(["faithfulness", str(folder / "attention")]) == 2
    assert "there are no knockouts in" in capsys.readouterr().err
    assert main([*command[:-3], str(folder / "direct"), "--mode", "direct"]) == 0
    given = ["faithfulness", str(folder / "attention"), "--knockouts", str(folder / "out"), "--resamples", "99"]
    assert main([*given, "--reference", str(folder / "direct"), "--markdown"]) == 0
    assert "| knockout direct |" in capsys.readouterr().out


def test_a_folder_whose_knockouts_have_measured_orders_shows_deletion_and_insertion(folder, reasoner, tmp_path, capsys):
    stepmaps, traces = load_step_maps(folder / "out"), read_traces(folder / "traces.jsonl", reasoner.tokenizer)
    save_knockouts(reasoner, traces, tmp_path, subsets=5, progress=False)
    for trace, knockout, stepmap in zip(traces, load_knockouts(tmp_path), stepmaps, strict=True):
        measure_orders(reasoner, trace, knockout, [stepmap]).save(tmp_path / "knockouts" / f"{trace.id}.safetensors")
    assert main(["faithfulness", str(folder / "out"), "--knockouts", str(tmp_path), "--resamples", "99"]) == 0
    table = pd.read_csv(tmp_path / "faithfulness.csv").query("pairs == 'answer' and map == 'abs'").set_index("score")
    assert table.loc[["LDS", "deletion", "insertion"], "mean"].notna().all()
    assert main(["figure", "faithfulness", str(tmp_path), "--out", str(tmp_path / "fig.png")]) == 0
    assert "with 95 % bootstrap intervals" in (tmp_path / "fig.md").read_text()
    (tmp_path / "faithfulness.csv").write_text("score,pairs\n")
    assert main(["figure", "faithfulness", str(tmp_path), "--out", str(tmp_path / "fig.png")]) == 2
    assert "faithfulness.csv is damaged" in capsys.readouterr().err
