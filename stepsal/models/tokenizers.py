"""Names and folders to tokenizers, the Rust tokenizer inside one, and what tells one from another.

In: a hub id, a local directory, a GGUF file, or nothing (the bundled reasoner). Out: a Hugging Face tokenizer that gives the
token ids of `tokenizer.json`.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stepsal.checks import checked
from stepsal.errors import FileError
from stepsal.models.gguf_files import gguf_tokenizer, is_gguf
from stepsal.models.sources import a_name, locate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
else:  # imported only where it is used: it takes seconds
    PreTrainedTokenizerBase = Any


@checked(name=a_name)
def load_tokenizer(name: str | Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id, local directory or GGUF file; `None` and `"bundled"` are the bundled reasoner's.

    `tokenizer.json` is read as it is: for some model types the automatic class gives other token ids. Of a GGUF file, whose
    rules for splitting text are no more than a name, transformers makes the tokenizer; where it does not know the name, this
    warns. Raises `FileError`
    where there is no tokenizer, and within seconds where the hub cannot be reached; `InputError` for what is no name.

    >>> from stepsal import load_tokenizer
    >>> load_tokenizer().decode(load_tokenizer().encode("k = 37."))
    'k = 37.'
    """
    return read_tokenizer(locate(name, needed=""))


def read_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of what `locate` gave. Raises `FileError` where there is none."""
    # AutoTokenizer of transformers 5 (up to 5.23.0 at least) puts the model type's own splitting in the place of the one in
    # tokenizer.json: https://github.com/huggingface/transformers/issues/45920.
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if is_gguf(source):
        return gguf_tokenizer(source)
    try:
        if Path(source).is_dir() and not (Path(source) / "tokenizer.json").exists():
            return AutoTokenizer.from_pretrained(source)
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source, clean_up_tokenization_spaces=False)
            _honour_add_bos_token(tokenizer, source)
            return tokenizer
        except OSError:
            return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise FileError(
            f"cannot load a tokenizer from {source!r}: {error}. Give a Hugging Face model directory, or a hub id (that "
            "needs the network)."
        ) from error


def _honour_add_bos_token(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Let `add_bos_token` of tokenizer_config.json decide whether a text begins with a BOS: transformers 5 drops it where there
    is a tokenizer.json, whose own rule may be another."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    wanted, bos = get_tokenizer_config(source, local_files_only=True).get("add_bos_token"), tokenizer.bos_token_id
    if isinstance(wanted, bool) and bos is not None and wanted != (list(tokenizer.encode("a"))[:1] == [bos]):
        tokenizer.add_bos_token = wanted


def fast_backend(tokenizer: object) -> Any:
    """The `tokenizers.Tokenizer` that decodes for this tokenizer, or None where its own class has a hand in the text.

    >>> type(fast_backend(load_tokenizer())).__name__
    'Tokenizer'
    """
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    plain = all(
        getattr(type(tokenizer), name) is getattr(PreTrainedTokenizerFast, name) for name in ("decode", "_decode")
    )
    return tokenizer.backend_tokenizer if plain else None


_fingerprints: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


def fingerprint(tokenizer: Any) -> str:
    """What tells a tokenizer's token ids from another's: equal for equal vocabularies, in every process.

    It is made of the vocabulary's size, the added tokens, and some 4,000 tokens that are spread over all ids.

    >>> fingerprint(load_tokenizer()) == fingerprint(load_tokenizer())
    True
    """
    size = len(tokenizer)
    try:
        known = _fingerprints.get(tokenizer)
    except TypeError:  # not hashable
        return _fingerprint(tokenizer, size)
    if known is None or known[0] != size:
        known = _fingerprints[tokenizer] = size, _fingerprint(tokenizer, size)
    return known[1]


def _fingerprint(tokenizer: Any, size: int) -> str:
    ids = sorted({*range(0, size, max(1, size // 4000)), *range(max(0, size - 200), size)})
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        texts = [str(text) for text in tokenizer.convert_ids_to_tokens(ids)]
    else:
        texts = [str(tokenizer.decode([id])) for id in ids]
    added = getattr(tokenizer, "added_tokens_decoder", None)
    added = sorted((int(id), str(text)) for id, text in added.items()) if isinstance(added, dict) else []
    said = json.dumps([size, texts, added], ensure_ascii=True).encode()
    return "sha256:" + hashlib.sha256(said).hexdigest()[:32]
