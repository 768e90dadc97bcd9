import math

import pytest
import torch
from helpers import random_trace, relative_error, unchecked
from hooked import TL3
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    influence_by_separate_passes,
    influence_of_one_loss,
    influence_without_transformer_lens,
    pool_by_loops,
    value_attention_without_transformer_lens,
)
from toy_tokenizers import Pieces

import stepsal
from stepsal import InputError, NumericalError, Trace, step_saliency, token_influence


@pytest.mark.parametrize("rule", ["abs", "signed", "grad"])
def test_one_backward_pass_equals_one_per_token(tiny, trace, rule):
    expected = influence_by_separate_passes(tiny, trace.tokens, rule)
    assert relative_error(token_influence(tiny, trace, rule=rule), expected) <= 1e-5


@pytest.mark.parametrize("score", ["logit", "margin"])
def test_one_backward_pass_equals_one_per_token_for_every_score(tiny, trace, score):
    expected = influence_by_separate_passes(tiny, trace.tokens, "signed", score)
    assert relative_error(token_influence(tiny, trace, rule="signed", score=score), expected) <= 1e-5
    stepmap = step_saliency(tiny, trace, score=score)
    assert relative_error(stepmap.mass, pool_by_loops(expected.abs(), trace)) <= 1e-5
    assert stepmap.meta["score"] == score


@pytest.mark.parametrize("score", ["logit", "margin"])
def test_the_answers_score_is_that_of_its_tokens(tiny, trace, score):
    expected = influence_of_one_loss(tiny, trace.tokens, (4, 9), score)
    found = token_influence(tiny, trace, objective="answer", answer=(4, 9), score=score)
    assert relative_error(found, expected) <= 1e-5


def test_one_backward_pass_equals_one_per_token_on_real_traces(reasoner, reasoner_traces):
    for trace in reasoner_traces[:2]:
        expected = influence_by_separate_passes(reasoner, trace.tokens)
        found = token_influence(reasoner, trace)
        assert relative_error(found, expected) <= 1e-5
        pooled = step_saliency(reasoner, trace)
        assert relative_error(pooled.mass, pool_by_loops(expected, trace)) <= 1e-5


def test_the_map_of_the_reasoner_is_that_of_hugging_faces_own_gradients(reasoner, trace):
    expected = influence_without_transformer_lens(stepsal.models.host.BUNDLED, trace.tokens)
    assert relative_error(token_influence(reasoner, trace), expected) <= 1e-4
    assert relative_error(step_saliency(reasoner, trace).mass, pool_by_loops(expected, trace)) <= 1e-4


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 64, 1000])
def test_every_chunk_size_gives_the_same_map(tiny, trace, chunk):
    whole = step_saliency(tiny, trace, chunk=len(trace.tokens))
    assert relative_error(step_saliency(tiny, trace, chunk=chunk).mass, whole.mass) <= 1e-6
    assert relative_error(whole.mass, pool_by_loops(influence_by_separate_passes(tiny, trace.tokens), trace)) <= 1e-5


def test_chunks_of_a_real_trace_agree(reasoner, reasoner_traces):
    trace = reasoner_traces[0]
    whole = step_saliency(reasoner, trace, chunk=len(trace.tokens))
    for chunk in (13, 50, "auto"):
        assert relative_error(step_saliency(reasoner, trace, chunk=chunk).mass, whole.mass) <= 1e-6


@given(ends=st.lists(st.integers(1, 30), max_size=12))
def test_sum_pooling_conserves_mass(qwen2, ends):
    trace = random_trace(31, ends)
    total = token_influence(qwen2, trace).sum((-2, -1))
    torch.testing.assert_close(step_saliency(qwen2, trace).mass.sum((-2, -1)), total, rtol=1e-5, atol=0)


def test_one_token_steps_give_back_the_token_map(tiny):
    trace = random_trace(19, list(range(19)))
    influence = token_influence(tiny, trace)
    assert relative_error(step_saliency(tiny, trace, chunk=5).mass, influence) <= 1e-5


@given(ends=st.lists(st.integers(1, 28), max_size=12))
def test_pairs_counts_the_causal_pairs_that_have_a_target(qwen2, ends):
    trace = random_trace(29, ends)
    stepmap = step_saliency(qwen2, trace, rule="attention")
    expected = torch.zeros_like(stepmap.pairs)
    for query in range(28):
        for key in range(query + 1):
            expected[trace.step_of[query], trace.step_of[key]] += 1
    assert torch.equal(stepmap.pairs, expected)


