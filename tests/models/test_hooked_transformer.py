"""What holds of a `HookedTransformer` alone. `make test-tl3` runs this beside the tests that hold of both kinds of model."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from conftest import save_tiny
from helpers import random_trace, relative_error
from hooked import TL3, in_chunks, load_hooked
from reference import influence_by_separate_passes, logits_with_interventions

import stepsal
from stepsal import InputError, Trace, UnsupportedModelError, intervene, step_saliency, token_influence
from stepsal.interventions import OddsEqualBridge
from stepsal.interventions.stepflow import stepflow
from stepsal.models import host_of

pytestmark = pytest.mark.skipif(not TL3, reason="needs TransformerLens 3.9: make test-tl3")

GREEDY = {"do_sample": False, "verbose": False}
BOTH = stepflow(oeb_layers="all", smi_layers="all", tau_max=0.7, alpha=1.5)
SIZES = {
    "n_layers": 3, "d_model": 40, "n_heads": 4, "d_head": 10, "n_key_value_heads": 2, "d_mlp": 56, "n_ctx": 512,
    "d_vocab": 350, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "initializer_range": 0.15, "seed": 0,
    "positional_embedding_type": "rotary", "rotary_dim": 10, "device": "cpu",
}  # fmt: skip
WINDOWS = {"use_local_attn": True, "window_size": 13, "attn_types": ["global", "local", "local"]}
GPT2 = {
    "positional_embedding_type": "standard", "normalization_type": "LN", "n_key_value_heads": None, "act_fn": "gelu",
    "gated_mlp": False,
}  # fmt: skip
KINDS = {
    "as GPT-2": GPT2,
    "shortformer": GPT2 | {"positional_embedding_type": "shortformer"},
    "as GPT-J": {"parallel_attn_mlp": True, "rotary_dim": 4, "rotary_adjacent_pairs": True, "n_key_value_heads": None},
    "as Gemma 2": WINDOWS | {"attn_scores_soft_cap": 3.0, "attn_scale": 2.0, "use_normalization_before_and_after": True},
    "as GPT-OSS": WINDOWS | {"use_attention_sinks": True, "num_experts": 4, "experts_per_token": 2},
    "as Qwen3": {"use_qk_norm": True},
    "YaRN": {
        "use_yarn_rope": True, "yarn_factor": 4.0, "yarn_attention_factor": 1.2, "yarn_original_max_position_embeddings": 64
    },
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "attn_only": True},
    "split inputs": {"use_split_qkv_input": True, "use_attn_result": True, "use_hook_tokens": True},
}  # fmt: skip


def make(**changes):
    """A seeded model, with the reasoner's tokenizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        model = HookedTransformer(HookedTransformerConfig(**SIZES | changes))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("sinks") or ".b_" in name or "._b_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    model.tokenizer = stepsal.load_tokenizer()  # never prepends anything
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def traces(trace):
    texts = ("Add.\n\nIt is 62.\n</think>62", "First k = 37.\n\nThen m\n\nis k + 25, I think\n\nand")
    question = [{"role": "user", "content": "Facts: m = k + 25. k = 37.\nStart at k. What is m?"}]
    return [trace, *(Trace.from_text(stepsal.load_tokenizer(), question, text) for text in texts)]


# --- every kind of HookedTransformer ---------------------------------------------------------------------------------
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_saliency_and_interventions_are_exact_whatever_its_attention(changes, traces):
    model, trace = make(**changes), traces[1]
    expected = influence_by_separate_passes(model, trace.tokens)
    assert relative_error(token_influence(model, trace), expected) <= 1e-5
    whole = step_saliency(model, traces[0], chunk=1000)
    for chunk in (7, 16):
        assert relative_error(step_saliency(model, traces[0], chunk=chunk).mass, whole.mass) <= 2e-6
    tokens = traces[0].tokens[None]
    plain = model(tokens)
    with torch.no_grad(), intervene(model, BOTH):
        logits = model(tokens)
        for size in (1, 16):
            torch.testing.assert_close(in_chunks(model, tokens, size), logits, rtol=0, atol=1e-5)
    assert (logits - plain).abs().max() > 0.01


