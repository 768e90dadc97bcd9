"""What the message of a server or a chat says: thinking, answer, tool calls; and which of its texts nothing here reads.

In: an assistant's message (or an object with a message's fields). Out: a `Said`.

Servers differ in names: `reasoning_content` (vLLM, SGLang, llama.cpp, DeepSeek), `reasoning` (vLLM, OpenRouter), `thinking`
(Ollama), `reasoning_details` (OpenRouter), `thinking_blocks` (LiteLLM), content parts (Anthropic, Mistral), the items of
OpenAI's Responses API. A text that no rule here reads is refused by the name of its field.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stepsal.checks import shown
from stepsal.errors import InputError


def names(text: str) -> frozenset[str]:
    """Names of fields, given in one text.

    >>> sorted(names("id index"))
    ['id', 'index']
    """
    return frozenset(text.split())


KIND_NAMES = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}
REASONING_TEXTS = ("reasoning_content", "reasoning", "thinking")
REASONING_FIELDS = (*REASONING_TEXTS, "reasoning_details", "thinking_blocks")
MESSAGE_FIELDS = ("content", *REASONING_FIELDS, "tool_calls", "function_call")
ABOUT_MESSAGES = names(
    "role name id index type object model status stop_reason stop_sequence finish_reason native_finish_reason matched_stop "
    "logprobs prompt_logprobs top_logprobs usage created created_at annotations citations tool_call_id tool_name weight"
)
"""Fields of a message or a choice that say how it came about, and nothing that the model wrote."""

_NOTES = names("type id index format signature role object status phase mime_type")
"""Fields that hold a word, which is no text that a model wrote; of several words it is one."""
# The kinds of parts and items: where each has its text, and what that is.
_PARTS = {
    "text": ("text", "text"),
    "output_text": ("text", "text"),
    "thinking": ("thinking", "thinking"),
    "reasoning": ("reasoning", "thinking"),
    "reasoning_text": ("text", "thinking"),
    "reasoning.text": ("text", "thinking"),
    "summary_text": ("text", "summary"),
    "reasoning.summary": ("summary", "summary"),
    "redacted_thinking": ("data", "hidden"),
    "reasoning.encrypted": ("data", "hidden"),
    "tool_use": ("input", "call"),
}
_ORDER = {"thinking": 0, "summary": 0, "hidden": 0, "text": 1, "call": 2}


@dataclass(frozen=True)
class Said:
    """What a message says.

    Attributes:
        content: the answer; None where the message has none.
        reasoning: the thinking, "" for none.
        tool_calls: as OpenAI's messages have them.
        summarized: the server sent a summary of the thinking in its place.
        joined: the answer or the thinking is of several parts, with blank lines between them that no part has.
    """

    content: str | None
    reasoning: str
    tool_calls: list[Any]
    summarized: bool = False
    joined: bool = False


def read_message(message: Mapping[str, Any]) -> Said:
    """What a message says.

    >>> read_message({"thinking": "Add.", "content": [{"type": "text", "text": "4"}]})
    Said(content='4', reasoning='Add.', tool_calls=[], summarized=False, joined=False)
    """
    content, parts = field(message, "content", str, list), {}
    if isinstance(content, list):
        parts = _read_parts(content, "content")
        content = parts["text"] if parts["text"] or not (parts["thinking"] or parts["call"]) else None
    found = {name: text for name in REASONING_TEXTS if (text := field(message, name, str)) and text.strip()}
    sources = {"content": parts}
    for name in ("reasoning_details", "thinking_blocks"):
        sources[name] = _read_parts(field(message, name, list) or [], name)
    for name, source in sources.items():
        if source.get("thinking"):
            found[name] = source["thinking"]
    hidden = any(source.get("hidden") for source in sources.values())
    summarized = hidden
    if not found and any(source.get("summary") for source in sources.values()):
        found = {name: source["summary"] for name, source in sources.items() if source.get("summary")}
        summarized = True
    if hidden and not found:
        raise InputError(
            "the thinking is encrypted, and the model's text is not known: only the server that sent it can read it. Trace a "
            "model whose thinking is sent as text"
        )
    calls = [*(field(message, "tool_calls", list) or []), *parts.get("call", [])]
    if (call := field(message, "function_call", dict)) is not None:
        calls.append({"type": "function", "function": call})
    joined = any(source.get("joined") for source in sources.values())
    return Said(content, _one_text(found), calls, summarized and bool(found), joined)


def _one_text(found: dict[str, str]) -> str:
    """The thinking, which several fields may repeat: as the one has it that knows most of its line breaks. Raises
    `InputError` where they differ in more than white space."""
    (first, text), *others = found.items() or {"": ""}.items()
    for name, other in others:
        if without_space(other) != without_space(text):
            raise InputError(
                f"{first!r} and {name!r} say different things, {shown(text)} and {shown(other)}: leave the one out that the "
                "model did not write"
            )
    return max(found.values(), key=lambda each: each.count("\n"), default="")


def without_space(text: str) -> str:
    """The text without its white space, which servers change.

    >>> without_space(" It is\\n4.")
    'Itis4.'
    """
    return "".join(text.split())


def _read_parts(parts: list[Any], where: str) -> dict[str, Any]:
    """The texts of parts, joined, by what they are; in this order: thinking, text, calls of tools."""
    found: dict[str, Any] = {"text": "", "thinking": "", "summary": "", "hidden": "", "call": [], "joined": False}
    last, before = 0, None
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        key, what = _PARTS.get(kind, ("", "")) if isinstance(kind, str) else ("", "")
        value = part.get(key) if key else None
        if what == "thinking" and isinstance(value, list):
            value = _read_parts(value, "thinking")["text"]
        if what == "call" and isinstance(value, dict):
            call = {"name": part.get("name"), "arguments": value}
            found["call"].append({"id": part.get("id"), "type": "function", "function": call})
        elif what in ("", "call") or not isinstance(value, str):
            expected = "a response's content is text or thinking" if where == "content" else f"{where!r} is thinking"
            raise InputError(f"{expected}, found the part {shown(part)}")
        elif value:
            apart = bool(found[what]) and what != "hidden" and not _is_one_text(where, part, before)
            apart = apart and not (found[what].endswith(("\n", "\r")) or value.startswith(("\n", "\r")))
            found[what] += "\n\n" * apart + value
            found["joined"] = found["joined"] or apart
            before = part
        if unread := unread_texts(part, {key, "id", "name", "text"} if what == "call" else {key}):
            raise InputError(_refusal(f"a part of {where!r}", unread[0], part[unread[0]]))
        if value and _ORDER[what] < last:
            raise InputError(
                f"in {where!r} there is {kind!r} after another kind of part: which came first in the model's text is lost "
                "where they are put together. Give the response's text as 'response', or its ids as 'token_ids'"
            )
        last = max(last, _ORDER[what]) if value else last
    return found


def _is_one_text(where: str, part: Mapping[str, Any], before: Any) -> bool:
    """Whether a part goes on with the text of the part before it: pieces of a stream, as OpenRouter's and Mistral's are."""
    if where == "thinking" or part.get("type") == "reasoning.text":
        return True
    index = part.get("index")
    return isinstance(before, Mapping) and index is not None and before.get("index") == index


def field(record: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """The field's value, or None where it is missing or null. Raises `InputError` for a value of another kind."""
    value = record.get(name)
    if value is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
        return value
    raise InputError(f"{name!r} must be {' or '.join(KIND_NAMES[kind] for kind in kinds)}, found {shown(value)}")


