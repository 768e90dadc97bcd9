import re
from dataclasses import replace

import pytest
import torch

from stepsal import StepMap, diagnose, lock_in, read_traces, step_saliency, thinking_to_summary
from stepsal.cli import main
from stepsal.demo import draw, layer_table
from stepsal.figures.maps import load_example


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(out), "--problems", "5"]) == 0
    return out


def test_the_demo_writes_what_it_says(demo, reasoner):
    traces = read_traces(demo / "traces.jsonl", reasoner.tokenizer)
    assert len(traces) == 5
    for trace in traces:
        assert trace.correct is not None
        assert StepMap.load(demo / "maps" / f"{trace.id}.safetensors").steps == trace.steps
    assert (demo / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (demo / "demo.pdf").read_bytes().startswith(b"%PDF")
    assert (demo / "layers.md").read_text().startswith("| layer |")


def test_a_second_run_computes_nothing_again(demo):
    before = {path: path.stat().st_mtime_ns for path in (demo / "maps").iterdir()}
    assert main(["demo", "--out", str(demo), "--problems", "5"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (demo / "maps").iterdir()} == before


def test_the_table_holds_the_groups_means(reasoner_traces, reasoner):
    pairs = [(trace, step_saliency(reasoner, trace)) for trace in reasoner_traces[:3]]
    diagnoses = {"wrong": [diagnose(stepmap) for _, stepmap in pairs]}
    lines = layer_table(diagnoses).splitlines()
    assert "correct" not in lines[0]
    for layer, line in enumerate(lines[2:]):
        found = [float(cell) for cell in re.findall(r"\d\.\d+", line)]
        expected = [
            torch.stack([lock_in(stepmap)[layer].mean() for _, stepmap in pairs]).mean(),
            torch.stack([thinking_to_summary(stepmap)[layer].mean() for _, stepmap in pairs]).nanmean(),
        ]
        torch.testing.assert_close(torch.tensor(found), torch.stack(expected), rtol=0, atol=6e-4)
    pairs = [(replace(trace, correct=False, meta={"error": "malformed"}), stepmap) for trace, stepmap in pairs]
    figure = draw({"wrong": pairs}, diagnoses)
    titles = [ax.get_title(loc="left") for ax in figure.subfigs[0].axes]
    assert any("wrong (malformed): shallow" in title for title in titles)
    assert not any("correct" in title for title in titles)


def test_the_demos_folder_is_what_the_other_commands_read(demo, tmp_path):
    influence, stepmap = load_example(demo)
    assert len(influence) == stepmap.steps[-1].stop
    assert main(["diagnose", str(demo)]) == 0
    assert len((demo / "diagnosis.jsonl").read_text().splitlines()) == 5
    for name in ("tokens", "heads"):
        assert main(["figure", name, str(demo), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert f"Made by `stepsal figure {name} {demo}" in (tmp_path / f"{name}.md").read_text()