def test_windows_are_followed(traces):
    model, options = make(**WINDOWS), {"scope": "segment", "feasible": "share", "tau_max": 0.7, "bos": True}
    windows = {0: None, 1: 13, 2: 13}
    assert [host_of(model).attention_kind(layer) for layer in range(3)] == [
        "full_attention",
        *["sliding_attention"] * 2,
    ]
    expected = logits_with_interventions(model, traces[0], bridges=[(range(3), range(4), options)], window=windows)
    with torch.no_grad(), intervene(model, OddsEqualBridge("all", tau_max=0.7)):
        torch.testing.assert_close(model(traces[0].tokens[None])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"positional_embedding_type": "alibi"}, "ALiBi"),
        ({"clip_qkv": 3.0}, "it clips queries, keys and values"),
        ({"use_logn_attn": True, "train_seq_length": 64}, "beyond 64 tokens .* load it with n_ctx=64"),
        ({"use_dynamic_ntk_rope": True, "train_seq_length": 64}, "beyond 64 tokens"),
        ({"ungroup_grouped_query_attention": True}, "model.set_ungroup_grouped_query_attention\\(False\\)"),
        ({"attention_dir": "bidirectional"}, "over a cache it does not continue"),
    ],
)
def test_a_model_on_which_this_would_not_be_exact_is_refused(changes, reason, trace):
    model = make(**changes)
    with pytest.raises(UnsupportedModelError, match=f"custom .* is not supported: .*{reason}"):
        step_saliency(model, trace)
    with pytest.raises(UnsupportedModelError, match=reason), intervene(model, BOTH):
        pytest.fail("entered")


def test_a_model_of_an_older_transformer_lens_is_refused(trace, monkeypatch):
    model = make()
    monkeypatch.delattr(model.cfg, "use_logn_attn")
    monkeypatch.delattr(type(model.cfg), "use_logn_attn")
    with pytest.raises(UnsupportedModelError, match="install transformer-lens==3.9.0"):
        step_saliency(model, trace)


def test_a_model_that_is_not_causal_by_its_making_is_refused(trace):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from transformer_lens import HookedEncoder, HookedTransformerConfig

        cfg = HookedTransformerConfig(**SIZES | GPT2 | {"attention_dir": "bidirectional"})
        model = HookedEncoder(cfg)
    with pytest.raises(UnsupportedModelError, match="custom .* is not supported: .*embed.hook_in"):
        step_saliency(model, trace)


def test_a_flag_that_is_set_later_is_seen(trace):
    model = make()
    step_saliency(model, trace)
    model.set_ungroup_grouped_query_attention(True)
    with pytest.raises(UnsupportedModelError, match="its own cache cannot hold"):
        step_saliency(model, trace)


# --- saliency --------------------------------------------------------------------------------------------------------
def test_the_map_is_that_of_a_bridge(reasoner, reasoner_traces):
    bridge = stepsal.load_model()
    for trace in reasoner_traces[:2]:
        assert relative_error(step_saliency(reasoner, trace).mass, step_saliency(bridge, trace).mass) <= 1e-4


def test_padding_tokens_in_a_trace_are_read_like_any_other(qwen2):
    trace = random_trace(23, [5, 9, 16])
    trace.tokens[[6, 7, 15, 22]] = qwen2.tokenizer.pad_token_id
    expected = influence_by_separate_passes(qwen2, trace.tokens)
    for chunk in (1, 8, 100):
        found = step_saliency(qwen2, trace, chunk=chunk).mass
        assert relative_error(found, step_saliency(qwen2, trace, chunk=23).mass) <= 1e-6
    assert relative_error(token_influence(qwen2, trace), expected) <= 1e-5


def test_a_model_without_a_tokenizer_has_saliency(qwen2, trace, monkeypatch):
    expected = step_saliency(qwen2, trace).mass
    monkeypatch.setattr(qwen2, "tokenizer", None)
    assert torch.equal(step_saliency(qwen2, trace).mass, expected)


def test_the_cache_keeps_no_graph(qwen2, trace):
    host = host_of(qwen2)
    cache = host.new_cache()

    def leaf(residual, hook):
        return residual.detach().requires_grad_(True)

    host.forward(trace.tokens[None], [host.at_residual(0, leaf)], cache)
    for entry in cache.entries:
        assert entry.past_keys.shape[1] == len(trace.tokens)
        assert not entry.past_keys.requires_grad
        assert not entry.past_values.requires_grad


