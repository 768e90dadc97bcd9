"""Several steps removed at once: the answer's log-probability, and the scores that are made of it."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import make_steps
from reference import answer_by_loops

import stepsal
from stepsal import InputError, Knockout, StepMap, Trace, faithfulness
from stepsal.causality import runs
from stepsal.causality.answers import MeasuredSets, answer_entries, deletion, insertion, lds
from stepsal.causality.orders import measure_orders
from stepsal.causality.subsets import answer_without
from stepsal.models import host_of
from stepsal.reasoner import make_problem
from stepsal.saliency.pooling import count_pairs


@pytest.fixture(scope="module")
def trace(reasoner):
    problem = make_problem("test", 3)
    return Trace.from_text(reasoner.tokenizer, problem.messages, problem.response, id="one")


def rows_of(sets, n):
    removed = torch.zeros(len(sets), n, dtype=torch.bool)
    for row, each in zip(removed, sets, strict=True):
        row[list(each)] = True
    return removed


# --- the model --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("whole_summary", [True, False])
def test_the_answer_without_sets_of_steps_equals_whole_passes_without_a_cache(reasoner, trace, whole_summary):
    summary = trace.segment("summary")
    span = (summary[0].start, summary[-1].stop) if whole_summary else (trace.steps[3].start + 1, trace.steps[3].stop)
    sets = [(), (1,), (3,), (1, 3), (2, 4), (1, 2, 3, 4), (0, 2), (len(trace.steps) - 2,)]
    found = answer_without(reasoner, trace, rows_of(sets, len(trace.steps)), answer=None if whole_summary else span)
    with torch.no_grad():
        expected = [answer_by_loops(host_of(reasoner), trace, each, span) for each in sets]
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_one_removed_step_costs_the_answer_what_its_knockout_says(reasoner, trace, monkeypatch):
    n = len(trace.steps)
    sets = rows_of([(), *((j,) for j in range(1, n - 1))], n)
    for mode in ("total", "direct"):
        knockout = stepsal.step_knockout(reasoner, trace, mode=mode)
        found = answer_without(reasoner, trace, sets, mode=mode)
        known = ~knockout.answer[1 : n - 1].isnan()
        torch.testing.assert_close(
            (found[0] - found[1:])[known], knockout.answer[1 : n - 1][known], rtol=1e-3, atol=1e-4
        )
    monkeypatch.setattr(runs, "MAX_BATCH", 2)
    monkeypatch.setattr(runs, "CHUNK", 9)
    torch.testing.assert_close(answer_without(reasoner, trace, sets, mode="direct"), found, rtol=1e-4, atol=1e-4)


def test_random_halves_are_measured_with_the_knockout_and_kept_in_its_file(reasoner, trace, tmp_path):
    knockout = stepsal.step_knockout(reasoner, trace, subsets=6, seed=3)
    thinking = [step.index for step in trace.segment("thinking")]
    assert knockout.meta["subsets"] == 6
    assert knockout.removed.shape == (7, len(trace.steps))
    assert knockout.removed.sum(1).tolist() == [0] + [len(thinking) // 2] * 6
    assert not knockout.removed[:, [j for j in range(len(trace.steps)) if j not in thinking]].any()
    torch.testing.assert_close(knockout.answers, answer_without(reasoner, trace, knockout.removed))
    again, other = (stepsal.step_knockout(reasoner, trace, subsets=6, seed=seed).removed for seed in (3, 4))
    assert torch.equal(again, knockout.removed)
    assert not torch.equal(other, knockout.removed)
    knockout.save(tmp_path / "a.safetensors")
    read = Knockout.load(tmp_path / "a.safetensors")
    assert torch.equal(read.removed, knockout.removed)
    assert torch.equal(read.answers, knockout.answers)
    replace(knockout, removed=None).save(tmp_path / "b.safetensors")
    with pytest.raises(stepsal.FileError, match="of removed and answers it holds one alone"):
        Knockout.load(tmp_path / "b.safetensors")


def test_without_an_answer_or_with_few_steps_no_halves_are_measured(reasoner):
    cut = Trace.from_text(reasoner.tokenizer, "Facts: k = 37.<think>", "a\n\nb\n\nc\n\nd\n\ne")
    few = Trace.from_text(reasoner.tokenizer, "Facts: k = 37.<think>", "a\n\nb</think>c")
    for each in (cut, few):
        knockout = stepsal.step_knockout(reasoner, each, subsets=6)
        assert knockout.removed is None
        assert knockout.meta["subsets"] == 0
    with pytest.raises(InputError, match="has no summary: give the token positions of its answer"):
        answer_without(reasoner, cut, rows_of([(1,)], len(cut.steps)))


def test_sets_that_do_not_fit_are_refused(reasoner, trace):
    n = len(trace.steps)
    for removed in (rows_of([(1,)], n - 1), rows_of([(n - 1,)], n)):
        with pytest.raises(InputError, match="expected true or false for each set and each of the"):
            answer_without(reasoner, trace, removed)


def test_measured_orders_give_deletion_and_insertion_to_every_map_and_baseline(reasoner, trace):
    stepmaps = [stepsal.step_saliency(reasoner, trace, rule=rule) for rule in ("abs", "attention")]
    knockout = stepsal.step_knockout(reasoner, trace, subsets=5)
    table = faithfulness(stepmaps, [knockout]).table
    assert table.query("score == 'deletion'")["mean"].isna().all()  # not measured: missing
    measured = measure_orders(reasoner, trace, knockout, stepmaps)
    assert torch.equal(measured.removed[:6], knockout.removed)
    assert measure_orders(reasoner, trace, measured, stepmaps).removed.shape == measured.removed.shape
    table = faithfulness(stepmaps, [measured]).table.set_index(["score", "map"])["mean"]
    for name in ("abs", "attention", "random", "recency", "length"):
        assert math.isfinite(table["deletion", name])
        assert math.isfinite(table["insertion", name])
    alone = measure_orders(reasoner, trace, stepsal.step_knockout(reasoner, trace), stepmaps)
    assert not alone.removed[0].any()
    found = faithfulness(stepmaps, [alone]).table.set_index(["score", "map"])["mean"]
    assert found["deletion", "abs"] == pytest.approx(table["deletion", "abs"], abs=1e-3)
    assert math.isnan(found["LDS", "abs"])
    with pytest.raises(InputError, match="have other steps"):
        measure_orders(reasoner, replace(trace, steps=trace.steps[:-1]), knockout, stepmaps)


# --- the scores, where the answer's loss is the sum of what each step costs -------------------------------------------
COSTS = [2.0, 0.25, 1.0, 0.5, 3.0]
STEPS = make_steps("qtttttss", [4, 3, 2, 5, 2, 3, 2, 3])


def additive_knockout(halves=8):
    """All sets of the five thinking steps were measured; some halves are named as random."""
    places = list(itertools.chain.from_iterable(itertools.combinations(range(5), k) for k in (0, 2, 1, 3, 4, 5)))
    removed = rows_of([[place + 1 for place in each] for each in places], 8)
    answers = torch.tensor([-1 - sum(COSTS[place] for place in each) for each in places])
    answer = torch.tensor([torch.nan, *COSTS, torch.nan, torch.nan])
    kl = torch.full((8, 8), torch.nan)
    meta = {"trace": "a", "mode": "total", "answer": [19, 24], "subsets": halves}
    return Knockout(kl, kl, answer, STEPS, meta, removed, answers)


@pytest.mark.parametrize("power", [1, 2, 0.3])
def test_a_map_that_knows_the_costs_has_the_best_scores_and_a_reversed_one_the_worst(power):
    sets, costs = MeasuredSets.of(additive_knockout()), np.array(COSTS)
    assert (deletion(costs**power, sets), insertion(costs**power, sets)) == (0, 0)
    assert (deletion(-costs, sets), insertion(-costs, sets)) == (1, 1)
    assert lds(costs, sets) == pytest.approx(1)
    assert lds(-costs, sets) == pytest.approx(-1)
    for order in itertools.permutations(COSTS):
        assert -1e-9 <= deletion(np.array(order), sets) <= 1 + 1e-9


def test_deletion_is_the_mean_height_under_the_curve():
    sets, entries = MeasuredSets.of(additive_knockout()), np.array([5.0, 4.0, 3.0, 2.0, 1.0])

    def area(order):
        heights = [-1 - sum(COSTS[place] for place in order[:count]) for count in range(6)]
        return sum((a + b) / 2 for a, b in itertools.pairwise(heights)) / 5

    own, reverse = area([4, 0, 2, 3, 1]), area([1, 3, 2, 0, 4])
    assert deletion(entries, sets) == pytest.approx((area([0, 1, 2, 3, 4]) - own) / (reverse - own))


def test_an_entry_for_the_answer_is_influence_for_each_query_of_its_steps():
    mass = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    stepmap = StepMap(mass, count_pairs(STEPS), STEPS, (0, 1), {"trace": "a", "rule": "abs"})
    found = answer_entries(additive_knockout(), {"abs": stepmap}, 0, "a")
    expected = [
        (mass[:, :, 6, j] + mass[:, :, 7, j]).sum() / 4 for j in range(1, 6)
    ]  # the last of 5 tokens is no query
    np.testing.assert_allclose(found["abs"][0, 1:6], torch.stack(expected), rtol=1e-6)
    np.testing.assert_allclose(found["recency"][0, 1:6], 1 / np.array([5, 4, 3, 2, 1]))
    assert found["length"][0, 1:6].tolist() == [3, 2, 5, 2, 3]


def test_the_scores_of_the_answer_are_in_the_tables_and_missing_where_a_set_is():
    mass = torch.zeros(1, 1, 8, 8)
    mass[..., 6, 1:6] = torch.tensor(COSTS)
    stepmap = StepMap(mass, count_pairs(STEPS), STEPS, (0,), {"trace": "a", "rule": "abs"})
    knockout = additive_knockout()
    table = faithfulness([stepmap], [knockout]).table.query("pairs == 'answer'").set_index(["score", "map"])["mean"]
    assert table["LDS", "abs"] == pytest.approx(1)
    assert (table["deletion", "abs"], table["insertion", "abs"]) == (0, 0)
    assert ("LDS", "abs, shuffled") not in table.index  # each distance has one step: nothing to permute
    keep = knockout.removed.sum(1) != 3
    part = replace(knockout, removed=knockout.removed[keep], answers=knockout.answers[keep])
    table = faithfulness([stepmap], [part]).table.query("pairs == 'answer'").set_index(["score", "map"])["mean"]
    assert math.isnan(table["deletion", "abs"])
    assert table["LDS", "abs"] == pytest.approx(1)
    holes = replace(stepmap, mass=mass.clone())
    holes.mass[..., 6, 2] = torch.nan
    table = faithfulness([holes], [knockout]).table.query("pairs == 'answer'").set_index(["score", "map"])["mean"]
    assert np.isnan([table[score, "abs"] for score in ("LDS", "deletion", "insertion")]).all()
