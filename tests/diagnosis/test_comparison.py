import itertools
import json

import numpy as np
import pytest
import torch
from helpers import make_map, random_map

from stepsal import Comparison, FileError, InputError, compare, diagnose
from stepsal.diagnosis.comparison import LENGTH_TOLERANCE

SEGMENTS = "qttttss"


def some_map(seed: int, last: int = 4, layers: int = 4, segments: str = SEGMENTS, **meta):
    sizes = [*[12, 5, 6, 4, 5, 4, 3, 5, 4][: len(segments) - 1], last]
    return random_map(segments, sizes, layers, 3, seed, **meta)


def planted(stepmap, layer: int, factor: float = 3):
    """The map with the thinking steps' influence from themselves grown in one layer."""
    for step in stepmap.segment("thinking"):
        stepmap.mass[layer, :, step, step] *= factor
    return stepmap


def row(table, metric: str, layer: int | None = None):
    here = table["layer"].isna() if layer is None else table["layer"] == layer
    (found,) = table[(table["metric"] == metric) & here].to_dict("records")
    return found


GROUPS = [[some_map(i) for i in range(9)], [planted(some_map(100 + i), 2) for i in range(13)]]
RESULT = compare(*GROUPS, resamples=499)


def values(group: int, metric: str, layer: int) -> list[float]:
    return [diagnose(stepmap).table[metric][layer] for stepmap in GROUPS[group]]


# --- the numbers -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("metric", "layer"), [("lock_in", 2), ("summary_self", 0)])
def test_effect_sizes_equal_their_definitions(metric, layer):
    correct, wrong = values(0, metric, layer), values(1, metric, layer)
    found = row(RESULT.table, metric, layer)
    assert (found["n_correct"], found["n_wrong"]) == (9, 13)
    assert found["difference"] == pytest.approx(np.mean(wrong) - np.mean(correct), abs=1e-6)
    signs = [np.sign(b - a) for a in correct for b in wrong]
    assert found["cliffs_delta"] == pytest.approx(np.mean(signs))
    assert found["auc"] == pytest.approx((np.mean(signs) + 1) / 2)
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["auc_low"] <= found["auc"] <= found["auc_high"]


