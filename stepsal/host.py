"""The one file that knows TransformerLens: its hook names, shapes and conventions, and how a model is loaded.

`TransformerBridge` wraps the real Hugging Face model and fires hooks inside it. Everything else in stepsal asks this file
for names (`pattern_name(3)`), sizes and forward passes.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepsal.errors import FileError, InputError, UnsupportedModelError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge as Model
    from transformers import PreTrainedTokenizerBase
else:  # imported only where used: together they take seconds
    Model = PreTrainedTokenizerBase = Any

Hook = tuple[str, Callable[..., Any]]

BUNDLED = Path(__file__).parent / "reasoner" / "model"


# --- names -----------------------------------------------------------------------------------------------------------
def residual_out_name(layer: int) -> str:
    """What leaves a layer, `batch pos d_model`."""
    return f"blocks.{layer}.hook_out"


def query_name(layer: int) -> str:
    """Queries after rotation, `batch pos head d_head`."""
    return f"blocks.{layer}.attn.hook_rot_q"


def key_name(layer: int) -> str:
    """Keys after rotation, `batch pos kv_head d_head`; the cache keeps what this hook returns."""
    return f"blocks.{layer}.attn.hook_rot_k"


def value_name(layer: int) -> str:
    """Values, `batch pos kv_head d_head`; the cache keeps what this hook returns."""
    return f"blocks.{layer}.attn.hook_v"


def pattern_name(layer: int) -> str:
    """Attention probabilities, `batch head query key`."""
    return f"blocks.{layer}.attn.hook_pattern"


def head_output_name(layer: int) -> str:
    """Head outputs before the output projection, `batch pos head d_head`."""
    return f"blocks.{layer}.attn.hook_z"


def tokens_name() -> str:
    """The token ids of each forward pass, `batch pos`; it fires first, in prefill and at every decoding step."""
    return "embed.hook_in"


def scores_name(layer: int) -> str:
    """Attention scores before the softmax, masked, `batch head query key`."""
    return f"blocks.{layer}.attn.hook_attn_scores"


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


def score_scale(model: Model, layer: int) -> float:
    """What a layer multiplies `q . k` by."""
    attention = model.blocks[layer].attn.original_component
    return float(getattr(attention, "scaling", None) or model.cfg.d_head**-0.5)


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


def check_supported(model: Model) -> None:
    """Run two tokens and raise `UnsupportedModelError` unless every needed hook fires with the shape this file says.

    The head output must also be the pattern times the values: what saliency's diagonal term and interventions rest on.
    """
    size = shape(model)
    seen: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any, name: str) -> None:
        seen[name] = tensor.detach()

    makers = (query_name, key_name, value_name, pattern_name, head_output_name)
    names = [maker(layer) for layer in range(size.layers) for maker in makers]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=device_of(model))
    name = describe(model)["model"]

    def refuse(reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{name} ({describe(model)['architecture']}) is not supported: {reason}")

    try:
        with torch.no_grad(), frozen(model):
            forward(model, tokens, [(n, partial(keep, name=n)) for n in names])
    except KeyError as error:
        raise refuse(f"it has no hook {error}") from error
    if missing := [n for n in names if n not in seen]:
        raise refuse(f"its hook {missing[0]} never fires, so influence cannot be read exactly there")
    for layer in range(size.layers):
        value, pattern, output = (seen[maker(layer)] for maker in (value_name, pattern_name, head_output_name))
        if pattern.shape != (1, size.heads, 2, 2) or value.shape[:3] != (1, 2, size.kv_heads):
            raise refuse(f"in layer {layer} the pattern is {tuple(pattern.shape)} and values are {tuple(value.shape)}")
        expected = einsum(pattern, per_query_head(value, size.heads).to(pattern.dtype), "b h q k, b k h d -> b q h d")
        if expected.shape != output.shape or not torch.allclose(
            expected,
            output.to(expected),
            rtol=1e-2,
            atol=1e-2,
            equal_nan=True,  # NaNs are reported later, by position
        ):
            raise refuse(f"in layer {layer} the head output is not the attention pattern times the values")
    if getattr(model.blocks[0].attn.original_component, "attn_logit_softcapping", None):
        raise refuse("its attention scores are soft-capped, which the diagonal term does not know yet")


# --- loading ---------------------------------------------------------------------------------------------------------
def load_tokenizer(name: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or local directory; `None` is the bundled reasoner's.

    `tokenizer.json` is read as it is: for some model types the automatic class gives other token ids. Raises `FileError`
    where there is no tokenizer.

    >>> from stepsal import load_tokenizer
    >>> load_tokenizer().decode(load_tokenizer().encode("k = 37."))
    'k = 37.'
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    source = str(BUNDLED if name is None else name)
    try:
        if Path(source).is_dir() and not (Path(source) / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(source)
        try:
            return PreTrainedTokenizerFast.from_pretrained(source, clean_up_tokenization_spaces=False)
        except OSError:
            return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise FileError(
            f"cannot load a tokenizer from {source!r}: {error}. Give a Hugging Face model directory, or a hub id (that "
            "needs the network)."
        ) from error


def load_model(
    name: str | Path | None = None, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
) -> Model:
    """Load a model as a TransformerLens `TransformerBridge`, weights frozen, in evaluation mode.

    Args:
        name: a hub id, a local Hugging Face directory, or `None` for the bundled reasoner (no network).
        device: `"auto"` takes CUDA, then Apple's MPS, then the CPU.
        dtype: `"auto"` keeps the checkpoint's precision on an accelerator and takes float32 on the CPU.

    Raises:
        FileError: a local folder that holds no model, or a name that can be neither found nor fetched.
        InputError: an unknown device or precision.

    >>> from stepsal import load_model
    >>> load_model().cfg.n_layers
    8
    """
    source = Path(BUNDLED if name is None else name)
    if source.exists() and not (source / "config.json").is_file():
        raise FileError(f"{source} is no model: there is no config.json in it. Give a Hugging Face model directory.")
    if not source.exists() and (source.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1):
        raise FileError(
            f"there is no folder {source}. Give a Hugging Face model directory or a hub id such as 'org/name'."
        )
    where = _device(device)
    precision = None if isinstance(dtype, str) and dtype == "auto" else _dtype(dtype)

    from safetensors import SafetensorError
    from transformer_lens.model_bridge import TransformerBridge

    given = str(source if source.exists() else name)
    tokenizer, for_booting = load_tokenizer(given), load_tokenizer(given)
    try:
        model = TransformerBridge.boot_transformers(
            given, device=where, dtype=precision or _own_dtype(given, where), tokenizer=for_booting
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise FileError(
            f"cannot load a model from {given!r}: {error}. Give a Hugging Face model directory, or a hub id "
            "(that needs the network)."
        ) from error
    # Booting puts the automatic class in the tokenizer's place, which for some model types (Qwen2) gives other token ids,
    # and so does the setter of `model.tokenizer`, which then takes the vocabulary's size from it.
    model._tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
    model.requires_grad_(False)
    return model.eval()


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}: expected 'auto', 'cpu', 'cuda', 'cuda:0', 'mps'") from error
    try:
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {str(device)!r} cannot be used here ({error}). Use 'auto' or 'cpu'.") from error
    return where


def _own_dtype(name: str, device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(name), "dtype", None) or torch.bfloat16


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"unknown dtype {dtype!r}: expected 'auto', 'float32', 'bfloat16' or 'float16'")
    return found
