"""The true dependencies of the bundled reasoner's lines, and the scores against them."""

import math

import numpy as np
import pytest
import torch

from experiments.true_dependencies import (
    SCORES,
    Needs,
    average_precision,
    measure,
    precision_at_k,
    premises_of,
    scores_of,
    true_sources,
    with_premises,
)
from stepsal import Trace
from stepsal.reasoner import Problem, make_problem
from stepsal.reasoner.problems import Premise

CHAIN = (
    Premise("k", 37),
    Premise("m", 62, "k", "+", "25"),
    Premise("t", 25, "m", "-", "k"),
    Premise("p", 35, "t", "+", "10"),
    Premise("q", 97, "p", "+", "m"),
)
FACTS = ["k + 25 = m", "y - 12 = w", "m - k = t", "k = 37", "p + m = q", "t + 10 = p"]
QUESTION = f"Facts: {'. '.join(FACTS)}.\nStart at k. What is q - k?"
PROBLEM = Problem("own", "test", 4, QUESTION, CHAIN, "k", "-", 60)


def test_the_needs_of_every_line_are_those_worked_out_by_hand():
    # 0 "Facts:", 1 to 6 the premises, 7 "Start at ...", 8 to 12 the lines of k, m, t, p, q, 13 "From the steps", 14 the answer
    assert true_sources(PROBLEM, premises_of(PROBLEM)) == {
        8: Needs(frozenset({4, 7})),
        9: Needs(frozenset({1, 8})),
        10: Needs(frozenset({3, 9}), ignored=frozenset({8})),  # k is stated again in the line before
        11: Needs(frozenset({6, 10})),
        12: Needs(frozenset({5, 11}), stated=frozenset({9, 10})),  # m, computed in 9 and put in in 10
        13: Needs(frozenset({7, 12}), stated=frozenset({8, 9, 10})),
    }


def test_maps_that_know_the_needs_score_one_and_maps_that_hide_them_score_low():
    needs = true_sources(PROBLEM, premises_of(PROBLEM))
    rows = np.zeros((15, 15))
    for reader, each in needs.items():
        rows[reader][list(each.given)] = 1
        rows[reader][list(each.stated)[:1]] = 2
    assert scores_of(rows, needs, 7) == dict.fromkeys(SCORES, 1.0)
    hidden = scores_of(-rows, needs, 7)
    assert hidden["premise"] == hidden["precision at k"] == 0
    assert hidden["average precision"] < 0.4


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_and_precision_at_k_equal_loops(seed):
    rng = np.random.default_rng(seed)
    entries, true = rng.permutation(11).astype(float), np.arange(11) < 3
    ranking = sorted(range(11), key=lambda at: -entries[at])
    hits, precisions = 0, []
    for rank, at in enumerate(ranking, 1):
        if true[at]:
            hits += 1
            precisions.append(hits / rank)
    assert math.isclose(average_precision(entries, true), sum(precisions) / 3)
    assert math.isclose(precision_at_k(entries, true), sum(true[at] for at in ranking[:3]) / 3)


@pytest.mark.parametrize("length", [3, 6])
def test_the_question_is_split_into_its_premises_and_nothing_else_changes(reasoner, length):
    problem = make_problem("test", 4, length)
    trace = Trace.from_text(reasoner.tokenizer, problem.messages, problem.response)
    fine = with_premises(trace, problem, [reasoner.tokenizer.decode([token]) for token in trace.tokens.tolist()])
    premises = premises_of(problem)
    assert [step.text.strip().rstrip(".") for step in fine.steps[1 : 1 + len(premises)]] == premises
    assert fine.text == trace.text
    assert fine.steps[1 + len(premises)].text.strip().startswith("Start at")
    assert [step.text for step in fine.steps if step.segment != "question"] == [
        step.text for step in trace.steps if step.segment != "question"
    ]
    for reader in true_sources(problem, premises):
        assert fine.steps[reader].text.strip().split()[0] in ("First", "Then", "So", "Next", "From")
    assert torch.equal(fine.tokens, trace.tokens)


def test_the_knockout_finds_what_lines_need_and_chance_does_not(reasoner):
    problem = make_problem("test", 0)
    trace = Trace.from_text(reasoner.tokenizer, problem.messages, problem.response)
    scores = measure(reasoner, trace, problem, 0).scores
    assert scores["knockout, direct"]["average precision"] > 0.9
    assert scores["random"]["average precision"] < 0.6
    assert scores["recency"]["premise"] < 0.5
