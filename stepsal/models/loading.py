"""Names and folders to models: the only file that loads weights.

In: a hub id, a local Hugging Face directory, a GGUF file, or nothing (the bundled reasoner). Out: a TransformerLens
`TransformerBridge`, or on request a `HookedTransformer`; frozen, in evaluation mode, with the tokenizer of the directory's own
`tokenizer.json`, or of the GGUF file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stepsal.checks import checked
from stepsal.errors import FileError, InputError, StepsalError
from stepsal.models.gguf_files import is_gguf, load_gguf
from stepsal.models.host import Model
from stepsal.models.hosts import HOSTS, check_host, host_of
from stepsal.models.quantization import check_quantization, keep_gradients, load_quantised, own_quantization
from stepsal.models.sources import a_name, locate, read_config
from stepsal.models.tokenizers import load_tokenizer as load_tokenizer
from stepsal.models.tokenizers import read_tokenizer


@checked(name=a_name)
def load_model(
    name: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    device_map: str | Mapping[str, str | int] | None = None,
    host: str = HOSTS[0],
    quantization: Any = None,
) -> Model:
    """Load a model as a TransformerLens `TransformerBridge`, weights frozen, in evaluation mode.

    Args:
        name: a hub id, a local Hugging Face directory, or `None` or `"bundled"` for the bundled reasoner (no network). A GGUF
            file too, here (`"folder/file.gguf"`) or on the hub (`"owner/repository/file.gguf"`); it is dequantised.
        device: `"auto"` takes CUDA, then Apple's MPS, then the CPU.
        dtype: `"auto"` keeps the checkpoint's precision on an accelerator (bfloat16 where it says none, as GGUF files do) and
            takes float32 on the CPU.
        device_map: takes the place of `device` for a model larger than one GPU, as in transformers: `"auto"`,
            `"balanced"`, or a mapping from names of modules to devices (or `"cpu"`, `"disk"`).
        host: `"bridge"`, or `"hooked_transformer"` for a `HookedTransformer` with the weights as they are, which needs
            TransformerLens 3.9 (docs/hooked_transformer.md).
        quantization: weights in few bits, quantised as they are loaded: `"4bit"` (bitsandbytes' NF4), `"8bit"` (its LLM.int8,
            without outliers), or any quantization configuration of transformers, as an object or a dictionary. A checkpoint
            that is already quantised (AWQ, GPTQ, ...) needs none. Gradients go through the quantised weights.

    Raises:
        FileError: a local folder that holds no model, a GGUF file that is cut or that transformers cannot read, a name that can
            be neither found nor fetched (within seconds where the hub cannot be reached), or an unknown map.
        InputError: something that is no name, an unknown device, precision or quantization, or one whose package is not
            installed; a device beside a map; a quantization of what is quantised already; a host that is unknown, or not to be
            had with the TransformerLens that is installed, with a map of devices, or with a quantization.
        UnsupportedModelError: a model that TransformerLens 3.9 has no `HookedTransformer` of, or one that computes otherwise.

    >>> from stepsal import load_model
    >>> load_model().cfg.n_layers
    8
    """
    where, precision = check_placement(device, dtype, device_map, host, quantization)

    from safetensors import SafetensorError

    path_or_id = locate(name)
    check_quantization(quantization, path_or_id)
    tokenizer, for_booting = read_tokenizer(path_or_id), read_tokenizer(path_or_id)
    try:
        precision = precision or _own_dtype(path_or_id, where)
        if host == "bridge":
            model = _boot(path_or_id, where, precision, device_map, quantization, for_booting)
        else:
            from stepsal.models.conversion import load_hooked_transformer

            model = load_hooked_transformer(path_or_id, str(name or "bundled"), where, precision)
    except StepsalError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise FileError(
            f"cannot load a model from {path_or_id!r}: {error}. Give a Hugging Face model directory, a GGUF file, or a hub id "
            "(that needs the network)."
        ) from error
    # In TransformerLens 4.3.0 booting puts the automatic class in the place of a tokenizer, which for some model types (Qwen2)
    # gives other token ids (see `load_tokenizer`). So does the setter of `model.tokenizer`, which then takes the vocabulary's
    # size from it: https://github.com/TransformerLensOrg/TransformerLens/pull/1569.
    setattr(model, "_tokenizer" if host == "bridge" else "tokenizer", tokenizer)
    model.cfg.tokenizer_prepends_bos = tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]
    if name not in (None, "bundled") and path_or_id != str(Path(str(name)).expanduser()):
        model.cfg.model_name = str(name)  # and not the folder of the hub's cache
    model.requires_grad_(False)
    host_of(model).adapt()
    return model.eval()


def _boot(
    source: str,
    where: torch.device,
    dtype: torch.dtype,
    device_map: str | Mapping[str, str | int] | None,
    quantization: Any,
    tokenizer: Any,
) -> Model:
    """The bridge of what `locate` gave. TransformerLens itself loads plain weights; others are loaded here, then wrapped."""
    from transformer_lens.model_bridge import TransformerBridge

    places = dict(device_map) if isinstance(device_map, Mapping) else device_map
    if quantization is None and not is_gguf(source):
        if places is None and own_quantization(read_config(source)):
            places = {"": str(where)}  # quantised weights are not moved after they are loaded
        device = where if places is None else None
        model = TransformerBridge.boot_transformers(
            source, device=device, device_map=places, dtype=dtype, tokenizer=tokenizer
        )
        keep_gradients(model)
        return model
    if places is None and (where.type != "cpu" or quantization is not None):
        places = {"": str(where)}
    original = (
        load_gguf(source, dtype, places) if is_gguf(source) else load_quantised(source, quantization, dtype, places)
    )
    if is_gguf(source):  # else TransformerLens loads the tokenizer of this name once more, as if it were a folder's
        tokenizer.bos_token = None
    device = where if places is None else None
    return TransformerBridge.boot_transformers(
        source, hf_model=original, device=device, dtype=dtype, tokenizer=tokenizer
    )


def check_placement(
    device: str | torch.device,
    dtype: str | torch.dtype,
    device_map: str | Mapping[str, str | int] | None,
    host: str = HOSTS[0],
    quantization: Any = None,
) -> tuple[torch.device, torch.dtype | None]:
    """The device, and the precision (None: the checkpoint's). Raises `InputError` as `load_model` does."""
    check_host(host)
    if quantization is not None and host != "bridge":
        raise InputError(
            f"quantization={quantization!r} is for a bridge: a HookedTransformer holds plain weights. Leave out one of them"
        )
    if device_map is not None and host != "bridge":
        raise InputError(
            f"device_map={device_map!r} is for a bridge: a HookedTransformer is on one device. Give device in its place"
        )
    if device_map is not None and device != "auto":
        raise InputError(
            f"device={str(device)!r} and device_map={device_map!r} exclude each other: leave out one of them"
        )
    precision = None if isinstance(dtype, str) and dtype == "auto" else _dtype(dtype)
    return _device(device), precision


def sizes(name: str | Path | None) -> tuple[int, int] | None:
    """The numbers of layers and of heads that a model's configuration says, without loading weights; None where it says none.

    Raises as `locate`.

    >>> sizes("bundled")
    (8, 4)
    """
    source = locate(name)
    try:
        text: Any = read_config(source).get_text_config()
        return int(text.num_hidden_layers), int(text.num_attention_heads)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None  # loading the model says what is wrong


def quiet() -> None:
    """Switch off the progress bars of transformers for the rest of the process: stepsal shows its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()


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
    return getattr(read_config(name), "dtype", None) or torch.bfloat16


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"unknown dtype {dtype!r}: expected 'auto', 'float32', 'bfloat16' or 'float16'")
    return found
