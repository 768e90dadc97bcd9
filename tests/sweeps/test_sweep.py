"""Sweeps: settings, rows that survive anything, engines that agree."""

import hashlib
import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import save_tiny
from helpers import random_map

import stepsal
from stepsal import Comparison, choose_layers, compare, diagnose, load_model
from stepsal.ablation.results import Results
from stepsal.cli import main
from stepsal.engines import local
from stepsal.engines.local import Resources
from stepsal.engines.messages import Reply
from stepsal.engines.ray import DEATHS, RayCluster, RayWorkers
from stepsal.errors import FileError, InputError, StepsalError
from stepsal.files import write_settings
from stepsal.generation.grading import final_answer
from stepsal.interventions.base import from_record
from stepsal.models import host_of
from stepsal.models.lookup import ModelFacts
from stepsal.reasoner.problems import make_problem
from stepsal.saliency.folder import group_maps, load_step_maps, map_path
from stepsal.statistics.paired import paired
from stepsal.sweeps import plan, store
from stepsal.sweeps.config import read_config
from stepsal.sweeps.grid import next_round
from stepsal.sweeps.layers_and_heads import Size
from stepsal.sweeps.messages import Job, WorkItem
from stepsal.sweeps.plan import load_questions, make_plan
from stepsal.sweeps.row import schema
from stepsal.sweeps.run import estimate, run_sweep, sweep
from stepsal.sweeps.settings import Setting
from stepsal.sweeps.store import SweepFolder
from stepsal.sweeps.workforce import Workforce, default_workers

COUNT = 4
SMALL = {
    "problems": {"length": 2, "count": COUNT},
    "decoding": {"max_new_tokens": 5, "batch_size": 1},
    "grid": {"parts": ["oeb", "smi", "both", "random-bridge"], "tau_max": [0.15, 0.6]},
}
TOML = f"""
[problems]
length = 2
count = {COUNT}
[decoding]
max_new_tokens = 5
batch_size = 1
[grid]
parts = ["oeb", "smi", "both", "random-bridge"]
tau_max = [0.15, 0.6]
"""
SETTINGS = 1 + 2 + 1 + 2 + 2


def settings(**grid):
    """The first round of a grid on a model of 8 layers of 4 heads."""
    config = read_config({"grid": grid})
    return next_round(config.grid, Size(8, 4), Path(), lambda setting: 0, [])


def names(**grid):
    return [setting.name for setting in settings(**grid)]


