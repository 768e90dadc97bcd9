"""The one file that knows TransformerLens: its hook names, shapes and conventions.

`TransformerBridge` wraps the real Hugging Face model and fires hooks inside it; what is different about the older
`HookedTransformer` is in `stepsal.models.hooked_transformer`. Everything else in stepsal asks this file for hooks
(`at_pattern(3, function)`), sizes and forward passes.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepsal.errors import UnsupportedModelError
from stepsal.models import hooked_transformer
from stepsal.models.hooked_transformer import is_hooked_transformer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge as Model
    from transformers import PreTrainedTokenizerBase
else:  # imported only where used: together they take seconds
    Model = PreTrainedTokenizerBase = Any

Function = Callable[[Tensor, Any], Tensor | None]
Hook = tuple[str, Function]

BUNDLED = Path(__file__).parents[1] / "reasoner" / "model"
TOKENS = "embed.hook_in"


# --- hooks -----------------------------------------------------------------------------------------------------------
# Each takes a function of a tensor (in the layout said here, whatever the model's own) and the hook point; what it returns
# replaces the tensor, None leaves it as it is.
def at_tokens(function: Function) -> Hook:
    """The token ids of each forward pass, `batch pos`; it fires first, in prefill and at every decoding step."""
    return TOKENS, function


def at_queries(model: Model, layer: int, function: Function) -> Hook:
    """Queries, `batch pos head d_head`; rotated unless the rotation is out of sight (see `own_score`)."""
    return _heads_last(model, layer, "hook_rot_q" if _rotates_in_sight(model, layer) else "hook_q", function)


def at_keys(model: Model, layer: int, function: Function) -> Hook:
    """Keys, `batch pos kv_head d_head`, rotated as the queries are; the cache keeps what follows from the result.

    In a `HookedTransformer` those of the cache come before them, rotated anew in each pass.
    """
    return _heads_last(model, layer, "hook_rot_k" if _rotates_in_sight(model, layer) else "hook_k", function)


def at_values(model: Model, layer: int, function: Function) -> Hook:
    """Values, `batch pos kv_head d_head`; the cache keeps the result."""
    return _heads_last(model, layer, "hook_v", function)


def at_scores(layer: int, function: Function) -> Hook:
    """Attention scores before the softmax, masked, `batch head query key`."""
    return f"blocks.{layer}.attn.hook_attn_scores", function


def at_pattern(layer: int, function: Function) -> Hook:
    """Attention probabilities, `batch head query key`."""
    return f"blocks.{layer}.attn.hook_pattern", function


def at_head_outputs(model: Model, layer: int, function: Function) -> Hook:
    """Head outputs before the output projection, `batch pos head d_head`."""
    name = f"blocks.{layer}.attn.hook_z"
    if not _heads_first(model, layer, "hook_v"):
        return name, function

    def regroup(outputs: Tensor, hook: Any) -> Tensor | None:  # split by another head's width than the values'
        result = function(outputs.reshape(*outputs.shape[:2], model.cfg.n_heads, -1), hook)
        return None if result is None else result.reshape(outputs.shape)

    return name, regroup


def at_residual(layer: int, function: Function) -> Hook:
    """What leaves a layer, `batch pos d_model`."""
    return f"blocks.{layer}.hook_resid_post", function


@contextmanager
def hooks(model: Model, added: list[Hook]) -> Iterator[None]:
    """The hooks inside, after those that are there and before any that are added inside; always removed."""
    if is_hooked_transformer(model):
        points = [(name, function) for name, function in added if name != TOKENS]
        at_tokens = [function for name, function in added if name == TOKENS]
        with hooked_transformer.hooks(model, points, at_tokens):
            yield
    else:
        with model.hooks(fwd_hooks=added):
            yield


def _heads_last(model: Model, layer: int, point: str, function: Function) -> Hook:
    name = f"blocks.{layer}.attn.{point}"
    if not _heads_first(model, layer, point):
        return name, function

    def swap(tensor: Tensor, hook: Any) -> Tensor | None:
        result = function(tensor.transpose(1, 2), hook)
        return None if result is None else result.transpose(1, 2)

    return name, swap


def _heads_first(model: Model, layer: int, point: str) -> bool:
    """Whether heads come before positions there (multi-head latent attention)."""
    return getattr(getattr(model.blocks[layer].attn, point, None), "pos_dim", None) == 2


def _rotates_in_sight(model: Model, layer: int) -> bool:
    """Whether the rotary hooks see the queries and keys that the scores are made of.

    Not without rotation, not where queries, keys and values are one matrix (Phi-3: those hooks never fire), and not in
    latent attention (they see the rotated part alone).
    """
    attention = model.blocks[layer].attn
    joint = any(each.__name__ == "JointQKVAttentionBridge" for each in type(attention).__mro__)
    return hasattr(attention, "hook_rot_q") and not joint and not _heads_first(model, layer, "hook_q")


# --- sizes -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Shape:
    """Sizes of a model that stepsal needs."""

    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int


def shape(model: Model) -> Shape:
    cfg = model.cfg
    kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    return Shape(cfg.n_layers, cfg.n_heads, kv_heads, cfg.d_vocab, cfg.n_ctx)


def device_of(model: Model) -> torch.device:
    return next(model.parameters()).device


def describe(model: Model) -> dict[str, str]:
    """Name, type and precision of a model, for the record kept with each result."""
    name = str(model.cfg.model_name)
    architecture = getattr(model.cfg, "architecture", None) or getattr(model.cfg, "original_architecture", None)
    return {
        "model": "stepsal/reasoner" if name == str(BUNDLED) else name,
        "architecture": str(architecture),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": str(device_of(model)),
    }


@dataclass(frozen=True)
class OwnScore:
    """How a layer makes a token's score for itself of its query and key: `cap(scale * sum_d weights_d q_d k_d)`.

    weights: where the rotation is out of sight, what it multiplies each coordinate's product by (1, or a YaRN factor
    squared); None is 1. cap: the soft cap, `cap * tanh(. / cap)`; None is no cap.
    """

    scale: float
    weights: Float[Tensor, " d_head"] | None
    cap: float | None

    def of(self, product: Tensor) -> Tensor:
        """The score of `sum_d weights_d q_d k_d`."""
        score = self.scale * product
        return score if self.cap is None else self.cap * torch.tanh(score / self.cap)

    def slope(self, score: Tensor) -> Tensor | float:
        """The score's derivative by `sum_d weights_d q_d k_d`, where the score is `score`."""
        return self.scale if self.cap is None else self.scale * (1 - (score / self.cap) ** 2)


