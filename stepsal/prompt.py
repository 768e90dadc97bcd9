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

    >>> from stepsal.reasoner.tokenizer import build_tokenizer
    >>> prompt_text(build_tokenizer(), [{"role": "user", "content": "2+2?"}])
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


def encode_text(tokenizer: Tokenizer, prompt: str, response: str, *, add_bos: bool) -> tuple[list[int], int, str]:
    """Token ids, how many of them are the prompt, and what is lost ("" where they decode to the text exactly).

    Prompt and response are encoded each by itself, as a model generates; where that does not give the text back (a
    tokenizer that puts a space before whatever it is given), both together. `add_bos` puts a BOS before them where the
    tokenizer does so by default and the text has none.

    >>> from stepsal.reasoner.tokenizer import build_tokenizer
    >>> encode_text(build_tokenizer(), "2+2?", " 4", add_bos=True)[1:]
    (4, '')
    """
    wanted = prompt + response
    try:
        wanted.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has half a surrogate pair at character {error.start}, which is no character: read the file it "
            "comes from as UTF-8"
        ) from error
    prompt_ids, response_ids = _encode(tokenizer, prompt), _encode(tokenizer, response)
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
    for name, text, count in (("prompt", prompt, prompt_tokens), ("response", response, len(ids) - prompt_tokens)):
        if count < 1:
            raise InputError(f"the {name} {text[:50]!r} gives no token of its own: a trace needs one at least")
    bos = getattr(tokenizer, "bos_token_id", None)
    if add_bos and bos is not None and ids[0] != bos and list(tokenizer.encode("a"))[:1] == [bos]:
        return [bos, *ids], prompt_tokens + 1, lost
    return ids, prompt_tokens, lost


def tokens_within(tokenizer: Tokenizer, tokens: Sequence[int], characters: int) -> int:
    """How many of the first tokens lie within the text's first `characters` characters.

    >>> from stepsal.reasoner.tokenizer import build_tokenizer
    >>> tokenizer = build_tokenizer()
    >>> tokens_within(tokenizer, tokenizer.encode("2+2? 4"), 4)
    4
    """
    stream = TextStream(tokenizer)
    for index, end in enumerate(accumulate(len(stream.push(token)) for token in tokens)):
        if end >= characters:
            return index + (end == characters)
    return len(tokens)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))
