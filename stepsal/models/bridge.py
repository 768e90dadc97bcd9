"""What TransformerLens calls the parts of a `TransformerBridge` (TransformerLens 4.3): the Hugging Face model with hooks."""

import inspect
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.errors import UnsupportedModelError
from stepsal.models.host import Function, Hook, Host, OwnScore, plain_json
from stepsal.models.idle_components import without_idle_components
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

    def at_output_gate(self, layer: int, function: Function) -> Hook | None:
        attention = self.model.blocks[layer].attn
        return (f"blocks.{layer}.attn.hook_q_gate", function) if hasattr(attention, "hook_q_gate") else None

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
        own = own_quantization(getattr(getattr(self.model, "original_model", None), "config", None))
        return json.dumps(own, sort_keys=True) if own else ""

    def unsupported(self) -> str:
        attentions = [getattr(block, "attn", None) for block in getattr(self.model, "blocks", ())]
        if any(type(attention).__name__ == "AttentionBridge" for attention in attentions):
            return "TransformerLens leaves its attention to transformers, so patterns can be seen afterwards but not replaced"
        # What bitsandbytes does and a few tokens may not show: see `stepsal.models.quantization`.
        original = getattr(self.model, "original_model", None)  # what is no bridge at all is refused elsewhere
        for module in original.modules() if original is not None else ():
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

    def project(self, layer: int, outputs: Float[Tensor, "pos head d_head"]) -> Float[Tensor, "pos head d_model"]:
        # The module itself is asked, since weights may be transposed or quantised: each head alone, all others zero.
        projection, (length, heads, _) = self.model.blocks[layer].attn.o.original_component, outputs.shape
        one = torch.eye(heads, dtype=self.dtype, device=outputs.device)
        alone = einsum(outputs.to(self.dtype), one, "pos head d_head, head place -> pos head place d_head")
        inputs = rearrange(alone, "pos head place d_head -> (pos head) (place d_head)")
        added = projection(inputs) - projection(torch.zeros_like(inputs[:1]))
        return rearrange(added, "(pos head) d_model -> pos head d_model", pos=length)

    def attention_kind(self, layer: int) -> str:
        config = self.model.original_model.config.get_text_config()
        if kinds := getattr(config, "layer_types", None):
            return str(kinds[layer])
        return "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"

    def _names_special_tokens(self) -> tuple[Any, ...]:
        settings = getattr(getattr(self.model, "original_model", None), "generation_config", None)
        return (self.model.tokenizer, settings)

    # --- running it --------------------------------------------------------------------------------------------------
    def adapt(self) -> None:
        # From transformers 5.24 on the cache is called `cache`. TransformerLens 4.3.0 gives it to the model under its old name,
        # which works but warns, and looks for it in each layer under its old name, where it finds none: each token would see
        # itself alone. So it is renamed on the way into the model, and into the bridge of each part of a layer; and back, where
        # that bridge leaves the work to transformers' own part.
        model = getattr(self.model, "original_model", None)
        if model is None or not _takes_cache(model):
            return
        _rename(model, "past_key_values", "cache")
        for block in getattr(self.model, "blocks", ()):
            for name, part in block.named_children():
                original = getattr(part, "original_component", None)
                if original is not None and _takes_cache(original):
                    old = "past_key_values" if name == "attn" else "cache_params"
                    _rename(part, "cache", old)
                    _rename(original, old, "cache")

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        # Made from a configuration, a cache keeps of a sliding window no keys but the window's. Here all of them are needed.
        cache = DynamicCache(config=self.model.original_model.config)
        if not any(hasattr(layer, "recurrent_states") for layer in cache.layers):
            return DynamicCache()
        if any(cache.is_sliding):
            raise UnsupportedModelError(
                "beside a recurrence it has sliding windows, and its cache keeps their keys alone"
            )
        return cache

    def take_rows(self, cache: Any, rows: Sequence[int]) -> None:
        cache.reorder_cache(torch.tensor(rows, dtype=torch.long, device=self.device))  # recurrent states, too

    def forward(
        self, tokens: Int[Tensor, "batch pos"], hooks: list[Hook], cache: Any = None
    ) -> Float[Tensor, "batch pos vocabulary"]:
        if cache is None:
            with self.hooks(hooks):
                return self.model(tokens, return_type="logits")
        with self.hooks(hooks), _copying_states(cache):
            logits = self.model(tokens, return_type="logits", past_key_values=cache)
        for layer in cache.layers:
            _detach(vars(layer))
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
            with without_idle_components(self.model):
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


def _detach(kept: dict[Any, Any]) -> None:
    """Detach the tensors that a layer of a cache holds: keys, values, and the states of a recurrence by their number."""
    for name, value in kept.items():
        if isinstance(value, Tensor):
            kept[name] = value.detach()
        elif isinstance(value, dict):
            _detach(value)


def _copying_states(cache: Any) -> AbstractContextManager[Any]:
    """A context in which autograd keeps copies of the states of recurrences in a cache, which are overwritten in place."""
    kinds = [vars(layer).get(name, {}) for layer in cache.layers for name in ("conv_states", "recurrent_states")]
    states = {state.untyped_storage().data_ptr() for kind in kinds for state in kind.values() if state is not None}
    if not states:
        return nullcontext()

    def pack(tensor: Tensor) -> tuple[Tensor, int]:
        kept = tensor.clone() if tensor.untyped_storage().data_ptr() in states else tensor
        return kept, kept._version

    def unpack(packed: tuple[Tensor, int]) -> Tensor:
        if packed[0]._version != packed[1]:
            raise RuntimeError("a tensor that the backward pass needs was overwritten")
        return packed[0]

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _takes_cache(module: torch.nn.Module) -> bool:
    return "cache" in inspect.signature(module.forward).parameters


@dataclass(frozen=True)
class _Renamed:
    """A hook that gives a module an argument under another name, where it has no such argument yet."""

    old: str
    new: str

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if self.old not in kwargs or self.new in kwargs:
            return None
        return args, {self.new if name == self.old else name: value for name, value in kwargs.items()}


def _rename(module: torch.nn.Module, old: str, new: str) -> None:
    if _Renamed(old, new) not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_Renamed(old, new), with_kwargs=True)
