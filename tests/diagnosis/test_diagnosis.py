import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import make_map, random_map
from hypothesis import given
from hypothesis import strategies as st

from stepsal import InputError, StepMap, diagnose, step_saliency
from stepsal.diagnosis.diagnosis import SMALLEST_REFERENCE, summarise, write_diagnoses
from stepsal.diagnosis.metrics import METRICS, position_only
from stepsal.models import host_of

SEGMENTS, SIZES = "qtttttss", [20, 5, 6, 7, 5, 4, 3, 4]


def healthy(seed: int = 0, layers: int = 8, heads: int = 5, **meta) -> StepMap:
    return random_map(SEGMENTS, SIZES, layers, heads, seed, **meta)


def verdicts(diagnosis) -> dict:
    return {verdict.failure: verdict for verdict in diagnosis.verdicts}


# --- numbers ---------------------------------------------------------------------------------------------------------
def test_the_tables_hold_every_metric_per_layer_and_per_head():
    stepmap = healthy()
    diagnosis = diagnose(stepmap)
    assert list(diagnosis.table.columns) == list(diagnosis.heads.columns) == list(METRICS)
    for name, metric in METRICS.items():
        values = metric(stepmap)
        torch.testing.assert_close(torch.tensor(diagnosis.table[name].to_numpy()), values.mean(1))
        assert diagnosis.heads.loc[(3, 2), name] == values[3, 2].item()


def test_layers_keep_their_number_where_the_map_holds_some_only():
    stepmap = replace(healthy(layers=2), layers=(6, 7), meta={"model_layers": 8})
    diagnosis = diagnose(stepmap)
    assert diagnosis.table.index.tolist() == [6, 7]
    assert diagnosis.heads.index.get_level_values("layer").unique().tolist() == [6, 7]
    for verdict in diagnosis.verdicts:
        assert verdict.found is None
        assert "the map lacks layer" in verdict.reference


def test_the_control_is_the_diagnosis_of_the_position_only_map():
    stepmap = healthy()
    diagnosis, control = diagnose(stepmap), diagnose(position_only(stepmap))
    for name in METRICS:
        torch.testing.assert_close(diagnosis.position_only[name], control.profile[name])


@pytest.mark.parametrize(
    ("segments", "failure"), [("qts", "shallow lock-in"), ("qtttt", "deep decay"), ("qss", "deep decay")]
)
def test_what_a_trace_cannot_have_is_missing_and_not_judged(segments, failure):
    diagnosis = diagnose(random_map(segments, [4] * len(segments), 8, 4))
    metric = {"shallow lock-in": "lock_in", "deep decay": "thinking_to_summary"}[failure]
    assert diagnosis.table[metric].isna().all()
    verdict = verdicts(diagnosis)[failure]
    assert verdict.found is None
    assert "the trace has no" in str(verdict)
    if failure == "deep decay":
        assert math.isnan(diagnosis.decay["decay_ratio"])


def test_signed_maps_are_refused():
    stepmap = healthy(rule="signed")
    stepmap.mass[0, 0, 1, 0] = -1
    with pytest.raises(InputError, match="negative influence \\(rule 'signed'\\).*Make it with rule='abs'"):
        diagnose(stepmap)


# --- verdicts --------------------------------------------------------------------------------------------------------
@given(seed=st.integers(0, 500), heads=st.sampled_from([4, 7, 12]))
def test_a_healthy_random_map_gets_no_verdict(seed, heads):
    assert [verdict.found for verdict in diagnose(healthy(seed, heads=heads)).verdicts] == [False, False]


def locked(stepmap: StepMap, layers: list[int], factor: float) -> StepMap:
    """The map with every thinking step's influence from itself grown in some layers."""
    mass = stepmap.mass.clone()
    for step in stepmap.segment("thinking"):
        mass[layers, :, step, step] *= factor
    return replace(stepmap, mass=mass)


def decayed(stepmap: StepMap, layers: list[int], factor: float) -> StepMap:
    """The map with the summary's influence from the thinking shrunk in some layers."""
    mass = stepmap.mass.clone()
    for query in stepmap.segment("summary"):
        for key in stepmap.segment("thinking"):
            mass[layers, :, query, key] *= factor
    return replace(stepmap, mass=mass)


@given(seed=st.integers(0, 99))
def test_a_planted_lock_in_is_found_in_its_layers_and_nothing_else_is(seed):
    found = verdicts(diagnose(locked(healthy(seed), [0, 1], 30)))
    assert found["shallow lock-in"].found
    assert found["shallow lock-in"].layers == (0, 1)
    assert found["shallow lock-in"].value > found["shallow lock-in"].threshold
    assert not found["deep decay"].found


@given(seed=st.integers(0, 99))
def test_a_planted_decay_is_found_in_its_layers_and_nothing_else_is(seed):
    diagnosis = diagnose(decayed(healthy(seed), [6, 7], 0.05))
    found = verdicts(diagnosis)
    assert found["deep decay"].found
    assert found["deep decay"].layers == (6, 7)
    assert diagnosis.decay["decay_ratio"] < 0.5
    assert not found["shallow lock-in"].found


def test_the_same_failure_everywhere_is_not_one_of_the_shallow_or_deep_layers():
    everywhere = list(range(8))
    found = verdicts(diagnose(decayed(locked(healthy(), everywhere, 30), everywhere, 0.05)))
    assert [verdict.found for verdict in found.values()] == [False, False]


