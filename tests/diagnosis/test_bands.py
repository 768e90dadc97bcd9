import warnings
from dataclasses import replace

import numpy as np
import pytest
from helpers import random_map

from stepsal import Comparison, InputError, compare, diagnose, stepflow
from stepsal.diagnosis.bands import ENOUGH_PAIRS, Bands, choose_layers
from stepsal.diagnosis.metrics import position_only
from stepsal.models.layer_choice import band

SIZES = [12, 30, 4, 5, 4, 3, 28, 5, 4]  # steps of unequal length, so that lock-in is more than nearness
LAYERS = 8


def healthy(seed: int, last: int = 4, layers: int = LAYERS, **meta):
    return random_map("qttttttss", [*SIZES[:-1], last], layers, 3, seed, **meta)


def locked(stepmap, layers, factor: float = 4):
    """The thinking steps read themselves more."""
    for step in stepmap.segment("thinking"):
        for layer in layers:
            stepmap.mass[layer, :, step, step] *= factor
    return stepmap


def decayed(stepmap, layers, factor: float = 0.4):
    """The summary reads the thinking less."""
    thinking = stepmap.segment("thinking")
    for step in stepmap.segment("summary"):
        for layer in layers:
            stepmap.mass[layer, :, step, thinking[0] : thinking[-1] + 1] *= factor
    return stepmap


def compared(change, n: int = 24, **options) -> Comparison:
    """Healthy traces against changed ones, of the same lengths."""
    correct, wrong = [healthy(i, **options) for i in range(n)], [healthy(500 + i, **options) for i in range(n)]
    return compare(correct, [change(each) for each in wrong], resamples=499)


def quietly(comparison: Comparison) -> Bands:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return choose_layers(comparison)


BOTH = compared(lambda each: decayed(locked(each, [1, 3]), [4, 7]))


# --- what is found ---------------------------------------------------------------------------------------------------
def test_planted_lock_in_and_decay_are_found_in_their_layers_and_no_other():
    found = choose_layers(BOTH)
    assert (found.shallow, found.deep, found.fell_back) == ((1, 3), (4, 7), ())
    assert "higher in wrong traces in layers 1, 3 of 0 to 3 (24 matched pairs)" in found.reasons["shallow"]
    assert "lower in wrong traces in layers 4, 7 of 4 to 7 (24 matched pairs)" in found.reasons["deep"]


def test_stepflow_takes_the_bands():
    found = choose_layers(BOTH)
    bridge, momentum = stepflow(oeb_layers=found.shallow, smi_layers=found.deep)
    assert (bridge.layers, momentum.layers) == ((1, 3), (4, 7))


def test_the_evidence_has_each_layer_of_each_part_as_the_comparison_has_it():
    evidence = choose_layers(BOTH).evidence
    for part, metric in (("shallow", "lock_in"), ("deep", "thinking_to_summary")):
        rows = evidence[evidence["part"] == part].set_index("layer")
        assert list(rows.index) == list(range(LAYERS))
        assert set(rows["metric"]) == {metric}
        assert set(rows["traces"]) == {"matched pairs"}
        for name, table, column in [
            *[(name, BOTH.matched, name) for name in ("difference", "low", "high", "auc", "auc_low", "p_corrected")],
            ("all_low", BOTH.table, "low"),
            ("distance_difference", BOTH.position_only, "difference"),
            ("distance_auc", BOTH.position_only, "auc"),
        ]:
            expected = table[table["metric"] == metric].set_index("layer")[column]
            np.testing.assert_array_equal(rows[name].to_numpy(float), expected.to_numpy(float), err_msg=name)
    chosen = evidence[evidence["chosen"]]
    assert list(zip(chosen["part"], chosen["layer"], strict=True)) == [
        ("shallow", 1),
        ("shallow", 3),
        ("deep", 4),
        ("deep", 7),
    ]


def test_only_the_half_of_the_layers_that_a_part_acts_on_is_chosen_from():
    found = quietly(compared(lambda each: decayed(locked(each, [2, 6]), [1, 5])))
    assert (found.shallow, found.deep) == ((2,), (5,))
    assert "the same in 6, in the other half" in found.reasons["shallow"]


