"""What TransformerLens calls the parts of a `TransformerBridge` (TransformerLens 4.3): the Hugging Face model with hooks."""

import json
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.models.host import Function, Hook, Host, OwnScore, plain_json
from stepsal.models.quantization import own_quantization


class BridgeHost(Host):
    """The host of a `TransformerBridge`."""

    # --- hooks -------------------------------------------------------------------------------------------------------
    def at_queries(self, layer: int, function: Function) -> Hook:
        return self._heads_last(layer, "hook_rot_q" if self._rotates_in_sight(layer) else "hook_q", function)

    def at_keys(self, layer: int, function: Function) -> Hook:
        return self._heads_last(layer, "hook_rot_k" if self._rotates_in_sight(layer) else "hook_k", function)

    def at_values(self, layer: int, function: Function) -> Hook:
        return self._heads_last(layer, "hook_v", function)

    def at_head_outputs(self, layer: int, function: Function) -> Hook:
        name = f"blocks.{layer}.attn.hook_z"
        if not self._heads_first(layer, "hook_v"):
            return name, function
        heads = self.model.cfg.n_heads

        def regroup(outputs: Tensor, hook: Any) -> Tensor | None:  # split by another head's width than the values'
            result = function(outputs.reshape(*outputs.shape[:2], heads, -1), hook)
            return None if result is None else result.reshape(outputs.shape)

        return name, regroup

    def hooks(self, hooks: list[Hook]) -> AbstractContextManager[Any]:
        return self.model.hooks(fwd_hooks=hooks)

    def _heads_last(self, layer: int, point: str, function: Function) -> Hook:
        name = f"blocks.{layer}.attn.{point}"
        if not self._heads_first(layer, point):
            return name, function

        def swap(tensor: Tensor, hook: Any) -> Tensor | None:
            result = function(tensor.transpose(1, 2), hook)
            return None if result is None else result.transpose(1, 2)

        return name, swap

    def _heads_first(self, layer: int, point: str) -> bool:
        """Whether heads come before positions there (multi-head latent attention)."""
        return getattr(getattr(self.model.blocks[layer].attn, point, None), "pos_dim", None) == 2

    def _rotates_in_sight(self, layer: int) -> bool:
        """Whether the rotary hooks see the queries and keys that the scores are made of.

        Not without rotation, not where queries, keys and values are one matrix (Phi-3: in TransformerLens 4.3.0 those
        hooks never fire), and not in latent attention (they see the rotated part alone).
        """
        attention = self.model.blocks[layer].attn
        joint = any(base.__name__ == "JointQKVAttentionBridge" for base in type(attention).__mro__)
        return hasattr(attention, "hook_rot_q") and not joint and not self._heads_first(layer, "hook_q")

    # --- what the model is -------------------------------------------------------------------------------------------
    def configuration(self) -> str:
        return plain_json(self.model.original_model.config.to_dict())

    @property
    def quantization(self) -> str:
        own = own_quantization(self.model.original_model.config)
        return json.dumps(own, sort_keys=True) if own else ""

    def unsupported(self) -> str:
        """What bitsandbytes does and a few tokens may not show: see `stepsal.models.quantization`."""
        for module in self.model.original_model.modules():
            if getattr(getattr(module, "state", None), "threshold", 0) > 0:
                return (
                    "what LLM.int8 gives for a token depends on the tokens that are read beside it, where it keeps outliers "
                    "apart: load it with quantization='8bit', or with llm_int8_threshold=0.0"
                )
            if getattr(module, "support_avx512bf16_for_cpu", False) and module.weight.device.type == "cpu":
                return (
                    "bitsandbytes' CPU kernel for 4-bit weights has no gradient: load it with stepsal.load_model, which "
                    "switches the kernel off"
                )
        return ""

    def own_score(self, layer: int) -> OwnScore:
        attention = self.model.blocks[layer].attn.original_component
        scale = getattr(attention, "scaling", None) or self.model.cfg.d_head**-0.5
        cap = getattr(attention, "attn_logit_softcapping", None)
        return OwnScore(float(scale), self._rotary_weights(layer), None if cap is None else float(cap))

    def _rotary_weights(self, layer: int) -> Float[Tensor, " d_head"] | None:
        if self._rotates_in_sight(layer) or self._heads_first(layer, "hook_q"):
            return None  # the queries and keys that are seen are rotated
        rotary = getattr(getattr(self.model, "rotary_emb", None), "original_component", None)
        factor = float(getattr(rotary, "attention_scaling", 1.0))
        if factor == 1:
            return None
        weights = torch.ones(self.model.cfg.d_head, device=self.device)
        weights[: 2 * rotary.inv_freq.numel()] = factor**2  # type: ignore[union-attr]
        return weights

    def attention_kind(self, layer: int) -> str:
        config = self.model.original_model.config.get_text_config()
        if kinds := getattr(config, "layer_types", None):
            return str(kinds[layer])
        return "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"

    def _names_special_tokens(self) -> tuple[Any, ...]:
        settings = getattr(getattr(self.model, "original_model", None), "generation_config", None)
        return (self.model.tokenizer, settings)

    # --- running it --------------------------------------------------------------------------------------------------
    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()

    def forward(
        self, tokens: Int[Tensor, "batch pos"], hooks: list[Hook], cache: Any = None
    ) -> Float[Tensor, "batch pos vocabulary"]:
        with self.hooks(hooks):
            if cache is None:
                return self.model(tokens, return_type="logits")
            logits, _ = self.model(tokens, return_type="logits_and_cache", past_key_values=cache)
            return logits

    def check_decodes(self) -> None:
        """Every bridge decodes."""

    def decode(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        ends: Collection[int],
        choose: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Int[Tensor, "batch longer_pos"]:
        from transformers import GenerationConfig, LogitsProcessorList

        owner = self.model.original_model
        settings = owner.generation_config
        owner.generation_config = GenerationConfig()  # transformers (5.23.0) takes from it what a call does not name
        try:
            return self.model.hf_generate(
                tokens,
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(ends),
                do_sample=False,
                logits_processor=LogitsProcessorList([] if choose is None else [choose]),
                attention_mask=mask,
                return_type="tokens",
            )
        finally:
            owner.generation_config = settings
