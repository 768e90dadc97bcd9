"""A response, put together from the fields that a server took it apart into, as the model wrote it.

In: thinking, answer and tool calls, and the prompt that they follow. Out: the response's text.

1. Which pair of markers: the one that the prompt opened; else one that the chat template names; else one that is in the
   tokenizer's vocabulary. A template whose markers no format knows is refused, with how to give them.
2. `LAYOUTS` says what stands between the markers and the texts.
3. `check_rebuilt` splits the result again: its thinking and its answer must be what went in.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stepsal.checks import shown
from stepsal.errors import InputError
from stepsal.traces.formats import (
    FORMATS,
    LAYOUTS,
    LOOKS_LIKE_MARKER,
    FormatSpec,
    find_formats,
    find_marker,
    how_to_name,
    last_marker,
    usual,
)
from stepsal.traces.messages import MESSAGE_FIELDS
from stepsal.traces.prompt import Prompt, prompt_text, starts_thinking
from stepsal.traces.segment import Tokenizer, decode
from stepsal.traces.trace import Trace

Pair = tuple[str, str]


@dataclass(frozen=True)
class Rebuilt:
    """A response's text, and what it must split into where it was put together.

    Attributes:
        text: the response.
        put_together: whether anything was added to what the server sent.
        reasoning, content: what the thinking and the summary must say.
        thinking_ends: what follows the thinking's text, up to the end of the closing marker.
        prompt_format: the name of the format whose thinking the prompt is in the middle of, "" for none.
        calls: the template wrote calls of tools after the answer.
    """

    text: str
    put_together: bool = False
    reasoning: str = ""
    content: str = ""
    thinking_ends: str = ""
    prompt_format: str = ""
    calls: bool = False


def put_together(
    tokenizer: Tokenizer, prompt: str, reasoning: str, content: str, format: FormatSpec, *, goes_on: bool = False
) -> Rebuilt:
    """The response as the model wrote it. `goes_on`: the prompt ends with the beginning of the message itself.

    >>> from stepsal import load_tokenizer
    >>> put_together(load_tokenizer(), "2+2?", "Add.", "4", "auto").text
    '<think>\\nAdd.\\n</think>\\n\\n4'
    """
    formats = find_formats(format)
    pairs = [pair for each in formats for pair in each.markers]
    inside = _open_pair(prompt, pairs) if goes_on else None
    started = starts_thinking(prompt, format)
    pair = inside or started
    if not reasoning and _has_thinking(content, pairs):
        return Rebuilt(content)
    if closed := _closing_at_end(prompt, pairs):
        return _after_closed_thinking(closed, reasoning, content)
    if reasoning and not pairs:
        raise InputError(f"format={format!r} has no markers to put 'reasoning_content' between: choose another format")
    pair = pair or _named_pair(tokenizer, pairs, format, needed=bool(reasoning))
    if pair is None or (not reasoning and (started or inside)):
        return Rebuilt(content)
    reasoning, content, whole = _without_markers(pair, reasoning, content)
    if whole:
        return Rebuilt(content)
    name = next(each.name for each in formats if pair in each.markers) if inside and format == "auto" else ""
    return _laid_out(pair, reasoning, content, started=bool(started), inside=bool(inside), prompt=prompt, name=name)


def _has_thinking(content: str, pairs: list[Pair]) -> bool:
    """Whether the answer's text begins with a thinking in markers, of whatever family: then it is the whole response."""
    text = content.lstrip()
    begun = [(closing, at[1]) for opening, closing in pairs if (at := find_marker(opening, text)) and at[0] == 0]
    return any(find_marker(closing, text, end) for closing, end in begun)


