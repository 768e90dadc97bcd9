import re

import pytest
import torch

from stepsal import StepMap, read_traces
from stepsal.cli import main
from stepsal.demo import by_layer, draw, layer_table
from stepsal.metrics import METRICS


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
    from stepsal import step_saliency

    groups = {"correct": [], "wrong": [(trace, step_saliency(reasoner, trace)) for trace in reasoner_traces[:3]]}
    lines = layer_table(groups).splitlines()
    assert "correct" not in lines[0]
    for layer, line in enumerate(lines[2:]):
        found = [float(cell) for cell in re.findall(r"\d\.\d+", line)]
        expected = [by_layer(groups["wrong"], metric)[:, layer].nanmean() for metric in METRICS]
        torch.testing.assert_close(torch.tensor(found), torch.stack(expected), rtol=0, atol=6e-4)
    figure = draw(groups)
    titles = [ax.get_title(loc="left") for ax in figure.subfigs[0].axes]
    assert any("shallow" in title for title in titles)
    assert not any("correct" in title for title in titles)
