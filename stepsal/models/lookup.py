"""What a model is: by its name, without loading its weights (`look_up`), and as it stands in memory (`model_fingerprint`).

A fingerprint is a hash that any other weight, configuration or tokenizer changes. Of a folder or a GGUF file it is made of
whole files, each of which is hashed once: the hashes of large files are kept in `stepsal/sha256` under the user's cache
directory (`$XDG_CACHE_HOME`, or `~/.cache`), by path, size, times and inode. An entry says itself what it is of and that it is
whole; one that does not is made again, and where nothing can be kept, nothing is.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from stepsal.errors import FileError
from stepsal.files import atomic_path, sha256_of
from stepsal.models.gguf_files import is_gguf
from stepsal.models.host import Model
from stepsal.models.hosts import host_of
from stepsal.models.sources import locate, read_config

KEPT_FROM = 2**26
"""Hashes of files of so many bytes or more are kept in the cache; smaller ones are hashed in no time."""
_SETTLED = 2 * 10**9  # ns: a file that was changed a moment ago may be changed again without its times telling
_HASHED: "WeakKeyDictionary[Any, tuple[Any, str]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model.

    path: the argument for `load_model`: the absolute path of what is on this machine, else the name. bytes: the size of the
    weights in float32.
    """

    path: str | None
    fingerprint: str
    bytes: int
    layers: int
    heads: int


def look_up(name: str, folder: Path) -> ModelFacts:
    """The facts of the model `"bundled"`, of a model directory or GGUF file (relative to `folder`, or absolute), or of one on
    the hub.

    Raises `FileError` where there is no such model.

    >>> facts = look_up("bundled", Path())
    >>> facts.path, facts.layers, facts.heads
    (None, 8, 4)
    """
    from transformers import AutoModelForCausalLM

    path = None if name == "bundled" else name
    if path is not None and (folder / path).exists():
        path = str((folder / path).resolve())
    source = locate(path, needed="")
    if path is not None and not is_gguf(source):
        path = source
    try:
        config = read_config(source)
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    except FileError:
        raise
    except (OSError, ValueError) as error:
        raise FileError(
            f"cannot read the model {name!r}: {error}. Give 'bundled', a Hugging Face model directory, a GGUF file or a hub id."
        ) from error
    text = config.get_text_config()
    fingerprint = _fingerprint(Path(source), str(getattr(config, "_commit_hash", None) or name))
    return ModelFacts(path, fingerprint, 4 * count, int(text.num_hidden_layers), int(text.num_attention_heads))


def _fingerprint(source: Path, on_the_hub: str) -> str:
    """Of the whole contents of a GGUF file, or of the names and the whole contents of a model directory's files."""
    kinds = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.safetensors", "*.bin")
    paths = [path for kind in kinds for path in sorted(source.glob(kind))]
    try:
        if is_gguf(source):
            return "sha256:" + _file_hash(source)
        if not source.is_dir():
            return on_the_hub
        return "sha256:" + sha256_of(*(part for path in paths for part in (path.name, _file_hash(path))))
    except OSError as error:
        raise FileError(
            f"cannot read {error.filename or source}: {error.strerror}. Give a model that you may read."
        ) from error


def _file_hash(path: Path) -> str:
    before = path.stat()
    times = (before.st_mtime_ns, before.st_ctime_ns)
    about = [str(path.resolve()), before.st_size, *times, before.st_dev, before.st_ino]
    kept = _cache() / f"{sha256_of(json.dumps(about))}.json"
    if before.st_size >= KEPT_FROM and (known := _kept_hash(kept, about)):
        return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    after = path.stat()
    unchanged = times == (after.st_mtime_ns, after.st_ctime_ns) and time.time_ns() - max(times) > _SETTLED
    if before.st_size >= KEPT_FROM and unchanged:
        with suppress(OSError), atomic_path(kept) as temporary:
            temporary.write_text(
                json.dumps({"of": about, "sha256": found, "check": sha256_of(json.dumps(about), found)})
            )
    return found


def _kept_hash(kept: Path, about: list[Any]) -> str | None:
    try:
        entry = json.loads(kept.read_text(encoding="utf-8"))
        whole = entry["of"] == about and entry["check"] == sha256_of(json.dumps(about), entry["sha256"])
        return entry["sha256"] if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepsal" / "sha256"


def model_fingerprint(model: Model) -> str:
    """Of the weights as they stand in memory, and of the model's configuration.

    It is the same on every device; another precision is another fingerprint. Weights on no device (offloaded to the disk) are
    not seen: then the fingerprint ends with `+unseen`.

    >>> from stepsal import load_model
    >>> model_fingerprint(load_model()) == model_fingerprint(load_model())
    True
    """
    tensors = _stored(model)
    state = [(each.data_ptr(), _version(each)) for each in tensors]
    known = _HASHED.get(model)
    if known is None or known[0] != state:
        with ThreadPoolExecutor(max_workers=4) as pool:  # hashing lets other threads run
            parts = list(pool.map(_tensor_hash, tensors))
        unseen = "+unseen" if any(each.is_meta for each in tensors) else ""
        _HASHED[model] = known = (state, sha256_of(host_of(model).configuration(), *parts) + unseen)
    return known[1]


def _stored(model: Model) -> list[Tensor]:
    """The weights as they are stored. A quantised weight is several tensors: codes, and scales beside them or inside."""
    tensors: Iterable[Any] = model.parameters()
    if host_of(model).quantization:
        stored: dict[str, Any] = {}
        for (
            name,
            module,
        ) in model.original_model.named_modules():  # each once, unlike `state_dict`: a bridge names them twice
            module._save_to_state_dict(stored, f"{name}.", keep_vars=True)
        tensors = [each for each in stored.values() if isinstance(each, Tensor)]
    return [part for tensor in tensors for part in _parts(tensor)]


def _parts(tensor: Any) -> list[Tensor]:
    """The plain tensors that a tensor of a class of its own wraps (torchao, quanto); else the tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _tensor_hash(tensor: Tensor) -> str:
    about = f"{tensor.dtype} {list(tensor.shape)}"
    if tensor.is_meta:
        return about
    flat = tensor.detach().contiguous().cpu().flatten()
    return sha256_of(about, flat.view(torch.uint8).numpy().data if len(flat) else b"")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Of all that a tokenizer encodes and decodes by, its chat template included.

    >>> from stepsal import load_tokenizer
    >>> tokenizer, other = load_tokenizer(), load_tokenizer()
    >>> other.chat_template += " "
    >>> tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(other)
    False
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    special = json.dumps(getattr(tokenizer, "special_tokens_map", None), sort_keys=True, default=str)
    return sha256_of(rules, template, special)
