"""Hugging Face's own modules decode in the place of components that have no hooks, and nothing changes but time."""

import pytest
import torch
from conftest import save_tiny
from families import FAMILIES, save_family
from hooked import TL3

from stepsal import load_model
from stepsal.models import host_of
from stepsal.models.idle_components import without_idle_components

pytestmark = pytest.mark.skipif(TL3, reason="only a bridge has components")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny("llama", tmp_path_factory.mktemp("idle")))


def decoded_logits(model, hooks=()):
    """The logits of each decoding step of a left-padded batch."""
    tokens = torch.arange(5, 5 + 34).reshape(2, 17)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    logits = []

    def keep(so_far, scores):
        logits.append(scores.clone())
        return scores

    host = host_of(model)
    with torch.no_grad(), host.frozen(), host.hooks(list(hooks)):
        host.decode(tokens, mask, 7, {0}, keep)
    return torch.stack(logits)


def components(model):
    return [(name, type(module)) for name, module in model.original_model.named_modules()]


def everywhere(model):
    """A hook that only looks, at every point that needs no setting of TransformerLens."""
    settings = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_mlp_in", "hook_result")
    return [(name, lambda tensor, hook: None) for name in model.hook_dict if not name.endswith(settings)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_logits_are_bit_identical_with_components_and_without(family, tmp_path):
    model = load_model(save_family(family, tmp_path))
    assert torch.equal(decoded_logits(model), decoded_logits(model, everywhere(model)))


def test_no_component_of_a_llama_is_left_where_there_are_no_hooks(model):
    with without_idle_components(model):
        modules = {type(module).__module__.partition(".")[0] for module in model.original_model.modules()}
    assert "transformer_lens" not in modules


@pytest.mark.parametrize(
    "point", ["blocks.1.attn.hook_pattern", "blocks.1.hook_resid_post", "blocks.1.mlp.hook_in", "hook_embed"]
)
def test_a_hook_fires_at_every_step_and_its_edit_counts(model, point):
    calls = []

    def double(tensor, hook):
        calls.append(hook.name)
        return tensor * 2

    edited = decoded_logits(model, [(point, double)])
    assert len(calls) == 7
    assert torch.equal(edited, decoded_logits(model, [(point, double), *everywhere(model)]))
    assert not torch.equal(edited, decoded_logits(model))


def test_a_hook_of_pytorch_on_a_component_fires(model):
    calls = []
    handle = model.blocks[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    try:
        decoded_logits(model)
    finally:
        handle.remove()
    assert len(calls) == 7


def test_components_are_back_after_an_error(model):
    decoded_logits(model)
    before = components(model)
    with pytest.raises(KeyError, match="inside"), without_idle_components(model):
        assert components(model) != before
        raise KeyError("inside")
    assert components(model) == before
    tokens = torch.arange(5, 22)[None]
    seen = []
    with torch.no_grad(), host_of(model).hooks([("blocks.2.attn.hook_pattern", lambda p, hook: seen.append(p.shape))]):
        model(tokens)
    assert seen == [(1, 4, 17, 17)]


@pytest.mark.parametrize("setting", ["use_attn_in", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_result"])
def test_settings_by_which_components_talk_to_each_other_keep_them(model, setting, monkeypatch):
    monkeypatch.setattr(model.cfg, setting, True, raising=False)
    before = components(model)
    with without_idle_components(model):
        assert components(model) == before
