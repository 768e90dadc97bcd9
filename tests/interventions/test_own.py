"""The example of docs/extending.md: an intervention of one's own, known everywhere as soon as it is defined."""

import argparse
import json
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

import stepsal
from stepsal import InputError
from stepsal.ablation.results import Results
from stepsal.ablation.tables import ablation
from stepsal.cli import main
from stepsal.interventions.base import INTERVENTIONS
from stepsal.interventions.heads import HeadSpec
from stepsal.models.layer_choice import LayerSpec
from stepsal.sweeps.config import read_config
from stepsal.sweeps.settings import Setting, kind_classes

QUESTION = [{"role": "user", "content": "Facts: m = k + 25. k = 37.\nStart at k. What is m?"}]


@dataclass(frozen=True)
class Recall(stepsal.Intervention):
    """Multiply what thinking reads of the question by `factor`, and what is left of each row in proportion."""

    name: ClassVar[str] = "recall"
    label: ClassVar[str] = "recall"
    strength: ClassVar[str] = "factor"
    neutral: ClassVar[float] = 1.0
    layers: LayerSpec = "all"
    heads: HeadSpec = None
    factor: float = 2.0

    def edit_pattern(self, pattern, at):
        raised = torch.where(at.queries_in("thinking") & at.keys_in("question"), pattern * self.factor, pattern)
        return raised * pattern.sum(-1, keepdim=True) / raised.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Louder(stepsal.Intervention):
    """Head outputs times `gain`."""

    name: ClassVar[str] = "louder"
    label: ClassVar[str] = "louder"
    strength: ClassVar[str] = "gain"
    neutral: ClassVar[float] = 1.0
    layers: LayerSpec = "deep"
    heads: HeadSpec = None
    gain: float = 1.5

    def edit_head_outputs(self, outputs, at):
        return outputs * self.gain


@pytest.fixture(scope="module")
def trace(reasoner):
    return stepsal.Trace.from_text(
        reasoner.tokenizer, QUESTION, "First k = 37.\n\nThen m = 62.\n</think>\n\n\\boxed{62}"
    )


def patterns(model, trace, interventions):
    """Attention patterns by layer, as the model uses them, and the logits."""
    from stepsal.models import host_of

    seen = {}

    def keep(layer):
        def read(pattern, hook):
            seen[layer] = pattern.detach().clone()

        return read

    host = host_of(model)
    hooks = [host.at_pattern(layer, keep(layer)) for layer in range(host.shape.layers)]
    with torch.no_grad(), stepsal.intervene(model, interventions) as live:
        live.question_tokens = [trace.steps[0].stop]
        logits = host.forward(trace.tokens[None], hooks)
    return seen, logits, live


def test_an_own_intervention_acts_in_the_chosen_heads_and_nowhere_else(reasoner, trace):
    before, _, _ = patterns(reasoner, trace, ())
    after, _, live = patterns(reasoner, trace, Recall(layers=[2], heads=[1], factor=3.0))
    question, thinking = trace.steps[0].stop, trace.segment("thinking")[-1].stop
    assert torch.equal(after[2][:, [0, 2, 3]], before[2][:, [0, 2, 3]])
    row, old = after[2][0, 1, question], before[2][0, 1, question]
    expected = old.clone()
    expected[:question] *= 3
    torch.testing.assert_close(row, expected * old.sum() / expected.sum(), rtol=1e-5, atol=1e-7)
    assert torch.equal(after[2][0, 1, :question], before[2][0, 1, :question])
    report = live.report()
    assert report["part"].tolist() == ["Recall"]
    assert report["activations"].tolist() == [thinking - question]


def test_an_own_edit_of_head_outputs_acts_and_is_reported(reasoner, trace):
    _, before, _ = patterns(reasoner, trace, ())
    _, after, live = patterns(reasoner, trace, Louder(layers=[7], heads=[0]))
    assert not torch.equal(before, after)
    assert live.report()["activations"].tolist() == [len(trace.tokens) - trace.steps[0].stop]
    _, neutral, _ = patterns(reasoner, trace, Louder(gain=1.0))
    assert torch.equal(neutral, before)


@pytest.mark.bridge
def test_an_own_intervention_works_in_generate_and_in_the_trace_s_record(reasoner):
    (answer,) = stepsal.generate(reasoner, [QUESTION], interventions=Recall(), max_new_tokens=4, progress=False)
    assert answer.meta["interventions"] == [
        {"part": "Recall", "layers": "all", "heads": None, "factor": 2.0},
    ]