def test_changing_a_token_changes_no_row_before_its_predecessors(tiny):
    trace = random_trace(23, [5, 9])
    changed = trace.tokens.clone()
    changed[11] = (changed[11] + 1) % 300
    before = token_influence(tiny, trace)
    after = token_influence(tiny, Trace(changed, trace.steps, "0"))
    torch.testing.assert_close(after[:, :, :10], before[:, :, :10], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(after[:, :, 10], before[:, :, 10], rtol=1e-2)  # the token is its predecessor's target
    assert not torch.allclose(after[:, :, 11], before[:, :, 11], rtol=1e-2)


def test_no_influence_reaches_later_tokens_or_comes_from_the_last_row(tiny, trace):
    for rule in ("abs", "signed", "grad", "attention", "value_attention"):
        influence = token_influence(tiny, trace, rule=rule)
        assert not torch.triu(influence, 1).any(), rule
        assert not influence[:, :, -1].any(), rule
        assert influence[:, :, :-1].any(), rule


def test_layers_alone_equal_those_layers_of_all(tiny, trace):
    whole = step_saliency(tiny, trace)
    for layers in (1, [0, 2], "deep", "shallow"):
        part = step_saliency(tiny, trace, layers=layers)
        rows = [whole.layers.index(layer) for layer in part.layers]
        torch.testing.assert_close(part.mass, whole.mass[rows], rtol=1e-5, atol=1e-9)


def test_the_attention_rule_is_the_pattern_itself(tiny, trace):
    kept = {}
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]

    def keep(pattern, hook):
        kept[hook.layer()] = pattern[0]

    with torch.no_grad(), tiny.hooks(fwd_hooks=[(name, keep) for name in names]):
        tiny(trace.tokens[None])
    found = token_influence(tiny, trace, rule="attention")
    torch.testing.assert_close(found[:, :, :-1], torch.stack([kept[i] for i in range(3)])[:, :, :-1])


def test_value_attention_is_the_norm_of_what_each_pair_adds_to_the_residual_stream(reasoner, trace):
    expected = value_attention_without_transformer_lens(stepsal.models.host.BUNDLED, trace.tokens)
    assert relative_error(token_influence(reasoner, trace, rule="value_attention"), expected) <= 1e-5
    for chunk in (1, 7, "auto"):
        stepmap = step_saliency(reasoner, trace, rule="value_attention", chunk=chunk)
        assert relative_error(stepmap.mass, pool_by_loops(expected, trace)) <= 1e-5
    assert "score" not in stepmap.meta
    assert stepmap.meta["rule"] == "value_attention"


def test_value_attention_of_some_layers_is_that_of_those_layers_of_all(tiny, trace):
    whole, part = (step_saliency(tiny, trace, rule="value_attention", layers=layers) for layers in ("all", [2]))
    torch.testing.assert_close(part.mass, whole.mass[[2]])


@pytest.mark.parametrize("objective", ["sequence", "answer"])
def test_the_other_objectives_equal_one_backward_pass_of_that_loss(tiny, trace, objective):
    span = (30, 34) if objective == "answer" else None
    expected = influence_of_one_loss(tiny, trace.tokens, span or (1, len(trace.tokens)))
    found = token_influence(tiny, trace, objective=objective, answer=span)
    assert relative_error(found, expected) <= 1e-5
    if span:
        assert not found[:, :, span[1] - 1 :].any()  # rows after the answer cannot change it
    assert (
        relative_error(
            step_saliency(tiny, trace, objective=objective, answer=span).mass, pool_by_loops(expected, trace)
        )
        <= 1e-5
    )


def test_the_model_is_left_as_it_was(tiny, trace):
    with torch.no_grad():
        before = tiny(trace.tokens[None])
    tiny.train()
    parameter = next(tiny.parameters())
    parameter.requires_grad_(True)
    try:
        step_saliency(tiny, trace)
        assert tiny.training
        assert parameter.requires_grad
        assert parameter.grad is None
    finally:
        tiny.eval()
        parameter.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(tiny(trace.tokens[None]), before)


def test_the_record_says_how_the_map_was_made(qwen2, trace):
    meta = step_saliency(qwen2, trace, chunk=9, layers="deep").meta
    assert meta["chunk"] == 9
    assert meta["objective"] == "token"
    assert meta["tokens"] == len(trace.tokens)
    assert meta["seconds"] > 0
    assert meta["peak_memory_bytes"] > 0
    assert meta["stepsal"] == stepsal.__version__


