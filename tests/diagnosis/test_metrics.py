from dataclasses import replace

import pytest
import torch
from helpers import make_map, random_map, random_trace
from hypothesis import given
from hypothesis import strategies as st
from reference import official_metrics, receiver_kurtosis_by_loops

from stepsal import lock_in, step_saliency, thinking_to_summary, token_influence
from stepsal.diagnosis.metrics import (
    METRICS,
    context_share,
    decay_ratio,
    decay_slope,
    last_steps,
    position_only,
    question_share,
    receiver_kurtosis,
    receiver_kurtosis_beyond_distance,
    summary_self,
)

OFFICIAL = ("final_block_intensity", "analysis_block_intensity", "final_heat_anomaly")
RECEIVERS = ("receiver_kurtosis", "receiver_kurtosis_beyond_distance")
BOUNDED = {name: metric for name, metric in METRICS.items() if name not in (*OFFICIAL, *RECEIVERS)}

# Question of 2 tokens, thinking of 3 and 1 and 2, summary of 2 and 3 (of which 2 have a target).
SEGMENTS, SIZES = "qtttss", [2, 3, 1, 2, 2, 3]
DENSITY = [
    [1.0, 0, 0, 0, 0, 0],
    [4, 9, 0, 0, 0, 0],  # has one earlier step only: not counted
    [1, 3, 6, 0, 0, 0],  # 6 / (6 + 2) = 3/4
    [2, 1, 3, 2, 0, 0],  # 2 / (2 + 2) = 1/2
    [1, 2, 0, 1, 2, 0],
    [0, 1, 5, 2, 0, 3],
]


def test_lock_in_equals_the_numbers_worked_out_by_hand():
    torch.testing.assert_close(lock_in(make_map(SEGMENTS, SIZES, DENSITY)), torch.tensor([[0.625]]))


def test_thinking_to_summary_equals_the_numbers_worked_out_by_hand():
    # Row 4, two queries: pairs 4, 6, 2, 4, 3, so mass 4, 12, 0, 4, 6: thinking has 16 of 26.
    # Row 5, two queries: pairs 4, 6, 2, 4, 4, 3, so mass 0, 6, 10, 8, 0, 9: thinking has 24 of 33.
    expected = torch.tensor([[(16 / 26 + 24 / 33) / 2]])
    torch.testing.assert_close(thinking_to_summary(make_map(SEGMENTS, SIZES, DENSITY)), expected)


def test_every_layer_and_head_gets_its_own_number():
    own = [[2.0, 6, 0.5], [1, 14, 3]]
    maps = torch.ones(2, 3, 3, 3)
    for layer in range(2):
        for head in range(3):
            maps[layer, head, 2, 2] = own[layer][head]
    found = lock_in(make_map("qtt", [2, 3, 4], maps))
    expected = torch.tensor([[own[i][j] / (own[i][j] + 1) for j in range(3)] for i in range(2)])
    torch.testing.assert_close(found, expected)

    maps = torch.zeros(2, 3, 3, 3)
    for layer in range(2):
        for head in range(3):
            maps[layer, head, 2] = torch.tensor([1.0, own[layer][head], 0])
    found = thinking_to_summary(make_map("qts", [2, 2, 4], maps))  # question and thinking have equally many pairs
    torch.testing.assert_close(found, expected)


def test_lock_in_is_one_half_where_every_pair_weighs_the_same():
    stepmap = make_map("qtttts", [5, 2, 3, 1, 7, 2], torch.ones(3, 2, 6, 6))
    torch.testing.assert_close(lock_in(stepmap), torch.full((3, 2), 0.5))