@pytest.mark.bridge
def test_an_own_intervention_is_swept_with_its_options_and_stands_in_the_ablation_table(tmp_path):
    config = {
        "problems": {"count": 2},
        "decoding": {"max_new_tokens": 3},
        "grid": {"parts": ["recall", "recall+oeb"], "factor": [1.5, 3]},
    }
    rows = stepsal.sweep(config, out=tmp_path, workers=1, progress=False)
    assert rows["setting"].drop_duplicates().tolist() == [
        "baseline",
        "recall layers 0-7, factor 1.5",
        "recall layers 0-7, factor 3",
        "recall+oeb layers 0-7, factor 1.5 + layers 0-1, tau_max 0.15",
        "recall+oeb layers 0-7, factor 3 + layers 0-1, tau_max 0.15",
    ]
    text = ablation(Results(rows))[0].markdown()
    assert "| recall, layers 0–7, factor 3 |" in text
    assert "| recall + OEB, layers 0–7, factor 1.5; layers 0–1, τ_max 0.15 |" in text
    assert main(["figure", "effects", str(tmp_path), "--out", str(tmp_path / "effects.png")]) == 0


def test_a_setting_is_read_back_from_its_row_as_it_was_written():
    setting = Setting((Recall(layers=(1, 2), heads={1: (0,)}, factor=4.0), stepsal.StepMomentum(layers=(7,))))
    assert Setting.from_row(json.loads(json.dumps(setting.columns))) == setting


def test_a_row_of_an_intervention_that_is_not_defined_says_how_to_define_it():
    row = {"parts": json.dumps([{"part": "Elsewhere", "layers": [0], "heads": None}])}
    with pytest.raises(InputError, match="'Elsewhere' is not defined here: .* --plugin"):
        Setting.from_row(row)


def test_an_option_that_is_not_written_down_has_the_default_of_its_own_class():
    @dataclass(frozen=True)
    class Softer(Louder):
        name: ClassVar[str] = "softer"
        label: ClassVar[str] = "softer"
        alpha: float = 2.0

    try:
        (softer, momentum) = found_settings({"parts": ["softer", "smi"]})
        assert softer.interventions[0].alpha == 2.0
        assert momentum.interventions[0].alpha == 0.06
        assert softer.columns["alpha"] is None  # the column is the built-in momentum's
    finally:
        INTERVENTIONS.pop("softer", None)


def found_settings(grid):
    from pathlib import Path

    from stepsal.sweeps.grid import next_round
    from stepsal.sweeps.layers_and_heads import Size

    return next_round(read_config({"grid": grid}).grid, Size(8, 4), Path(), lambda setting: 0, [])[1:]


def test_a_control_with_an_option_of_its_own_is_set_beside_what_it_controls_for():
    from stepsal.ablation.labels import acts_alike

    @dataclass(frozen=True)
    class NoisyRecall(Recall):
        name: ClassVar[str] = "noisy-recall"
        label: ClassVar[str] = "noisy recall"
        control_of: ClassVar[type] = Recall
        noise: float = 0.1

    try:
        treated, control = found_settings({"parts": ["recall", "noisy-recall"]})
        assert control.controls_for == treated.kind
        assert acts_alike(treated, control)
        (stronger,) = found_settings({"parts": "noisy-recall", "factor": 5})
        assert not acts_alike(treated, stronger)
    finally:
        INTERVENTIONS.pop("noisy-recall", None)


def test_values_are_known_where_head_outputs_are_edited_and_only_there(reasoner, trace):
    @dataclass(frozen=True)
    class Peek(stepsal.Intervention):
        name: ClassVar[str] = "peek"
        label: ClassVar[str] = "peek"
        layers: LayerSpec = "all"
        heads: HeadSpec = None

        def edit_pattern(self, pattern, at):
            return pattern * at.values.sum()

    try:
        with pytest.raises(InputError, match="at.values are known in edit_head_outputs only"):
            patterns(reasoner, trace, (Louder(layers=[1]), Peek(layers=[1, 2])))
    finally:
        INTERVENTIONS.pop("peek", None)


def test_settings_that_are_written_out_are_run_as_they_are():
    config = read_config(
        {
            "settings": [
                {
                    "interventions": [
                        {"name": "starvation", "rows": "steps", "layers": [1], "heads": [0, 1], "odds": 0.001}
                    ]
                },
                {"interventions": [{"name": "oeb", "layers": "shallow", "scope": "step", "tau_max": 0.4}]},
            ]
        }
    )
    from pathlib import Path

    from stepsal.sweeps.grid import next_round
    from stepsal.sweeps.layers_and_heads import Size

    found = next_round(config.grid, Size(8, 4), Path(), lambda setting: 0, [], config.settings)
    assert [each.name for each in found] == [
        "baseline",
        "starvation layer 1 heads 1.0 1.1, rows steps, odds 0.001",
        "oeb layers 0-1, tau_max 0.4, scope step",
    ]


def test_a_starvation_can_be_swept_with_what_is_to_mend_it():
    config = read_config({"grid": {"parts": ["starvation", "starvation+oeb"], "rows": "thinking", "layers": [[0, 1]]}})
    assert config.grid.options["rows"] == ("thinking",)
    assert [each.__name__ for each in kind_classes("starvation+oeb")] == ["Starvation", "OddsEqualBridge"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([{"interventions": [{"name": "obe"}]}], "Did you mean 'oeb'"),
        ([{"interventions": [{"name": "oeb", "tau": 0.1}]}], "did you mean 'tau_max'"),
        ([{"interventions": [{"name": "oeb", "tau_max": 2}]}], "tau_max=2 must be a number in"),
        ([{"interventions": [{"name": "starvation", "layers": 0}]}], "rows"),
        ([{"interventions": [{"layers": 0}]}], "give it a 'name'"),
    ],
)
def test_a_written_out_setting_that_cannot_be_says_why(settings, says):
    with pytest.raises(InputError, match=says):
        read_config({"settings": settings})


