"""Prompts and responses to tokens, as a model that answers a prompt would see them.

In: a prompt (text or chat messages) and a response. Out: token ids, and whether they give the text back.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from stepsal.errors import InputError
from stepsal.formats import FormatSpec, find_formats
from stepsal.segment import TextStream, Tokenizer, decode

Prompt = str | Sequence[Mapping[str, Any]]
"""The text exactly as the model sees it, or chat messages for the tokenizer's template."""


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as the model sees it: a string as it is, messages through the tokenizer's template.

    >>> from stepsal import load_tokenizer
    >>> prompt_text(load_tokenizer(), [{"role": "user", "content": "2+2?"}])
    '<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜><think>\\n'
    """
    from jinja2 import TemplateError

    if not prompt:
        raise InputError(f"the prompt is {prompt!r}; it needs at least one character, or one message")
    if isinstance(prompt, str):
        return prompt
    if not all(isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in prompt):
        raise InputError(f"chat messages need a 'role' and a 'content' each; given: {str(prompt)[:80]}")
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the prompt is a list of messages, but the tokenizer has no chat template: give the prompt as the text "
            "that the model sees, or set tokenizer.chat_template"
        )
    try:
        return str(tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True))  # type: ignore[attr-defined]
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"the tokenizer's chat template does not take these messages ({error}): {prompt!r:.80}"
        ) from error


def starts_thinking(prompt: str, format: FormatSpec) -> tuple[str, str] | None:
    r"""The pair of markers whose opening one the prompt ends with, white space aside.

    >>> starts_thinking("2+2?<think>\n", "auto")
    ('<think>', '</think>')
    """
    pairs = (pair for each in find_formats(format) for pair in each.markers)
    return next((pair for pair in pairs if prompt.rstrip().endswith(pair[0])), None)


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The prompt's token ids: what a model is given to continue.

    A BOS is put before a text where the tokenizer does so by default and the text has none; a template's text is left
    as it is. Never an EOS.

    >>> from stepsal import load_tokenizer
    >>> len(encode_prompt(load_tokenizer(), "2+2?"))
    4
    """
    ids = _encode(tokenizer, prompt_text(tokenizer, prompt))
    return [*_bos(tokenizer, ids), *ids] if isinstance(prompt, str) else ids


def encode_text(tokenizer: Tokenizer, prompt: Prompt, response: str) -> tuple[list[int], int, str]:
    """Token ids, how many of them are the prompt, and what is lost ("" where they decode to the text exactly).

    Prompt and response are encoded each by itself, as a model generates; where that does not give the text back (a
    tokenizer that puts a space before whatever it is given), both together.

    >>> from stepsal import load_tokenizer
    >>> encode_text(load_tokenizer(), "2+2?", " 4")[1:]
    (4, '')
    """
    text = prompt_text(tokenizer, prompt)
    wanted = text + response
    prompt_ids, response_ids = _encode(tokenizer, text), _encode(tokenizer, response)
    ids, prompt_tokens, lost = prompt_ids + response_ids, len(prompt_ids), ""
    if decode(tokenizer, ids) != wanted:
        ids = _encode(tokenizer, wanted)
        prompt_tokens = tokens_within(tokenizer, ids, len(decode(tokenizer, prompt_ids)))
        got = decode(tokenizer, ids)
        if got != wanted:
            at = next(
                (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted))
            )
            lost = (
                f"this tokenizer does not give the text back: from character {at} on it says {got[at : at + 20]!r} for "
                f"{wanted[at : at + 20]!r}; the trace holds what the tokens say"
            )
    for name, part, count in (("prompt", text, prompt_tokens), ("response", response, len(ids) - prompt_tokens)):
        if count < 1:
            raise InputError(f"the {name} {part[:50]!r} gives no token of its own: a trace needs one at least")
    bos = _bos(tokenizer, ids) if isinstance(prompt, str) else []
    return bos + ids, len(bos) + prompt_tokens, lost


def tokens_within(tokenizer: Tokenizer, tokens: Sequence[int], characters: int) -> int:
    """How many of the first tokens lie within the text's first `characters` characters.

    >>> from stepsal import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> tokens_within(tokenizer, tokenizer.encode("2+2? 4"), 4)
    4
    """
    stream = TextStream(tokenizer)
    for index, end in enumerate(accumulate(len(stream.push(token)) for token in tokens)):
        if end >= characters:
            return index + (end == characters)
    return len(tokens)


def _bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    bos = getattr(tokenizer, "bos_token_id", None)
    return [bos] if bos is not None and ids[:1] != [bos] == list(tokenizer.encode("a"))[:1] else []


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has half a surrogate pair at character {error.start}, which is no character: read the file it "
            "comes from as UTF-8"
        ) from error
    return list(tokenizer.encode(text, add_special_tokens=False))
