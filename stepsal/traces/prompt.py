"""Prompts and responses to tokens, as a model that answers a prompt would see them.

In: a prompt (text, chat messages or a chat request) and a response. Out: token ids, and whether they give the text back.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from stepsal.checks import shown
from stepsal.errors import InputError
from stepsal.traces.formats import FormatSpec, find_formats, last_marker
from stepsal.traces.messages import ABOUT_MESSAGES, MESSAGE_FIELDS, REASONING_TEXTS, texts_in, unread_texts
from stepsal.traces.segment import TextStream, Tokenizer, decode

Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""The text exactly as the model sees it, or chat messages for the tokenizer's template, or a request as servers take it: an
object with `messages` and any other of `REQUEST_FIELDS`, which change the prompt."""

REQUEST_FIELDS = (
    "messages",
    "tools",
    "documents",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_generation_prompt",
    "continue_final_message",
)
DEFAULT_TIME = datetime(2025, 1, 1, tzinfo=UTC)
"""What a template that asks for the time is told where a prompt does not say when the server answered: a prompt's tokens must
not depend on the day on which they are made."""
_DIRECTIVES = (
    *(f"%-{letter}" for letter in "dmHIMSjy"),
    *(f"%{letter}" for letter in "aAbBcCdDeFgGhHIjmMpRrSTuUVwWxXyYzZ"),
)


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as the model sees it: a string as it is, messages through the tokenizer's template.

    >>> from stepsal import load_tokenizer
    >>> prompt_text(load_tokenizer(), [{"role": "user", "content": "2+2?"}])
    '<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜><think>\\n'
    """
    if not prompt:
        raise InputError(f"the prompt is {prompt!r}; it needs at least one character, or one message")
    if isinstance(prompt, str):
        return prompt
    request = prompt if isinstance(prompt, Mapping) else {"messages": prompt}
    messages = request.get("messages")
    if not messages or not isinstance(messages, Sequence) or not all(map(_is_message, messages)):
        raise InputError(f"chat messages need a 'role' and a 'content' each; given: {shown(messages)}")
    for message in messages:
        if not isinstance(content := message.get("content"), str | list | tuple | None):
            raise InputError(f"the content of a message is {shown(content)}: it must be a text, or a list of parts")
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "the prompt is a list of messages, but the tokenizer has no chat template: give the prompt as the text "
            "that the model sees, or set tokenizer.chat_template"
        )
    fields: dict[str, Any] = {name: request[name] for name in REQUEST_FIELDS[1:] if request.get(name) is not None}
    time = template_time(tokenizer, prompt)
    kwargs: Any = fields.pop("chat_template_kwargs", {})
    if not isinstance(kwargs, Mapping):
        example = "{'enable_thinking': false}"
        raise InputError(f"'chat_template_kwargs' is {shown(kwargs)}: it must be an object, such as {example}")
    for name in ("add_generation_prompt", "continue_final_message"):
        if not isinstance(value := {**fields, **kwargs}.get(name), bool | None):
            raise InputError(f"{name!r} is {shown(value)}: it must be true or false")
    try:
        goes_on = {**fields, **kwargs}.get("continue_final_message")
        options: dict[str, Any] = {"add_generation_prompt": not goes_on, **fields, **kwargs}
        conversation = [_for_template(message) for message in messages]
        template = None if time is None else _with_time(tokenizer, time, options.get("tools"))
        text = str(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, **options))  # type: ignore[attr-defined]
    except Exception as error:  # a template is a program: whatever it raises, it does not take these messages
        raise InputError(
            f"the tokenizer's chat template does not take these messages ({error}): {shown(messages)}"
        ) from error
    for part in (part for each in conversation if isinstance(each.get("content"), list) for part in each["content"]):
        _check_part(part, text)
    for message in messages:
        _check_fields(message, text)
    return text


def template_time(tokenizer: Tokenizer, prompt: Prompt) -> datetime | None:
    """The time that the tokenizer's template writes into the prompt, None where it writes none: `created` of the request
    (seconds since 1970, or ISO 8601; the server's time zone is not known, so UTC), or else `DEFAULT_TIME`.

    >>> from stepsal import load_tokenizer
    >>> template_time(load_tokenizer(), [{"role": "user", "content": "2+2?"}]) is None
    True
    """
    if isinstance(prompt, str) or "strftime_now" not in str(getattr(tokenizer, "chat_template", None)):
        return None
    created = prompt.get("created") if isinstance(prompt, Mapping) else None
    if created is None:
        return DEFAULT_TIME
    try:
        if isinstance(created, str):
            time = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", created))  # Ollama has nanoseconds
            return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        return datetime.fromtimestamp(created, UTC)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        raise InputError(
            f"the time 'created' is {shown(created)}; it must be seconds since 1970, or a time such as '2025-01-31T12:00:00Z'"
        ) from error


def prompt_record(tokenizer: Tokenizer, prompt: Prompt | None) -> dict[str, str]:
    """What a trace's `meta` says of how its prompt was made: `template_time`, where the template writes a time.

    >>> from stepsal import load_tokenizer
    >>> prompt_record(load_tokenizer(), "2+2?")
    {}
    """
    time = None if prompt is None else template_time(tokenizer, prompt)
    return {} if time is None else {"template_time": time.isoformat()}


def _with_time(tokenizer: Any, time: datetime, tools: Any) -> str:
    """The tokenizer's template, with a fixed time in the place of the clock."""
    template = str(tokenizer.get_chat_template(None, tools))
    said = {"%%": "\0"} | {each: time.strftime(each) for each in _DIRECTIVES} | {"\0": "%"}
    steps = "".join(f" | replace({each!r}, {text!r})" for each, text in said.items())
    macro = f"{{%- macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro +%}}"
    begins_with_block = re.match(r"[ \t]+\{[%#](?!\+)", template)  # the white space of a line before a block goes
    return macro + (template.lstrip(" \t") if begins_with_block else template)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str)


