"""Names and folders to models: the only file that loads weights.

In: a hub id, a local Hugging Face directory, or nothing (the bundled reasoner). Out: a TransformerLens `TransformerBridge`, or
on request a `HookedTransformer`; frozen, in evaluation mode, with the tokenizer of the directory's own `tokenizer.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stepsal.checks import checked
from stepsal.errors import FileError, InputError
from stepsal.models.host import Model
from stepsal.models.hosts import HOSTS, check_host
from stepsal.models.sources import a_name, locate
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
) -> Model:
    """Load a model as a TransformerLens `TransformerBridge`, weights frozen, in evaluation mode.

    Args:
        name: a hub id, a local Hugging Face directory, or `None` or `"bundled"` for the bundled reasoner (no network).
        device: `"auto"` takes CUDA, then Apple's MPS, then the CPU.
        dtype: `"auto"` keeps the checkpoint's precision on an accelerator and takes float32 on the CPU.
        device_map: takes the place of `device` for a model larger than one GPU, as in transformers: `"auto"`,
            `"balanced"`, or a mapping from names of modules to devices (or `"cpu"`, `"disk"`).
        host: `"bridge"`, or `"hooked_transformer"` for a `HookedTransformer` with the weights as they are, which needs
            TransformerLens 3.9 (docs/hooked_transformer.md).

    Raises:
        FileError: a local folder that holds no model, a name that can be neither found nor fetched (within seconds where the
            hub cannot be reached), or an unknown map.
        InputError: something that is no name, an unknown device or precision; a device beside a map; a host that is unknown, or
            not to be had with the TransformerLens that is installed.
        UnsupportedModelError: a model that TransformerLens 3.9 has no `HookedTransformer` of, or one that computes otherwise.

    >>> from stepsal import load_model
    >>> load_model().cfg.n_layers
    8
    """
    where, precision = check_placement(device, dtype, device_map, host)

    from safetensors import SafetensorError

    path_or_id = locate(name)
    tokenizer, for_booting = read_tokenizer(path_or_id), read_tokenizer(path_or_id)
    try:
        precision = precision or _own_dtype(path_or_id, where)
        if host == "bridge":
            from transformer_lens.model_bridge import TransformerBridge

            model = TransformerBridge.boot_transformers(
                path_or_id,
                device=where if device_map is None else None,
                device_map=dict(device_map) if isinstance(device_map, Mapping) else device_map,
                dtype=precision,
                tokenizer=for_booting,
            )
        else:
            from stepsal.models.conversion import load_hooked_transformer

            model = load_hooked_transformer(path_or_id, str(name or "bundled"), where, precision)
    except (OSError, ValueError, SafetensorError) as error:
        raise FileError(
            f"cannot load a model from {path_or_id!r}: {error}. Give a Hugging Face model directory, or a hub id "
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
    return model.eval()


def check_placement(
    device: str | torch.device,
    dtype: str | torch.dtype,
    device_map: str | Mapping[str, str | int] | None,
    host: str = HOSTS[0],
) -> tuple[torch.device, torch.dtype | None]:
    """The device, and the precision (None: the checkpoint's). Raises `InputError` as `load_model` does."""
    check_host(host)
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
    from transformers import AutoConfig

    source = locate(name)
    try:
        text: Any = AutoConfig.from_pretrained(source).get_text_config()
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
    from transformers import AutoConfig

    return getattr(AutoConfig.from_pretrained(name), "dtype", None) or torch.bfloat16


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"unknown dtype {dtype!r}: expected 'auto', 'float32', 'bfloat16' or 'float16'")
    return found
