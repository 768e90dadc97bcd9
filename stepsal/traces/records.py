"""An answer, as `stepsal.traces.shapes` finds it in a file, to a trace.

In: a record with a prompt and an answer. Out: a `Trace`.

1. Token ids that are given are used as they are: `tokens` (the whole trace), or `token_ids` (the response's) after
   `prompt_token_ids` or the prompt's. What they decode to must be the text beside them.
2. Otherwise the response is the text in `response`, or is put together from the message's fields (`stepsal.traces.rebuild`).
   The server dropped what stood between these: `meta["rebuilt_response"]` says so.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepsal.checks import shown
from stepsal.errors import InputError
from stepsal.traces.formats import FORMATS, FormatSpec, StepsSpec, find_marker
from stepsal.traces.messages import Said, field, read_message
from stepsal.traces.prompt import (
    Prompt,
    begins_with_bos,
    encode_prompt,
    prompt_record,
    prompt_text,
    starts_thinking,
    tokens_within,
)
from stepsal.traces.rebuild import (
    Rebuilt,
    check_rebuilt,
    how_to_give,
    put_together,
    unknown_markers,
    with_tool_calls,
)
from stepsal.traces.segment import Tokenizer, decode
from stepsal.traces.shapes import refuse_unread_texts
from stepsal.traces.trace import Trace, check_tokens, split_tokens


def trace_of(
    record: dict[str, Any], tokenizer: Tokenizer, format: FormatSpec = "auto", steps: StepsSpec = "auto"
) -> Trace:
    """The trace of an answer. `format` and `steps` other than `auto` take precedence over those that it was written with.

    >>> from stepsal import load_tokenizer
    >>> trace_of({"id": "a", "prompt": "2+2?", "reasoning_content": "Add.", "content": "4"}, load_tokenizer()).response
    '<think>\\nAdd.\\n</think>\\n\\n4'
    """
    stored = field(record, "segmentation", dict) or {}
    format, steps = _segmentation(stored, format, steps)
    prompt = _prompt(record)
    keep = _kept(record, tokenizer, prompt) | {"format": format, "steps": steps}
    if record.get("tokens") is not None:
        return _of_tokens(record, tokenizer, prompt, stored, keep)
    if record.get("token_ids") is not None:
        return _of_ids(record, tokenizer, prompt, keep)
    prompt_ids = field(record, "prompt_token_ids", list)
    if prompt_ids is None:
        _check_prompt_options(record, tokenizer, _require_prompt(prompt, record))
    refuse_unread_texts(record)
    if left_out := record.get("left_out"):
        raise InputError(
            f"the request asked with {left_out!r} to leave the thinking out of the answer, so that what the model wrote is not "
            "known: ask again without it"
        )
    if prompt_ids is not None:
        ids = check_tokens(prompt_ids, len(tokenizer))
        if prompt is not None:
            _check_prompt_ids(tokenizer, ids, prompt)
        prompt = decode(tokenizer, ids)
    return _of_text(record, tokenizer, _require_prompt(prompt, record), keep)


def _kept(record: dict[str, Any], tokenizer: Tokenizer, prompt: Prompt | None) -> dict[str, Any]:
    """What a trace takes over from the file: its name, the expected answer, the grade, and what else is said about it."""
    id, meta = field(record, "id", str, int), field(record, "meta", dict)
    id = "" if id is None else str(id)
    if any("\ud800" <= character <= "\udfff" for character in id):
        raise InputError(f"the id {id!r} has half a surrogate pair, which is no character: give the trace another id")
    if made := prompt_record(tokenizer, prompt):
        meta = {**(meta or {}), **made}
    return {"id": id, "answer": record.get("answer"), "correct": field(record, "correct", bool), "meta": meta}


def _check_prompt_options(record: dict[str, Any], tokenizer: Tokenizer, prompt: Prompt) -> None:
    """Refuse what a request asked of its prompt's tokens, where that is not what a prompt's tokens are by default."""
    name, cut, special = "", record.get("truncate_prompt_tokens"), record.get("add_special_tokens")
    if cut not in (None, -1):
        name = "truncate_prompt_tokens"
    elif isinstance(special, bool) and special != isinstance(prompt, str) and begins_with_bos(tokenizer):
        name = "add_special_tokens"
    if name:
        raise InputError(
            f"the request asked with {name}={shown(record[name])} for other tokens of its prompt than the text gives: give the "
            "ids that the model saw as 'prompt_token_ids' (in a request to vLLM, \"return_token_ids\": true)"
        )


def _prompt(record: dict[str, Any]) -> Prompt | None:
    prompt: Prompt | None = field(record, "prompt", str, list, dict) or None
    if isinstance(prompt, list) and not all(isinstance(each, dict) for each in prompt):
        raise InputError(f"the messages of a prompt must be objects, found {shown(prompt)}")
    return prompt


def _of_tokens(
    record: dict[str, Any], tokenizer: Tokenizer, prompt: Prompt | None, stored: dict[str, Any], keep: dict[str, Any]
) -> Trace:
    """The trace of all of its tokens, prompt and response."""
    tokens = check_tokens(field(record, "tokens", list), len(tokenizer))
    text = decode(tokenizer, tokens)
    length = field(stored, "prompt_tokens", int)
    if "prompt_tokens" in stored:  # it was a trace before
        said = {name: each for name in ("prompt", "response") if isinstance(each := record.get(name), str)}
        if len(said) == 2 and _without_space("".join(said.values())) != _without_space(text):
            raise InputError(_other_ids(text, "prompt' and 'response", "".join(said.values())))
        trace = split_tokens(tokenizer, tokens, prompt_tokens=length, **keep)
        for name, part in (("prompt", trace.prompt), ("response", trace.response)):
            if name in said and _without_space(said[name]) != _without_space(part):
                raise InputError(
                    f"with prompt_tokens={length} the tokens of the {name} say {shown(part)}, and not what {name!r} says: "
                    f"{shown(said[name])}"
                )
        _check_ids_against_text(tokenizer, tokens[length or 0 :], {}, read_message(record))
        return trace
    length = None if prompt is None else _prompt_length(tokenizer, tokens, prompt_text(tokenizer, prompt))
    trace = Trace.from_tokens(tokenizer, tokens, prompt_tokens=length, **keep)
    if len(trace.steps) == 1:
        raise InputError("the tokens show no opening marker: give the 'prompt' that they begin with")
    after = tokens[0 if length is None else length :]
    _check_ids_against_text(tokenizer, after, record, read_message(record), anywhere=length is None)
    return trace


def _of_ids(record: dict[str, Any], tokenizer: Tokenizer, prompt: Prompt | None, keep: dict[str, Any]) -> Trace:
    """The trace of the ids that the server sent."""
    prompt_ids, ids = (field(record, name, list) for name in ("prompt_token_ids", "token_ids"))
    if prompt_ids is None:
        prompt_ids = encode_prompt(tokenizer, _require_prompt(prompt, record))
    if record.get("echo") and ids[: len(prompt_ids)] == prompt_ids:
        ids = ids[len(prompt_ids) :]
    tokens = check_tokens(prompt_ids + ids, len(tokenizer))
    if prompt is not None and record.get("prompt_token_ids") is not None:
        _check_prompt_ids(tokenizer, tokens[: len(prompt_ids)], prompt)
    _check_ids_against_text(tokenizer, tokens[len(prompt_ids) :], record, read_message(record))
    return Trace.from_tokens(tokenizer, tokens, prompt_tokens=len(prompt_ids), **keep)


def _of_text(record: dict[str, Any], tokenizer: Tokenizer, prompt: Prompt, keep: dict[str, Any]) -> Trace:
    """The trace of an answer that is known as text."""
    said = read_message(record)
    response = _response(record, tokenizer, prompt, said, keep["format"])
    joined = said.joined and record.get("response") is None
    meta = {"rebuilt_response": True} if response.put_together or joined else {}
    if said.summarized:
        meta["summarized_thinking"] = True
        warnings.warn(
            f"trace {keep['id']!r}: the server sent a summary of the thinking in its place; what the model thought is not "
            "known",
            stacklevel=2,
        )
    format = response.prompt_format or keep["format"]
    if format == "auto":
        format = _by_name(tokenizer, response.text)
    keep |= {"meta": {**(keep["meta"] or {}), **meta} or None, "format": format}
    trace = Trace.from_text(tokenizer, prompt, response.text, **keep)
    check_rebuilt(tokenizer, trace, response)
    _warn_of_doubtful_thinking(tokenizer, trace, record, said)
    return trace


def _by_name(tokenizer: Tokenizer, text: str) -> FormatSpec:
    """The format that the template names and the response begins with, of those that `auto` does not look for; or `auto`."""
    template = str(getattr(tokenizer, "chat_template", None))
    for each in FORMATS.values():
        for opening, _ in each.markers if each.by_name else ():
            at = find_marker(opening, text.lstrip())
            if at and at[0] == 0 and any(find_marker(marker, template) for pair in each.markers for marker in pair):
                return each.name
    return "auto"


def _warn_of_doubtful_thinking(tokenizer: Tokenizer, trace: Trace, record: dict[str, Any], said: Said) -> None:
    """Warn where the trace may have its thinking in another segment than the model meant."""
    if trace.format != "auto":
        return
    if (
        not trace.segment("thinking")
        and "doubtful_markers" not in trace.meta
        and (unknown := unknown_markers(tokenizer))
        and any(marker in trace.response for marker in unknown)
    ):
        warnings.warn(f"trace {trace.id!r} has no thinking, but {how_to_give(unknown)}", stacklevel=2)
    cut = (trace.meta or {}).get("finish_reason") == "length"
    if said.content and not said.reasoning and not cut and trace.segment("thinking") and not trace.segment("summary"):
        warnings.warn(
            f"trace {trace.id!r}: the prompt opens the thinking, and the server's 'content' does not close it, so all of it is "
            "taken for thinking that was cut off. If it is the answer, and the server left the thinking out, ask again for the "
            "thinking",
            stacklevel=2,
        )


def _response(record: dict[str, Any], tokenizer: Tokenizer, prompt: Prompt, said: Said, format: FormatSpec) -> Rebuilt:
    """The response's text, and what it must split into where it was put together from fields."""
    response, content = field(record, "response", str), said.content
    if response is not None and said.reasoning:
        raise InputError("'response' and 'reasoning_content' cannot both be given: call the answer alone 'content'")
    if response is not None and content and _without_space(content) not in _without_space(response):
        raise InputError(
            f"'response' and 'content' say different things, {shown(response)} and {shown(content)}: leave one out"
        )
    if response is None and said.tool_calls:
        texts = [text for text in (said.reasoning, content) if text]
        text = with_tool_calls(tokenizer, prompt, _as_message(said), texts, said.tool_calls)
        return Rebuilt(text, True, said.reasoning, content or "", calls=True)
    if record.get("echo"):
        response, content = (_without_echo(tokenizer, prompt, text) for text in (response, content))
    if response is None and (said.reasoning or content):
        whole, goes_on = prompt_text(tokenizer, prompt), _goes_on(prompt)
        rebuilt = put_together(tokenizer, whole, said.reasoning, content or "", format, goes_on=goes_on)
    elif response is None and content is None:
        raise InputError(f"there is no 'response' (nor 'content'); found {_field_names(record)}")
    else:
        rebuilt = Rebuilt((response if response is not None else content) or "")
    if not isinstance(prompt, str) and (pair := starts_thinking(prompt_text(tokenizer, prompt), format)):
        start = rebuilt.text.lstrip()
        if (at := find_marker(pair[0], start)) and at[0] == 0:
            # the server's template did not open the thinking, so the model did: the same text
            return replace(rebuilt, text=start[at[1] :].removeprefix("\n"))
    return rebuilt


