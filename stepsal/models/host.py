"""What stepsal asks of a model: hooks, sizes and forward passes, without the names that TransformerLens has for them.

A `Host` wraps a model. `stepsal.models.host_of` chooses its class: `BridgeHost` (`stepsal.models.bridge`) for a
`TransformerBridge`, which wraps a Hugging Face model and fires hooks inside it, and `HookedTransformerHost`
(`stepsal.models.hooked_transformer`) for TransformerLens' own model until 3.9. What both kinds of model have in common is
here. The rest of stepsal asks a host (`host.at_pattern(3, function)`) and spells no name of TransformerLens.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge as Model
else:  # imported only where it is used: it takes seconds
    Model = Any

# A function of a tensor and its hook point. What it returns replaces the tensor; None leaves the tensor as it is.
Function = Callable[[Tensor, Any], Tensor | None]
# The name of a hook point, and the function that is called there.
Hook = tuple[str, Function]

BUNDLED = Path(__file__).parents[1] / "reasoner" / "model"
TOKENS = "embed.hook_in"
_HOW_IT_WAS_LOADED = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict", "output_attentions"),
    *("output_hidden_states", "architectures", "model_name", "tokenizer_name", "device", "n_devices", "seed"),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model that stepsal needs."""

    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    d_head: int
    d_model: int