def test_a_map_is_saved_diagnosed_and_says_what_it_was_made_with(reasoner, reasoner_traces, tmp_path):
    stepsal.save_step_maps(reasoner, reasoner_traces[:2], tmp_path, progress=False)
    first, _ = stepsal.saliency.folder.load_step_maps(tmp_path)
    assert first.meta["architecture"] == "Qwen2ForCausalLM"
    assert len(stepsal.diagnose(first).table) == 8


def test_of_transformer_lens_processing_only_folded_value_biases_change_the_map(tmp_path, trace):
    folder = save_tiny("qwen2", tmp_path / "tiny")
    with torch.no_grad():
        from transformers import AutoModelForCausalLM

        original = AutoModelForCausalLM.from_pretrained(folder)
        for layer in original.model.layers:  # biases begin as zeros
            layer.self_attn.v_proj.bias.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
        original.save_pretrained(folder)
    expected = step_saliency(load_hooked(folder), trace).mass
    harmless = load_hooked(folder, fold_ln=True, center_unembed=True)
    assert relative_error(step_saliency(harmless, trace).mass, expected) <= 1e-4
    folded = load_hooked(folder, fold_value_biases=True)
    assert relative_error(step_saliency(folded, trace).mass, expected) > 0.1


def test_a_bf16_model_stays_in_its_precision(tmp_path, traces):
    model, seen = load_hooked(save_tiny("qwen2", tmp_path / "tiny"), torch.bfloat16), []

    def look(tensor, hook):
        seen.append(tensor.dtype)

    host = host_of(model)
    looks = [at(layer, look) for layer in range(3) for at in (host.at_pattern, host.at_head_outputs)]
    with torch.no_grad(), intervene(model, BOTH), model.hooks(fwd_hooks=looks):
        model(traces[0].tokens[None])
    assert set(seen) == {torch.bfloat16}
    assert torch.isfinite(step_saliency(model, traces[0], chunk=16).mass).all()


# --- interventions ---------------------------------------------------------------------------------------------------
def likeliest(model, ids, start):
    """Whether each token from `start` on is the most likely one after those before it, or as good as."""
    top = model(ids[None])[0].topk(2)
    after = range(start - 1, len(ids) - 1)
    return all(ids[at + 1] == top.indices[at, 0] or top.values[at, 0] - top.values[at, 1] < 1e-4 for at in after)


@pytest.mark.parametrize("given", ["tokens", "one", "texts"])
def test_generated_tokens_are_the_likeliest_of_whole_passes(tiny, traces, given):
    tokenizer, prompts = tiny.tokenizer, [trace.tokens[:-cut] for trace, cut in zip(traces, (9, 3, 2), strict=True)]
    if given == "one":
        prompts = prompts[:1]
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    width, end = max(map(len, prompts)), tokenizer.eos_token_id
    padded = torch.full((len(prompts), width), tokenizer.pad_token_id)
    for row, prompt in enumerate(prompts):
        padded[row, -len(prompt) :] = prompt
    plain = tiny(padded[:1])
    options = GREEDY | {"max_new_tokens": 12, "prepend_bos": False, "return_type": "tokens"}
    with torch.no_grad(), intervene(tiny, BOTH) as live:
        output = tiny.generate(texts if given == "texts" else padded, **options)
        assert live.report()["activations"].sum() > 0
        for row, prompt in enumerate(prompts):
            ids = output[row, width - len(prompt) :]
            assert torch.equal(ids[: len(prompt)], prompt)
            ends = (ids[len(prompt) :] == end).nonzero()
            ids = ids[: len(prompt) + int(ends[0]) + 1] if len(ends) else ids
            assert likeliest(tiny, ids, len(prompt))
    assert torch.equal(tiny(padded[:1]), plain)


def test_a_text_is_followed_like_its_tokens(qwen2, traces):
    text = qwen2.tokenizer.decode(traces[0].tokens)
    with torch.no_grad(), intervene(qwen2, BOTH):
        found = qwen2(text, prepend_bos=False)
        assert torch.equal(found, qwen2(qwen2.to_tokens(text, prepend_bos=False)))
        torch.testing.assert_close(found, qwen2(traces[0].tokens[None]), rtol=0, atol=1e-5)


def test_a_pass_without_a_cache_at_each_step_is_refused(qwen2, traces):
    with (
        pytest.raises(UnsupportedModelError, match="1 token.* for 64 .*use_past_kv_cache=True"),
        intervene(qwen2, BOTH),
    ):
        qwen2.generate(traces[0].tokens[None], max_new_tokens=4, use_past_kv_cache=False, **GREEDY)


