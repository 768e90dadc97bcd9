"""What is different about `HookedTransformer`, TransformerLens' own model until 3.9: only `stepsal.models.host` asks this file.

Its hook points have the names and layouts of the bridge's. Different are:

1. No hook point sees the token ids. What is put in front of the embedding does, and sees those of `generate` too, which embeds
   the tokens itself.
2. Its cache holds keys as they are before the rotation, so the rotary hooks see those of all tokens so far, not of this pass
   alone.
3. Its scores are masked with minus infinity; padding and caches have keywords of their own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Model = Any  # transformer_lens.HookedTransformer, which is not in TransformerLens 4
Function = Callable[[Tensor, Any], Tensor | None]  # as in stepsal.models.host


def is_hooked_transformer(model: object) -> bool:
    """Whether it is TransformerLens' own model, not a bridge; without importing TransformerLens."""
    return any(each.__name__ == "HookedTransformer" for each in type(model).__mro__)


def unsupported(model: Model) -> str:
    """Why saliency and interventions would not be exact on this model, and what to do; "" where they are.

    Only what a pass over a few tokens does not show: see `stepsal.models.support`.
    """
    cfg = model.cfg
    if not hasattr(cfg, "use_logn_attn"):
        return "it is of a TransformerLens before 3.9: install transformer-lens==3.9.0"
    longest = getattr(cfg, "train_seq_length", None) or cfg.n_ctx
    reasons = {
        "ALiBi's biases are not in its scores' equation": cfg.positional_embedding_type == "alibi",
        "it clips queries, keys and values (clip_qkv)": cfg.clip_qkv is not None,
        f"beyond {longest} tokens its attention changes with the length (dynamic NTK or log-n scaling): load it with "
        f"n_ctx={longest}": (cfg.use_dynamic_ntk_rope or cfg.use_logn_attn) and cfg.n_ctx > longest,
        "it repeats keys and values for each head, which its own cache cannot hold: "
        "model.set_ungroup_grouped_query_attention(False)": cfg.ungroup_grouped_query_attention,
        f"it is split over {cfg.n_devices} devices: load it on one": cfg.n_devices > 1,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


@contextmanager
def hooks(model: Model, points: list[tuple[str, Function]], at_tokens: list[Function]) -> Iterator[None]:
    """Hooks at hook points, and functions of the token ids, for as long as the context lasts."""

    def before(function: Function) -> Callable[[Any, tuple[Tensor]], tuple[Tensor] | None]:
        def call(embed: Any, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
            result = function(inputs[0], None)
            return None if result is None else (result,)

        return call

    handles = [model.embed.register_forward_pre_hook(before(function)) for function in at_tokens]
    try:
        with model.hooks(fwd_hooks=points):
            yield
    finally:
        for handle in handles:
            handle.remove()


def scale_and_cap(model: Model, layer: int) -> tuple[float, float | None]:
    """What the scores are multiplied by, and their soft cap."""
    cap = model.cfg.attn_scores_soft_cap
    return 1 / float(model.blocks[layer].attn.attn_scale), float(cap) if cap and cap > 0 else None


def new_cache(model: Model) -> Any:
    """An empty cache for a batch of one."""
    from transformer_lens import TransformerLensKeyValueCache

    return TransformerLensKeyValueCache.init_cache(model.cfg, next(model.parameters()).device)


def forward(model: Model, tokens: Int[Tensor, "batch pos"], cache: Any) -> Float[Tensor, "batch pos vocabulary"]:
    """Logits. No token is taken for padding, whatever its id."""
    logits = model(tokens, return_type="logits", attention_mask=torch.ones_like(tokens), past_kv_cache=cache)
    for entry in cache.entries if cache is not None else ():  # else it would keep the graphs of all passes
        entry.past_keys, entry.past_values = entry.past_keys.detach(), entry.past_values.detach()
    return logits