def assert_same_rows(found, expected):
    """All but what was measured, in order."""
    measured = ["seconds", "cpu_seconds"]
    pd.testing.assert_frame_equal(found.drop(columns=measured), expected.drop(columns=measured))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The rows of `SMALL`, by one worker in this process."""
    return sweep(SMALL, out=tmp_path_factory.mktemp("undisturbed"), workers=1, progress=False)


# --- settings --------------------------------------------------------------------------------------------------------
def test_the_baseline_is_included_exactly_once():
    assert names(parts=["none", "oeb", "none"]) == ["baseline", "oeb layers 0-1, tau_max 0.15"]
    assert names(parts="smi", layers="each")[0] == "baseline"


def test_options_that_do_not_concern_a_part_do_not_multiply_it():
    assert len(settings(parts="oeb", alpha=[0.1, 0.2, 0.3], window=["step", 4], control_seed=[0, 1])) == 1 + 1
    assert len(settings(parts="smi", tau_max=[0.1, 0.2], scope=["segment", "step"], window=["step", 4])) == 1 + 2
    assert len(settings(parts="both", tau_max=[0.1, 0.2], alpha=[0.1, 0.2, 0.3])) == 1 + 6


def test_choices_that_come_to_the_same_are_one_setting():
    assert (
        len(settings(parts="oeb", layers=["shallow", "default", [1, 0], [-8, 1]], heads=["all", [0, 1, 2, 3]])) == 1 + 1
    )


def test_names_and_ids_are_unique_and_stable():
    found = settings(
        parts=["oeb", "smi", "both", "random-bridge", "random-momentum", "noise-momentum", "both-controls"],
        layers=["default", "windows:7", [0, 2, 5]],
        heads=["all", [1, 3]],
        tau_max=[0.1, 0.15],
        window=["step", 4],
        scope=["segment", "step"],
        control_seed=[0, 1],
    )
    assert len({each.name for each in found}) == len({each.id for each in found}) == len(found)
    ids = {each.name: each.id for each in settings(parts=["smi", "oeb"])}
    assert ids == {each.name: each.id for each in settings(parts=["oeb", "smi"])}
    assert ids["oeb layers 0-1, tau_max 0.15"] == "a3893a059a33"  # in every process, and from version to version


def test_records_give_the_parts_back():
    for setting in settings(parts=["both", "both-controls"], layers=[[1, 4]], heads=["all", "each", [0, 2]]):
        assert tuple(map(from_record, json.loads(json.dumps(setting.records)))) == setting.interventions


def test_each_head_alone_is_each_layer_and_head_once():
    pairs = [each.columns["heads"] for each in settings(parts="smi", layers=["each", "deep"], heads="each")[1:]]
    assert sorted(pairs) == [[[layer, head]] for layer in range(8) for head in range(4)]


def test_windows_slide_over_all_layers():
    layers = [each.columns["layers"] for each in settings(parts="oeb", layers="windows:3")[1:]]
    assert layers == [[start, start + 1, start + 2] for start in range(6)]


def test_one_at_a_time_changes_one_key_of_the_centre():
    found = names(
        shape="one-at-a-time", parts=["oeb", "both"], alpha=[0.03, 0.06], centre={"parts": "both", "tau_max": 0.3}
    )
    smi = "layers 6-7, alpha"
    assert found == [
        "baseline",
        f"both layers 0-1, tau_max 0.3 + {smi} 0.03",
        "oeb layers 0-1, tau_max 0.3",
        f"both layers 0-1, tau_max 0.3 + {smi} 0.06",
    ]


def test_the_centre_of_several_parts_is_both_and_of_one_that_part():
    alone = "oeb layers 0-1, tau_max 0.1"
    assert names(shape="one-at-a-time", parts="oeb", tau_max=[0.1, 0.2]) == [
        "baseline",
        alone,
        "oeb layers 0-1, tau_max 0.2",
    ]
    assert names(shape="one-at-a-time", parts=["oeb", "smi"], tau_max=0.1) == [
        "baseline",
        "both layers 0-1, tau_max 0.1 + layers 6-7, alpha 0.06",
        alone,
        "smi layers 6-7, alpha 0.06",
    ]


def test_top_heads_are_those_with_the_highest_metric(tmp_path):
    import torch

    from stepsal.diagnosis.metrics import METRICS

    maps = [random_map("qttts", [3, 4, 5, 4, 3], layers=8, heads=4, seed=seed, trace=f"t{seed}") for seed in range(3)]
    for each in maps:
        each.save(tmp_path / "maps" / f"{each.meta['trace']}.safetensors")
    write_settings(tmp_path / "saliency.json", {"objective": "token"})
    found = settings(parts="oeb", layers="all", heads="top-3:lock_in", maps=str(tmp_path))[1].columns["heads"]
    means = torch.stack([METRICS["lock_in"](each) for each in maps]).nanmean(0)
    best = sorted(divmod(index, 4) for index in means.flatten().topk(3).indices.tolist())
    assert found == [list(pair) for pair in best]


def save_maps(folder, locked=(), decayed=()):
    """Maps of 24 right and 24 wrong traces; wrong ones lock in, and their summaries forget, in the given layers."""
    sizes = [5, 8, 3, 4, 3, 2, 7, 3, 2]
    for seed in range(48):
        correct = seed < 24
        each = random_map("qttttttss", sizes, layers=8, heads=4, seed=seed, trace=f"t{seed}", correct=correct)
        for step in range(1, 7):
            each.mass[list(locked if not correct else ()), :, step, step] *= 4
        each.mass[list(decayed if not correct else ()), :, 7:, 1:7] *= 0.4
        each.save(map_path(folder, each.meta["trace"]))
    write_settings(folder / "saliency.json", {"objective": "token"})
    return folder


CHOSEN = """
[problems]
count = 2
[decoding]
max_new_tokens = 2
[grid]
parts = "both"
layers = ["chosen", "default"]
comparison = "maps/comparison.json"
"""


def test_chosen_layers_are_those_of_choose_layers_on_what_compare_wrote_and_the_evidence_is_kept(tmp_path, capsys):
    save_maps(tmp_path / "maps", locked=[1], decayed=[5, 7])
    assert main(["compare", str(tmp_path / "maps"), "--resamples", "99"]) == 0
    bands = choose_layers(Comparison.load(tmp_path / "maps" / "comparison.json"))
    assert (bands.shallow, bands.deep, bands.fell_back) == ((1,), (5, 7), ())
    (tmp_path / "c.toml").write_text(CHOSEN)
    chosen = "both layer 1, tau_max 0.15 + layers 5,7, alpha 0.06"
    capsys.readouterr()
    assert main(["sweep", str(tmp_path / "c.toml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert chosen in said
    assert bands.summary() in said
    assert main(["sweep", str(tmp_path / "c.toml"), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    rows = pd.read_parquet(tmp_path / "out" / "results.parquet")
    parts = json.loads(rows[rows["setting"] == chosen]["parts"].iloc[0])
    assert [tuple(each["layers"]) for each in parts] == [bands.shallow, bands.deep]
    assert set(rows["setting"]) == {"baseline", chosen, "both layers 0-1, tau_max 0.15 + layers 6-7, alpha 0.06"}
    kept = json.loads((tmp_path / "out" / "config.json").read_text())["chosen"]
    assert (kept["fell_back"], kept["reasons"]) == ([], bands.reasons)
    assert [(each["part"], each["layer"]) for each in kept["evidence"] if each["chosen"]] == [
        ("shallow", 1),
        ("deep", 5),
        ("deep", 7),
    ]


def test_a_comparison_is_read_again_when_it_changed_and_where_nothing_differs_the_fallback_is_kept(
    tmp_path, monkeypatch
):
    plant(monkeypatch, lambda setting, problem: True)
    path = tmp_path / "c.json"
    config = {"problems": {"count": 2}, "grid": {"parts": "oeb", "layers": "chosen", "comparison": str(path)}}
    maps = group_maps(load_step_maps(save_maps(tmp_path / "locked", locked=[3])))
    groups = {name: [diagnose(each) for each in group] for name, group in maps.items()}
    compare(groups["correct"], groups["wrong"], resamples=99).save(path)
    with pytest.warns(UserWarning, match="falls back to the paper's quarter of the layers. deep"):
        assert sweep(config, out=tmp_path / "a", progress=False)["layers"].iloc[-1].tolist() == [3]
    assert json.loads((tmp_path / "a" / "config.json").read_text())["chosen"]["fell_back"] == ["deep"]
    compare(groups["correct"], groups["correct"], resamples=99).save(path)
    with (
        pytest.warns(UserWarning, match="falls back to the paper's quarter of the layers. shallow"),
        pytest.raises(FileError, match="another configuration"),
    ):
        sweep(config, out=tmp_path / "a", progress=False)
    assert sweep(config, out=tmp_path / "b", progress=False)["layers"].iloc[-1].tolist() == [0, 1]
    kept = json.loads((tmp_path / "b" / "config.json").read_text())["chosen"]
    assert kept["fell_back"] == ["shallow", "deep"]
    assert kept["reasons"]["shallow"].startswith("No layer of 0 to 3 qualifies by lock-in higher in wrong traces")
    with pytest.raises(InputError, match=r"c\.json is of a model of 8 layers, this one has 6"):
        next_round(read_config(config).grid, Size(6, 4), Path(), lambda setting: 0, [])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"grid": {"tau_mx": 0.1}}, "did you mean 'tau_max'"),
        ({"problem": {}}, "did you mean 'problems'"),
        ({"grid": {"centre": {"alfa": 1}, "shape": "one-at-a-time"}}, "did you mean 'alpha'"),
        ({"grid": {"parts": "obe"}}, "Did you mean 'oeb'"),
        ({"problems": {"count": "many"}}, "whole number"),
        ({"decoding": {"seeds": [0, 1]}}, "temperature"),
        ({"problems": {"file": "a.jsonl", "split": "test"}}, "drop one"),
        ({"problems": {"split": "test"}, "grid": {"shape": "forward-selection"}}, "validation"),
        ({"grid": {"shape": "forward-selection", "heads": "each"}}, "chooses among all heads"),
        ({"grid": {"k": 2}}, "k=2 does nothing"),
        ({"grid": {"maps": "m"}}, "maps='m' does nothing"),
        ({"grid": {"comparison": "c"}}, "comparison='c' does nothing"),
        ({"decoding": {"format": "thnk"}}, "Did you mean 'think'"),
    ],
)
def test_what_is_wrong_in_a_configuration_is_named_with_its_fix(config, says):
    with pytest.raises(InputError, match=says):
        read_config(config)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"layers": "shalow"}, "unknown layers 'shalow'"),
        ({"layers": 8}, "layer 8 does not exist"),
        ({"heads": "top-3:lock_in"}, r"needs \[grid\] maps"),
        ({"layers": "chosen"}, r"needs \[grid\] comparison"),
        ({"parts": "both", "heads": "each"}, "all pairs"),
        ({"tau_max": 1.5}, "tau_max"),
        ({"shape": "forward-selection"}, "forward selection takes one"),
        ({"shape": "one-at-a-time", "layers": "each"}, "must be one setting"),
        ({"shape": "one-at-a-time", "centre": {"layers": "windows:2"}, "tau_max": [0.1, 0.2]}, "must be one setting"),
        ({"shape": "one-at-a-time", "parts": "oeb", "alpha": [0.1, 0.2]}, "alpha=.* changes nothing about the centre"),
    ],
)
def test_a_grid_that_cannot_be_says_why(grid, says):
    with pytest.raises(InputError, match=says):
        settings(**grid)


# --- problems --------------------------------------------------------------------------------------------------------
def test_problems_of_a_file_are_found_beside_the_configuration_and_graded_by_their_box(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "2+2?", "answer": 4}\n\n{"prompt": "1+1?", "answer": "2", "id": "b"}\n'
    )
    (tmp_path / "c.toml").write_text('[problems]\nfile = "p.jsonl"\n')
    found = load_questions(read_config(tmp_path / "c.toml"))
    assert [(each.id, each.answer) for each in found] == [("problem-1", "4"), ("b", "2")]
    assert final_answer(r"\boxed{3} then \boxed{ a{b}c } end") == "a{b}c"


# --- rows ------------------------------------------------------------------------------------------------------------
def test_every_answer_is_there_once_and_says_all_of_its_setting(undisturbed, reasoner):
    assert len(undisturbed) == SETTINGS * COUNT
    assert undisturbed["unit"].is_unique
    assert (undisturbed.groupby("setting_id")["problem"].nunique() == COUNT).all()
    row = undisturbed[undisturbed["part"] == "both"].iloc[0]
    assert json.loads(row["parts"])[0]["tau_max"] == row["tau_max"] == 0.15
    assert row["layers"].tolist() == [0, 1, 6, 7]
    assert json.loads(row["versions"])["stepsal"] == stepsal.__version__
    trace = stepsal.Trace.from_tokens(
        reasoner.tokenizer, row["trace"].tolist(), prompt_tokens=int(row["prompt_tokens"])
    )
    assert len(trace.tokens) - row["prompt_tokens"] == row["tokens"] == 5
    assert (undisturbed[["seconds", "cpu_seconds"]] > 0).all(axis=None)
    assert Results(undisturbed).cost_column == "cpu_seconds"


COLUMNS = """
unit: string, setting_id: string, setting: string, part: string, layers: list<item: int64>,
heads: list<item: list<item: int64>>, tau_max: double, alpha: double, window: int64, scope: string, control_seed: int64,
parts: string, problem: string, length: int64, sample: int64, seed: int64, max_new_tokens: int64,
batch_size: int64, temperature: double, top_p: double, samples: int64, correct: bool, error: string, answer: string,
expected: string, tokens: int64, truncated: bool, seconds: double,
prompt_tokens: int64, trace: list<item: int32>, notes: string, model: string, versions: string, cpu_seconds: double,
grader: string, answer_from: string, score: double
"""


def test_the_columns_of_a_shard_are_those_of_every_sweep_before():
    assert [f"{field.name}: {field.type}" for field in schema()] == " ".join(COLUMNS.split()).split(", ")
    assert all(field.nullable for field in schema())


def test_what_workers_are_told_and_answer_goes_through_a_pipe_as_it_is():
    rng = random.Random(0)
    numbers = [rng.uniform(1, 10) * 10.0 ** rng.randrange(-300, 300) for _ in range(2000)]
    reply = Reply(
        answer=[{"seconds": number, "answer": 'é\n"\u2028🙂', "notes": None, "trace": [1, 2]} for number in numbers]
    )
    assert Reply.from_line(reply.line()) == reply
    assert reply.line().count("\n") == 1
    config = SMALL | {"decoding": {"temperature": 0.7, "top_p": 0.9, "samples": 2, "batch_size": 2}}
    job = make_plan(read_config(config), "cpu").job(["one", "two"])
    assert Job.from_line(job.line()) == job
    assert sorted(each.source for each in job.questions) == [("test", index, 2) for index in range(COUNT)]
    with pytest.raises(ValueError, match="seeed"):
        WorkItem.from_line('{"key": "a", "parts": [], "seeed": 0, "start": 0, "stop": 1}')


def test_workers_quantise_the_weights_as_the_configuration_says(tmp_path):
    config = SMALL | {"model": {"quantization": "8bit"}, "problems": {"count": 2, "length": 2}}
    table = stepsal.sweep(config, out=tmp_path / "sweep")
    about = json.loads(table["model"].iloc[0])
    model = load_model(quantization="8bit")
    assert about["quantization"] == host_of(model).quantization != ""
    row = table[table["part"] == "none"].iloc[0]
    problem = make_problem("test", int(row["problem"].rsplit("-", 1)[1]), 2)
    (trace,) = stepsal.generate(model, [problem.messages], max_new_tokens=5, progress=False)
    assert trace.tokens.tolist() == row["trace"].tolist()


def test_quantisation_is_in_the_record_of_a_sweep_only_where_there_is_one():
    plain, quantised = (read_config(SMALL | {"model": model}).record() for model in ({}, {"quantization": "4bit"}))
    assert "quantization" not in plain["model"]
    assert quantised["model"] == plain["model"] | {"quantization": "4bit"}


@pytest.mark.parametrize("model", [{"quantization": "3bit"}, {"name": "model.gguf", "quantization": "4bit"}])
def test_a_quantisation_that_cannot_be_is_refused_before_any_work(model, tmp_path):
    with pytest.raises(InputError, match="quantization"):
        stepsal.sweep(SMALL | {"model": model}, out=tmp_path / "sweep")


def test_a_row_is_what_generate_gives(undisturbed, reasoner):
    row = undisturbed[(undisturbed["part"] == "oeb") & (undisturbed["tau_max"] == 0.6)].iloc[2]
    problem = make_problem("test", int(row["problem"].rsplit("-", 1)[1]), 2)
    (trace,) = stepsal.generate(
        reasoner,
        [problem.messages],
        interventions=stepsal.OddsEqualBridge(tau_max=0.6),
        max_new_tokens=5,
        progress=False,
    )
    assert trace.tokens.tolist() == row["trace"].tolist()


def test_a_prompt_is_tokenised_once_however_many_settings_it_is_asked_under(tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerBase

    real, seen = PreTrainedTokenizerBase.encode, Counter()

    def counted(tokenizer, text, **options):
        seen[text] += 1
        return real(tokenizer, text, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "encode", counted)
    config = {
        "problems": {"length": 2, "count": 3},
        "decoding": {"max_new_tokens": 2, "temperature": 1.0, "samples": 2, "seeds": [0, 1], "batch_size": 2},
        "grid": {"parts": ["oeb", "smi"]},
    }
    assert len(sweep(config, out=tmp_path, workers=1, progress=False)) == 3 * 3 * 2 * 2
    questions = [make_problem("test", index, 2).question for index in range(3)]
    assert [sum(times for text, times in seen.items() if each in text) for each in questions] == [1, 1, 1]


def test_samples_and_seeds_are_answers_of_their_own(tmp_path):
    config = {
        "problems": {"length": 2, "count": 2},
        "decoding": {"max_new_tokens": 6, "temperature": 5.0, "samples": 2, "seeds": [3, 4], "batch_size": 4},
        "grid": {"parts": "none"},
    }
    rows = sweep(config, out=tmp_path, workers=1, progress=False)
    assert sorted(zip(rows["problem"], rows["sample"], rows["seed"], strict=True)) == sorted(
        (f"test-2-{index}", sample, seed) for index in range(2) for sample in range(2) for seed in (3, 4)
    )
    assert len({tuple(each) for each in rows["trace"]}) > 2


def test_a_changed_configuration_is_refused_with_a_diff(tmp_path, undisturbed):
    config = SMALL | {"problems": {"length": 2, "count": 1}, "grid": {"parts": "none"}}
    sweep(config, out=tmp_path, workers=1, progress=False)
    changed = config | {"decoding": {"max_new_tokens": 6, "batch_size": 1}}
    with pytest.raises(FileError, match=r'-\s+"max_new_tokens": 5.*\n\+\s+"max_new_tokens": 6'):
        sweep(changed, out=tmp_path, workers=1, progress=False)
    with pytest.raises(FileError, match="resume is False"):
        sweep(config, out=tmp_path, workers=1, progress=False, resume=False)
    assert len(sweep(config, out=tmp_path, workers=1, progress=False)) == 1


def test_a_folder_with_rows_that_say_nothing_of_their_sweep_is_refused_and_one_without_rows_begun_anew(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.begin({"a": 1}, True)
    folder.begin({"a": 2}, True)  # nothing was done
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 2}
    folder.write("x", [])
    with pytest.raises(FileError, match="another configuration"):
        folder.begin({"a": 1}, True)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileError, match="nothing says of which sweep"):
        folder.begin({"a": 2}, True)


def test_a_folder_goes_on_if_its_configuration_says_the_same_in_other_words(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.begin({"a": {"b": 1.0}}, True)
    folder.write("x", [])
    (tmp_path / "config.json").write_text('{"a": {"b": 1}}')
    folder.begin({"a": {"b": 1.0}}, True)
    folder.begin({"a": {"b": 1.0, "new": [0]}}, True, defaults={"a": {"new": (0,)}})
    with pytest.raises(FileError, match=r"another configuration \(a\)"):
        folder.begin({"a": {"b": 1.0, "new": [1]}}, True, defaults={"a": {"new": (0,)}})
    assert (tmp_path / "config.json").read_text() == '{"a": {"b": 1}}'


def test_a_folder_of_another_format_is_refused_as_such_not_with_a_diff(tmp_path, monkeypatch):
    plant(monkeypatch, lambda setting, problem: True)
    run_sweep(SMALL, tmp_path, progress=False)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("stepsal sweep 2", "stepsal sweep 1"))
    rows = sorted(each.read_bytes() for each in (tmp_path / "rows").iterdir())
    with pytest.raises(FileError, match="in the format 'stepsal sweep 1'; this one writes 'stepsal sweep 2'") as error:
        run_sweep(SMALL, tmp_path, progress=False)
    assert "Use another --out folder" in str(error.value)
    assert "begun here" not in str(error.value)
    assert sorted(each.read_bytes() for each in (tmp_path / "rows").iterdir()) == rows


def test_a_damaged_shard_is_not_a_full_disk(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.write("x", [])
    folder.shard("x").write_bytes(b"PAR1 cut")
    with pytest.raises(FileError, match="is damaged"):
        folder.consolidate([["x"]])


def test_what_a_killed_sweep_left_is_cleaned_away_and_a_folder_without_locks_said(tmp_path, monkeypatch):
    import fcntl

    (tmp_path / "rows").mkdir()
    mine = [
        tmp_path / ".config.json.7.part",
        tmp_path / ".results.parquet.7.part",
        tmp_path / "rows" / ".x.parquet.7.part",
    ]
    for path in [*mine, tmp_path / ".yours.part"]:
        path.touch()
    with SweepFolder(tmp_path).lock():
        pass
    assert [path.exists() for path in mine] == [False] * 3
    assert (tmp_path / ".yours.part").exists()

    def no_locks(*given):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(FileError, match="cannot lock .*: No locks available"), SweepFolder(tmp_path).lock():
        pass


def test_a_lock_left_by_a_killed_sweep_or_by_an_older_version_stops_nothing_and_no_lock_is_left(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.json.lock").touch()
    with SweepFolder(tmp_path).lock():
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_two_sweeps_in_one_folder_at_a_time_are_refused(tmp_path):
    with SweepFolder(tmp_path).lock(), pytest.raises(FileError, match="another sweep is at work"):
        run_sweep(SMALL, tmp_path, progress=False)


def test_what_is_done_is_never_computed_again(tmp_path, monkeypatch):
    ran = []
    plant(monkeypatch, lambda setting, problem: True, ran)
    run_sweep(SMALL, tmp_path, progress=False)
    assert len(ran) == SETTINGS * COUNT
    victims = sorted((tmp_path / "rows").iterdir())[3:5]
    for path in victims:
        path.unlink()
    run_sweep(SMALL, tmp_path, progress=False)
    assert sorted(ran[SETTINGS * COUNT :]) == [path.stem for path in victims]


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed_the_rows_are_those_of_an_undisturbed_run(tmp_path, undisturbed):
    context = multiprocessing.get_context("forkserver")  # its children have everything imported
    context.set_forkserver_preload(["stepsal.sweeps.run", "transformer_lens.model_bridge"])
    rng = random.Random(0)

    def shards():
        return len(list((tmp_path / "rows").glob("*.parquet")))

    def start(workers):
        process = context.Process(target=run_sweep, args=(SMALL, tmp_path, "local", True, workers, None, False))
        process.start()
        return process

    done = {1: 0, 2: 0}
    for kill in range(10):
        workers, before = 1 + kill % 2, shards()
        early = kill in (3, 7, 9)  # while a pair of workers starts: that takes long
        process, goal = start(workers), before + rng.randrange(1, 4)
        while process.is_alive() and shards() < goal and not early:
            time.sleep(0.002)
        time.sleep(rng.random() * (1.5 if early else 0.2))
        process.kill()
        process.join()
        done[workers] += shards() - before
    assert min(done.values()) > 0
    process = start(1)
    process.join()
    assert process.exitcode == 0
    assert_same_rows(pd.read_parquet(tmp_path / "results.parquet"), undisturbed)
    assert {path.suffix for path in (tmp_path / "rows").iterdir()} == {".parquet"}


def test_two_workers_of_which_one_is_killed_give_the_rows_of_one(tmp_path, undisturbed, capfd):
    killed = []

    def kill():
        while not list((tmp_path / "rows").glob("*.parquet")):
            time.sleep(0.01)
        children = [child for child in psutil.Process().children() if "sweeps.worker" in " ".join(child.cmdline())]
        children[0].kill()
        killed.append(children[0].pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    rows = sweep(SMALL, out=tmp_path, workers=2)
    thread.join()
    assert killed
    assert_same_rows(rows, undisturbed)
    shown = capfd.readouterr().out
    assert f"(process {killed[0]}) died (signal 9); its batch of problems " in shown
    assert "both layers 0-1, tau_max 0.6 + layers 6-7, alpha 0.06: n 4, accuracy" in shown


def test_what_a_sweep_tells_is_logged_and_the_logger_is_left_as_it_was(tmp_path, monkeypatch, caplog, capsys):
    plant(monkeypatch, lambda setting, problem: True)
    logger = logging.getLogger("stepsal")
    before = logger.level, list(logger.handlers)
    run_sweep(SMALL, tmp_path / "a", progress=False)
    assert (capsys.readouterr().out, caplog.messages) == ("", [])
    with caplog.at_level(logging.INFO, logger="stepsal"):
        run_sweep(SMALL, tmp_path / "b", progress=False)
    assert sum(": n 4, accuracy 100.0%" in message for message in caplog.messages) == SETTINGS
    assert (logger.level, logger.handlers) == before


def test_a_batch_whose_worker_dies_again_and_again_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(local.sys, "executable", "/bin/false")
    with pytest.raises(StepsalError, match=r"worker \d died 4 times on the same batch"):
        run_sweep(SMALL, tmp_path, workers=2, progress=False)


def test_an_error_in_a_worker_is_raised_as_it_is():
    with pytest.raises(InputError, match="too long"):
        Reply(error="too long", kind="InputError").result()


def test_an_interrupt_keeps_what_is_finished(tmp_path, monkeypatch):
    def interrupt(setting, problem):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(problem)
        return True

    seen = []

    with monkeypatch.context() as patch:
        plant(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(SMALL, tmp_path, progress=False)
    assert len(list((tmp_path / "rows").glob("*.parquet"))) == 3


def test_with_the_disk_full_nothing_is_lost_and_the_sweep_goes_on_when_there_is_room(tmp_path, undisturbed):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        out = tmp_path / "out"
        with pytest.raises(FileError, match=r"No space left on device. What is finished is kept"):
            run_sweep(SMALL, out, workers=1, progress=False)
        finished = len(list((out / "rows").glob("*.parquet")))
        assert 0 < finished < SETTINGS * COUNT
        assert {path.suffix for path in (out / "rows").iterdir()} == {".parquet"}
        subprocess.run(["mount", "-o", "remount,size=20m", tmp_path], check=True)
        assert_same_rows(sweep(SMALL, out=out, workers=1, progress=False), undisturbed)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- what the results say, with planted answers ------------------------------------------------------------------------
def plant(monkeypatch, right, ran=None):
    """Answers are right as `right(setting's records, problem's id)` says; nothing is generated."""

    class Planted:
        def __init__(self, plan):
            self.plan = plan

        def close(self): ...

        def run(self, items):
            for item in items:
                if ran is not None:
                    ran.append(item.key)
                rows = [
                    {
                        "problem": each.id,
                        "length": each.length,
                        "sample": 0,
                        "seed": item.seed,
                        "expected": each.answer,
                    }
                    | {
                        "correct": right(item.parts, each.id),
                        "error": None,
                        "answer": "",
                        "tokens": 1,
                        "truncated": False,
                    }
                    | {"seconds": 0.0, "prompt_tokens": 1, "trace": [0, 1], "model": "", "versions": "", "notes": None}
                    for each in self.plan.questions[item.start : item.stop]
                ]
                yield item, rows

    monkeypatch.setattr(Workforce, "engine", lambda workforce, plan: Planted(plan))


def coin(*said):
    """A number in [0, 1) that depends on nothing but what is said."""
    return int.from_bytes(hashlib.sha256(repr(said).encode()).digest()[:4]) / 2**32


def test_a_useful_part_shows_a_significant_difference_and_a_useless_one_none(tmp_path, monkeypatch):
    def right(records, problem):
        base = coin(problem) < 0.5
        if not records:
            return base
        if records[0]["part"] == "OddsEqualBridge":  # helps one time in three
            return base or coin("oeb", problem) < 0.33
        return base if coin("smi", problem) < 0.8 else coin("smi again", problem) < 0.5  # changes some, to no use

    plant(monkeypatch, right)
    config = {"problems": {"length": 2, "count": 200}, "grid": {"parts": ["oeb", "smi"]}}
    rows = sweep(config, out=tmp_path, progress=False)
    table = rows.pivot(index="problem", columns="part", values="correct").astype(bool)
    useful, useless = (paired(table["none"].to_numpy(), table[part].to_numpy()) for part in ("oeb", "smi"))
    assert useful.p < 0.001
    assert useful.low > 0
    assert useless.p > 0.05
    assert useless.low < 0 < useless.high


def test_forward_selection_takes_the_best_head_each_round_and_stops_when_none_helps(tmp_path, monkeypatch):
    gains = {(0, 2): 0.2, (1, 3): 0.1}

    def right(records, problem):
        assert problem.startswith("validation")
        heads = {(layer, head) for layer, those in (records[0]["heads"] if records else ()) for head in those}
        return coin(problem) < 0.4 + sum(gain for pair, gain in gains.items() if pair in heads)

    plant(monkeypatch, right)
    config = {"problems": {"length": 2, "count": 100}, "grid": {"shape": "forward-selection", "parts": "oeb", "k": 5}}
    rows = sweep(config, out=tmp_path, progress=False)
    tried = rows.drop_duplicates("setting_id")["heads"].map(
        lambda pairs: () if pairs is None else tuple(map(tuple, pairs))
    )
    rounds = [[pairs for pairs in tried if len(pairs) == number] for number in range(5)]
    assert [len(each) for each in rounds] == [1, 8, 7, 6, 0]  # the third head helps nothing: stop
    assert all((0, 2) in pairs for pairs in rounds[2])
    assert all({(0, 2), (1, 3)} <= set(pairs) for pairs in rounds[3])


# --- command line and Ray ----------------------------------------------------------------------------------------------
def test_the_command_says_what_it_would_do_and_does_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "c.toml"
    path.write_text(TOML)
    plant(monkeypatch, lambda setting, problem: True)
    assert main(["sweep", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{SETTINGS} settings x {COUNT} problems x 1 samples x 1 seeds = {SETTINGS * COUNT} answers" in said
    assert "a3893a059a33  oeb layers 0-1, tau_max 0.15" in said
    assert list(tmp_path.iterdir()) == [path]
    assert main(["sweep", str(path), "--out", str(tmp_path / "out"), "--markdown"]) == 0
    said = capsys.readouterr()
    assert f"| baseline | {COUNT} | 100.0% |" in said.out
    assert (
        f"oeb layers 0-1, tau_max 0.15: n {COUNT}, accuracy 100.0%, +0.0% against the baseline" in said.out + said.err
    )
    assert main(["sweep", str(path)]) == 2
    assert "--out DIR is needed" in capsys.readouterr().err


def test_the_estimate_comes_from_a_timed_batch():
    said = estimate({"problems": {"count": 64}, "decoding": {"max_new_tokens": 2, "batch_size": 4}}, workers=2)
    assert "= 256 answers in 64 batches" in said
    assert "with 2 workers, at 0." in said


RAY = """
import sys, threading, time
from pathlib import Path
import psutil
import pyarrow.parquet as pq
from stepsal.sweeps.run import run_sweep