def _as_message(said: Said) -> dict[str, Any]:
    return {name: text for name, text in (("content", said.content), ("reasoning_content", said.reasoning)) if text}


def _goes_on(prompt: Prompt) -> bool:
    """Whether the prompt ends with the beginning of the answer itself."""
    if not isinstance(prompt, Mapping):
        return False
    kwargs = prompt.get("chat_template_kwargs")
    return bool({**prompt, **(kwargs if isinstance(kwargs, Mapping) else {})}.get("continue_final_message"))


def _without_echo(tokenizer: Tokenizer, prompt: Prompt, text: str | None) -> str | None:
    """The answer of a server that was asked to repeat before it the prompt, or the message that it goes on with."""
    if text is None:
        return None
    echoed = prompt_text(tokenizer, prompt)
    if not isinstance(prompt, str):
        messages = prompt["messages"] if isinstance(prompt, Mapping) else prompt
        last = messages[-1].get("content") if messages[-1].get("role") == "assistant" else ""
        echoed = last if isinstance(last, str) else ""
    if not text.startswith(echoed):
        raise InputError(
            f"the request asked for an echo, but the answer begins with {shown(text)}, and not with the prompt, "
            f"{shown(echoed)}: give the response alone, without 'echo'"
        )
    return text[len(echoed) :]


