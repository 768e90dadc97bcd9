"""A Hugging Face model to a `HookedTransformer` of TransformerLens 3.9 that computes the same, or an error that says why not.

In: a hub id or a folder. Out: a `HookedTransformer` with these weights as they are: no norms folded in, nothing centred, biases
of values kept, so that its numbers are those of the bridge.

1. Hugging Face loads the weights. TransformerLens makes its configuration of Hugging Face's and rearranges the weights.
2. The two configurations must agree on what a short text does not show: windows, and rotations that change with the length.
3. Both models read the same tokens. Where their logits differ by more than rounding, the model is refused.
"""

import copy
import tempfile
import warnings
from typing import Any

import torch

from stepsal.errors import UnsupportedModelError
from stepsal.models.hooked_transformer import HookedTransformerHost
from stepsal.models.host import Model

_AS_THEY_ARE = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
_CHECKED_TOKENS = 32
_FAILURES = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_BRIDGE = "Load it as a bridge: leave host out, or give host='bridge'."


def load_hooked_transformer(source: str, name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """The `HookedTransformer` of a folder or hub id, on a device, without a tokenizer.

    `name` is what a user calls the model: for some families TransformerLens has sizes by the official name only.

    Raises `UnsupportedModelError` for an architecture that TransformerLens 3.9 cannot convert or converts wrongly, and what
    transformers raises where there are no weights.
    """
    from transformers import AutoModelForCausalLM

    original: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="eager").eval()
    about = f"{name} ({type(original).__name__})"
    model = _convert(original, source, name, about)
    with torch.no_grad():
        reason = _other_attention(original.config, model) or _other_logits(original, model)
    if reason:
        raise UnsupportedModelError(
            f"{about} is not computed rightly by TransformerLens 3.9's HookedTransformer: {reason}. {_BRIDGE}"
        )
    model.generation_config = original.generation_config  # it names tokens that end a sequence
    return model.to(device, print_details=False)


def _convert(original: Any, source: str, name: str, about: str) -> Model:
    """The same weights in a `HookedTransformer`, on the CPU."""
    from transformer_lens import HookedTransformer, loading

    try:
        cfg = _configuration(original, name)
        cfg.model_name = source
        cfg.tokenizer_name = None  # TransformerLens would load a tokenizer of its own making
        if cfg.positional_embedding_type == "rotary":  # some families get 2,048 of TransformerLens, whatever they can
            cfg.n_ctx = getattr(original.config, "max_position_embeddings", cfg.n_ctx)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # in favour of the bridge, which was not asked for
            model = HookedTransformer(cfg)
        weights = loading.get_pretrained_state_dict(source, cfg, original, dtype=cfg.dtype)
        model.load_and_process_state_dict(weights, **_AS_THEY_ARE)
    except torch.OutOfMemoryError:
        raise
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"{about}: TransformerLens 3.9 has no HookedTransformer of this architecture ({error}). {_BRIDGE}"
        ) from error
    except _FAILURES as error:
        raise UnsupportedModelError(
            f"{about}: TransformerLens 3.9 cannot make a HookedTransformer of it ({type(error).__name__}: {str(error)[:300]}). "
            f"{_BRIDGE}"
        ) from error
    return model.eval()


def _configuration(original: Any, name: str) -> Any:
    """TransformerLens' configuration of a model. Raises `NotImplementedError` where it has none.

    TransformerLens 3.9.0 takes the family from the folder's path where that has "llama" or "gemma" in it. So the configuration
    is read from a folder of another name.
    """
    from transformer_lens import loading

    options = {"device": "cpu", "dtype": original.dtype}
    config = copy.deepcopy(original.config)
    config.architectures = [type(original).__name__]
    with tempfile.TemporaryDirectory(prefix="stepsal-") as folder:
        config.save_pretrained(folder)
        try:
            return loading.get_pretrained_model_config(folder, **options)
        except NotImplementedError:
            if name.lower() not in loading.make_model_alias_map():
                raise
    return loading.get_pretrained_model_config(name, **options)


def _other_attention(config: Any, model: Model) -> str:
    """What TransformerLens leaves out of a model's attention that 32 tokens do not show; an empty text where nothing."""
    host, window = HookedTransformerHost(model), getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * len(
        model.blocks
    )
    for layer, kind in enumerate(kinds):
        if kind == "sliding_attention" and (host.attention_kind(layer), model.cfg.window_size) != (kind, window):
            return f"it leaves out the sliding window of layer {layer}, {window} tokens"
    rotation = getattr(config, "rope_parameters", None) or {}
    for each in (rotation, *(value for value in rotation.values() if isinstance(value, dict))):
        if (kind := each.get("rope_type", "default")) in ("dynamic", "longrope"):
            return f"it leaves out that the rotation changes with the length (rope_type {kind!r})"
    return ""


def _other_logits(original: Any, model: Model) -> str:
    """How the logits of the two models differ; an empty text where they are the same but for rounding."""
    size = HookedTransformerHost(model).shape
    length = min(_CHECKED_TOKENS, size.context)
    tokens = (torch.arange(length)[None] * 7919) % size.vocabulary  # a prime: all over the vocabulary
    expected = original(tokens).logits.float()
    try:
        found = model(tokens, attention_mask=torch.ones_like(tokens)).float()
    except RuntimeError as error:
        return f"it cannot run in {str(original.dtype).removeprefix('torch.')} ({error})"
    difference = float((found - expected).norm() / expected.norm())
    # In half precision a rounding can send a token to another expert.
    if difference <= (1e-4 if original.dtype == torch.float32 else 0.1):
        return ""
    rotation = getattr(original.config, "rope_parameters", None) or {}
    kind, part = rotation.get("rope_type", "default"), rotation.get("partial_rotary_factor", 1.0)
    hint = f" (its rotation: rope_type {kind!r}, {part:g} of each head)" if (kind, part) != ("default", 1.0) else ""
    return f"its logits differ from Hugging Face's by {difference:.0%} of their size{hint}"