def test_the_middle_layer_of_an_odd_number_belongs_to_neither_half():
    found = quietly(compared(lambda each: decayed(locked(each, [3]), [3]), layers=7))
    assert found.fell_back == ("shallow", "deep")


def test_a_loaded_comparison_gives_the_same(tmp_path):
    BOTH.save(tmp_path / "c.json")
    found, again = choose_layers(BOTH), choose_layers(Comparison.load(tmp_path / "c.json"))
    assert (again.shallow, again.deep, again.reasons) == (found.shallow, found.deep, found.reasons)


# --- what is not -----------------------------------------------------------------------------------------------------
def test_healthy_groups_fall_back_to_the_papers_quarter_and_say_so():
    comparison = compared(lambda each: each)
    with pytest.warns(UserWarning, match="falls back to the paper's quarter") as caught:
        found = choose_layers(comparison)
    assert len(caught) == 1
    assert "shallow [0, 1]" in str(caught[0].message)
    assert "deep [6, 7]" in str(caught[0].message)
    assert (found.shallow, found.deep) == (band("shallow", LAYERS), band("deep", LAYERS))
    assert found.fell_back == ("shallow", "deep")
    assert not found.evidence["chosen"].any()
    assert found.reasons["shallow"].startswith("No layer of 0 to 3 qualifies by lock-in higher in wrong traces")


def test_one_part_can_fall_back_alone():
    with pytest.warns(UserWarning, match="deep \\[6, 7\\]") as caught:
        found = choose_layers(compared(lambda each: locked(each, [0])))
    assert "shallow" not in str(caught[0].message)
    assert (found.shallow, found.deep, found.fell_back) == ((0,), (6, 7), ("deep",))


def test_healthy_traces_rarely_choose_a_layer():
    """Rejecting at 5 %, two-sided, in all layers: by chance one side in half of the layers shows in 1 to 2 of 100."""
    pool = [diagnose(healthy(i)) for i in range(40)]
    rng = np.random.default_rng(0)
    chose = np.zeros(2)
    for seed in range(100):
        order = rng.permutation(40)
        found = quietly(compare([pool[i] for i in order[:20]], [pool[i] for i in order[20:]], resamples=199, seed=seed))
        chose += [name not in found.fell_back for name in ("shallow", "deep")]
    assert (chose <= 6).all(), chose


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("matched", "p_corrected", 0.05),
        ("matched", "auc_low", 0.5),
        ("matched", "auc_low", np.nan),
    ],
)
def test_each_condition_is_needed(table, column, value):
    changed = getattr(BOTH, table).copy()
    changed.loc[(changed["metric"] == "lock_in") & (changed["layer"] == 1), column] = value
    assert choose_layers(replace(BOTH, **{table: changed})).shallow == (3,)


def test_a_difference_in_the_other_direction_does_not_count():
    found = quietly(compared(lambda each: decayed(locked(each, [1, 3], 1 / 4), [4, 7], 2.5)))
    assert found.fell_back == ("shallow", "deep")
    assert "the opposite in 1, 3" in found.reasons["shallow"]
    assert "the opposite in 4, 7" in found.reasons["deep"]


def test_a_difference_that_distance_alone_explains_counts_among_matched_traces_only():
    """The same planted failures, in maps whose influence depends on nothing but distance."""
    groups = [[healthy(i) for i in range(24)], [decayed(locked(healthy(500 + i), [1]), [6]) for i in range(24)]]
    result = compare(*[[position_only(each) for each in group] for group in groups], resamples=499)
    assert quietly(result).shallow == (1,)
    unmatched = quietly(replace(result, matched=result.matched.iloc[:0]))
    row = unmatched.evidence.query("part == 'shallow' and layer == 1").iloc[0]
    assert row["differs"]
    assert not row["beyond_distance"]
    assert "reading by distance alone would show it too in 1" in unmatched.reasons["shallow"]
    assert unmatched.fell_back == ("shallow", "deep")