def _check_part(part: Any, text: str) -> None:
    """A text part of a message's content must be in the prompt; a template may leave earlier thinking out."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "thinking" or (kind == "text" and str(part.get("text")).strip() in text and str(part) not in text):
        return
    raise InputError(
        f"the tokenizer's chat template does not write this part of a message's content: {shown(part)}. Give the content "
        "as one text, or the prompt as the text or the token ids that the model saw"
    )


def _check_fields(message: Mapping[str, Any], text: str) -> None:
    """What a message says beside its content must be in the prompt; a template may leave earlier thinking out."""
    lost = [
        name
        for name in unread_texts(message, {*MESSAGE_FIELDS, *ABOUT_MESSAGES, "prefix"})
        if not all(each.strip() in text for each in texts_in(message[name]))
    ]
    if lost:
        raise InputError(
            f"the tokenizer's chat template does not write the field {lost[0]!r} of a message: {shown(message[lost[0]])}. Put "
            "it into the content, give the prompt as the text or the token ids that the model saw, or leave it out if the "
            "model did not see it"
        )
    for call in _calls(message):
        called = call.get("function", call) if isinstance(call, Mapping) else None
        name = called.get("name") if isinstance(called, Mapping) else None
        if not isinstance(name, str) or name not in text:
            raise InputError(
                f"the tokenizer's chat template does not write the call of a tool in a message: {shown(call)}. Give the prompt "
                "as the text or the token ids that the model saw; where the answer calls the tool: Give the response's "
                "text as 'response', or its ids as 'token_ids'"
            )


def _calls(message: Mapping[str, Any]) -> list[Any]:
    """The calls of tools in a message, those in OpenAI's older form included."""
    calls, older = message.get("tool_calls") or [], message.get("function_call")
    if not isinstance(calls, list | tuple):
        raise InputError(f"the tool calls of a message must be a list, found {shown(calls)}")
    return [*calls, *([{"type": "function", "function": older}] if older else [])]


def _for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as templates take it, which differ: the reasoning under each name, arguments as objects, one text."""
    message = dict(message)
    reasoning = next((message[name] for name in REASONING_TEXTS if message.get(name)), None)
    if reasoning is not None:  # later versions of transformers do this, too
        message |= dict.fromkeys(REASONING_TEXTS, reasoning)
    content = message.get("content")
    if isinstance(content, list) and [part.get("type") for part in content] == ["text"]:
        message["content"] = content[0]["text"]
    if calls := _calls(message):
        message["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
    return message


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), str):
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    return dict(call)


def starts_thinking(prompt: str, format: FormatSpec) -> tuple[str, str] | None:
    r"""The pair of markers whose opening one the prompt ends with, white space aside.

    >>> starts_thinking("2+2?<think>\n", "auto")
    ('<think>', '</think>')
    """
    for pair in (pair for each in find_formats(format) for pair in each.markers):
        if (at := last_marker(pair[0], prompt)) and not prompt[at[1] :].strip():
            return pair
    return None


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """The prompt's token ids: what a model is given to continue.

    A BOS is put before a text where the tokenizer does so by default and the text has none; a template's text is left
    as it is. Never an EOS.

    >>> from stepsal import load_tokenizer
    >>> len(encode_prompt(load_tokenizer(), "2+2?"))
    4
    """
    ids = _encode(tokenizer, prompt_text(tokenizer, prompt))
    return [*_missing_bos(tokenizer, ids), *ids] if isinstance(prompt, str) else ids


def encode_text(tokenizer: Tokenizer, prompt: Prompt, response: str) -> tuple[list[int], int, str]:
    """Token ids, the number of them that are the prompt, and what is lost ("" where they decode to the text exactly).

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
    bos = _missing_bos(tokenizer, ids) if isinstance(prompt, str) else []
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


def _missing_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The BOS as a list, where the tokenizer puts one before a text by default and the ids have none; else an empty list."""
    bos = [tokenizer.bos_token_id] if begins_with_bos(tokenizer) else []  # type: ignore[attr-defined]
    return [] if ids[:1] == bos else bos


def begins_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a BOS before a text by default.

    >>> from stepsal import load_tokenizer
    >>> begins_with_bos(load_tokenizer())
    False
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and list(tokenizer.encode("a"))[:1] == [bos]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has half a surrogate pair at character {error.start}, which is no character: read the file it "
            "comes from as UTF-8"
        ) from error
    return list(tokenizer.encode(text, add_special_tokens=False))
