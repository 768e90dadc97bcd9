"""Weights in few bits: what a user says of them, as transformers takes it, and models loaded so.

In: `"4bit"`, `"8bit"`, or a quantization configuration of transformers. Out: a Hugging Face model whose frozen weights are
quantised as it is loaded. Gradients go through them: a quantised layer multiplies by its dequantised weights.

bitsandbytes needs two settings of its own to be exact, which `load_quantised` and `quantization_config` make:

- On CPUs with AVX512-BF16 it packs 4-bit weights anew for a kernel that has no gradient (0.50.2). The kernel is switched off.
- LLM.int8 keeps columns apart in which any token of the pass has an outlier, so what a token gives depends on the tokens that
  are read beside it. `"8bit"` is without outliers (`llm_int8_threshold=0`).
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import torch

from stepsal.checks import kind_of, shown
from stepsal.errors import FileError, InputError
from stepsal.models.gguf_files import is_gguf
from stepsal.models.sources import read_config

NAMES = ("4bit", "8bit")
_EXPECTED = (
    "expected '4bit', '8bit', or a quantization configuration of transformers, such as transformers.QuantoConfig(weights="
    "'int8'), or its dictionary"
)


def quantization_config(given: Any, dtype: torch.dtype) -> Any:
    """The configuration object of transformers for what a user gave. Raises `InputError` for anything else.

    >>> quantization_config("8bit", torch.float32).llm_int8_threshold
    0.0
    """
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoQuantizationConfig
    from transformers.utils.quantization_config import QuantizationConfigMixin

    if given == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if given == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    if isinstance(given, QuantizationConfigMixin):
        return given
    if not isinstance(given, Mapping):
        raise InputError(f"quantization={shown(given)} is {kind_of(given)}: {_EXPECTED}")
    try:
        return AutoQuantizationConfig.from_dict(dict(given))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"quantization={shown(given)} cannot be read ({error}): {_EXPECTED}") from error


def check_quantization(given: Any, source: str) -> None:
    """Raise `InputError` for what is no quantization, and for one of a GGUF file. Nothing is loaded for it."""
    if given is None:
        return
    quantization_config(given, torch.float32)
    if is_gguf(source):
        raise InputError(
            f"quantization={shown(given)}: {source} is a GGUF file, which is dequantised as it is loaded. Leave out one "
            "of them: give the model's own folder or hub id to quantise it anew."
        )


def load_quantised(source: str, given: Any, dtype: torch.dtype, device_map: Any) -> Any:
    """The Hugging Face model of a folder or hub id, quantised as it is loaded, with eager attention."""
    from transformers import AutoModelForCausalLM

    config = quantization_config(given, dtype)
    own = own_quantization(read_config(source))
    if own and own.get("quant_method") != _method(config):
        raise InputError(
            f"quantization={shown(given)}: {source!r} is already quantised ({own.get('quant_method')}). Leave out "
            "quantization= to load it as it is."
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else its int8 layers log a line in every pass
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, quantization_config=config, dtype=dtype, device_map=device_map, attn_implementation="eager"
        )
    except ImportError as error:
        raise InputError(f"quantization={shown(given)} needs a package that is not installed: {error}") from error
    except NotImplementedError as error:
        raise InputError(f"quantization={shown(given)} cannot be used here: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise FileError(f"cannot quantise {source!r} as quantization={shown(given)} says: {error}") from error
    keep_gradients(model)
    return model


def keep_gradients(model: Any) -> None:
    """Switch off bitsandbytes' CPU kernel for 4-bit weights, which has no gradient, before its first pass."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def own_quantization(config: Any) -> dict[str, Any]:
    """The quantization that a model's configuration says, as plain data; empty where it says none."""
    own = getattr(config, "quantization_config", None)
    if own is None:
        return {}
    return dict(own) if isinstance(own, Mapping) else json.loads(json.dumps(own.to_dict(), default=str))


def _method(config: Any) -> str:
    method = config.quant_method
    return str(getattr(method, "value", method))