@dataclass(frozen=True)
class OwnScore:
    """How a layer makes a token's score for itself of its query and key: `cap(scale * sum_d weights_d q_d k_d)`.

    weights: where the rotation is out of sight, what it multiplies the product of each coordinate by (1, or a YaRN factor
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


@dataclass(frozen=True)
class Host(ABC):
    """A model, and what stepsal asks of it. It holds nothing but the model, so making one costs next to nothing.

    name: which kind of model it is, as `load_model(host=...)` and `--host` call it.
    """

    model: Model
    name: ClassVar[str] = "bridge"

    # --- hooks -------------------------------------------------------------------------------------------------------
    # Each method takes a function of a tensor, whose layout the method's docstring names whatever the model's own is.
    def at_tokens(self, function: Function) -> Hook:
        """The token ids of each forward pass, `batch pos`; this hook fires first, in prefill and at every decoding step."""
        return TOKENS, function

    @abstractmethod
    def at_queries(self, layer: int, function: Function) -> Hook:
        """Queries, `batch pos head d_head`; rotated unless the rotation is out of sight (see `own_score`)."""

    @abstractmethod
    def at_keys(self, layer: int, function: Function) -> Hook:
        """Keys, `batch pos kv_head d_head`, rotated as the queries are; the cache keeps what follows from the result.

        In a `HookedTransformer` the keys of the cache come before them, rotated anew in each pass.
        """

    @abstractmethod
    def at_values(self, layer: int, function: Function) -> Hook:
        """Values, `batch pos kv_head d_head`; the cache keeps the result."""

    def at_scores(self, layer: int, function: Function) -> Hook:
        """Attention scores before the softmax, masked, `batch head query key`."""
        return f"blocks.{layer}.attn.hook_attn_scores", function

    def at_pattern(self, layer: int, function: Function) -> Hook:
        """Attention probabilities, `batch head query key`."""
        return f"blocks.{layer}.attn.hook_pattern", function

    @abstractmethod
    def at_head_outputs(self, layer: int, function: Function) -> Hook:
        """Head outputs before the output projection, `batch pos head d_head`; where they are gated, after the gate."""

    def at_output_gate(self, layer: int, function: Function) -> Hook | None:
        """What the head outputs are multiplied by the sigmoid of, `batch pos (head d_head)`; None where they have no gate."""
        return None

    def at_residual(self, layer: int, function: Function) -> Hook:
        """What leaves a layer, `batch pos d_model`."""
        return f"blocks.{layer}.hook_resid_post", function

    @abstractmethod
    def hooks(self, hooks: list[Hook]) -> AbstractContextManager[Any]:
        """The hooks inside, after those that are there and before any that are added inside; always removed."""

    @contextmanager
    def without_hooks(self) -> Iterator[list[tuple[Any, Any]]]:
        """No hooks inside: those that a user has put in may expect other tokens than ours.

        Yields the hook points that had hooks, with these.
        """
        kept = [(point, point._forward_hooks.copy()) for point in self.model.hook_dict.values() if point._forward_hooks]
        try:
            for point, _ in kept:
                point._forward_hooks.clear()
            yield kept
        finally:
            for point, hooks in kept:
                point._forward_hooks.update(hooks)

    def has_hooks(self) -> bool:
        """Whether anyone's hooks are in the model."""
        return any(point._forward_hooks for point in self.model.hook_dict.values())

    @contextmanager
    def hooks_first(self, hooks: list[Hook]) -> Iterator[None]:
        """The hooks inside, before those that are there."""
        with self.without_hooks() as kept, self.hooks(hooks):
            for point, earlier in kept:
                point._forward_hooks.update(earlier)
            yield

    # --- what the model is -------------------------------------------------------------------------------------------
    @property
    def shape(self) -> Shape:
        cfg = self.model.cfg
        kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
        return Shape(cfg.n_layers, cfg.n_heads, kv_heads, cfg.d_vocab, cfg.n_ctx, int(cfg.d_head), cfg.d_model)

    @property
    def device(self) -> torch.device:
        """Where the model's first weights are, and so where it takes its tokens."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def describe(self) -> dict[str, str]:
        """Name, type, precision, host and quantization (if it has one) of the model, for the record kept with each result."""
        cfg = self.model.cfg
        name = str(cfg.model_name)
        architecture = getattr(cfg, "architecture", None) or getattr(cfg, "original_architecture", None)
        about = {
            "model": "stepsal/reasoner" if name == str(BUNDLED) else name,
            "architecture": str(architecture),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "host": self.name,
        }
        return about | ({"quantization": self.quantization} if self.quantization else {})

    @property
    def quantization(self) -> str:
        """How the weights are quantised, as JSON; "" where they are not."""
        return ""

    @abstractmethod
    def configuration(self) -> str:
        """All that decides what the model computes but its weights, as text; the same wherever it was loaded from."""

    @abstractmethod
    def unsupported(self) -> str:
        """Why stepsal is not exact with this model although a pass over a few tokens may look as it should; "" where it is.

        Only what such a pass does not show: see `stepsal.models.support`.
        """

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that have attention, and not, say, a recurrence in its place."""
        return tuple(layer for layer in range(self.shape.layers) if hasattr(self.model.blocks[layer], "attn"))

    @abstractmethod
    def own_score(self, layer: int) -> OwnScore:
        """What the score of position `t` for itself is made of: there a rotation leaves `q . k` as it is."""

    @abstractmethod
    def project(self, layer: int, outputs: Float[Tensor, "pos head d_head"]) -> Float[Tensor, "pos head d_model"]:
        """What the output projection makes of each head's output alone, without its bias, in the model's precision."""

    @abstractmethod
    def attention_kind(self, layer: int) -> str:
        """A name that layers have in common whose queries see the same keys: Hugging Face's, such as `full_attention`.

        Of any other kind, a cache may hold fewer keys than there were tokens.
        """

    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end a sequence, of the tokenizer and of the generation settings."""
        return self._special_tokens("eos_token_id")

    def pad_tokens(self) -> frozenset[int]:
        """Tokens that fill a sequence up, of the tokenizer and of the generation settings."""
        return self._special_tokens("pad_token_id")

    def _special_tokens(self, name: str) -> frozenset[int]:
        ids: list[int] = []
        for source in self._names_special_tokens():
            named = getattr(source, name, None)
            ids += named if isinstance(named, list) else [named] if isinstance(named, int) else []
        return frozenset(ids)

    def _names_special_tokens(self) -> tuple[Any, ...]:
        return (self.model.tokenizer,)

    def decoding_bytes(self, prompt: int, total: int) -> int:
        """About how much memory decoding one sequence takes: its keys and values, and while the prompt is read, three
        copies of one layer's attention scores in float32."""
        size = self.shape
        cache = 2 * size.layers * size.kv_heads * size.d_head * self.dtype.itemsize * total
        return cache + 3 * 4 * size.heads * prompt * prompt

    # --- running it --------------------------------------------------------------------------------------------------
    def adapt(self) -> None:  # noqa: B027  # most models need nothing
        """Make good, for all later passes, what keeps the model from reading its cache. `load_model` does it, and
        `check_supported` to a model that was booted otherwise. It changes no number but those that were wrong.
        """

    @abstractmethod
    def new_cache(self) -> Any:
        """An empty key-value cache for one sequence; `forward` appends to it in place."""

    @abstractmethod
    def take_rows(self, cache: Any, rows: Sequence[int]) -> None:
        """Make the rows of a cache those of these indices, in their order; a row may be taken several times."""

    @abstractmethod
    def forward(
        self, tokens: Int[Tensor, "batch pos"], hooks: list[Hook], cache: Any = None
    ) -> Float[Tensor, "batch pos vocabulary"]:
        """Logits of `tokens`, read with these hooks; with a cache, the tokens follow those already in it.

        No gradient goes back through the cache to the passes before.
        """

    @abstractmethod
    def check_decodes(self) -> None:
        """Raise `UnsupportedModelError` where `decode` cannot be had."""

    @abstractmethod
    def decode(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        ends: Collection[int],
        choose: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Int[Tensor, "batch longer_pos"]:
        """Left-padded prompts and their continuations; rows that ended are filled up with an end-of-sequence token.

        The most likely token each time, after `choose(tokens so far, logits)` if there is such a function. The model's own
        generation settings are put aside: any of them could change the tokens.
        """

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Evaluation mode and no parameter gradients inside; outside, whatever it was before."""
        model = self.model
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


def plain_json(configuration: dict[str, Any]) -> str:
    """A configuration as text, without what says where and how a model was loaded, which its weights' precision says too."""
    kept = {name: value for name, value in configuration.items() if name not in _HOW_IT_WAS_LOADED}
    return json.dumps(kept, sort_keys=True, default=str)


def visible_keys(scores: Float[Tensor, "batch head query key"]) -> Bool[Tensor, "batch query key"]:
    """The keys that each query may attend to: no later ones, no padding, none outside a sliding window.

    Read off the first head's masked scores, whose mask adds the most negative number of their precision: exact also where
    a probability has underflowed to zero.
    """
    return scores[:, 0].detach() > torch.finfo(scores.dtype).min / 2


def per_query_head(
    tensor: Float[Tensor, "batch pos kv_head d_head"], heads: int
) -> Float[Tensor, "batch pos head d_head"]:
    """Give every query head its own copy of the keys or values it reads (grouped-query attention)."""
    # einops.repeat takes ten times as long in a decoding step
    return tensor.repeat_interleave(heads // tensor.shape[2], 2)