def test_one_locked_layer_of_the_band_is_named_alone():
    verdict = verdicts(diagnose(locked(healthy(), [1], 1000)))["shallow lock-in"]
    assert verdict.layers in ((1,), ())  # whether the band's mean is beyond depends on the other one
    assert verdicts(diagnose(locked(healthy(), [0, 1], 1000)))["shallow lock-in"].layers == (0, 1)


def test_other_traces_can_be_the_reference():
    reference = [locked(healthy(seed), list(range(8)), 30) for seed in range(30)]
    same, worse = reference[3], locked(reference[4], [0, 1], 30)
    assert not verdicts(diagnose(same, reference=reference))["shallow lock-in"].found
    verdict = verdicts(diagnose(worse, reference=reference))["shallow lock-in"]
    assert verdict.found
    assert verdict.reference == "95% quantile of 30 reference traces"
    assert verdict.layers == (0, 1)
    assert verdicts(diagnose(worse, reference=[diagnose(each) for each in reference]))["shallow lock-in"] == verdict


def test_too_small_a_reference_gives_no_verdict_and_says_so():
    verdict = diagnose(healthy(), reference=[healthy(1)] * (SMALLEST_REFERENCE - 1)).verdicts[0]
    assert verdict.found is None
    assert "the reference has 9 values, of at least 10" in str(verdict)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: healthy(1, layers=7), "differ in layers"),
        (lambda: healthy(1, model="other"), "differ in model: None and 'other'"),
        (lambda: healthy(1, rule="grad"), "differ in rule"),
        (lambda: healthy(1, objective="sequence"), "differ in objective"),
    ],
)
def test_a_reference_made_otherwise_is_refused(other, message):
    with pytest.raises(InputError, match=message):
        diagnose(healthy(), reference=[other()])


# --- planted in a model ----------------------------------------------------------------------------------------------
def forced(trace, model, layers, keep):
    """Hooks that leave a pattern only the pairs of steps that `keep(query_step, key_step)` says, renormalised."""
    kept = torch.tensor([[bool(keep(i, j)) for j in trace.steps] for i in trace.steps])
    mask = kept[trace.step_of][:, trace.step_of]

    def force(pattern, hook):
        queries, keys = pattern.shape[-2:]
        rows = pattern * mask[keys - queries : keys, :keys]
        return rows / rows.sum(-1, keepdim=True).clamp(min=1e-9)

    return model.hooks(fwd_hooks=[host_of(model).at_pattern(layer, force) for layer in layers])


def test_attention_forced_onto_the_current_step_is_diagnosed_as_shallow_lock_in(reasoner, reasoner_traces):
    trace = reasoner_traces[0]
    with forced(trace, reasoner, [0, 1], lambda query, key: query.segment != "thinking" or query == key):
        diagnosis = diagnose(step_saliency(reasoner, trace))
    verdict = verdicts(diagnosis)["shallow lock-in"]
    assert verdict.found
    assert verdict.layers == (0, 1)
    assert verdict.value == pytest.approx(1)


def test_a_summary_that_cannot_attend_to_the_thinking_is_diagnosed_as_deep_decay(reasoner, reasoner_traces):
    trace = reasoner_traces[0]
    with forced(trace, reasoner, [6, 7], lambda query, key: (query.segment, key.segment) != ("summary", "thinking")):
        diagnosis = diagnose(step_saliency(reasoner, trace))
    verdict = verdicts(diagnosis)["deep decay"]
    assert verdict.found
    assert verdict.layers == (6, 7)
    assert diagnosis.decay["decay_ratio"] < 1e-6


# --- files and display -----------------------------------------------------------------------------------------------
def test_the_file_has_a_line_per_trace_with_null_for_what_is_missing(tmp_path):
    maps = [healthy(trace="a", correct=True), random_map("qtt", [4, 3, 3], 8, 4, trace="b", correct=False)]
    write_diagnoses(tmp_path / "d.jsonl", [diagnose(each) for each in maps])
    first, second = map(json.loads, (tmp_path / "d.jsonl").read_text().splitlines())
    assert (first["trace"], first["correct"], first["steps"]) == ("a", True, 8)
    assert first["layers"][5]["lock_in"] == pytest.approx(diagnose(maps[0]).table["lock_in"][5])
    assert second["layers"][0]["thinking_to_summary"] is None
    assert second["verdicts"][1]["found"] is None


def test_the_summary_counts_verdicts_by_group():
    maps = [healthy(i, correct=bool(i % 2)) for i in range(6)]
    maps.append(locked(healthy(7, correct=False), [0, 1], 1000))
    text = summarise([diagnose(each) for each in maps])
    assert "| shallow lock-in | right (3) | 0 | 3 | 0 |" in text
    assert "| shallow lock-in | wrong (4) | 1 | 3 | 0 |" in text
    assert text.count("\n| ") >= 8
    assert "Of the traces that can be judged, 1 of 7 show shallow lock-in and " in text


def test_a_diagnosis_shows_itself_in_a_notebook_with_text_escaped():
    shown = diagnose(make_map("qtt", [3, 3, 3], torch.ones(8, 2, 3, 3), trace="<script>"))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "missing" in shown
