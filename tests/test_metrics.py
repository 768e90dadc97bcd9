import pytest
import torch
from helpers import make_map, random_map
from hypothesis import given
from hypothesis import strategies as st

from stepsal import lock_in, thinking_to_summary
from stepsal.metrics import METRICS

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
    for metric in METRICS.values():
        torch.testing.assert_close(metric(scaled), metric(stepmap))


@given(seed=st.integers(0, 999))
def test_the_metrics_lie_between_zero_and_one(seed):
    stepmap = random_map(SEGMENTS, SIZES, seed=seed)
    for metric in METRICS.values():
        assert ((metric(stepmap) > 0) & (metric(stepmap) < 1)).all()


def test_tokens_without_influence_thin_out_lock_in_and_leave_the_summary_share():
    before = make_map("qtts", [2, 3, 2, 3], torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [4, 2, 3, 0], [1, 2, 3, 4]]))
    after = make_map("qtts", [2, 6, 2, 3], torch.zeros(4, 4))
    after.mass.copy_(before.mass)  # the first thinking step is twice as long; what is added has no influence
    torch.testing.assert_close(lock_in(before), torch.tensor([[3 / (3 + (4 + 2) / 2)]]))
    torch.testing.assert_close(lock_in(after), torch.tensor([[3 / (3 + (4 + 1) / 2)]]))
    assert torch.equal(thinking_to_summary(after), thinking_to_summary(before))