def own_score(model: Model, layer: int) -> OwnScore:
    """What the score of position `t` for itself is made of: there a rotation leaves `q . k` as it is."""
    if is_hooked_transformer(model):
        scale, cap = hooked_transformer.scale_and_cap(model, layer)
        return OwnScore(scale, None, cap)
    attention = model.blocks[layer].attn.original_component
    scale = getattr(attention, "scaling", None) or model.cfg.d_head**-0.5
    cap = getattr(attention, "attn_logit_softcapping", None)
    return OwnScore(float(scale), _rotary_weights(model, layer), None if cap is None else float(cap))


def _rotary_weights(model: Model, layer: int) -> Float[Tensor, " d_head"] | None:
    if _rotates_in_sight(model, layer) or _heads_first(model, layer, "hook_q"):
        return None  # the queries and keys that are seen are rotated
    rotary = getattr(getattr(model, "rotary_emb", None), "original_component", None)
    factor = float(getattr(rotary, "attention_scaling", 1.0))
    if factor == 1:
        return None
    weights = torch.ones(model.cfg.d_head, device=device_of(model))
    weights[: 2 * rotary.inv_freq.numel()] = factor**2  # type: ignore[union-attr]
    return weights


def visible_keys(scores: Float[Tensor, "batch head query key"]) -> Bool[Tensor, "batch query key"]:
    """The keys that each query may attend to: no later ones, no padding, none outside a sliding window.

    Read off the first head's masked scores, whose mask adds the most negative number of their precision: exact also where
    a probability has underflowed to zero.
    """
    return scores[:, 0].detach() > torch.finfo(scores.dtype).min / 2


def attention_kind(model: Model, layer: int) -> str:
    """A name that layers have in common whose queries see the same keys: Hugging Face's, such as `full_attention`.

    Of any other kind, a cache may hold fewer keys than there were tokens.
    """
    if is_hooked_transformer(model):
        return "full_attention" if model.blocks[layer].attn.attn_type == "global" else "sliding_attention"
    config = model.original_model.config.get_text_config()
    if kinds := getattr(config, "layer_types", None):
        return str(kinds[layer])
    return "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"