def unread_texts(fields: Mapping[str, Any], known: Collection[str], said: Collection[str] = ()) -> list[str]:
    """The names of fields that carry text and are not known; a text that is `said` elsewhere is no loss.

    >>> unread_texts({"role": "assistant", "scratchpad": "Add.", "score": 1}, ABOUT_MESSAGES)
    ['scratchpad']
    """
    texts = {without_space(text) for text in said}
    return [
        name
        for name, value in fields.items()
        if name not in known and any(without_space(text) not in texts for text in _texts_of(name, value))
    ]


def refuse_unread(fields: Mapping[str, Any], known: Collection[str], where: str, said: Collection[str] = ()) -> None:
    """Raise `InputError` where a field that is not known carries text."""
    if unread := unread_texts(fields, known, said):
        raise InputError(_refusal(where, unread[0], fields[unread[0]]))


def _refusal(where: str, name: str, value: Any) -> str:
    return (
        f"{where} has the field {name!r} with text that nothing here reads: {shown(value)}. If the model wrote it, call it "
        "'reasoning_content' or 'content', or give its whole text as 'response'; if it is about the trace, put it into 'meta'; "
        "else leave it out"
    )


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value that is not blank."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            if inner.strip():
                yield inner
        elif isinstance(inner, dict):
            waiting.extend(each for name, each in inner.items() if not _is_note(name, each))
        elif isinstance(inner, list):
            waiting.extend(inner)


def _texts_of(name: str, value: Any) -> Iterator[str]:
    return iter(()) if _is_note(name, value) else texts_in(value)


def _is_note(name: str, value: Any) -> bool:
    return name in _NOTES and not (isinstance(value, str) and len(value.split()) > 1)
