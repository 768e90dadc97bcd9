"""GGUF files, llama.cpp's format: configuration, weights, tokenizer and chat template in one file.

In: the path of a file. Out: what transformers makes of it, its weights dequantised. What transformers would lose in silence is
refused here, and so are files that are cut, damaged or no GGUF file.
"""

import copy
import json
import struct
import warnings
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stepsal.errors import FileError

_ANEW = "Fetch it again, and compare its size and checksum with those where it came from."
# What stands at `tokenizer.ggml.pre` where the text is split as GPT-2 does it, with and without each digit apart before.
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_LIKE_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling")


_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens


def is_gguf(name: str | Path) -> bool:
    """Whether a name is that of a GGUF file.

    >>> is_gguf("folder/model.Q4_K_M.gguf"), is_gguf("owner/model")
    (True, False)
    """
    return Path(name).suffix.lower() == ".gguf"


def gguf_config(path: str) -> Any:
    """The configuration that a file's metadata say. Raises `FileError` for a file that cannot be read.

    It takes transformers seconds, so it is read once in each process.
    """
    try:
        about = Path(path).stat()
        return copy.deepcopy(_read_config(path, about.st_size, about.st_mtime_ns))
    except FileError:
        raise
    except OSError as error:
        raise FileError(
            f"cannot read {path}: {error.strerror or error}. Give a GGUF file that you may read."
        ) from error


@lru_cache(maxsize=8)
def _read_config(path: str, size: int, changed: int) -> Any:
    from transformers import AutoConfig

    about, tensors = _metadata(path)
    architecture = about["general.architecture"]
    if about.get("split.count", 1) > 1:
        raise FileError(
            f"{path} is one of {about['split.count']} parts of a model, and transformers reads one file: merge them first "
            "(llama.cpp's `llama-gguf-split --merge`), and give the merged file"
        )
    try:
        config: Any = AutoConfig.from_pretrained(str(Path(path).parent), gguf_file=Path(path).name)
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        if "not supported" in str(error) or isinstance(error, KeyError):
            raise FileError(
                f"transformers cannot read a GGUF file of the architecture {architecture!r} ({path}: {error}). Give the "
                "model's own folder or hub id."
            ) from error
        raise _damaged(path, error) from error
    scaled = [name for name in (*about, *tensors) if name.startswith("rope_f") or ".rope.scaling.type" in name]
    if scaled and (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") == "default":
        raise FileError(
            f"{path} scales the rotation of its queries and keys ({scaled[0]}), which transformers leaves out as it reads "
            "GGUF files: the model would be another one. Give the model's own folder or hub id."
        )
    return config


def _metadata(path: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a file's head says, and the names of its tensors."""
    try:
        from transformers.integrations.gguf import read_gguf_metadata
    except ImportError as error:
        raise FileError(
            f"cannot read {path}: this transformers ({version('transformers')}) is too old to read GGUF files as stepsal does. "
            "pip install 'transformers>=5.23,<5.24'"
        ) from error

    with Path(path).open("rb") as file:
        begins = file.read(4)
    if begins != b"GGUF":
        raise FileError(f"{path} is no GGUF file: it begins with {begins!r}, expected b'GGUF'. {_ANEW}")
    try:
        return read_gguf_metadata(path)
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> FileError:
    return FileError(f"{path} is cut or damaged ({type(error).__name__}: {error}). {_ANEW}")


def gguf_tokenizer(path: str) -> Any:
    """The tokenizer of a file, chat template included. Raises `FileError` for a file that cannot be read.

    Warns where transformers does not know how the model splits text before it makes tokens of it.
    """
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    gguf_config(path)  # says what is wrong with the file
    architecture, about, options = get_gguf_tokenizer(path)
    backend, more = convert_gguf_tokenizer(architecture, dict(about))
    backend = _with_all_special_tokens(backend, about["tokens"], about.get("token_type") or [])
    split = str(about.get("pre_tokenizer_type", "gpt-2")).lower()
    if about["tokenizer_type"] == "gpt2" and split in _SINGLE_DIGITS:  # transformers 5.23.0 splits as GPT-2 does
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    elif about["tokenizer_type"] == "gpt2" and split not in (*GGUF_PRE_TOKENIZER_SPLITS, *_LIKE_GPT2):
        warnings.warn(
            f"{path} splits text as {split!r}, which transformers does not know: it splits as GPT-2 does, and some texts may "
            "get other tokens than the model was trained on. Use the tokenizer of the model's own folder or hub id.",
            stacklevel=2,
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **options, **more)
    tokenizer.name_or_path = path  # afterwards: the constructor asks the hub about a name
    return tokenizer


def _with_all_special_tokens(backend: Any, tokens: list[str], types: list[int]) -> Any:
    """The Rust tokenizer with every control token and every one of a user's own whole, and at its own id.

    transformers 5.23.0 leaves out those with letters that no byte is written as, such as R1's `<｜Assistant｜>`, and gives the
    end-of-sequence token another id where it is one of them.
    """
    from tokenizers import Tokenizer

    special = {index: kind == _CONTROL for index, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)}
    if all(backend.id_to_token(index) == tokens[index] for index in special):
        return backend
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    spelled = {index: token for token, index in vocabulary.items()}
    for index in special:
        vocabulary[tokens[index]] = vocabulary.pop(spelled[index])
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    state["added_tokens"] = [
        {"id": index, "content": tokens[index], "special": control} | plain for index, control in special.items()
    ]
    return Tokenizer.from_str(json.dumps(state))


def load_gguf(path: str, dtype: torch.dtype, device_map: Any) -> Any:
    """The Hugging Face model of a file, dequantised, with eager attention. Raises `FileError` where weights are missing."""
    from transformers import AutoModelForCausalLM, GgufConfig

    model, found = AutoModelForCausalLM.from_pretrained(
        str(Path(path).parent),
        gguf_file=Path(path).name,
        config=gguf_config(path),
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        device_map=device_map,
        attn_implementation="eager",
        output_loading_info=True,
    )
    if missing := sorted({*found["missing_keys"], *(each[0] for each in found["mismatched_keys"])}):
        raise FileError(
            f"{path} lacks {len(missing)} of the model's weights, {missing[0]} for one. Give the whole model's file."
        )
    return model
