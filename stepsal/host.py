"""The one file that knows TransformerLens: its hook names, shapes and conventions, and how a model is loaded.

`TransformerBridge` wraps the real Hugging Face model and fires hooks inside it. Everything else in stepsal asks this file
for names (`pattern_name(3)`), sizes and forward passes.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepsal.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge as Model
    from transformers import PreTrainedTokenizerBase
else:  # imported only where used: together they take seconds
    Model = PreTrainedTokenizerBase = Any

Function = Callable[[Tensor, Any], Tensor | None]
Hook = tuple[str, Function]

BUNDLED = Path(__file__).parent / "reasoner" / "model"


# --- hooks -----------------------------------------------------------------------------------------------------------
# Each takes a function of a tensor (in the layout said here, whatever the model's own) and the hook point; what it returns
# replaces the tensor, None leaves it as it is.
def at_tokens(function: Function) -> Hook:
    """The token ids of each forward pass, `batch pos`; it fires first, in prefill and at every decoding step."""
    return "embed.hook_in", function


def at_queries(model: Model, layer: int, function: Function) -> Hook:
    """Queries, `batch pos head d_head`; rotated unless the rotation is out of sight (see `own_score`)."""
    return _heads_last(model, layer, "hook_rot_q" if _rotates_in_sight(model, layer) else "hook_q", function)


def at_keys(model: Model, layer: int, function: Function) -> Hook:
    """Keys, `batch pos kv_head d_head`, rotated as the queries are; the cache keeps what follows from the result."""
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
    return {
        "model": "stepsal/reasoner" if name == str(BUNDLED) else name,
        "architecture": str(model.cfg.architecture),
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
    bridge = model.blocks[layer].attn
    attention = bridge.original_component
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
    for source in (model.tokenizer, getattr(model.original_model, "generation_config", None)):
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
    return repeat(tensor, "batch pos kv_head d -> batch pos (kv_head group) d", group=heads // tensor.shape[2])


# --- running ---------------------------------------------------------------------------------------------------------
def new_cache() -> Any:
    """An empty key-value cache; `forward` appends to it in place."""
    from transformers import DynamicCache

    return DynamicCache()


def forward(
    model: Model, tokens: Int[Tensor, "batch pos"], hooks: list[Hook], cache: Any = None
) -> Float[Tensor, "batch pos vocabulary"]:
    """Logits of `tokens`, read with `hooks`; with a cache, the tokens follow those already in it."""
    with model.hooks(fwd_hooks=hooks):
        if cache is None:
            return model(tokens, return_type="logits")
        logits, _ = model(tokens, return_type="logits_and_cache", past_key_values=cache)
        return logits


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


@contextmanager
def _without_hooks(model: Model) -> Iterator[None]:
    """No hooks inside: those that a user has put in may expect other tokens than ours."""
    kept = [(point, point._forward_hooks.copy()) for point in model.hook_dict.values() if point._forward_hooks]
    try:
        for point, _ in kept:
            point._forward_hooks.clear()
        yield
    finally:
        for point, hooks in kept:
            point._forward_hooks.update(hooks)


def check_supported(model: Model) -> None:
    """Run a few tokens and raise `UnsupportedModelError` unless every hook fires with what this file says of it.

    What saliency and interventions rest on is computed anew: each token's score for itself from its query and key, and
    the head outputs as pattern times values.
    """
    size, about = shape(model), describe(model)
    length = next(n for n in range(3, 9) if n not in (size.heads, size.kv_heads))  # no axis passes for another
    seen: dict[tuple[int, str], Tensor] = {}

    def refuse(reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{about['model']} ({about['architecture']}) is not supported: {reason}")

    def keep(layer: int, what: str) -> Function:
        def look(tensor: Tensor, hook: Any) -> None:
            seen[layer, what] = tensor.detach()

        return look

    hooks = {(-1, "tokens"): at_tokens(keep(-1, "tokens"))}
    try:
        for layer in range(size.layers):
            for what, at in (("query", at_queries), ("key", at_keys), ("value", at_values), ("output", at_head_outputs)):
                hooks[layer, what] = at(model, layer, keep(layer, what))
            for what, over in (("scores", at_scores), ("pattern", at_pattern), ("residual", at_residual)):
                hooks[layer, what] = over(layer, keep(layer, what))
        tokens = torch.arange(length, device=device_of(model))[None] % size.vocabulary
        with torch.no_grad(), frozen(model), _without_hooks(model):
            forward(model, tokens, list(hooks.values()))
    except (KeyError, AttributeError) as error:
        raise refuse(f"it has no hook or part {error}") from error
    if silent := [name for at, (name, _) in hooks.items() if at not in seen]:
        raise refuse(f"its hook {silent[0]} never fires")
    for layer in range(size.layers):
        if reason := _disagreement(model, layer, *(seen[layer, what] for what in _PARTS)):
            raise refuse(f"in layer {layer} {reason}")


_PARTS = ("query", "key", "value", "scores", "pattern", "output")


def _disagreement(
    model: Model, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Tensor, pattern: Tensor, output: Tensor
) -> str:
    """What is not as `own_score` and the head output's equation say; "" where all of it is."""
    heads, length = shape(model).heads, scores.shape[-1]
    if pattern.shape != (1, heads, length, length) or any(
        tensor.ndim != 4 or tensor.shape[:2] != (1, length) or heads % tensor.shape[2] for tensor in (query, key, value)
    ):
        found = {
            name: tuple(tensor.shape)
            for name, tensor in zip(_PARTS, (query, key, value, scores, pattern), strict=False)
        }
        return f"the shapes are not those of {heads} heads and {length} tokens: {found}"
    own = own_score(model, layer)
    products = query.float() * per_query_head(key, heads).float() * (1.0 if own.weights is None else own.weights)
    if not _near(own.of(products.sum(-1)), scores.diagonal(0, -2, -1).mT, own.scale * products.abs().sum(-1)):
        return "a token's attention score for itself is not its scaled query times its key"
    wide, values = pattern.float(), per_query_head(value, heads).float()
    made = einsum(wide, values, "b h q k, b k h d -> b q h d")
    size = einsum(wide, values.abs(), "b h q k, b k h d -> b q h d")
    if made.shape != output.shape or not _near(made, output, size):
        return "the head output is not the attention pattern times the values"
    return ""


def _near(expected: Tensor, found: Tensor, size: Tensor) -> bool:
    """Equal but for rounding in the model's precision; `size` is the sum of the terms' magnitudes."""
    tolerance = max(1e-3, 16 * torch.finfo(found.dtype).eps)
    error = (expected - found.float()).abs()
    return bool(
        ((error <= tolerance * size + 1e-6) | ~torch.isfinite(error)).all()
    )  # NaNs are reported later, by position