def stop_tokens(model: Model) -> frozenset[int]:
    """Tokens that end a sequence, of the tokenizer and of the generation settings."""
    return _special_tokens(model, "eos_token_id")


def end_tokens(model: Model) -> frozenset[int]:
    """Tokens that end a sequence or fill it up after its end."""
    return _special_tokens(model, "eos_token_id") | _special_tokens(model, "pad_token_id")


def _special_tokens(model: Model, name: str) -> frozenset[int]:
    ids: list[int] = []
    for source in (model.tokenizer, getattr(getattr(model, "original_model", None), "generation_config", None)):
        given = getattr(source, name, None)
        ids += given if isinstance(given, list) else [given] if isinstance(given, int) else []
    return frozenset(ids)


def decoding_bytes(model: Model, prompt: int, total: int) -> int:
    """About how much memory decoding one sequence takes: its keys and values, and while the prompt is read, three copies of
    one layer's attention scores in float32."""
    size = shape(model)
    element = next(model.parameters()).element_size()
    cache = 2 * size.layers * size.kv_heads * int(model.cfg.d_head) * element * total
    return cache + 3 * 4 * size.heads * prompt * prompt


def per_query_head(
    tensor: Float[Tensor, "batch pos kv_head d_head"], heads: int
) -> Float[Tensor, "batch pos head d_head"]:
    """Give every query head its own copy of the keys or values it reads (grouped-query attention)."""
    return tensor.repeat_interleave(
        heads // tensor.shape[2], 2
    )  # einops.repeat takes ten times as long in a decoding step


# --- running ---------------------------------------------------------------------------------------------------------
def new_cache(model: Model) -> Any:
    """An empty key-value cache; `forward` appends to it in place."""
    if is_hooked_transformer(model):
        return hooked_transformer.new_cache(model)
    from transformers import DynamicCache

    return DynamicCache()


def forward(
    model: Model, tokens: Int[Tensor, "batch pos"], added: list[Hook], cache: Any = None
) -> Float[Tensor, "batch pos vocabulary"]:
    """Logits of `tokens`, read with these hooks; with a cache, the tokens follow those already in it."""
    with hooks(model, added):
        if is_hooked_transformer(model):
            return hooked_transformer.forward(model, tokens, cache)
        if cache is None:
            return model(tokens, return_type="logits")
        logits, _ = model(tokens, return_type="logits_and_cache", past_key_values=cache)
        return logits


def check_decodes(model: Model) -> None:
    """Raise `UnsupportedModelError` where `decode` cannot be had."""
    if is_hooked_transformer(model):
        raise UnsupportedModelError(
            "stepsal decodes with a TransformerBridge, and this is a HookedTransformer. Load the model with stepsal.load_model "
            "(TransformerLens 4), or call model.generate(...) inside `with stepsal.intervene(model, parts):`"
        )


def decode(
    model: Model,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"],
    max_new_tokens: int,
    ends: Collection[int],
    choose: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Int[Tensor, "batch longer_pos"]:
    """Left-padded prompts and their continuations; rows that ended are filled up with an end-of-sequence token.

    The most likely token each time, after `choose(tokens so far, logits)` where it is given. The model's own generation
    settings are put aside: any of them could change the tokens.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    owner = model.original_model
    settings = owner.generation_config
    owner.generation_config = GenerationConfig()  # what a call does not name is taken from there
    try:
        return model.hf_generate(
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


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Evaluation mode and no parameter gradients inside; outside, whatever it was before."""
    training = model.training
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        model.train(training)
        for parameter in trainable:
            parameter.requires_grad_(True)


def unsupported(model: Model) -> str:
    """Why stepsal is not exact with this model although a pass over a few tokens may look as it should; "" where it is."""
    return hooked_transformer.unsupported(model) if is_hooked_transformer(model) else ""


@contextmanager
def without_hooks(model: Model) -> Iterator[None]:
    """No hooks inside: those that a user has put in may expect other tokens than ours."""
    kept = [(point, point._forward_hooks.copy()) for point in model.hook_dict.values() if point._forward_hooks]
    try:
        for point, _ in kept:
            point._forward_hooks.clear()
        yield
    finally:
        for point, hooks in kept:
            point._forward_hooks.update(hooks)
