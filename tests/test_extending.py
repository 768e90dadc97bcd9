"""What docs/extending.md says works: its Python runs as pasted, and what it defines is forgotten after the test."""

import re
from pathlib import Path

import pytest

from stepsal.diagnosis.metrics import METRICS
from stepsal.formats import FORMATS, STEP_RULES
from stepsal.interventions.base import INTERVENTIONS
from stepsal.traces.segment import Segmenter

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a block as a notebook cell would; the registries are put back."""
    monkeypatch.chdir(tmp_path)
    registries = [(registry, dict(registry)) for registry in (INTERVENTIONS, METRICS, FORMATS, STEP_RULES)]
    for name in [name for name, kind in INTERVENTIONS.items() if not kind.built_in()]:
        del INTERVENTIONS[name]  # what other tests defined
    yield lambda block: exec(compile(block, "extending.md", "exec"), {"__name__": "__main__"})
    for registry, known in registries:
        registry.clear()
        registry.update(known)


def test_the_example_of_an_intervention_is_short_and_works_in_intervene_generate_and_a_sweep(run, tmp_path, capsys):
    block = BLOCKS[0]
    definition = block[block.index("@dataclass") : block.index("\n\n\nmodel")]
    assert len(definition.splitlines()) < 20
    run(block)
    assert "Recall" in capsys.readouterr().out
    import pandas as pd

    rows = pd.read_parquet(tmp_path / "recall" / "results.parquet")
    assert set(rows["part"]) == {"none", "recall", "oeb"}
    assert "recall layers 0-7, factor 4" in set(rows["setting"])


def test_the_example_of_a_metric_is_known_to_diagnose(run, reasoner):
    import stepsal

    run(BLOCKS[1])
    trace = stepsal.Trace.from_text(reasoner.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    found = stepsal.diagnose(stepsal.step_saliency(reasoner, trace)).table
    assert "own_share" in found
    assert found["own_share"].between(0, 1).all()


def test_the_examples_of_a_format_and_a_step_rule_are_known_by_name(run, reasoner):
    run(BLOCKS[2])
    text = "2+2?<reason>Add.\n- two\n- two</reason>4"
    segmenter = Segmenter(reasoner.tokenizer, "reason", "bullet")
    opened = [segmenter.push(token) for token in reasoner.tokenizer.encode(text)]
    assert [each for each in opened if each][:2] == ["question", "thinking"]
    assert opened.count("thinking") >= 2
