"""The study of which map ranks causes best: a planted best map is chosen on the first half and holds on the second."""

import numpy as np
import pytest
import torch

from experiments import which_map
from stepsal import Knockout, Step, StepMap
from stepsal.errors import InputError

TRACES, STEPS = [f"t{index}" for index in range(12)], 9
PAIRS = torch.full((STEPS, STEPS), 4).tril()


def a_trace(seed: int) -> tuple[Knockout, dict[str, StepMap]]:
    """A knockout, and maps of which `planted` says the same in the deep layer's second head alone."""
    random = torch.Generator().manual_seed(seed)
    steps = tuple(Step(i, "thinking" if i else "question", 2 * i, 2 * i + 2, f"step {i}") for i in range(STEPS))
    effect = torch.rand(STEPS, STEPS, generator=random).tril(-1)
    effect[:, 0] = 0
    unknown = torch.ones(STEPS, STEPS).triu().bool()
    unknown[:, 0] = True
    kl = effect.masked_fill(unknown, torch.nan)
    mass = {
        kind: torch.rand(4, 2, STEPS, STEPS, generator=random).tril()
        for kind in ("loss", "logit", "attention", "planted")
    }
    mass["planted"][3] = 0
    mass["planted"][3, 1] = effect
    meta = {"trace": f"t{seed}"}
    maps = {kind: StepMap(values, PAIRS, steps, (0, 1, 2, 3), meta) for kind, values in mass.items()}
    return Knockout(kl, kl, kl[-1], steps, meta | {"mode": "total"}), maps


@pytest.fixture
def folder(tmp_path, monkeypatch):
    traces = [a_trace(seed) for seed in range(len(TRACES))]
    for kind in (*traces[0][1], "knockout"):
        (tmp_path / kind).mkdir()
    monkeypatch.setattr(which_map, "load_knockouts", lambda path: [knockout for knockout, _ in traces])
    monkeypatch.setattr(which_map, "load_step_maps", lambda path: [maps[path.name] for _, maps in traces])
    return tmp_path


def test_the_planted_map_is_chosen_with_its_layers_and_holds_on_the_other_half(folder):
    scored = which_map.score_model(folder)
    assert which_map.choose({"one": scored}) == ("planted", "deep")
    np.testing.assert_allclose(scored.maps["planted", "deep"][~scored.first], 1)
    assert abs(np.nanmean(scored.maps["loss", "sum"])) < 0.5


def test_the_planted_head_is_the_best_alone(folder):
    heads = which_map.score_model(folder).heads["planted"]
    assert (np.nan_to_num(heads, nan=-1).argmax(1) == 3 * 2 + 1).all()


def test_the_choice_does_not_see_the_second_half(folder):
    scored = which_map.score_model(folder)
    scored.maps["loss", "sum"][~scored.first] = 2  # better than anything can be
    assert which_map.choose({"one": scored}) == ("planted", "deep")


def test_both_halves_have_traces_and_the_tables_name_the_choice(folder):
    scored = which_map.score_model(folder)
    assert 0 < scored.first.sum() < len(TRACES)
    assert "Chosen: `planted deep`" in which_map.tables({"one": scored})


def test_a_trace_without_a_map_is_named(folder, monkeypatch):
    monkeypatch.setattr(which_map, "load_step_maps", lambda path: [])
    with pytest.raises(InputError, match="no map of trace"):
        which_map.score_model(folder)
