"""Faithfulness: what each score must be where the answer is known, what does not matter to it, and what is refused."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import faithfulness_by_loops, partial_spearman_by_regression

import stepsal
from stepsal import InputError, Knockout, StepMap, faithfulness
from stepsal.causality.scores import entries_of, overall, pairs_of_trace, partial
from stepsal.saliency.pooling import count_pairs
from stepsal.saliency.stepmapfile import StepMapFile
from stepsal.statistics.ranks import rank_correlation
from stepsal.statistics.same_traces import means_with_intervals, sign_flip_p

SIZES = [5, 3, 7, 2, 4, 11, 3, 6, 2, 5]
STEPS = make_steps("q" + "t" * 7 + "ss", SIZES)
PAIRS = torch.ones(10, 10, dtype=torch.bool).tril(-1)


def make_knockout(effect, name="a", steps=STEPS, question=False, **meta):
    effect = effect.float().masked_fill(~PAIRS, torch.nan)
    if not question:
        effect[:, 0] = torch.nan
    return Knockout(effect, effect, effect[-1], steps, {"trace": name, "mode": "total", **meta})


def map_of(entries, name="a", steps=STEPS, **meta):
    """A map with these entries, spread over two layers and three heads."""
    queries = torch.tensor([min(step.stop, steps[-1].stop - 1) - step.start for step in steps])[:, None]
    parts = torch.tensor([0.5, 1.0, 0.25, 3.0, 2.0, 0.25]).reshape(2, 3, 1, 1) / 7
    mass = (entries.double() * queries).tril(-1) * parts
    return StepMap(mass, count_pairs(steps), steps, (0, 1), {"trace": name, "rule": "abs", **meta})


def random_entries(seed, shape=(10, 10)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def means(check, of="abs"):
    """The mean of each score and selection of pairs."""
    rows = check.table[check.table["map"] == of]
    return {(row["score"], row["pairs"]): row["mean"] for row in rows.to_dict("records")}


def values_of(check):
    return check.per_trace.set_index(["trace", "score", "pairs", "map"])["value"].sort_index()


@pytest.mark.parametrize("question", [False, True])
def test_a_perfect_map_has_every_score_1_and_a_reversed_one_minus_1(question):
    effect = random_entries(0)
    knockout = make_knockout(effect, question=question)
    for entries, expected in ((effect, 1), (1 / effect, -1), (effect.log() + 9, 1), (-effect, -1)):
        found = means(faithfulness([map_of(entries)], [knockout]))
        assert len(found) == (12 if question else 6)
        assert all(value == pytest.approx(expected, abs=1e-12) for value in found.values())


def test_the_scores_equal_loops_over_readers_and_pairs():
    effect, entries = random_entries(1), random_entries(2)
    knockout, stepmap = make_knockout(effect, question=True), map_of(entries)
    expected = faithfulness_by_loops(knockout.kl, entries_of(stepmap), SIZES)
    found = means(faithfulness([stepmap], [knockout]))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key


def test_an_entry_is_influence_for_each_query_that_has_a_target():
    entries = random_entries(3).tril(-1)
    torch.testing.assert_close(entries_of(map_of(entries)).tril(-1), entries)
    steps = make_steps("qts", [3, 2, 1])  # the last step has no query
    stepmap = StepMap(torch.ones(1, 1, 3, 3), count_pairs(steps), steps, (0,), {})
    assert entries_of(stepmap)[2].isnan().all()


def test_a_monotone_transformation_of_the_map_or_the_knockout_changes_nothing():
    effect, entries = random_entries(4), random_entries(5)
    expected = values_of(faithfulness([map_of(entries)], [make_knockout(effect)]))
    other = values_of(faithfulness([map_of(entries**3)], [make_knockout(effect.exp())]))
    np.testing.assert_allclose(other, expected, atol=1e-12)


def test_what_is_a_function_of_distance_alone_has_no_partial_score():
    """It says nothing beyond distance: its partial score is missing, and not some number made of rounding."""
    pairs = pairs_of_trace(make_knockout(random_entries(6)), {})
    for entries in (1 / pairs.distance, -np.log(pairs.distance), pairs.distance / 3, np.exp(-pairs.distance)):
        assert math.isnan(partial(entries, pairs))
        assert math.isfinite(overall(entries, pairs))
    table = faithfulness([map_of(random_entries(5))], [make_knockout(random_entries(6))]).table
    missing = table[table["mean"].isna()]
    assert set(zip(missing["score"], missing["map"], strict=True)) == {("partial", "recency"), ("partial", "length")}
    assert table.query("score == 'partial' and map == 'abs'")["over recency"].isna().all()


def test_a_map_that_knows_distance_alone_has_partial_scores_about_0():
    index = torch.arange(10, dtype=torch.float64)
    recency = 1 / (index[:, None] - index).clamp(min=1)
    maps, knockouts = [], []
    for i in range(60):
        noise = 1 + 0.5 * random_entries(100 + i), 1 + 0.5 * random_entries(200 + i)
        maps.append(map_of(recency * noise[0], f"t{i}"))
        knockouts.append(make_knockout(recency * noise[1], f"t{i}"))
    found = faithfulness(maps, knockouts).table.set_index(["score", "pairs", "map"])
    assert found.loc[("overall", "all", "abs"), "mean"] > 0.5
    partial = found.loc[("partial", "all", "abs")]
    assert partial["low"] < 0 < partial["high"]
    assert abs(partial["mean"]) < 0.1
    # What the map knows is distance: its entries permuted within each distance know as much.
    assert found.loc[("overall", "all", "abs"), "over shuffled low"] < 0.05


def test_missing_entries_do_not_count():
    effect, entries = random_entries(7), random_entries(8)
    whole = make_knockout(effect)
    part = replace(whole, kl=whole.kl.clone())
    part.kl[:, 3] = torch.nan  # a source that was not asked for
    expected = faithfulness_by_loops(part.kl, entries_of(map_of(entries)), SIZES)
    assert means(faithfulness([map_of(entries)], [part]))["per reader", "all"] == pytest.approx(
        expected["per reader", "all"], abs=1e-12
    )
    holes = map_of(entries)
    holes.mass[:, :, :, 3] = torch.nan  # and one that the map does not know: no kind and no baseline is scored on it
    one, other = (values_of(faithfulness([stepmap], [k])) for stepmap, k in ((holes, whole), (map_of(entries), part)))
    np.testing.assert_array_equal(one, other)


def test_what_is_not_defined_is_missing_and_never_zero():
    steps = make_steps("qtts", [3, 4, 2, 5])
    effect = torch.rand(4, 4).masked_fill(~PAIRS[:4, :4], torch.nan)
    short = Knockout(effect, effect, effect[-1], steps, {"trace": "short", "mode": "total"})
    stepmap = map_of(torch.rand(4, 4), "short", steps)
    check = faithfulness([stepmap], [short])
    assert np.isnan(check.per_trace.query("score == 'per reader'")["value"]).all()  # no reader has four earlier steps
    assert check.table.query("score == 'per reader'")[["mean", "low", "high"]].isna().all(axis=None)
    assert (check.table.query("score == 'per reader'")["n"] == 0).all()
    # A trace without a value changes no mean.
    question = make_knockout(random_entries(9), question=True)
    both = faithfulness([stepmap, map_of(random_entries(10))], [short, question])
    alone = faithfulness([map_of(random_entries(10))], [question])
    row = "score == 'per reader' and map == 'abs'"
    np.testing.assert_array_equal(both.table.query(row)["mean"], alone.table.query(row)["mean"])
    constant = faithfulness([map_of(torch.ones(10, 10))], [question])
    assert np.isnan(constant.table.query("map == 'abs' and score != 'overall'")["mean"]).all()


def some_traces(n=5, kinds=({"rule": "abs"},)):
    maps = [map_of(random_entries(i + 50 * k), f"t{i}", **kind) for i in range(n) for k, kind in enumerate(kinds)]
    return maps, [make_knockout(random_entries(1000 + i), f"t{i}") for i in range(n)]


def test_maps_that_stay_in_their_files_have_the_scores_of_loaded_ones(tmp_path):
    stepmaps, knockouts = some_traces(kinds=({"rule": "abs"}, {"rule": "attention"}))
    files = []
    for index, stepmap in enumerate(stepmaps):
        stepmap.save(tmp_path / f"{index}.safetensors")
        files.append(StepMapFile.open(tmp_path / f"{index}.safetensors"))
    found, expected = faithfulness(files, knockouts, resamples=99), faithfulness(stepmaps, knockouts, resamples=99)
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True)
    pd.testing.assert_frame_equal(found.per_trace, expected.per_trace, check_exact=True)


def test_the_order_of_the_traces_does_not_matter():
    maps, knockouts = some_traces(6, [{"rule": "abs"}, {"rule": "attention"}])
    one = faithfulness(maps, knockouts)
    other = faithfulness([*reversed(maps[::2]), *maps[1::2]], knockouts[3:] + knockouts[:3])
    assert one.table.equals(other.table)
    values = [values_of(check) for check in (one, other)]
    assert values[0].equals(values[1])


def test_a_traces_baselines_do_not_depend_on_the_other_traces():
    maps, knockouts = some_traces(4)
    together, alone = (values_of(faithfulness(maps[i:], knockouts[i:])) for i in (0, 3))
    assert together.loc["t3"].equals(alone.loc["t3"])
    other_seed = values_of(faithfulness(maps, knockouts, seed=1))
    assert not other_seed.equals(together)


def test_kinds_of_maps_are_told_apart_and_compared_with_each_other():
    kinds = [{"rule": "abs", "objective": "token"}, {"rule": "abs", "score": "logit"}, {"rule": "attention"}]
    maps, knockouts = some_traces(5, kinds)
    check = faithfulness(maps, knockouts)
    assert check.kinds == ("abs", "abs logit", "attention")
    wide = values_of(check).unstack("map").loc[(slice(None), "per reader", "all"), :]
    row = check.table.query("score == 'per reader' and pairs == 'all'").set_index("map").loc["abs"]
    for name in ("abs logit", "attention", "random", "recency", "length"):
        difference = wide["abs"] - wide[name]
        assert row[f"over {name}"] == pytest.approx(difference.mean())
        assert row[f"over {name} low"] <= row[f"over {name}"] <= row[f"over {name} high"]
        assert 0 < row[f"over {name} p"] <= 1
    assert row["over shuffled"] == pytest.approx((wide["abs"] - wide["abs, shuffled"]).mean())
    assert math.isnan(row["over abs"])
    summary = check.summary()
    assert "5 traces" in summary
    assert "| abs | attention |" in summary
    assert "nan" not in summary


def test_other_knockouts_are_an_upper_reference_beside_the_baselines():
    maps, knockouts = some_traces(5)
    others = [replace(each, meta=each.meta | {"mode": "direct"}) for each in knockouts]
    check, plain = faithfulness(maps, knockouts, reference=others), faithfulness(maps, knockouts)
    assert check.kinds == plain.kinds == ("abs",)
    rows = check.table.query("score == 'per reader' and pairs == 'all'").set_index("map")
    assert rows.loc["knockout direct", "mean"] == 1
    assert rows.loc["abs", "over knockout direct"] == pytest.approx(rows.loc["abs", "mean"] - 1)
    without = values_of(check).drop("knockout direct", level="map")
    assert without.sort_index().equals(values_of(plain).sort_index())
    assert "| knockout direct |" in check.summary()
    for wrong, message in (
        (others[1:], "trace 't0' has no reference 'knockout direct'"),
        ([*others, others[2]], "two references of trace 't2' are of the mode 'direct'"),
        ([*others, make_knockout(random_entries(1), "t9")], "reference is of trace 't9', which has no knockout"),
        ([replace(others[0], steps=others[0].steps[:-1]), *others[1:]], "have other steps"),
    ):
        with pytest.raises(InputError, match=message):
            faithfulness(maps, knockouts, reference=wrong)


def test_a_map_is_compared_with_its_own_entries_at_the_same_distance():
    maps, knockouts = [], []
    for i in range(12):
        effect = random_entries(i)
        maps.append(map_of(effect * (1 + 0.2 * random_entries(300 + i)), f"t{i}"))
        knockouts.append(make_knockout(effect, f"t{i}"))
    table = faithfulness(maps, knockouts).table.set_index(["score", "pairs", "map"])
    for score in ("per reader", "overall", "partial"):
        row = table.loc[(score, "all", "abs")]
        assert row["over shuffled low"] > 0.3
        assert row["over shuffled p"] < 0.01
        assert row["over random low"] > 0.3


def test_under_shuffled_knockouts_a_map_seldom_beats_a_baseline():
    """Of independent comparisons at most 5 % have p < 0.05; of 24, more than 5 have in one case of 300."""
    beaten = dict.fromkeys(("random", "recency", "length", "shuffled"), 0)
    for run in range(24):
        maps = [map_of(random_entries(9000 + 20 * run + i), f"t{i}") for i in range(6)]
        knockouts = [make_knockout(random_entries(50_000 + 20 * run + i), f"t{i}") for i in range(6)]
        row = faithfulness(maps, knockouts, resamples=256, seed=run).table.iloc[0]
        assert (row["score"], row["pairs"], row["map"]) == ("per reader", "all", "abs")
        for name in beaten:
            beaten[name] += row[f"over {name} p"] < 0.05
    assert max(beaten.values()) <= 5


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, k: (m[:-1], k), "trace 't2' has a knockout but no step map of the kind 'abs'"),
        (lambda m, k: (m, k[1:]), "the step map of trace 't0' has no knockout: the knockouts are of 't1', 't2'"),
        (lambda m, k: ([*m, m[0]], k), "two step maps of trace 't0' are of one kind, 'abs'"),
        (lambda m, k: (m, [*k, k[1]]), "two knockouts are of trace 't1'"),
        (lambda m, k: ([], []), "there are no step maps and no knockouts"),
        (lambda m, k: ([], k), "trace 't0' has a knockout but no step map: give"),
        (
            lambda m, k: (m, [replace(k[0], meta=k[0].meta | {"mode": "direct"}), *k[1:]]),
            "differ in mode: 'direct' and",
        ),
        (
            lambda m, k: (m, [make_knockout(random_entries(1), "t0", question=True), *k[1:]]),
            "differ in the question knocked out",
        ),
        (lambda m, k: ([replace(m[0], layers=(0, 2)), *m[1:]], k), r"differ in layers: \(0, 2\) and \(0, 1\)"),
        (
            lambda m, k: ([replace(m[0], steps=make_steps("q" + "t" * 8 + "s", SIZES)), *m[1:]], k),
            r"have other steps \(step 8 differs\)",
        ),
        (lambda m, k: ([replace(m[0], meta=m[0].meta | {"rule": "recency"}), *m[1:]], k), "'recency' is a baseline"),
    ],
)
def test_what_does_not_match_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        faithfulness(*change(*some_traces(3)))


def test_other_things_than_maps_and_knockouts_are_refused():
    maps, knockouts = some_traces(1)
    for arguments, message in (
        ((maps[0], knockouts), r"make a list, \[stepmap\]"),
        ((maps, knockouts[0]), r"of one make a list, \[knockout\]"),
        ((knockouts, maps), "expected a list of step maps"),
        ((maps, maps), "expected a list of knockouts"),
    ):
        with pytest.raises(InputError, match=message):
            faithfulness(*arguments)
    with pytest.raises(InputError, match="too few for 95 % intervals"):
        faithfulness(maps, knockouts, resamples=50)


# --- the statistics ---------------------------------------------------------------------------------------------------
floats = st.floats(-100, 100, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(floats, floats, floats, floats), min_size=8, max_size=20), st.integers(0, 2))
def test_rank_correlations_equal_scipys_and_those_of_residuals(rows, given_count):
    from scipy.stats import spearmanr

    x, y, *given = np.array(rows).T[: 2 + given_count]
    found = rank_correlation(x, y, given)
    if given_count:
        expected = partial_spearman_by_regression(x, y, given)
    else:
        defined = len(set(x)) > 1 and len(set(y)) > 1
        expected = spearmanr(x, y).statistic if defined else math.nan
    assert found == pytest.approx(expected, abs=1e-7, nan_ok=True)


def test_the_sign_flip_test_is_that_of_all_ways_to_flip_the_signs():
    import itertools

    differences = np.array([0.3, -0.1, 0.7, 0.25, np.nan])
    known = differences[:4]
    ways = [abs(np.dot(known, signs)) for signs in itertools.product([1, -1], repeat=4)]
    expected = np.mean([way >= abs(known.sum()) - 1e-12 for way in ways])
    assert sign_flip_p(differences[:, None], 2000, 0)[0] == pytest.approx(expected)
    assert math.isnan(sign_flip_p(np.array([[1.0], [np.nan]]), 2000, 0)[0])


def test_of_all_ways_to_flip_the_signs_at_most_5_percent_have_a_p_value_of_5_percent():
    import itertools

    sizes = np.random.default_rng(0).exponential(size=9)
    ways = np.array([sizes * signs for signs in itertools.product([1, -1], repeat=9)]).T
    assert np.mean(sign_flip_p(ways, 2000, 0) <= 0.05) <= 0.05


def test_intervals_of_means_cover_the_mean_and_leave_missing_values_out():
    values = np.random.default_rng(0).normal(size=(40, 3))
    holes = np.concatenate([values, np.full((5, 3), np.nan)])
    mean, low, high = means_with_intervals(holes, 999, 0)
    np.testing.assert_allclose(mean, values.mean(0))
    spread = values.std(0, ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(high - low, 2 * 1.96 * spread, rtol=0.2)
    one = means_with_intervals(np.array([[1.0, np.nan]]), 99, 0)
    assert one[0][0] == 1
    assert np.isnan(one[1]).all()


def test_the_python_of_the_page_runs_as_pasted(capsys):
    page = (Path(__file__).parents[2] / "docs" / "causality.md").read_text(encoding="utf-8")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/causality.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "1 trace; rank correlation with step knockout (total)" in printed
    assert "deletion" in printed


def test_the_bundled_reasoners_maps_are_scored(reasoner):
    from stepsal.reasoner import make_problem

    problem = make_problem("test", 1)
    trace = stepsal.Trace.from_text(reasoner.tokenizer, problem.messages, problem.response, id="one")
    maps = [stepsal.step_saliency(reasoner, trace, rule=rule) for rule in ("abs", "attention")]
    check = faithfulness(maps, [stepsal.step_knockout(reasoner, trace)])
    assert check.kinds == ("abs", "attention")
    assert np.isfinite(check.table.query("score == 'overall' and pairs == 'all'")["mean"]).all()