def test_lock_in_goes_to_one_as_earlier_steps_fade():
    maps = [make_map("qttt", [2, 3, 2, 3], torch.full((4, 4), x).fill_diagonal_(1)) for x in (1.0, 0.1, 0.01, 0.0)]
    values = [lock_in(stepmap).item() for stepmap in maps]
    assert values == sorted(values)
    assert values[-1] == 1
    torch.testing.assert_close(values[1], 1 / 1.1, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("metric", "segments"),
    [
        ("lock_in", "q"),
        ("lock_in", "qt"),
        ("lock_in", "qs"),
        ("lock_in", "qts"),
        ("thinking_to_summary", "q"),
        ("thinking_to_summary", "qtt"),
        ("thinking_to_summary", "qss"),
        ("context_share", "qs"),
        ("question_share", "qs"),
        ("summary_self", "qtt"),
        ("last_steps", "qttts"),
        ("last_steps", "qtttt"),
        ("final_block_intensity", "qt"),
        ("analysis_block_intensity", "qs"),
        ("final_heat_anomaly", "qt"),
        ("final_heat_anomaly", "qs"),
    ],
)
def test_a_trace_without_the_rows_to_measure_gives_nan_and_not_zero(metric, segments):
    found = METRICS[metric](random_map(segments, [3] * len(segments)))
    assert found.shape == (2, 3)
    assert torch.isnan(found).all()


def test_a_last_step_without_a_query_is_left_out():
    full, cut = make_map("qttt", [2, 3, 2, 4], torch.ones(4, 4)), make_map("qttt", [2, 3, 2, 1], torch.ones(4, 4))
    assert not cut.pairs[3].any()
    assert lock_in(full) == lock_in(cut) == 0.5
    assert torch.isnan(lock_in(make_map("qtt", [2, 3, 1], torch.ones(3, 3)))).all()
    assert torch.isnan(thinking_to_summary(make_map("qts", [2, 3, 1], torch.ones(3, 3)))).all()


@given(seed=st.integers(0, 999), exponent=st.integers(-20, 20))
def test_the_scale_of_the_influence_does_not_matter(seed, exponent):
    stepmap = random_map(SEGMENTS, SIZES, seed=seed)
    density = stepmap.density().nan_to_num()
    scaled = make_map(SEGMENTS, SIZES, density * 2.0**exponent)
    for name, metric in METRICS.items():
        factor = 2.0**exponent if name.endswith("intensity") else 1
        torch.testing.assert_close(metric(scaled), metric(stepmap) * factor, rtol=1e-5, atol=0, equal_nan=True)


@given(seed=st.integers(0, 999))
def test_the_metrics_lie_between_zero_and_one(seed):
    stepmap = random_map("q" + SEGMENTS[1:4] + "tss", [*SIZES, 4], seed=seed)
    for metric in BOUNDED.values():
        assert ((metric(stepmap) > 0) & (metric(stepmap) < 1)).all()


def test_tokens_without_influence_thin_out_lock_in_and_leave_the_summary_share():
    before = make_map("qtts", [2, 3, 2, 3], torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [4, 2, 3, 0], [1, 2, 3, 4]]))
    after = make_map("qtts", [2, 6, 2, 3], torch.zeros(4, 4))
    after.mass.copy_(before.mass)  # the first thinking step is twice as long; what is added has no influence
    torch.testing.assert_close(lock_in(before), torch.tensor([[3 / (3 + (4 + 2) / 2)]]))
    torch.testing.assert_close(lock_in(after), torch.tensor([[3 / (3 + (4 + 1) / 2)]]))
    assert torch.equal(thinking_to_summary(after), thinking_to_summary(before))


