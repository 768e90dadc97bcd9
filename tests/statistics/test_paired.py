import itertools
from functools import cache
from math import comb

import numpy as np
import pytest
from helpers import unchecked
from hypothesis import given
from hypothesis import strategies as st
from reference import wilson_interval
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, bootstrap, multinomial

from stepsal import InputError
from stepsal.statistics.paired import holm, paired, wilson

Z = 1.959964


def outcomes(gained: int, lost: int, n: int, right: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Problems of which so many are gained, lost, and right under both settings."""
    kinds = np.repeat([0, 1, 2, 3], [gained, lost, right, n - gained - lost - right])
    return np.isin(kinds, [1, 2]), np.isin(kinds, [0, 2])


@cache
def counted(gained: int, lost: int, n: int):
    return paired(*outcomes(gained, lost, n))


@st.composite
def two_settings(draw):
    shape = draw(st.tuples(st.integers(1, 23))) + draw(st.sampled_from([(), (1,), (3,), (5,)]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return rng.random(shape) < draw(st.floats(0, 1)), rng.random(shape) < draw(st.floats(0, 1))


# --- what always holds -----------------------------------------------------------------------------------------------
@given(two_settings())
def test_the_numbers_equal_their_definitions_and_lie_in_order(settings):
    before, after = settings
    found = paired(before, after)
    assert (found.n, found.samples) == (len(before), before.size // len(before))
    assert (found.baseline, found.treated) == (before.mean(), after.mean())
    assert found.difference == pytest.approx(after.mean() - before.mean())
    per_problem = [float(np.mean(b)) - float(np.mean(a)) for a, b in zip(before, after, strict=True)]
    assert (found.gained, found.lost) == (sum(d > 1e-9 for d in per_problem), sum(d < -1e-9 for d in per_problem))
    assert -1 <= found.low <= found.difference + 1e-12
    assert found.difference - 1e-12 <= found.high <= 1
    assert 0 < found.p <= 1


@given(two_settings())
def test_swapping_the_settings_negates(settings):
    one, other = paired(*settings), paired(*settings[::-1])
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low), abs=1e-9)
    assert (one.gained, one.lost) == (other.lost, other.gained)
    assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize("shape", [(7,), (7, 3)])
def test_equal_outcomes_are_no_difference_though_not_a_certain_one(shape):
    same = np.random.default_rng(0).random(shape) < 0.5
    found = paired(same, same)
    assert (found.difference, found.gained, found.lost, found.p) == (0, 0, 0, 1)
    expected = Z**2 / (7 + Z**2)
    assert (found.low, found.high) == pytest.approx((-expected, expected))


def test_one_sample_is_the_same_as_a_plain_list():
    before, after = outcomes(5, 2, 13, right=4)
    assert paired(before[:, None], after[:, None]) == paired(before.tolist(), after.tolist())


def test_the_order_of_the_problems_and_of_a_problems_samples_is_of_no_account():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 11, 3)) < 0.5
    order = rng.permutation(11)
    assert paired(before[order], after[order][:, ::-1]) == paired(before, after)


# --- p ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 1), (4, 4), (2, 9), (40, 22)])
def test_p_is_mcnemars_exact_test(gained, lost):
    found = counted(gained, lost, 70)
    m = gained + lost
    tail = sum(comb(m, k) for k in range(min(gained, lost) + 1)) / 2**m
    assert found.p == pytest.approx(min(1, 2 * tail))
    assert found.p == pytest.approx(binomtest(gained, m).pvalue if m else 1)
    assert found.p == counted(gained, lost, 90).p  # problems that are alike under both say nothing


def test_p_of_several_samples_counts_all_ways_to_swap_the_settings():
    before, after = np.random.default_rng(3).random((2, 7, 3)) < np.array([0.3, 0.6])[:, None, None]
    d = after.sum(1) - before.sum(1)
    ways = [abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product([1, -1], repeat=7)]
    assert paired(before, after).p == pytest.approx(np.mean([way >= abs(d.sum()) for way in ways]))


def test_several_samples_of_one_problem_are_not_several_problems():
    before, after = np.zeros((3, 50), dtype=bool), np.ones((3, 50), dtype=bool)
    assert paired(before, after).p == 0.25
    assert paired(before.ravel(), after.ravel()).p < 1e-9


def chances(n: int, gain: float, loss: float):
    """Every number of gained and lost problems with its probability."""
    for gained in range(n + 1):
        for lost in range(n + 1 - gained):
            yield gained, lost, multinomial.pmf([gained, lost, n - gained - lost], n, [gain, loss, 1 - gain - loss])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
def test_a_useless_treatment_is_rejected_at_most_once_in_twenty(share):
    """Exactly: the sum over all possible results."""
    rejected = sum(p for gained, lost, p in chances(30, share, share) if counted(gained, lost, 30).p < 0.05)
    assert rejected <= 0.05


def sampled(seed: int, runs: int, effect: float, problems: int = 60, samples: int = 4):
    """Problems of every difficulty, of which a treatment makes some easier and some harder."""
    rng = np.random.default_rng(seed)
    chance = rng.random((runs, problems, 1))
    moved = np.clip(chance + effect + rng.normal(0, 0.1, chance.shape), 0, 1)
    before, after = (rng.random((runs, problems, samples)) < each for each in (chance, moved))
    return list(zip(before, after, strict=True))


def test_with_several_samples_a_useless_treatment_is_rejected_once_in_twenty():
    assert 0.03 <= np.mean([paired(*run).p < 0.05 for run in sampled(0, 2000, 0)]) <= 0.065


def test_a_useful_treatment_is_found():
    assert counted(25, 8, 100).p < 0.05
    assert np.mean([paired(*run).p < 0.05 for run in sampled(1, 200, 0.15)]) > 0.9


# --- intervals -------------------------------------------------------------------------------------------------------
def test_the_interval_is_tangos():
    """Airway hyper-responsiveness before and after stem cell transplantation: 7 and 1 of 21 pairs differ.

    Fagerland, Lydersen and Laake (Statistics in Medicine 33 (2014) 2850) print -0.517 to -0.026 for it.
    """
    found = counted(1, 7, 21)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(("gained", "lost", "n"), [(7, 1, 21), (5, 0, 9), (12, 12, 40), (0, 3, 17)])
def test_the_limits_solve_the_score_equation_with_the_likeliest_loss(gained, lost, n):
    def score(difference: float) -> float:
        def unlikely(q: float) -> float:
            cells = [(gained, q + difference), (lost, q), (n - gained - lost, 1 - 2 * q - difference)]
            return -sum(count * np.log(max(p, 1e-300)) for count, p in cells if count)

        ends = max(0, -difference), (1 - difference) / 2
        q = minimize_scalar(unlikely, bounds=ends, method="bounded", options={"xatol": 1e-12}).x
        return (gained - lost - n * difference) / np.sqrt(n * (2 * q + difference - difference**2))

    found = counted(gained, lost, n)
    assert score(found.low) == pytest.approx(Z, abs=1e-3)
    assert score(found.high) == pytest.approx(-Z, abs=1e-3)


@pytest.mark.parametrize(("gain", "loss"), [(0.1, 0.1), (0.2, 0.1), (0.3, 0.05), (0.05, 0.25)])
def test_the_interval_covers_the_truth_in_95_of_100_cases(gain, loss):
    """Exactly: the sum over all possible results."""
    found = {(g, k): counted(g, k, 40) for g, k, _ in chances(40, gain, loss)}
    covered = sum(p for g, k, p in chances(40, gain, loss) if found[g, k].low <= gain - loss <= found[g, k].high)
    assert 0.93 <= covered <= 0.97


def test_with_several_samples_the_interval_covers_the_truth_in_95_of_100_cases():
    truth = np.mean([after.mean() - before.mean() for before, after in sampled(3, 20_000, 0.1)])
    results = [paired(*run) for run in sampled(2, 2000, 0.1)]
    assert 0.93 <= np.mean([each.low <= truth <= each.high for each in results]) <= 0.97


def test_with_several_samples_the_interval_is_that_of_scipys_bootstrap_over_problems():
    before, after = sampled(5, 1, 0.1, problems=37)[0]
    d = after.mean(1) - before.mean(1)
    expected = bootstrap(
        (d,), np.mean, n_resamples=50_000, batch=5_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    found = paired(before, after)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1.5 / (37 * 4))


def test_problems_that_all_change_alike_leave_room_for_others():
    before, after = np.zeros((20, 2), dtype=bool), np.tile([True, False], (20, 1))
    found = paired(before, after)
    assert found.low < found.difference == 0.5 < found.high
    assert counted(20, 0, 20).low == pytest.approx(1 - 2 * Z**2 / (20 + Z**2), abs=0.05)


# --- Holm, Wilson ----------------------------------------------------------------------------------------------------
@given(st.lists(st.floats(0, 1), max_size=7))
def test_holms_p_is_below_a_level_where_his_procedure_rejects(ps):
    adjusted = holm(ps)
    for level in (0.01, 0.05, 0.3):
        rejected, remaining = set(), sorted(range(len(ps)), key=lambda i: ps[i])
        while remaining and ps[remaining[0]] * len(remaining) <= level:
            rejected.add(remaining.pop(0))
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 5), (3, 7), (7, 7), (585, 800), (1, 100_000)])
def test_wilsons_interval_is_the_closed_form(right, n):
    assert wilson(right, n) == pytest.approx(wilson_interval(right, n), rel=0, abs=1e-12)


# --- errors, display -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("baseline", "treated", "message"),
    [
        ([True], [True, False], "baseline has shape \\(1, 1\\), treated \\(2, 1\\)"),
        ([[True, True]], [[True]], "as many samples of each"),
        ([], [], "baseline has shape \\(0,\\): expected a value per problem"),
        ([True, None], [True, True], "baseline holds None: expected True"),
        ([True, True], [1, 0], "treated holds 1: expected True"),
        ([True, False], [0.5, 1.0], "treated holds 0.5"),
        ([[True], [True, False]], [True, False], "baseline has rows of unequal length"),
        (np.ones((2, 2, 2), dtype=bool), np.ones((2, 2, 2), dtype=bool), "has shape \\(2, 2, 2\\)"),
    ],
)
def test_outcomes_that_cannot_be_paired_are_refused(baseline, treated, message):
    with pytest.raises(InputError, match=message):
        unchecked(paired)(baseline, treated)


@pytest.mark.parametrize("ps", [[0.1, float("nan")], [1.5], [-0.1], [[0.1]]])
def test_what_is_no_p_is_refused(ps):
    with pytest.raises(InputError, match="must be a list of numbers from 0 to 1"):
        unchecked(holm)(ps)


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_count_is_refused(right, n):
    with pytest.raises(InputError, match=f"{right} right of {n}"):
        wilson(right, n)
