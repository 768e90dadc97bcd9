"""One JSON object, as servers and chats log them, to traces.

In: an object of a JSONL file. Out: a `Trace` for each answer in it.

1. `answers` finds the answers: the object itself (`prompt`, or `messages` that end with the assistant's), or each of the
   `choices` of what an OpenAI-compatible server sent, alone, beside its `request`, or as a line of a batch's results.
2. Token ids that are given are used as they are: `tokens` (the whole trace), or `token_ids` (the response's) after
   `prompt_token_ids` or the prompt's.
3. Otherwise the response is the text in `response`, or is put together from `content`, `reasoning_content` (`reasoning`) and
   `tool_calls`. The server dropped what stood between these: `meta["rebuilt_response"]` says so.
"""

from collections.abc import Mapping
from typing import Any

from stepsal.errors import InputError
from stepsal.traces.formats import LAYOUTS, FormatSpec, StepsSpec, find_formats, find_marker, usual
from stepsal.traces.prompt import (
    REQUEST_FIELDS,
    Prompt,
    encode_prompt,
    prompt_text,
    shown,
    starts_thinking,
    tokens_within,
)
from stepsal.traces.segment import Tokenizer, decode
from stepsal.traces.trace import Trace, check_tokens, split_tokens

_KIND_NAMES = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}
_MESSAGE_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls")
_ANSWER_FIELDS = ("response", "tokens", "token_ids", *_MESSAGE_FIELDS)


def answers(record: dict[str, Any], id: str, requests: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers in an object, each as `trace_of` takes it. `requests` are those of other lines, by their `custom_id`.

    >>> choices = [{"message": {"content": "4"}}, {"message": {"content": "5"}}]
    >>> [each["id"] for each in answers({"prompt": "2+2?", "choices": choices}, "line-1", {})]
    ['line-1-0', 'line-1-1']
    """
    answer = record["response"] if isinstance(record.get("response"), dict) else record
    if answer is not record and isinstance(answer.get("body"), dict):
        answer = answer["body"]
    names = (record.get("custom_id"), record.get("id"), answer.get("id"))
    id = next((str(name) for name in names if isinstance(name, str | int) and not isinstance(name, bool)), id)
    choices = answer.get("choices")
    if choices is None and answer is record:
        if record.get("error") and not any(record.get(name) for name in _ANSWER_FIELDS):
            raise InputError(f"the server answered with an error: {shown(record['error'])}")
        if is_request(record):
            if record["custom_id"] in requests:
                return []
            raise InputError("this is a request, and no line of these files is the response to it")
        return [_with_prompt(record) | {"id": id if record.get("id") is None else record["id"]}]
    if choices is None and any(name in answer for name in _MESSAGE_FIELDS):
        choices = [{"message": answer}]
    if not isinstance(choices, list) or not choices:
        raise InputError(f"there are no 'choices' in the server's response, found {shown(answer)}")
    request = next((each for each in (record.get("request"), requests.get(id)) if isinstance(each, dict)), record)
    request = request["body"] if isinstance(request.get("body"), dict) else request
    several = len(choices) > 1
    return [
        _choice(choice, answer, request, record) | {"id": f"{id}-{index}" if several else id}
        for index, choice in enumerate(choices)
    ]


def is_request(record: dict[str, Any]) -> bool:
    """Whether the object is a line of a batch's requests; its response is a line with the same `custom_id`."""
    return (
        isinstance(record.get("body"), dict) and isinstance(record.get("custom_id"), str) and "response" not in record
    )


def _with_prompt(record: dict[str, Any]) -> dict[str, Any]:
    """The object; where it has messages, with the prompt that they make."""
    messages = _field(record, "messages", list)
    if messages is None:
        return record
    *prompt, message = messages or [None]
    beside = any(record.get(name) is not None for name in ("response", *_MESSAGE_FIELDS))
    if not beside and prompt and isinstance(message, dict) and message.get("role") == "assistant":
        own = {name: message[name] for name in (*_ANSWER_FIELDS, "prompt_token_ids") if name in message}
        return {**record, "prompt": {**_prompt_fields(record), "messages": prompt}, **own}
    if not beside and not any(record.get(name) for name in _ANSWER_FIELDS):
        raise InputError("'messages' must be a prompt's messages, then one with the role 'assistant', the response")
    return {**record, "prompt": _prompt_fields(record)}


def _choice(choice: Any, answer: dict[str, Any], request: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """One of the choices of a server's response, with the prompt that it answers."""
    if not isinstance(choice, dict) or not isinstance(choice.get("message", choice.get("text")), dict | str):
        raise InputError(
            f"a choice needs a 'message' or a 'text', found {shown(choice)}: the pieces of a stream are not put together"
        )
    message = choice["message"] if isinstance(choice.get("message"), dict) else {"response": choice.get("text")}
    found = {name: message[name] for name in ("response", *_MESSAGE_FIELDS) if name in message}
    found |= {name: record[name] for name in ("answer", "correct") if name in record}
    about = {"model": answer.get("model"), "finish_reason": choice.get("finish_reason")}
    found["meta"] = {**(_field(record, "meta", dict) or {}), **{k: v for k, v in about.items() if v is not None}}
    prompt = _prompt_fields(request) if "messages" in request else request.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], dict):  # the completions API's
        ids = all(isinstance(each, int) for each in prompt)
        if not ids and len(prompt) > 1:
            raise InputError(f"a request of several prompts: give each prompt its own line, found {shown(prompt)}")
        found["prompt_token_ids"], prompt = (prompt, None) if ids else (None, prompt[0])
    found["prompt"] = prompt
    places = {"prompt_token_ids": (choice, answer), "token_ids": (choice,)}
    return found | {name: place[name] for name, all_of in places.items() for place in all_of if place.get(name)}