def test_the_shares_equal_the_numbers_worked_out_by_hand():
    density = torch.zeros(7, 7)
    for step, row in enumerate(["1", "11", "212", "0111", "10230", "123455", "0400105"]):
        density[step, : len(row)] = torch.tensor([float(digit) for digit in row])
    stepmap = make_map("qttttss", [2] * 7, torch.zeros(7, 7))
    stepmap.mass.copy_(density)  # shares are read off the mass
    torch.testing.assert_close(context_share(stepmap), torch.tensor([[(1 / 2 + 3 / 5 + 2 / 3 + 6 / 6) / 4]]))
    torch.testing.assert_close(question_share(stepmap), torch.tensor([[(1 / 2 + 2 / 5 + 0 + 1 / 6) / 4]]))
    torch.testing.assert_close(summary_self(stepmap), torch.tensor([[(5 / 20 + 5 / 10) / 2]]))
    torch.testing.assert_close(thinking_to_summary(stepmap), torch.tensor([[(14 / 20 + 5 / 10) / 2]]))
    torch.testing.assert_close(last_steps(stepmap), torch.tensor([[(12 / 14 + 1 / 5) / 2]]))


@given(seed=st.integers(0, 99))
def test_what_a_summary_takes_comes_from_question_thinking_or_itself(seed):
    stepmap = random_map("qtttss", [4, 3, 5, 2, 3, 4], seed=seed)
    share = stepmap.share()[:, :, 4:, 0].mean(-1)
    torch.testing.assert_close(share + thinking_to_summary(stepmap) + summary_self(stepmap), torch.ones(2, 3))


def test_decay_is_a_slope_and_a_ratio_of_the_deep_band():
    layers = tuple(range(8))
    values = torch.tensor([9, 9, 0.5, 0.5, 0.25, 0.75, 0.2, 0.1])[:, None].repeat(1, 2)
    values[:, 1] = torch.tensor([9, 9, 0.4, 0.4, 0.4, 0.4, 0.1, 0.4])
    torch.testing.assert_close(decay_slope(values, layers, 8), torch.tensor([0.5, 4.0]).log())
    torch.testing.assert_close(decay_ratio(values, layers, 8), torch.tensor([0.15 / 0.5, 0.25 / 0.4]))
    exponential = (-0.3 * torch.arange(16.0)).exp()
    torch.testing.assert_close(decay_slope(exponential, tuple(range(16)), 16), torch.tensor(-0.3))


def test_decay_is_missing_where_the_layers_are():
    values = torch.rand(4)
    assert torch.isnan(decay_slope(values, range(4), 4))  # one deep layer has no slope
    assert not torch.isnan(decay_ratio(values, range(4), 4))
    assert torch.isnan(decay_ratio(values, (0, 1, 2, 3), 8))
    assert torch.isnan(decay_slope(values, (4, 5, 6, 3), 8))
    assert torch.isnan(decay_ratio(torch.rand(2), (0, 1), 2))


def test_a_share_of_zero_has_a_finite_slope():
    assert torch.isfinite(decay_slope(torch.tensor([1.0, 1, 1, 1, 1, 1, 0.5, 0]), range(8), 8))


def test_the_official_codes_quantities_come_out_of_our_maps(tiny):
    trace = random_trace(41, [7, 15, 23, 30])
    steps = tuple(replace(step, segment="summary") if step.index > 2 else step for step in trace.steps)
    trace = replace(trace, steps=steps)
    influence = token_influence(tiny, trace)
    stepmap = step_saliency(tiny, trace).mean_heads()  # the official code averages heads first
    for layer in range(influence.shape[0]):
        expected = official_metrics(influence[layer].double().mean(0), trace)
        for name, value in expected.items():
            torch.testing.assert_close(METRICS[name](stepmap)[layer, 0].item(), value, rtol=1e-6, atol=0, msg=name)


# --- the control -----------------------------------------------------------------------------------------------------
@given(seed=st.integers(0, 99))
def test_the_position_only_map_conserves_mass_and_is_its_own_control(seed):
    stepmap = random_map("qtttss", [9, 3, 5, 2, 3, 4], seed=seed)
    control = position_only(stepmap)
    torch.testing.assert_close(control.mass.sum((2, 3)), stepmap.mass.sum((2, 3)))
    torch.testing.assert_close(position_only(control).mass, control.mass)