def test_a_difference_that_length_explains_does_not_count():
    """Longer traces lock in more; wrong ones are longer, and at equal length there is no difference."""
    lengths = (0, 40, 80)  # over 10 % apart: only equal ones match

    def trace(seed: int, extra: int):
        return locked(healthy(seed, last=4 + extra), [1], 1 + extra / 10)

    correct = [trace(i, lengths[max(0, i % 6 - 3)]) for i in range(48)]
    wrong = [trace(500 + i, lengths[min(2, i % 6)]) for i in range(48)]
    result = compare(correct, wrong, resamples=499)
    assert len(result.pairs) >= ENOUGH_PAIRS
    (everyone,) = result.table.query("metric == 'lock_in' and layer == 1")["p_corrected"]
    assert everyone < 0.05
    assert "shallow" in quietly(result).fell_back


def test_too_few_pairs_leave_all_traces_to_judge_and_that_is_said():
    correct = [healthy(i) for i in range(24)]
    wrong = [locked(healthy(500 + i, last=4 if i < ENOUGH_PAIRS - 1 else 60), [2]) for i in range(24)]
    result = compare(correct, wrong, resamples=499)
    assert len(result.pairs) == ENOUGH_PAIRS - 1
    found = quietly(result)
    assert set(found.evidence["traces"]) == {"all"}
    assert found.shallow == (2,)
    assert "all traces: fewer than 20 matched pairs, so length may explain it" in found.reasons["shallow"]


def test_without_a_matched_table_all_traces_judge():
    groups = [[healthy(i) for i in range(6)], [locked(healthy(500 + i, last=90), [2], 9) for i in range(6)]]
    result = compare(*groups, resamples=499)
    assert not len(result.matched)
    assert set(quietly(result).evidence["traces"]) == {"all"}


def test_traces_without_a_summary_leave_the_deep_band_to_the_paper():
    groups = [[random_map("qttttt", SIZES[:6], LAYERS, 3, 50 * g + i) for i in range(20)] for g in range(2)]
    found = quietly(compare(*groups, resamples=99))
    assert "deep" in found.fell_back
    assert found.reasons["deep"] == "No trace, or too few, have a thinking → summary share."


# --- some layers only, bad input -------------------------------------------------------------------------------------
def test_of_some_layers_those_are_judged_and_the_others_named():
    def part(seed: int, **options):
        whole = healthy(seed)
        keep = [1, 3, 6]
        return type(whole)(whole.mass[keep], whole.pairs, whole.steps, (1, 3, 6), {"model_layers": LAYERS})

    wrong = [decayed(locked(part(500 + i), [1]), [2]) for i in range(24)]
    found = choose_layers(compare([part(i) for i in range(24)], wrong, resamples=499))
    assert (found.shallow, found.deep) == ((3,), (6,))
    assert "not compared: 0, 2" in found.reasons["shallow"]
    assert "not compared: 4, 5, 7" in found.reasons["deep"]


def test_a_comparison_without_a_layer_of_a_half_is_refused():
    groups = [[healthy(20 * g + i, layers=3, model_layers=LAYERS) for i in range(4)] for g in range(2)]
    with pytest.raises(InputError, match="in layers \\[0, 1, 2\\], but in none of 4 to 7.*layers='all'"):
        choose_layers(compare(*groups, resamples=99))


def test_a_comparison_that_does_not_know_the_model_is_refused():
    meta = {key: value for key, value in BOTH.meta.items() if key != "model_layers"}
    with pytest.raises(InputError, match="meta\\['model_layers'\\] of the comparison is missing"):
        choose_layers(Comparison(BOTH.table, BOTH.matched, BOTH.position_only, BOTH.pairs, meta))


def test_what_is_no_comparison_is_refused():
    with pytest.raises(InputError, match="is a list of StepMap: expected a Comparison"):
        choose_layers([healthy(0)])


# --- display ---------------------------------------------------------------------------------------------------------
def test_bands_read_well():
    found = choose_layers(BOTH)
    assert repr(found) == "Bands(shallow=(1, 3), deep=(4, 7))"
    assert found.summary().startswith("- odds-equal bridge: layers 1, 3. Lock-in higher in wrong traces")