def test_all_that_is_wrong_in_a_configuration_is_said_at_once():
    wrong = {"problem": {}, "decoding": {"seeds": -1, "temperature": "hot"}, "grid": {"tau_mx": 0.1, "parts": "obe"}}
    with pytest.raises(InputError) as error:
        read_config(wrong)
    for said in ("'problem'", "seeds=-1", "temperature='hot'", "'tau_mx'", "'obe'"):
        assert said in str(error.value)


def test_defining_a_class_again_replaces_it_and_another_class_of_the_same_name_is_refused():
    def again(qualname):
        @dataclass(frozen=True)
        class Again(stepsal.Intervention):
            name: ClassVar[str] = "again"
            label: ClassVar[str] = "again"
            layers: LayerSpec = "all"
            heads: HeadSpec = None

        return Again

    try:
        again("a")
        second = again("b")
        assert INTERVENTIONS["again"] is second
        with pytest.raises(InputError, match="is already called 'oeb': choose another name"):
            type("Other", (stepsal.Intervention,), {"name": "oeb", "label": "other"})
    finally:
        INTERVENTIONS.pop("again", None)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"label": "x"}, "has name=None"),
        ({"name": "with space", "label": "x"}, "has name='with space'"),
        ({"name": "x"}, "has label=None"),
        ({"name": "none", "label": "x"}, "cannot be called 'none'"),
        ({"name": "seed", "label": "x"}, "cannot be called 'seed'"),
    ],
)
def test_a_class_without_a_usable_name_or_label_is_refused(body, says):
    with pytest.raises(InputError, match=says):
        type("Own", (stepsal.Intervention,), body)


def test_a_class_of_the_name_of_another_class_is_refused_since_records_know_it_by_that_name():
    with pytest.raises(InputError, match="there is a class StepMomentum already"):
        type("StepMomentum", (stepsal.Intervention,), {"name": "my-smi", "label": "mine"})
    assert "my-smi" not in INTERVENTIONS


def test_an_option_with_a_name_that_tables_use_is_refused():
    @dataclass(frozen=True)
    class Odd(Louder):
        name: ClassVar[str] = "odd"
        label: ClassVar[str] = "odd"
        k: int = 1

    try:
        with pytest.raises(InputError, match="an option 'k', a name that tables and configurations use"):
            Odd()
    finally:
        INTERVENTIONS.pop("odd", None)


def test_a_class_that_is_no_dataclass_with_layers_and_heads_is_refused_where_it_is_made():
    try:

        @dataclass(frozen=True)
        class Bare(stepsal.Intervention):
            name: ClassVar[str] = "bare"
            label: ClassVar[str] = "bare"
            strengths: tuple = field(default=())

        with pytest.raises(InputError, match="with the fields `layers` and `heads`"):
            Bare()
    finally:
        INTERVENTIONS.pop("bare", None)


def test_an_edit_of_another_shape_is_refused(reasoner, trace):
    try:

        @dataclass(frozen=True)
        class Wrong(stepsal.Intervention):
            name: ClassVar[str] = "wrong-shape"
            label: ClassVar[str] = "wrong"
            layers: LayerSpec = "all"
            heads: HeadSpec = None

            def edit_pattern(self, pattern, at):
                return pattern[..., :1]

        with pytest.raises(InputError, match=r"Wrong.edit_pattern returned .*: expected a tensor of the shape"):
            patterns(reasoner, trace, Wrong())
    finally:
        INTERVENTIONS.pop("wrong-shape", None)


def test_a_class_that_edits_nothing_is_refused(reasoner):
    try:

        @dataclass(frozen=True)
        class Idle(stepsal.Intervention):
            name: ClassVar[str] = "idle"
            label: ClassVar[str] = "idle"
            layers: LayerSpec = "all"
            heads: HeadSpec = None

        with pytest.raises(InputError, match="Idle edits nothing"), stepsal.intervene(reasoner, Idle()):
            pass
    finally:
        INTERVENTIONS.pop("idle", None)


def test_no_intervention_may_have_the_name_of_another_option_of_generate():
    """Its option would be there twice, and the command line could not start."""
    from stepsal.cli import generate
    from stepsal.interventions.base import INTERVENTIONS, RESERVED_NAMES

    parser = argparse.ArgumentParser()
    generate.add(parser)
    names = {option.lstrip("-") for action in parser._actions for option in action.option_strings if option[:2] == "--"}
    assert {"task", "host", "seed", "oeb"} <= names
    assert names - set(INTERVENTIONS) <= set(RESERVED_NAMES)