def test_a_map_in_which_distance_alone_counts_is_its_own_control():
    n = 6
    density = torch.exp(-0.5 * (torch.arange(n)[:, None] - torch.arange(n)).float()).tril()
    stepmap = make_map("qttttt", [3] * (n - 1) + [4], density)
    stepmap.pairs[-1] = stepmap.pairs[-2]  # as if every step had as many queries
    stepmap.mass.copy_(density * stepmap.pairs)
    control = position_only(stepmap)
    for distance in range(2):  # classes of half an octave: the nearest distances have one each
        torch.testing.assert_close(
            control.density()[0, 0].diagonal(-distance)[:-1], density.diagonal(-distance)[:-1], rtol=1e-5, atol=0
        )


def test_equally_distant_steps_get_equal_density():
    stepmap = random_map("qtttts", [4] * 6)
    density = position_only(stepmap).density()
    for distance in range(1, 5):
        band = density.diagonal(-distance, 2, 3)
        torch.testing.assert_close(band, band[..., :1].expand_as(band))


def test_the_questions_own_row_does_not_reach_the_control_of_the_others():
    stepmap = random_map("qtttss", [9, 3, 5, 2, 3, 4])
    before = position_only(stepmap).mass
    stepmap.mass[:, :, 0, 0] *= 1e3
    after = position_only(stepmap).mass
    torch.testing.assert_close(after[:, :, 1:], before[:, :, 1:])
    assert torch.equal(after[:, :, 0], stepmap.mass[:, :, 0])


@given(seed=st.integers(0, 99))
def test_the_kurtosis_of_receiver_heads_equals_loops_with_scipys(seed):
    stepmap = random_map("qq" + "t" * 9 + "ss", [5, 2] + [3, 7, 2] * 3 + [4, 3], seed=seed)
    for metric, control in ((receiver_kurtosis, False), (receiver_kurtosis_beyond_distance, True)):
        expected = receiver_kurtosis_by_loops(stepmap, control)
        torch.testing.assert_close(metric(stepmap), expected, rtol=1e-4, atol=1e-4)


def test_a_planted_receiver_head_stands_out_before_and_after_the_control():
    stepmap = _long_map(_recency() * _noise(seed=0))
    stepmap.mass[0, 0, 10:, 6] *= 10  # step 6 is read by all that are four steps later or more
    for metric in (receiver_kurtosis, receiver_kurtosis_beyond_distance):
        assert metric(stepmap) > 3


def test_a_head_of_recency_alone_looks_like_a_receiver_head_until_distance_is_divided_out():
    exact = _long_map(_recency())
    assert receiver_kurtosis(exact) > 3
    assert receiver_kurtosis_beyond_distance(exact).isnan()
    noisy = [_long_map(_recency() * _noise(seed)) for seed in range(40)]
    before, after = (
        torch.stack([metric(stepmap)[0, 0] for stepmap in noisy])
        for metric in (receiver_kurtosis, receiver_kurtosis_beyond_distance)
    )
    assert (before > 3).float().mean() > 0.9
    assert (after > 3).float().mean() < 0.1
    assert after.median() < 1


def _long_map(density):
    return make_map("q" + "t" * 40 + "s", [5] + [3, 7, 2, 5] * 10 + [4], density)


def _recency():
    """A density that depends on the distance in steps alone."""
    distance = torch.arange(42)[:, None] - torch.arange(42)
    return torch.where(distance >= 0, 0.4 ** distance.clamp(min=0).double(), 0).float()


def _noise(seed):
    return torch.empty(42, 42).log_normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("thinking", [0, 3, 7])
def test_with_fewer_than_eight_thinking_steps_there_are_no_receiver_heads(thinking):
    stepmap = random_map("q" + "t" * thinking + "ss", [3] * (thinking + 3))
    assert receiver_kurtosis(stepmap).isnan().all()
    assert receiver_kurtosis_beyond_distance(stepmap).isnan().all()
    assert receiver_kurtosis(random_map("q" + "t" * 8 + "ss", [3] * 11)).isfinite().all()