def _segmentation(stored: dict[str, Any], format: FormatSpec, steps: StepsSpec) -> tuple[FormatSpec, StepsSpec]:
    """The format and step rule to use: those that are asked for, or in the place of `auto` those that are stored."""
    if format == "auto" and stored:
        kept = field(stored, "format", str, list)
        if isinstance(kept, list):
            if [type(marker) for marker in kept] != [str, str]:
                raise InputError(f"format={shown(kept)} is not known: a pair of markers is two strings")
            kept = (kept[0], kept[1])
        format = kept or "auto"
    if isinstance(steps, str) and steps == "auto":
        steps = field(stored, "steps", str) or "auto"
    return format, steps


def _require_prompt(prompt: Prompt | None, record: dict[str, Any]) -> Prompt:
    if prompt is None:
        raise InputError(
            f"there is no 'prompt' (or it is empty), no 'messages' and no 'prompt_token_ids'; found "
            f"{_field_names(record)}. Give the prompt as 'prompt' or 'messages', and the answer as 'response'"
        )
    return prompt


def _prompt_length(tokenizer: Tokenizer, tokens: list[int], prompt: str) -> int:
    text = decode(tokenizer, tokens)
    at = text.find(prompt)
    if at < 0 or text[:at].strip() not in ("", getattr(tokenizer, "bos_token", None)):
        raise InputError(
            f"the tokens decode to {text[:50]!r}, the prompt is {prompt[:50]!r}: the tokens must begin with the "
            "prompt's. Leave 'tokens' out, or use the tokenizer they come from."
        )
    return tokens_within(tokenizer, tokens, at + len(prompt))


