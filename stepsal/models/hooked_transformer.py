"""How `HookedTransformer` differs, TransformerLens' own model until 3.9 (TransformerLens 4 has none).

Its hook points have the names and layouts of the bridge's. The differences are:

1. No hook point sees the token ids. A hook in front of the embedding does. It also sees the tokens of `generate`, which embeds
   them itself.
2. The cache holds keys as they are before the rotation, so the rotary hooks see the keys of all tokens so far, not those of
   this pass alone.
3. The scores are masked with minus infinity, and padding and caches have keywords of their own.
4. `generate` samples in a way of its own, and takes tokens for padding by their id: `decode` has a loop of its own.

All of this holds for TransformerLens 3.9.0, the last version with this model.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.errors import UnsupportedModelError
from stepsal.models.host import TOKENS, Function, Hook, Host, OwnScore, plain_json


class HookedTransformerHost(Host):
    """The host of a `HookedTransformer` of TransformerLens 3.9."""

    name: ClassVar[str] = "hooked_transformer"

    # --- hooks -------------------------------------------------------------------------------------------------------
    def at_queries(self, layer: int, function: Function) -> Hook:
        return f"blocks.{layer}.attn.{'hook_rot_q' if self._rotates(layer) else 'hook_q'}", function

    def at_keys(self, layer: int, function: Function) -> Hook:
        return f"blocks.{layer}.attn.{'hook_rot_k' if self._rotates(layer) else 'hook_k'}", function

    def at_values(self, layer: int, function: Function) -> Hook:
        return f"blocks.{layer}.attn.hook_v", function

    def at_head_outputs(self, layer: int, function: Function) -> Hook:
        return f"blocks.{layer}.attn.hook_z", function

    def _rotates(self, layer: int) -> bool:
        return hasattr(self.model.blocks[layer].attn, "hook_rot_q")

    @contextmanager
    def hooks(self, hooks: list[Hook]) -> Iterator[None]:
        def before(function: Function) -> Callable[[Any, tuple[Tensor]], tuple[Tensor] | None]:
            def call(embed: Any, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
                result = function(inputs[0], None)
                return None if result is None else (result,)

            return call

        of_tokens = [function for name, function in hooks if name == TOKENS]
        handles = [self.model.embed.register_forward_pre_hook(before(function)) for function in of_tokens]
        try:
            with self.model.hooks(fwd_hooks=[(name, function) for name, function in hooks if name != TOKENS]):
                yield
        finally:
            for handle in handles:
                handle.remove()

    # --- what the model is -------------------------------------------------------------------------------------------
    def configuration(self) -> str:
        return plain_json(self.model.cfg.to_dict())

    def unsupported(self) -> str:
        cfg = self.model.cfg
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

    def own_score(self, layer: int) -> OwnScore:
        cap = self.model.cfg.attn_scores_soft_cap
        scale = 1 / float(self.model.blocks[layer].attn.attn_scale)
        return OwnScore(scale, None, float(cap) if cap and cap > 0 else None)

    def project(self, layer: int, outputs: Float[Tensor, "pos head d_head"]) -> Float[Tensor, "pos head d_model"]:
        weights: Float[Tensor, "head d_head d_model"] = self.model.blocks[layer].attn.W_O
        return einsum(outputs.to(weights.dtype), weights, "pos head d_head, head d_head d_model -> pos head d_model")

    def attention_kind(self, layer: int) -> str:
        return "full_attention" if self.model.blocks[layer].attn.attn_type == "global" else "sliding_attention"

    def _names_special_tokens(self) -> tuple[Any, ...]:
        # `load_model` keeps Hugging Face's settings here; TransformerLens itself forgets them.
        return (self.model.tokenizer, getattr(self.model, "generation_config", None))

    # --- running it --------------------------------------------------------------------------------------------------
    def new_cache(self) -> Any:
        return self._new_cache(1)

    def _new_cache(self, batch: int) -> Any:
        from transformer_lens import TransformerLensKeyValueCache

        return TransformerLensKeyValueCache.init_cache(self.model.cfg, self.device, batch)

    def take_rows(self, cache: Any, rows: Sequence[int]) -> None:
        chosen = torch.tensor(rows, dtype=torch.long)
        for entry in cache.entries:
            entry.past_keys = entry.past_keys[chosen.to(entry.past_keys.device)]
            entry.past_values = entry.past_values[chosen.to(entry.past_values.device)]
        cache.previous_attention_mask = cache.previous_attention_mask[chosen.to(cache.previous_attention_mask.device)]

    def forward(
        self, tokens: Int[Tensor, "batch pos"], hooks: list[Hook], cache: Any = None
    ) -> Float[Tensor, "batch pos vocabulary"]:
        with self.hooks(hooks):
            # Without a mask, TransformerLens 3.9.0 takes every token that has the id of the padding for padding.
            everything = torch.ones_like(tokens)
            logits = self.model(tokens, return_type="logits", attention_mask=everything, past_kv_cache=cache)
        # A cache of TransformerLens 3.9.0 would keep the graphs of all passes.
        for entry in cache.entries if cache is not None else ():
            entry.past_keys, entry.past_values = entry.past_keys.detach(), entry.past_values.detach()
        return logits

    def check_decodes(self) -> None:
        if reason := self.unsupported():
            about = self.describe()
            raise UnsupportedModelError(f"{about['model']} ({about['architecture']}) cannot decode here: {reason}")

    def decode(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        ends: Collection[int],
        choose: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Int[Tensor, "batch longer_pos"]:
        cache, end = self._new_cache(len(tokens)), torch.tensor(sorted(ends), device=tokens.device)
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        if tokens.shape[1] > 1:  # read apart from the last token, these need no logits, which may be large
            self.model(tokens[:, :-1], return_type=None, attention_mask=mask[:, :-1], past_kv_cache=cache)
        last = mask[:, -1:]
        for _ in range(max_new_tokens):
            logits = self.model(tokens[:, -1:], return_type="logits", attention_mask=last, past_kv_cache=cache)
            logits = logits[:, -1].float()
            chosen = (logits if choose is None else choose(tokens, logits)).argmax(-1)
            tokens = torch.cat([tokens, torch.where(ended, end[0], chosen)[:, None]], 1)
            ended = ended | torch.isin(chosen, end)
            if ended.all():
                break
            last = torch.ones_like(last)
        return tokens