def test_embeddings_in_place_of_tokens_are_refused(qwen2):
    with pytest.raises(UnsupportedModelError, match="the token ids did not come by"), intervene(qwen2, BOTH):
        qwen2(torch.randn(1, 5, 40), start_at_layer=0)
    with pytest.raises(UnsupportedModelError, match="start_at_layer"), intervene(qwen2, BOTH):
        qwen2(torch.randn(1, 5, 40), start_at_layer=1)


def test_a_text_that_was_not_followed_from_its_start_is_refused(qwen2, traces):
    cache, tokens = host_of(qwen2).new_cache(), traces[0].tokens[None]
    qwen2(tokens[:, :20], past_kv_cache=cache)
    with pytest.raises(InputError, match="attends to 20 token.* in the cache, but 0 token"), intervene(qwen2, BOTH):
        qwen2(tokens[:, 20:], past_kv_cache=cache)


def test_a_frozen_cache_is_refused_the_second_time(qwen2, traces):
    cache, tokens = host_of(qwen2).new_cache(), traces[0].tokens[None]
    with pytest.raises(InputError, match="attends to 20 token.* in the cache, but 30 token"), intervene(qwen2, BOTH):
        qwen2(tokens[:, :20], past_kv_cache=cache)
        cache.freeze()
        qwen2(tokens[:, 20:30], past_kv_cache=cache)
        qwen2(tokens[:, 20:30], past_kv_cache=cache)


def test_a_model_without_a_tokenizer_is_refused(qwen2, monkeypatch):
    monkeypatch.setattr(qwen2, "tokenizer", None)
    with pytest.raises(InputError, match="the model has no tokenizer"), intervene(qwen2, BOTH):
        pytest.fail("entered")


# --- the user's own hooks --------------------------------------------------------------------------------------------
def test_hooks_of_run_with_hooks_and_permanent_ones_keep_their_place(qwen2, traces):
    tokens, order = traces[0].tokens[None], []
    start, used = traces[0].steps[0].stop, {}

    def note(name):
        def look(pattern, hook):
            order.append(name)
            used[name] = pattern.clone()

        return look

    point = "blocks.0.attn.hook_pattern"
    qwen2.add_perma_hook(point, note("permanent"))
    try:
        with torch.no_grad(), intervene(qwen2, OddsEqualBridge(0, tau_max=0.7)):
            qwen2.run_with_hooks(tokens, fwd_hooks=[(point, note("inside"))])
            _, cache = qwen2.run_with_cache(tokens, names_filter=point)
            qwen2(tokens)
        assert order == ["permanent", "inside", "permanent", "permanent"]
        assert torch.equal(cache[point], used["inside"])
        changed = (used["inside"] != used["permanent"]).any(-1).any(1)[0]
        assert changed.any()
        assert not changed[:start].any()
        assert len(qwen2.hook_dict[point].fwd_hooks) == 1
        order.clear()
        qwen2.run_with_hooks(tokens, fwd_hooks=[(point, note("after"))])
        assert order == ["permanent", "after"]
    finally:
        qwen2.reset_hooks(including_permanent=True)


@pytest.mark.parametrize("wrong", [False, True])
def test_nothing_is_left_in_the_model(qwen2, traces, wrong):
    with pytest.raises(KeyError) if wrong else pytest.raises(KeyboardInterrupt), intervene(qwen2, BOTH):
        assert qwen2.embed._forward_pre_hooks
        qwen2(traces[0].tokens[None])
        if wrong:
            host = host_of(qwen2)
            with host.hooks([host.at_tokens(print), ("no.such.hook", print)]):
                pytest.fail("entered")
        raise KeyboardInterrupt
    assert not qwen2.embed._forward_pre_hooks
    assert not any(point.fwd_hooks for point in qwen2.hook_dict.values())
    assert qwen2.context_level == 0


def test_tokens_can_be_replaced_where_they_come_by(qwen2, trace):
    other, host = trace.tokens.flip(0)[None], host_of(qwen2)
    with torch.no_grad(), host.hooks([host.at_tokens(lambda tokens, hook: other)]):
        found = qwen2(trace.tokens[None])
    assert torch.equal(found, qwen2(other))


# --- the documentation -----------------------------------------------------------------------------------------------
def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "hooked_transformer.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for block in blocks:
            exec(compile(block, "hooked_transformer.md", "exec"), {})