def _laid_out(
    pair: Pair, reasoning: str, content: str, *, started: bool, inside: bool, prompt: str, name: str
) -> Rebuilt:
    """Thinking and answer with the markers, as the family writes them."""
    opening, closing = pair
    layout, bare = LAYOUTS.get(opening, LAYOUTS["<think>"])
    marks = {"opening": usual(opening), "closing": usual(closing)}
    if not reasoning:
        lead = bare.format(**marks)
        if any(find_marker(marker, content) for marker in pair) or (lead and lead in content):
            return Rebuilt(content)
        return Rebuilt(lead + content, bool(lead), "", content)
    if "\n" in layout:  # the model's own line breaks, which some servers drop
        reasoning, content = reasoning.strip("\n"), content.lstrip("\n")
    before, _, after = layout.partition("{reasoning}")
    if inside:
        before = ""
    elif started:
        before = before.removeprefix("{opening}") if prompt == prompt.rstrip() else ""
    text = before.format(**marks) + reasoning
    if not content:  # cut off while thinking
        return Rebuilt(text, True, reasoning, prompt_format=name)
    thinking_ends = (after.partition("{closing}")[0] + "{closing}").format(**marks)
    return Rebuilt(text + after.format(**marks) + content, True, reasoning, content, thinking_ends, name)


def _after_closed_thinking(closing: str, reasoning: str, content: str) -> Rebuilt:
    """What follows a prompt that has closed the thinking is the answer, whatever the server calls it."""
    if reasoning.strip() and content.strip():
        raise InputError(
            f"the prompt has closed the thinking with {closing!r}, but the server sends thinking, {shown(reasoning)}, and an "
            "answer: how the model wrote them is not known. Give the response's text as 'response', or its ids as 'token_ids'"
        )
    if reasoning.strip():
        warnings.warn(
            f"the prompt has closed the thinking with {closing!r}, so what the server calls thinking is the answer: "
            f"{shown(reasoning)}",
            stacklevel=2,
        )
    return Rebuilt(reasoning if reasoning.strip() else content, False, "", "")


def _without_markers(pair: Pair, reasoning: str, content: str) -> tuple[str, str, bool]:
    """Thinking and answer without the markers that the server left around the thinking, and whether the content has it all,
    with markers."""
    inner = reasoning
    if (at := find_marker(pair[0], inner.lstrip())) and at[0] == 0:
        inner = inner.lstrip()[at[1] :]
    if (last := last_marker(pair[1], inner)) and not inner[last[1] :].strip():
        inner = inner[: last[0]]
    closed = find_marker(pair[1], content)
    opened = find_marker(pair[0], content)
    if reasoning and closed:
        begin = opened[1] if opened and opened[1] <= closed[0] and not content[: opened[0]].strip() else 0
        between = _bare(content[begin : closed[0]])
        if between == _bare(inner):
            return inner, content, True
        if not between:  # the server left the closing marker in the answer, or a pair with nothing in it
            return inner, content[closed[1] :], False
    return inner, content, False


def _named_pair(tokenizer: Tokenizer, pairs: list[Pair], format: FormatSpec, *, needed: bool) -> Pair | None:
    """The markers of the model: those that its template names, or its vocabulary has. Where nothing names any, the format's
    usual ones, if they are `needed`."""
    template = _template(tokenizer)
    by_name = [pair for each in FORMATS.values() for pair in each.markers if each.by_name and format == "auto"]
    named = [pair for pair in (*pairs, *by_name) if find_marker(pair[0], template) or find_marker(pair[1], template)]
    if named or not needed:
        return named[0] if named else None
    if format == "auto":
        if unknown := unknown_markers(tokenizer):
            raise InputError(how_to_give(unknown))
        vocabulary = _vocabulary(tokenizer)
        named = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        if template and not named:
            raise InputError(
                "neither the tokenizer's chat template nor its vocabulary says how this model marks its thinking: give the "
                "pair of markers as format, such as format=('<think>', '</think>') "
                "(on the command line --format '<think>,</think>')"
            )
    return (named or pairs)[0]


