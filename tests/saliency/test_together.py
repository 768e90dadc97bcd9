"""Short traces share a pass: the maps are those that each has alone, and the groups depend on the lengths alone."""

from dataclasses import replace

import pytest
import torch
from conftest import save_tiny
from helpers import random_trace, relative_error
from hooked import HOST, TL3
from hypothesis import given
from hypothesis import strategies as st

from stepsal import NumericalError, StepMap, load_model, save_step_maps, step_saliency
from stepsal.engines.local import InProcess
from stepsal.engines.messages import ModelToLoad
from stepsal.saliency import influence
from stepsal.saliency.influence import saliency_together
from stepsal.saliency.recipe import PAIRS_TOGETHER, TOKENS_TOGETHER, StepMapRecipe, passes

LENGTHS = (2, 40, 23, 31)
TRACES = [replace(random_trace(length, [1, 9, 20]), id=f"t{length}") for length in LENGTHS]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def in_float64(request, tmp_path_factory):
    """In float32 rounding is some millionths of a map, more or less by the machine's instructions."""
    folder = save_tiny(request.param, tmp_path_factory.mktemp("float64"))
    return load_model(folder, host=HOST, dtype="float64")


@pytest.mark.parametrize("rule", ["abs", "signed", "grad"])
@pytest.mark.parametrize("score", ["loss", "logit", "margin"])
def test_maps_made_together_are_those_that_each_trace_has_alone(in_float64, rule, score):
    together = saliency_together(in_float64, TRACES, rule=rule, score=score, layers=[0, 2])
    for trace, found in zip(TRACES, together, strict=True):
        alone = step_saliency(in_float64, trace, rule=rule, score=score, layers=[0, 2])
        assert relative_error(found.mass, alone.mass) < 5e-7
        assert torch.equal(found.pairs, alone.pairs)
        assert (found.steps, found.layers) == (alone.steps, alone.layers)
        apart = {key for key in found.meta if found.meta[key] != alone.meta[key]}
        assert apart <= {"chunk", "seconds", "peak_memory_bytes"}
        assert found.meta.keys() == alone.meta.keys()


def test_where_memory_is_short_or_a_number_is_not_finite_each_trace_is_alone(tiny, monkeypatch):
    asked, real = [], influence.step_saliency

    def watched(model, trace, **options):
        asked.append(trace.id)
        if trace.id == "t23" and len(asked) > 4:
            raise NumericalError("not finite in layer 1")
        return real(model, trace, **options)

    def fail(*given):
        raise NumericalError("not finite")

    monkeypatch.setattr(influence, "step_saliency", watched)
    with monkeypatch.context() as patched:
        patched.setattr(influence, "free_bytes", lambda device: 1)
        assert len(saliency_together(tiny, TRACES[1:])) == 3
    assert asked == ["t40", "t23", "t31"]
    monkeypatch.setattr(influence, "_together", fail)
    with pytest.raises(NumericalError, match="in layer 1"):
        saliency_together(tiny, TRACES)


@given(st.lists(st.integers(2, 9000), max_size=60))
def test_every_trace_is_in_one_pass_and_passes_have_their_limits_and_the_longest_comes_first(lengths):
    groups = passes(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert [lengths[index] for group in groups for index in group] == sorted(lengths, reverse=True)
    for group in groups:
        longest = max(lengths[index] for index in group)
        assert len(group) == 1 or (
            len(group) * longest <= TOKENS_TOGETHER and len(group) * longest**2 <= PAIRS_TOGETHER
        )


def test_what_is_asked_for_or_intervened_in_is_not_shared(tiny):
    from stepsal import OddsEqualBridge, intervene

    assert StepMapRecipe().shares_passes(tiny)
    for options in ({"chunk": 7}, {"objective": "sequence"}, {"rule": "attention"}):
        assert not StepMapRecipe(**options).shares_passes(tiny)
    with pytest.warns(UserWarning, match="never fired"), intervene(tiny, OddsEqualBridge(layers=0)):
        assert not StepMapRecipe().shares_passes(tiny)


def masses(paths):
    return [StepMap.load(path).mass for path in paths]


@pytest.mark.skipif(TL3, reason="workers load bridges")
def test_a_map_is_the_same_to_the_bit_whoever_makes_it_and_however_often_the_run_is_interrupted(
    tmp_path, reasoner, monkeypatch
):
    monkeypatch.setattr("stepsal.saliency.recipe.TOKENS_TOGETHER", 90)  # groups of two and of three
    traces = [replace(random_trace(17 + 3 * index, [4, 9]), id=f"t{index}") for index in range(7)]
    asked, run = [], InProcess.run

    def counted(self, items):
        for item, said in run(self, items):
            asked.append([piece.trace.id for piece in item.pieces])
            yield item, said

    monkeypatch.setattr(InProcess, "run", counted)
    one = save_step_maps(ModelToLoad(path="bundled"), traces, tmp_path / "one", workers=1, progress=False)
    assert asked == [[], ["t6", "t5"], ["t4", "t3", "t2"], ["t1", "t0"]]
    two = save_step_maps(ModelToLoad(path="bundled"), traces, tmp_path / "two", workers=2, progress=False)
    expected = masses(one)
    assert all(torch.equal(a, b) for a, b in zip(masses(two), expected, strict=True))
    kept = {path: path.stat().st_mtime_ns for path in one if path.stem != "t3"}
    (tmp_path / "one/maps/t3.safetensors").unlink()
    asked.clear()
    save_step_maps(ModelToLoad(path="bundled"), traces, tmp_path / "one", workers=1, progress=False)
    assert asked == [[], ["t4", "t3", "t2"]]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert all(torch.equal(a, b) for a, b in zip(masses(one), expected, strict=True))
