"""Looks a model up by its name without loading its weights: its path, its size, and a hash that changes with the weights."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepsal.errors import FileError
from stepsal.models.host import BUNDLED

_PEEK = 2**20


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model. `path` is the argument for `load_model`, and `bytes` is the size of the weights in float32."""

    path: str | None
    fingerprint: str
    bytes: int
    layers: int
    heads: int


def look_up(name: str, folder: Path) -> ModelFacts:
    """The facts of the model `"bundled"`, of a model directory (relative to `folder`, or absolute) or of a hub id.

    Raises `FileError` where there is no such model.

    >>> facts = look_up("bundled", Path())
    >>> facts.path, facts.layers, facts.heads
    (None, 8, 4)
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = None if name == "bundled" else name
    if path is not None and (folder / path).is_dir():
        path = str((folder / path).resolve())
    source = Path(BUNDLED if path is None else path)
    try:
        config: Any = AutoConfig.from_pretrained(str(source) if source.is_dir() else name)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    except (OSError, ValueError) as error:
        raise FileError(
            f"cannot read the model {name!r}: {error}. Give 'bundled', a Hugging Face model directory or a hub id."
        ) from error
    text = config.get_text_config()
    fingerprint = _fingerprint(source) if source.is_dir() else str(getattr(config, "_commit_hash", None) or name)
    return ModelFacts(path, fingerprint, 4 * count, int(text.num_hidden_layers), int(text.num_attention_heads))


def _fingerprint(folder: Path) -> str:
    """A hash of the names, the sizes, and the first and last MiB of the files.

    It is enough to notice other weights, and quick for large files.
    """
    digest = hashlib.sha256()
    kinds = ("*.json", "*.jinja", "tokenizer.model", "*.safetensors", "*.bin")
    for path in [path for kind in kinds for path in sorted(folder.glob(kind))]:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_PEEK))
            if path.stat().st_size > _PEEK:
                file.seek(-_PEEK, 2)
                digest.update(file.read())
    return digest.hexdigest()