def test_the_intervals_agree_with_scipys_bootstrap_of_the_values():
    from scipy.stats import bootstrap

    samples = [np.array(values(group, "summary_self", 1), dtype=float) for group in (0, 1)]
    expected = bootstrap(
        samples,
        lambda a, b, axis: b.mean(axis) - a.mean(axis),
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = row(compare(*GROUPS, resamples=4999).table, "summary_self", 1)
    low, high = float(expected.low), float(expected.high)
    assert found["low"] == pytest.approx(low, abs=0.05 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.05 * (high - low))


def test_p_agrees_with_scipys_permutation_test_of_the_same_statistic():
    from scipy.stats import permutation_test, ttest_ind

    samples = [np.array(values(group, "summary_self", 1)) for group in (0, 1)]
    expected = permutation_test(
        samples,
        lambda a, b, axis: np.abs(ttest_ind(a, b, axis=axis, equal_var=False).statistic),
        n_resamples=4999,
        alternative="greater",
        vectorized=True,
        rng=np.random.default_rng(1),
    ).pvalue
    assert row(compare(*GROUPS, resamples=4999).table, "summary_self", 1)["p"] == pytest.approx(expected, abs=0.03)


def test_the_planted_layer_is_found_and_no_other():
    table = RESULT.table[RESULT.table["metric"] == "lock_in"].set_index("layer")
    assert (table["p_corrected"] < 0.05).tolist() == [False, False, True, False]
    assert table["auc"][2] > 0.95


def test_the_correction_never_makes_p_smaller():
    table = RESULT.table.dropna(subset=["p"])
    assert (table["p_corrected"] >= table["p"]).all()
    assert table["p"].between(1 / 500, 1).all()


def test_under_the_null_one_run_in_twenty_rejects():
    """300 times the labels of 40 healthy traces are shuffled; any layer below 0.05, corrected, is a rejection."""
    pool = [diagnose(some_map(i, layers=8)) for i in range(40)]
    rng = np.random.default_rng(0)
    metrics = ("lock_in", "thinking_to_summary")
    rejected = dict.fromkeys(metrics, 0)
    for seed in range(300):
        order = rng.permutation(40)
        table = compare([pool[i] for i in order[:17]], [pool[i] for i in order[17:]], resamples=199, seed=seed).table
        for metric in metrics:
            rejected[metric] += bool((table.loc[table["metric"] == metric, "p_corrected"] < 0.05).any())
    for metric in metrics:
        assert 0.02 <= rejected[metric] / 300 <= 0.08, rejected


def test_the_seed_decides_the_result():
    again, other = compare(*GROUPS, resamples=499), compare(*GROUPS, resamples=499, seed=1)
    assert again.table.equals(RESULT.table)
    assert not other.table["low"].equals(RESULT.table["low"])
    assert other.table["auc"].equals(RESULT.table["auc"])


def test_diagnoses_and_maps_give_the_same():
    diagnoses = [[diagnose(each) for each in group] for group in GROUPS]
    assert compare(*diagnoses, resamples=499).table.equals(RESULT.table)


# --- missing values --------------------------------------------------------------------------------------------------
def test_a_trace_without_a_metric_is_left_out_of_it_alone():
    short = some_map(50, segments="qttttt")
    result = compare([*GROUPS[0], short], GROUPS[1], resamples=199)
    assert row(result.table, "summary_self", 0)["n_correct"] == 9
    assert row(result.table, "summary_self", 0)["difference"] == row(RESULT.table, "summary_self", 0)["difference"]
    assert row(result.table, "lock_in", 0)["n_correct"] == 10


def test_a_metric_that_nobody_has_is_missing_and_never_zero():
    groups = [[some_map(10 * group + i, segments="qttttt") for i in range(4)] for group in range(2)]
    found = row(compare(*groups, resamples=99).table, "thinking_to_summary", 1)
    assert found["n_correct"] == found["n_wrong"] == 0
    assert all(np.isnan(found[name]) for name in ("correct", "wrong", "difference", "low", "auc", "p", "p_corrected"))


def test_equal_values_are_no_difference():
    same = [make_map("qtttts", [5, 4, 4, 4, 4, 4], torch.ones(4, 2, 6, 6)) for _ in range(5)]
    table = compare(same[:2], same[2:], resamples=99).table.dropna(subset=["p"])
    assert (table["p_corrected"] == 1).all()
    assert (table["auc"] == 0.5).all()


# --- controls --------------------------------------------------------------------------------------------------------
def test_matched_traces_have_as_many_steps_and_nearly_the_same_length():
    correct = [some_map(i, last=4 + i % 3) for i in range(8)] + [some_map(20, segments="qtttss")]
    wrong = [some_map(30 + i, last=5 + 5 * i) for i in range(6)]
    result = compare(correct, wrong, resamples=99)
    assert result.pairs
    assert len({i for i, _ in result.pairs}) == len({j for _, j in result.pairs}) == len(result.pairs)
    for i, j in result.pairs:
        a, b = correct[i], wrong[j]
        assert len(a.steps) == len(b.steps)
        assert abs(np.log(a.steps[-1].stop / b.steps[-1].stop)) <= np.log1p(LENGTH_TOLERANCE)
    assert row(result.matched, "tokens")["n_correct"] == len(result.pairs)


def test_as_many_pairs_are_matched_as_can_be():
    correct, wrong = (
        [some_map(i, last=n) for i, n in enumerate([4, 8, 12])],
        [some_map(9 + i, last=n) for i, n in enumerate([4, 8, 11])],
    )
    pairs = compare(correct, wrong, resamples=99).pairs
    best = 0
    for order in itertools.permutations(range(3)):
        lengths = [(correct[i].steps[-1].stop, wrong[j].steps[-1].stop) for i, j in enumerate(order)]
        best = max(best, sum(abs(np.log(a / b)) <= np.log1p(LENGTH_TOLERANCE) for a, b in lengths))
    assert len(pairs) == best == 3


def test_what_length_alone_explains_does_not_survive_matching():
    """Longer traces lock in more; wrong ones are longer, and at equal length there is no difference."""

    def trace(seed: int, extra: int):
        stepmap = some_map(seed, last=4 + extra)
        for step in stepmap.segment("thinking"):
            stepmap.mass[0, :, step, step] *= 1 + extra
        return stepmap

    lengths = (0, 8, 16)  # over 10 % apart: only equal ones match
    correct = [trace(i, lengths[max(0, i % 6 - 3)]) for i in range(36)]
    wrong = [trace(100 + i, lengths[min(2, i % 6)]) for i in range(36)]
    result = compare(correct, wrong, resamples=999)
    assert row(result.table, "lock_in", 0)["p_corrected"] < 0.05
    assert row(result.table, "tokens")["p"] < 0.05
    assert len(result.pairs) >= 10
    assert row(result.matched, "lock_in", 0)["p_corrected"] > 0.05


def test_the_summary_names_the_metrics_that_are_not_in_its_table():
    """The last three thinking steps' part needs four of them; the kurtosis of receiver heads needs eight."""
    short = [[some_map(10 * group + i, layers=8, segments="qtttss") for i in range(3)] for group in range(2)]
    (said,) = [part for part in compare(*short, resamples=99).summary().split("\n\n") if part.startswith("Not in the")]
    assert "value: last 3 steps' part, receiver head: kurtosis, receiver head: kurtosis beyond distance." in said
    long = [[some_map(10 * group + i, layers=8, segments="qtttttttts") for i in range(3)] for group in range(2)]
    assert "Not in the table" not in compare(*long, resamples=99).summary()


def test_without_two_pairs_there_is_no_matched_table():
    result = compare([some_map(0), some_map(1)], [some_map(2, last=40), some_map(3, last=40)], resamples=99)
    assert result.pairs == ()
    assert len(result.matched) == 0
    assert "AUC matched" in result.summary()


def test_a_difference_that_distance_does_not_explain_is_weaker_in_the_position_only_control():
    """The second thinking step alone reads more from the first one: not a matter of distance."""
    correct, wrong = [some_map(i) for i in range(20)], [some_map(100 + i) for i in range(20)]
    for stepmap in wrong:
        stepmap.mass[0, :, 5, 1:5] *= 2  # the summary's first step, from the thinking
        stepmap.mass[0, :, 6, 1:5] *= 2
    result = compare(correct, wrong, resamples=199)
    measured, alone = (row(table, "thinking_to_summary", 0) for table in (result.table, result.position_only))
    assert measured["auc"] > 0.95
    assert abs(alone["difference"]) < abs(measured["difference"]) / 2


# --- errors, files, display ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: ([], GROUPS[1]), "correct holds 0 trace"),
        (lambda: (GROUPS[0], GROUPS[1][:1]), "error holds 1 trace\\(s\\): a comparison needs two in each group"),
        (lambda: (GROUPS[0], [some_map(i, model="other") for i in range(2)]), "differ in model"),
        (lambda: (GROUPS[0], [some_map(i, score="logit") for i in range(2)]), "differ in score: 'loss' and 'logit'"),
        (lambda: (GROUPS[0], [some_map(i, layers=5) for i in range(2)]), "differ in layers"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        compare(*arguments())


def test_too_few_resamples_are_refused():
    with pytest.raises(InputError, match="resamples=50 are too few"):
        compare(*GROUPS, resamples=50)


def test_a_saved_comparison_comes_back_whole(tmp_path):
    RESULT.save(tmp_path / "c.json")
    found = Comparison.load(tmp_path / "c.json")
    assert found.pairs == RESULT.pairs
    assert found.meta == RESULT.meta
    for name in ("table", "matched", "position_only"):
        before, after = getattr(RESULT, name), getattr(found, name)
        assert before["metric"].tolist() == after["metric"].tolist()
        assert before["layer"].equals(after["layer"])
        numbers = [column for column in before.columns if column not in ("metric", "layer")]
        np.testing.assert_allclose(
            after[numbers].to_numpy(float), before[numbers].to_numpy(float), rtol=1e-9, atol=1e-12
        )
    assert found.summary() == RESULT.summary()


@pytest.mark.parametrize("content", [None, "", "{}", '{"format": "stepsal comparison 0"}', "[1]"])
def test_a_file_that_is_no_comparison_is_refused(tmp_path, content):
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        FileError, match="there is no comparison" if content is None else "is not a comparison this version can read"
    ):
        Comparison.load(path)


def test_the_three_tables_come_in_one_on_demand():
    frame = RESULT.to_dataframe()
    assert frame["control"].value_counts().to_dict() == {
        "none": len(RESULT.table),
        "matched": len(RESULT.matched),
        "position only": len(RESULT.position_only),
    }
    assert "lock-in" in RESULT._repr_html_()


def changed(path, change):
    content = json.loads(path.read_text())
    content.pop("sha256")
    change(content)
    path.write_text(json.dumps(content))


CHANGES = {
    "a table that is no list": lambda c: c.update(table={}),
    "a table without rows": lambda c: c.update(table=[]),
    "a row that is no record": lambda c: c["matched"].insert(0, 3),
    "a row without a column": lambda c: c["table"][0].pop("auc"),
    "a column that is text": lambda c: c["table"][0].update(auc="high"),
    "a layer that is a fraction": lambda c: c["table"][0].update(layer=0.5),
    "a metric that is a number": lambda c: c["position_only"][0].update(metric=1),
    "no meta": lambda c: c.pop("meta"),
    "layers that are text": lambda c: c["meta"].update(layers="all"),
    "a number of traces that is text": lambda c: c["meta"].update(wrong="3"),
    "pairs that are no pairs": lambda c: c.update(pairs=[[1]]),
    "pairs of text": lambda c: c.update(pairs=[["a", "b"]]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_no_comparison_can_hold_is_refused_with_the_reason(tmp_path, change):
    RESULT.save(tmp_path / "c.json")
    changed(tmp_path / "c.json", change)
    with pytest.raises(FileError, match=r"is not a comparison this version can read \(.+\)\. Make it again"):
        Comparison.load(tmp_path / "c.json")


def test_a_file_that_nests_too_deeply_and_a_folder_are_no_comparison(tmp_path):
    (tmp_path / "c.json").write_text('{"a":' * 100_000)
    with pytest.raises(FileError, match="is not a comparison this version can read"):
        Comparison.load(tmp_path / "c.json")
    with pytest.raises(FileError, match="is a folder, and a comparison is a file"):
        Comparison.load(tmp_path)


def test_a_changed_number_is_noticed_by_the_checksum_and_files_without_one_load(tmp_path):
    path = tmp_path / "c.json"
    RESULT.save(path)
    changed(path, lambda content: None)
    assert Comparison.load(path).summary() == RESULT.summary()
    RESULT.save(path)
    content = json.loads(path.read_text())
    content["table"][0]["wrong"] += 0.25
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match="its checksum differs"):
        Comparison.load(path)
    assert Comparison.load(path, verify=False).pairs == RESULT.pairs