# --- token ids and the text beside them ------------------------------------------------------------------------------
def _check_ids_against_text(
    tokenizer: Tokenizer, ids: list[int], record: dict[str, Any], said: Said, *, anywhere: bool = False
) -> None:
    """Refuse token ids whose text is not the text beside them, white space, special tokens and markers aside.

    A stop string may be cut off the text. `anywhere`: the ids may say more before it.
    """
    whole, bare = (str(tokenizer.decode(ids, skip_special_tokens=skip)) for skip in (False, True))
    decoded = [_without_space(text) for text in (whole, bare)]
    response = None if record.get("echo") else record.get("response")
    texts = {"response": response, "reasoning_content": said.reasoning, "content": said.content}
    for name, text in texts.items():
        for line in text.splitlines() if isinstance(text, str) else ():
            if not any(_without_space(line) in each for each in decoded):
                raise InputError(_other_ids(whole, name, line))
    if isinstance(response, str):
        if not anywhere and not any(each.startswith(_without_space(response)) for each in decoded):
            raise InputError(_other_ids(whole, "response", response))
    elif not said.tool_calls and "<|channel|>" not in whole:  # those the server wrote anew
        content = said.content or ""
        reasoning = "" if said.reasoning.strip() in content else said.reasoning  # some servers send it twice
        lines = [_without_space(line) for line in f"{reasoning}\n{content}".splitlines()]
        if not any(_in_order(lines, each) for each in decoded):
            raise InputError(_other_ids(whole, "reasoning_content' and 'content", reasoning + content))


def _in_order(pieces: list[str], text: str) -> bool:
    at = 0
    for piece in pieces:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def _check_prompt_ids(tokenizer: Tokenizer, ids: list[int], prompt: Prompt) -> None:
    """Refuse token ids of a prompt that do not say what the prompt beside them says."""
    decoded = [
        _without_space(str(tokenizer.decode(ids, skip_special_tokens=skip_special))) for skip_special in (False, True)
    ]
    if isinstance(prompt, str):
        texts = [prompt]
        right = any(text.endswith(_without_space(prompt)) for text in decoded)
        more = len(decoded[1]) > len(_without_space(prompt))
        right = right and not more
    else:
        messages = prompt.get("messages") if isinstance(prompt, Mapping) else prompt
        listed = messages if isinstance(messages, list) else []  # what is no list of messages is refused as a prompt
        users = [each for each in listed if isinstance(each, Mapping) and each.get("role") == "user"]
        texts = [text for each in users if isinstance(text := each.get("content"), str)]
        right = all(any(_without_space(text) in each for each in decoded) for text in texts)
    if not right:
        raise InputError(_other_ids(decode(tokenizer, ids), "prompt", texts[0]))


def _other_ids(decoded: str, name: str, text: str) -> str:
    return (
        f"the token ids say {shown(decoded)}, and not what {name!r} says: {shown(text)}. Use the tokenizer that the ids come "
        "from, or leave them out"
    )


def _field_names(record: dict[str, Any]) -> str:
    """The names of the fields that were found: of the answer, and of the object in the file."""
    about = record.get("about")
    given = [about[name] for name in ("answer", "object") if name in about] if isinstance(about, dict) else []
    inner = ("id", "about", "echo", "left_out", "meta")
    names = [name for name, value in record.items() if name not in inner and value is not None]
    return shown(list(dict.fromkeys([*names, *(name for place in given for name in place if name != "id")])))


def _without_space(text: str) -> str:
    return "".join(text.replace("\ufffd", "").split())