def kill():
    while not list(Path(sys.argv[2], "rows").glob("*.parquet")):
        time.sleep(0.01)
    found = [p for p in psutil.Process().children(recursive=True) if "_RayWorker" in " ".join(p.cmdline())]
    found[0].kill()
    print("killed", found[0].pid)

threading.Thread(target=kill, daemon=True).start()
run_sweep(sys.argv[1], sys.argv[2], "ray", workers=2, progress=False)
"""


@pytest.mark.slow
def test_ray_gives_the_same_rows_though_a_worker_is_killed(tmp_path, undisturbed):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepsal[ray]'")
    (tmp_path / "c.toml").write_text(TOML)
    command = [sys.executable, "-c", RAY, tmp_path / "c.toml", tmp_path / "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout
    assert_same_rows(pd.read_parquet(tmp_path / "out" / "results.parquet"), undisturbed)


class Cluster:
    """As much of Ray as the engine uses: actors of which some never come, and calls that are done at once.

    `dying`: the keys of items at which the actor dies, one time for each time that a key is there.
    """

    def __init__(self, placed, dying=""):
        self.places = iter([True] * placed + [False] * 99)
        self.dying = list(dying)
        lost = type("LostError", (RuntimeError,), {})
        self.exceptions = type("exceptions", (), {"RayError": RuntimeError} | dict.fromkeys(DEATHS, lost))

    def remote(self, **needs):
        class Call:
            def __init__(self, function, here):
                self.function, self.here = function, here

            def remote(self, *given):
                return self.here, lambda: self.function(*given)

        class Actor:
            def __init__(self, here):
                self.ready = Call(lambda: None, here)
                self.run = Call(self.answer, here)

            def answer(this, job, item):
                if item.key in self.dying:
                    self.dying.remove(item.key)
                    raise self.exceptions.RayActorError("the machine is gone")
                return Reply(answer=[{"key": item.key}])

        return lambda kind: type("Class", (), {"remote": lambda this: Actor(next(self.places))})()

    put = staticmethod(lambda what: what)
    get = staticmethod(lambda call: call[1]())
    kill = staticmethod(lambda actor: None)
    available_resources = staticmethod(lambda: {"CPU": 1.0})

    def wait(self, calls, num_returns, timeout):
        found = [call for call in calls if call[0]][:num_returns]
        if not found and timeout is None:
            raise KeyboardInterrupt  # for ever
        return found, [call for call in calls if call not in found]


def test_ray_gives_work_to_the_actors_that_are_placed_and_says_if_there_are_none():
    config = read_config(SMALL | {"model": {"threads": 2, "device": "cuda:1"}})
    job = make_plan(config, "cuda:1").job()

    def items(*keys):
        return [WorkItem(key=key, parts=[], seed=0, start=0, stop=1) for key in keys]

    for placed in (1, 0):
        engine = RayWorkers(Cluster(placed), job, 3)
        assert engine._needs == {"num_cpus": 2, "num_gpus": 1}
        assert engine._job.model.device == "cuda"  # the one that Ray lets it see
        if placed:
            assert [answers[0]["key"] for _, answers in engine.run(items(*"abcde"))] == list("abcde")
            assert len(engine._actors) == 3
            assert [answers[0]["key"] for _, answers in engine.run(items("f"))] == ["f"]
        else:
            warned = pytest.warns(UserWarning, match="2 CPU and 1 GPU, and the cluster has 1 CPU and 0 GPU")
            with warned, pytest.raises(KeyboardInterrupt):
                list(engine.run(items("a")))
        engine.close()


def test_the_item_of_a_ray_worker_that_dies_is_done_by_another_though_no_new_one_comes():
    job = make_plan(read_config(SMALL), "cpu").job()
    items = [WorkItem(key=key, parts=[], seed=0, start=0, stop=1) for key in "abc"]
    for placed, dying in ((2, "a"), (7, "aabbb"), (1, "")):
        engine = RayWorkers(Cluster(placed, dying), job, 2)
        assert sorted(answers[0]["key"] for _, answers in engine.run(items)) == list("abc")
        engine.close()
    with pytest.raises(
        StepsalError, match=r"4 workers died on the same batch of problems 0 to 1 .*the machine is gone"
    ):
        list(RayWorkers(Cluster(9, "bbbb"), job, 1).run(items))


def test_on_gpus_there_is_a_worker_for_each_and_it_sees_no_other(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = local.local_resources()
    assert found == Resources("cuda", 3)
    plan = make_plan(read_config(SMALL), found.device)
    assert default_workers(found, plan) == 3
    assert default_workers(local.local_resources("cuda:1"), plan) == 1
    job, saw = plan.job(), []

    class Started:
        pid, stdin, stdout = 7, None, None

        def __init__(self, command, env, **pipes):
            saw.append(env.get("CUDA_VISIBLE_DEVICES"))

        def kill(self): ...
        def wait(self): ...

    monkeypatch.setattr(local.subprocess, "Popen", Started)
    cases = {None: ["0", "1", "2", "0"], "5, 7,GPU-8932f937": ["5", "7", "GPU-8932f937", "5"], "4,1,2,-1": list("4124")}
    for visible, expected in cases.items():
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        for slot in range(4):
            local.WorkerProcess(job, slot).kill()
        assert saw == expected
        saw.clear()
    named = job.model_copy(update={"model": job.model.model_copy(update={"device": "cuda:1"})})
    local.WorkerProcess(named, 0).kill()  # the user's own choice, among all
    assert saw == ["4,1,2,-1"]


def test_on_ray_there_is_a_worker_for_each_gpu_of_the_cluster_or_for_each_core():
    plan = make_plan(read_config(SMALL), "cpu")
    cluster = RayCluster.__new__(RayCluster)
    for has, device, expected in (
        ({"CPU": 16.0, "GPU": 4.0}, "auto", Resources("cuda", 4, here=False)),
        ({"CPU": 16.0, "GPU": 4.0}, "cpu", Resources("cpu", 16, here=False)),
        ({"CPU": 16.0}, "auto", Resources("cpu", 16, here=False)),
    ):
        cluster.ray = type("Cluster", (), {"cluster_resources": staticmethod(lambda has=has: has)})
        assert cluster.resources(device) == expected
        assert default_workers(expected, plan) == expected.slots


def test_an_unknown_engine_and_a_missing_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="unknown engine 'spark'"):
        run_sweep(SMALL, tmp_path, "spark")
    with pytest.raises(InputError, match="of a Ray cluster"):
        run_sweep(SMALL, tmp_path, address="auto")
    with pytest.raises(FileError, match="there is no folder no/such/model"):
        run_sweep(SMALL | {"model": {"name": "no/such/model"}}, tmp_path, progress=False)
    assert Setting().name == "baseline"


# --- what is kept is what was made --------------------------------------------------------------------------------------
def test_every_byte_of_a_shard_that_changes_is_noticed_or_changes_nothing(tmp_path, monkeypatch):
    plant(monkeypatch, lambda setting, problem: True)
    run_sweep(SMALL | {"problems": {"length": 2, "count": 1}, "grid": {"parts": "none"}}, tmp_path, progress=False)
    folder = SweepFolder(tmp_path)
    (path,) = (tmp_path / "rows").iterdir()
    whole, rows = path.read_bytes(), folder.read(path.stem).to_pylist()
    noticed = []
    for position in range(0, len(whole), 7):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            assert folder.read(path.stem).to_pylist() == rows
        except FileError as error:
            noticed.append(str(error))
    assert len(noticed) > len(whole) / 20
    assert all("is damaged" in said and "move it away" in said for said in noticed)


def test_every_flipped_bit_of_the_results_is_noticed(tmp_path, monkeypatch):
    plant(monkeypatch, lambda setting, problem: True)
    config = SMALL | {"problems": {"length": 2, "count": 1}, "grid": {"parts": "none"}}
    run_sweep(config, tmp_path, progress=False)
    path, at = tmp_path / "results.parquet", random.Random(0)
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        content[at.randrange(len(whole))] ^= 1 << at.randrange(8)
        path.write_bytes(content)
        with pytest.raises(FileError, match="results.parquet is damaged"):
            Results.read(tmp_path)
    run_sweep(config, tmp_path, progress=False)  # makes it anew
    Results.read(tmp_path)


def test_results_that_were_changed_on_purpose_are_read_once_their_checksum_is_gone(tmp_path, monkeypatch):
    plant(monkeypatch, lambda setting, problem: True)
    run_sweep(SMALL | {"grid": {"parts": "none"}}, tmp_path, progress=False)
    path = tmp_path / "results.parquet"
    pd.read_parquet(path).assign(correct=False).to_parquet(path)
    with pytest.raises(FileError, match="changed on purpose, remove results.parquet.sha256"):
        Results.read(tmp_path)
    (tmp_path / "results.parquet.sha256").unlink()
    Results.read(tmp_path)


def test_a_shard_whose_rows_lack_the_columns_of_later_versions_is_read(tmp_path, monkeypatch):
    plant(monkeypatch, lambda setting, problem: True)
    run_sweep(SMALL | {"grid": {"parts": "none"}}, tmp_path, progress=False)
    folder, path = SweepFolder(tmp_path), next((tmp_path / "rows").iterdir())
    rows = folder.read(path.stem).drop_columns(["score"])
    pq.write_table(rows.replace_schema_metadata({"sha256": store._checksum(rows)}), path)
    assert folder.read(path.stem).drop_columns(["score"]).to_pylist() == rows.to_pylist()


def test_a_model_of_which_only_the_name_is_known_is_warned_about(monkeypatch):
    facts = ModelFacts(path="org/name", fingerprint="org/name", bytes=1, layers=8, heads=4)
    monkeypatch.setattr(plan, "look_up", lambda name, folder: facts)
    config = read_config({"model": {"name": "org/name"}, "problems": {"count": 1}})
    with pytest.warns(UserWarning, match="nothing says which commit of 'org/name' this is"):
        make_plan(config, "cpu")
    monkeypatch.setattr(plan, "look_up", lambda name, folder: replace(facts, fingerprint="0f3a"))
    make_plan(config, "cpu")


def test_a_sweep_whose_weights_were_replaced_in_place_is_refused_also_in_the_middle_of_a_file(tmp_path, monkeypatch):
    plant(monkeypatch, lambda setting, problem: True)
    folder = save_tiny("qwen2", tmp_path / "model", hidden_size=320, intermediate_size=1024)
    config = SMALL | {"model": {"name": str(folder)}}
    run_sweep(config, tmp_path / "out", progress=False)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    assert len(content) > 4 * 2**20
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(FileError, match="begun with another configuration"):
        run_sweep(config, tmp_path / "out", progress=False)


def test_a_sweep_that_stepsal_0_1_began_is_gone_on_with_after_a_warning(tmp_path, monkeypatch):
    plant(monkeypatch, lambda setting, problem: True)
    run_sweep(SMALL, tmp_path, progress=False)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    record["model"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"begun by stepsal 0\.1, .* cannot be checked"):
        run_sweep(SMALL, tmp_path, progress=False)