def test_a_larger_memory_gives_larger_chunks(qwen2, monkeypatch):
    trace = random_trace(400, [100])
    sizes = []
    for free in (2**20, 2**23, 2**40):
        monkeypatch.setattr("stepsal.saliency.influence.free_bytes", lambda device, free=free: free)
        sizes.append(step_saliency(qwen2, trace, layers=2).meta["chunk"])
    assert sizes == sorted(set(sizes))


def test_a_whole_graph_that_may_not_fit_is_announced(qwen2, trace, monkeypatch):
    monkeypatch.setattr("stepsal.saliency.influence.free_bytes", lambda device: 1000)
    with pytest.warns(UserWarning, match="keeps the whole graph: about .* GiB for"):
        step_saliency(qwen2, trace, objective="sequence")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "tokens"}, "unknown objective 'tokens': expected one of token, sequence, answer"),
        ({"score": "p"}, "unknown score 'p': expected one of loss, logit, margin"),
        ({"rule": "attention", "score": "logit"}, "differentiates nothing: leave out score='logit'"),
        ({"rule": "value_attention", "score": "margin"}, "differentiates nothing: leave out score='margin'"),
        ({"rule": "l2"}, "unknown rule 'l2': expected one of abs, signed, grad, attention, value_attention"),
        ({"chunk": 0}, "chunk 0 must be 'auto' or a whole number"),
        ({"chunk": 8, "objective": "sequence"}, "needs the whole graph and cannot run in chunks"),
        ({"layers": 3}, "layer 3 does not exist: the model has layers 0 to 2"),
        ({"layers": "top"}, "unknown layers 'top'"),
        ({"layers": []}, "must name at least one layer"),
        ({"layers": [1, -2]}, "none twice"),
        ({"objective": "answer"}, "give answer=\\(start, stop\\)"),
        ({"answer": (3, 4)}, "give answer=\\(start, stop\\) with 'answer' only"),
        ({"objective": "answer", "answer": (0, 4)}, "must be token positions \\[start, stop\\) within 1 to"),
    ],
)
def test_options_that_mean_nothing_are_refused(qwen2, trace, options, message):
    with pytest.raises(InputError, match=message):
        unchecked(step_saliency)(qwen2, trace, **options)


def test_a_trace_longer_than_the_context_is_refused(qwen2):
    with pytest.raises(InputError, match="has 513 tokens but the model's context is 512"):
        step_saliency(qwen2, random_trace(513, [9]))


def test_a_trace_of_another_tokenizer_is_refused(qwen2):
    pieces = Pieces("Q", "<think>", "A", "</think>", "B")
    trace = Trace.from_tokens(pieces, [0, 1, 2, 3, 4], id="a")
    with pytest.raises(
        InputError, match=r"'a' was made with the tokenizer sha256:.*, and the model's is sha256:.*model.tokenizer"
    ):
        step_saliency(qwen2, trace)


def test_tokens_outside_the_vocabulary_are_refused(qwen2, trace):
    tokens = trace.tokens.clone()
    tokens[3] = 10_000
    with pytest.raises(InputError, match="token 10000 is outside the model's vocabulary"):
        step_saliency(qwen2, Trace(tokens, trace.steps, "0"))


def test_a_single_token_is_refused(qwen2):
    with pytest.raises(InputError, match="a trace of 1 token"):
        step_saliency(qwen2, random_trace(1, []))


def test_infinite_logits_name_layer_and_position(qwen2, trace):
    weight = qwen2.blocks[1].mlp.W_out if TL3 else qwen2.blocks[1].mlp.out.original_component.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[0, 0] = math.inf
        with pytest.raises(
            NumericalError, match="the logits at position 0 are not finite; first in layer 1 at position 0"
        ):
            step_saliency(qwen2, trace)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_infinite_gradients_name_layer_and_position(qwen2, trace):
    def poison(pattern, hook):
        def spoil(gradient):
            gradient = gradient.clone()
            gradient[0, :, 4] = math.nan
            return gradient

        if pattern.requires_grad:
            pattern.register_hook(spoil)

    with (
        qwen2.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", poison)]),
        pytest.raises(NumericalError, match="not finite in layer 1 at query position 4"),
    ):
        step_saliency(qwen2, trace)