def unknown_markers(tokenizer: Tokenizer) -> list[str]:
    """What looks like markers of thinking in the chat template, where no format knows any that the template names.

    >>> from stepsal import load_tokenizer
    >>> unknown_markers(load_tokenizer())
    []
    """
    template = _template(tokenizer)
    known = [marker for each in FORMATS.values() for pair in each.markers for marker in pair]
    if any(find_marker(marker, template) for marker in known):
        return []
    found = list(dict.fromkeys(each.group() for each in LOOKS_LIKE_MARKER.finditer(template)))
    closings = [each for each in found if each.replace("/", "", 1) != each and each.replace("/", "", 1) in found]
    return [each for closing in closings for each in (closing.replace("/", "", 1), closing)] or found


def how_to_give(markers: list[str]) -> str:
    """What to say about markers that no format knows."""
    opening, closing = markers[0], markers[1] if len(markers) > 1 else "CLOSING"
    return (
        f"the tokenizer's chat template names {', '.join(map(repr, markers[:4]))}, which no format knows: "
        f"{how_to_name(opening, closing)}"
    )


def _template(tokenizer: Tokenizer) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = "\n".join(map(str, template.values()))
    return template if isinstance(template, str) else ""


def _vocabulary(tokenizer: Tokenizer) -> Mapping[str, int]:
    added = getattr(tokenizer, "get_added_vocab", None)
    return added() if callable(added) else {}


def _closing_at_end(prompt: str, pairs: list[Pair]) -> str:
    """The closing marker that the prompt ends with, white space aside; "" for none."""
    ends = [usual(pair[1]) for pair in pairs if (at := last_marker(pair[1], prompt)) and not prompt[at[1] :].strip()]
    return ends[0] if ends else ""


def _open_pair(prompt: str, pairs: list[Pair]) -> Pair | None:
    """The pair whose opening marker is the prompt's last, where something follows it and nothing closes it."""
    found = [(at, pair) for pair in pairs if (at := last_marker(pair[0], prompt)) and prompt[at[1] :].strip()]
    if not found:
        return None
    (_, end), pair = max(found)
    return None if find_marker(pair[1], prompt, end) else pair


def with_tool_calls(
    tokenizer: Tokenizer, prompt: Prompt, record: Mapping[str, Any], texts: list[str], calls: list[Any]
) -> str:
    """The response as the tokenizer's template writes it: how a model calls a tool, nothing else knows."""
    if not isinstance(prompt, str):
        before = prompt_text(tokenizer, prompt)
        request = prompt if isinstance(prompt, Mapping) else {"messages": prompt}
        message = {"content": None, **{name: record[name] for name in MESSAGE_FIELDS if name in record}}
        messages = [*request["messages"], {"role": "assistant", **message, "tool_calls": calls}]
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


def check_rebuilt(tokenizer: Tokenizer, trace: Trace, rebuilt: Rebuilt) -> None:
    """Split what was put together: raise `InputError` where its thinking or its answer is another than the server sent.

    White space is not compared: it may stand on either side of a marker.
    """
    if trace.meta.get("lossy_tokenization") or not rebuilt.put_together:
        return
    thinking, summary = (trace.segment(name) for name in ("thinking", "summary"))
    found = _bare("".join(step.text for step in thinking)), _bare("".join(step.text for step in summary))
    wanted = _bare(rebuilt.reasoning + rebuilt.thinking_ends), _bare(rebuilt.content)
    if rebuilt.calls:
        if _bare(rebuilt.reasoning) in found[0]:
            return
        wanted = (_bare(rebuilt.reasoning), found[1])
    # A token may hold the end of a marker and what follows it.
    shared = decode(tokenizer, trace.tokens[thinking[-1].stop - 1 :][:1].tolist()) if thinking else ""
    off = abs(len(found[0]) - len(wanted[0]))
    if off > max(0, len(_bare(shared)) - 1) or not (found[0] + found[1]).endswith(wanted[1]):
        raise InputError(
            f"put together, the response has the thinking {shown(found[0])} and the answer {shown(found[1])}, and the server "
            f"sent {shown(wanted[0])} and {shown(wanted[1])}: a marker stands within a text. Give the response's text as "
            "'response', or its ids as 'token_ids'"
        )


def _bare(text: str) -> str:
    return "".join(text.split())