def _prompt_fields(request: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request that decide the prompt."""
    return {name: request[name] for name in REQUEST_FIELDS if request.get(name) is not None}


def trace_of(
    record: dict[str, Any], tokenizer: Tokenizer, format: FormatSpec = "auto", steps: StepsSpec = "auto"
) -> Trace:
    """The trace of an answer. `format` and `steps` other than `auto` take precedence over those that it was written with.

    >>> from stepsal import load_tokenizer
    >>> trace_of({"id": "a", "prompt": "2+2?", "reasoning_content": "Add.", "content": "4"}, load_tokenizer()).response
    '<think>\\nAdd.\\n</think>\\n\\n4'
    """
    stored = _field(record, "segmentation", dict) or {}
    format, steps = _segmentation(stored, format, steps)
    id = _field(record, "id", str, int)
    keep: dict[str, Any] = {
        "id": "" if id is None else str(id),
        "answer": record.get("answer"),
        "correct": _field(record, "correct", bool),
        "meta": _field(record, "meta", dict),
        "format": format,
        "steps": steps,
    }
    tokens, prompt_ids, ids = (_field(record, name, list) for name in ("tokens", "prompt_token_ids", "token_ids"))
    prompt = _field(record, "prompt", str, list, dict) or None
    if isinstance(prompt, list) and not all(isinstance(each, dict) for each in prompt):
        raise InputError(f"the messages of a prompt must be objects, found {shown(prompt)}")
    if tokens is not None:
        tokens = check_tokens(tokens, len(tokenizer))
        if "prompt_tokens" in stored:  # it was a trace before
            return split_tokens(tokenizer, tokens, prompt_tokens=_field(stored, "prompt_tokens", int), **keep)
        length = None if prompt is None else _prompt_length(tokenizer, tokens, prompt_text(tokenizer, prompt))
        trace = Trace.from_tokens(tokenizer, tokens, prompt_tokens=length, **keep)
        if len(trace.steps) == 1:
            raise InputError("the tokens show no opening marker: give the 'prompt' that they begin with")
        return trace
    if ids is not None:
        prompt_ids = encode_prompt(tokenizer, _require_prompt(prompt, record)) if prompt_ids is None else prompt_ids
        tokens = check_tokens(prompt_ids + ids, len(tokenizer))
        _check_ids_against_text(tokenizer, tokens[len(prompt_ids) :], record)
        return Trace.from_tokens(tokenizer, tokens, prompt_tokens=len(prompt_ids), **keep)
    if prompt_ids is not None:
        prompt = decode(tokenizer, check_tokens(prompt_ids, len(tokenizer)))
    prompt = _require_prompt(prompt, record)
    response, rebuilt = _response(record, tokenizer, prompt, format)
    if rebuilt:
        keep["meta"] = {**(keep["meta"] or {}), "rebuilt_response": True}
    return Trace.from_text(tokenizer, prompt, response, **keep)


def _segmentation(stored: dict[str, Any], format: FormatSpec, steps: StepsSpec) -> tuple[FormatSpec, StepsSpec]:
    """The format and step rule to use: those that are asked for, or in the place of `auto` those that are stored."""
    if format == "auto" and stored:
        kept = _field(stored, "format", str, list)
        if isinstance(kept, list):
            if [type(marker) for marker in kept] != [str, str]:
                raise InputError(f"format={shown(kept)} is not known: a pair of markers is two strings")
            kept = (kept[0], kept[1])
        format = kept or "auto"
    if isinstance(steps, str) and steps == "auto":
        steps = _field(stored, "steps", str) or "auto"
    return format, steps


def _require_prompt(prompt: Prompt | None, record: dict[str, Any]) -> Prompt:
    if prompt is None:
        raise InputError(
            f"there is no 'prompt' (or it is empty), no 'messages' and no 'prompt_token_ids'; found {_field_names(record)}"
        )
    return prompt


def _response(record: dict[str, Any], tokenizer: Tokenizer, prompt: Prompt, format: FormatSpec) -> tuple[str, bool]:
    """The response's text, and whether it was put together from fields."""
    response, calls = _field(record, "response", str), _field(record, "tool_calls", list)
    content, thought = _text_and_thinking(_field(record, "content", str, list))
    reasoning = _field(record, "reasoning_content", str) or _field(record, "reasoning", str) or thought
    if response is not None and reasoning:
        raise InputError("'response' and 'reasoning_content' cannot both be given: call the answer alone 'content'")
    if response is None and calls:
        return _with_tool_calls(tokenizer, prompt, record, [*filter(None, (reasoning, content))], calls), True
    text, rebuilt = (response if response is not None else content), False
    if response is None and (reasoning or content):
        text, rebuilt = _put_together(tokenizer, prompt_text(tokenizer, prompt), reasoning or "", content or "", format)
    if text is None:
        raise InputError(f"there is no 'response' (nor 'content'); found {_field_names(record)}")
    if not isinstance(prompt, str) and (pair := starts_thinking(prompt_text(tokenizer, prompt), format)):
        at = find_marker(pair[0], text.lstrip())
        if at and at[0] == 0:  # the server's template did not open the thinking, so the model did: the same text
            text = text.lstrip()[at[1] :].removeprefix("\n")
    return text, rebuilt


def _text_and_thinking(content: str | list[Any] | None) -> tuple[str | None, str]:
    """A message's content, which may be a list of parts, as text and as thinking."""
    if not isinstance(content, list):
        return content, ""
    said: dict[str, list[str]] = {"text": [], "thinking": []}
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        kind = kind if isinstance(kind, str) else ""
        value = part.get(kind) if kind in said else None
        if kind == "thinking" and isinstance(value, list):
            value = _text_and_thinking(value)[0]
        if not isinstance(value, str):
            raise InputError(f"a response's content is text or thinking, found the part {shown(part)}")
        said[kind].append(value)
    return "".join(said["text"]), "".join(said["thinking"])


def _put_together(
    tokenizer: Tokenizer, prompt: str, reasoning: str, content: str, format: FormatSpec
) -> tuple[str, bool]:
    """The response as the model wrote it, with the markers that the prompt opened, or that the template names."""
    pairs = [pair for each in find_formats(format) for pair in each.markers]
    template = str(getattr(tokenizer, "chat_template", None))
    started = starts_thinking(prompt, format)
    likely = [each for each in pairs if each == started] or [each for each in pairs if find_marker(each[0], template)]
    if not reasoning and (not likely or started or any(find_marker(marker, content) for marker in likely[0])):
        return content, False
    if not pairs:
        raise InputError(f"format={format!r} has no markers to put 'reasoning_content' between: choose another format")
    opening, closing = (likely or pairs)[0]
    layout, bare = LAYOUTS.get(opening, LAYOUTS["<think>"])
    if "\n" in layout:  # the model's own line breaks, which some servers drop
        reasoning, content = reasoning.strip("\n"), content.lstrip("\n")
    lead, _, rest = layout.partition("{reasoning}")
    if started:
        lead = lead.removeprefix("{opening}") if prompt == prompt.rstrip() else ""
    rest = (rest + "{content}") if content else ""  # no content: cut off while thinking
    layout = lead + "{reasoning}" + rest if reasoning else bare + "{content}"
    marks = {"opening": usual(opening), "closing": usual(closing)}
    return layout.format(**marks, reasoning=reasoning, content=content), layout != "{content}"


def _with_tool_calls(
    tokenizer: Tokenizer, prompt: Prompt, record: dict[str, Any], texts: list[str], calls: list[Any]
) -> str:
    """The response as the tokenizer's template writes it: how a model calls a tool, nothing else knows."""
    if not isinstance(prompt, str):
        before = prompt_text(tokenizer, prompt)
        request = prompt if isinstance(prompt, Mapping) else {"messages": prompt}
        message = {"content": None, **{name: record[name] for name in _MESSAGE_FIELDS if name in record}}
        messages = [*request["messages"], {"role": "assistant", **message}]
        after = prompt_text(tokenizer, {**request, "messages": messages, "add_generation_prompt": False})
        functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
        names = [str(each.get("name")) if isinstance(each, dict) else shown(each) for each in functions]
        response = after[len(before) :].rstrip()
        if after.startswith(before) and all(text.strip() in response for text in [*texts, *names]):
            return response
    raise InputError(
        "the last message calls a tool, and how the model wrote that is not known: it takes the tokenizer's template with the "
        "prompt as messages. Give the response's text as 'response', or its ids as 'token_ids' (vLLM: return_token_ids)"
    )


def _prompt_length(tokenizer: Tokenizer, tokens: list[int], prompt: str) -> int:
    text = decode(tokenizer, tokens)
    at = text.find(prompt)
    if at < 0 or text[:at].strip() not in ("", getattr(tokenizer, "bos_token", None)):
        raise InputError(
            f"the tokens decode to {text[:50]!r}, the prompt is {prompt[:50]!r}: the tokens must begin with the "
            "prompt's. Leave 'tokens' out, or use the tokenizer they come from."
        )
    return tokens_within(tokenizer, tokens, at + len(prompt))


def _check_ids_against_text(tokenizer: Tokenizer, ids: list[int], record: dict[str, Any]) -> None:
    """Refuse token ids whose text is not the text beside them, line by line, white space and special tokens aside."""
    whole, bare = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True))
    said = [_without_space(str(text)) for text in (whole, bare)]
    for name in ("response", "content", "reasoning_content", "reasoning"):
        text = record.get(name)
        for line in text.splitlines() if isinstance(text, str) else ():
            if not any(_without_space(line) in each for each in said):
                raise InputError(
                    f"the token ids say {shown(whole)}, and not what {name!r} says: {shown(line)}. Use the tokenizer that the "
                    "ids come from, or leave them out"
                )


def _field_names(record: dict[str, Any]) -> str:
    return shown([name for name in record if name != "id"])


def _without_space(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())


def _field(record: dict[str, Any], name: str, *kinds: type) -> Any:
    """The field's value, or None where it is missing or null. Raises `InputError` for a value of another kind."""
    value = record.get(name)
    if value is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
        return value
    raise InputError(f"{name!r} must be {' or '.join(_KIND_NAMES[kind] for kind in kinds)}, found {shown(value)}")
