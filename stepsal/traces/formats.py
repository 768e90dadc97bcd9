"""Formats (how a model marks its thinking), as data; and the names of step rules.

Add an entry to `FORMATS` or `STEP_RULES`, at any time, and its name is known everywhere: both are looked up when they are used.
`stepsal.traces.segment` applies them.

A marker is a text. `{header}` in it stands for what a message's header says there, nothing or up to four words: Harmony
writes `<|channel|>analysis to=python code<|message|>` as well as `<|channel|>analysis<|message|>`. A word has a space before
it, or is the type of what follows (`<|constrain|>json`).
"""

import inspect
import re
from dataclasses import dataclass
from functools import cache

from stepsal.errors import InputError
from stepsal.traces.rules import STEP_RULES, StepRule
from stepsal.traces.rules import line as line
from stepsal.traces.rules import paragraph as paragraph
from stepsal.traces.rules import sentence as sentence

FormatSpec = str | tuple[str, str]
"""A name in `FORMATS`, `auto`, or a pair of markers such as `("<reason>", "</reason>")`."""
StepsSpec = str | StepRule
"""A name in `STEP_RULES`, `auto` (the format's own rule), or a callable."""

HEADER = "{header}"
_LONGEST_HEADER = 420
# Every beginning of a header is a header. A marker that is a token is half a surrogate pair here (stepsal.traces.segment).
_WORD = r"(?:[ \t]?<\|constrain\|>[^\s<\ud800-\udfff]{0,40}|[ \t]{1,2}(?:to=[^\s<\ud800-\udfff]{0,100}|[\w./:-]{0,30}))"
_HEADER = re.compile(rf"{_WORD}{{0,4}}")

# What may be a marker of thinking: <reason>, </reason>, [REASON], <|start_thinking|>, <|think|>, ◁think▷.
_NAME = (
    r"[\w:.▁-]*(?:think|thought|reason|reflect|scratch|inner|cot\b|rationale|analy|monolog|deliberat|plan\b)[\w:.▁-]*"
)
LOOKS_LIKE_MARKER = re.compile(rf"<[|｜]?/?{_NAME}[|｜]?>|\[/?{_NAME}\]|◁/?{_NAME}▷", re.IGNORECASE)


@dataclass(frozen=True)
class Format:
    """How a model marks its thinking.

    Attributes:
        name: what it is called in `FORMATS`.
        markers: pairs of an opening and a closing marker; the first pair is the usual one.
        thinking_rule: the name in `STEP_RULES` of the rule that splits the thinking into steps.
        by_name: the markers are words that any model may say, so that `auto` does not look for them.
    """

    name: str
    markers: tuple[tuple[str, str], ...]
    thinking_rule: str = "paragraph"
    by_name: bool = False


_FINAL = "<|channel|>final{header}<|message|>"
FORMATS: dict[str, Format] = {
    "think": Format(
        "think",
        (
            (
                "<think>",
                "</think>",
            ),  # R1, QwQ, Qwen3, GLM, MiniMax-M2, Kimi-K2, EXAONE 4, Granite 3.3, Phi-4, OLMo 3, ...
            ("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
            ("<seed:think>", "</seed:think>"),  # Seed-OSS
            ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
            ("◁think▷", "◁/think▷"),  # Kimi-VL-Thinking, Kimi-Dev
            ("<thought>", "</thought>"),  # EXAONE Deep
            ("<mm:think>", "</mm:think>"),  # MiniMax-M3
            ("<|channel>thought", "<channel|>"),  # Gemma 4
            ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
            ("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker, Sky-T1
        ),
    ),
    "harmony": Format(
        "harmony",
        (
            ("<|channel|>analysis{header}<|message|>", _FINAL),
            ("<|channel|>commentary{header}<|message|>", _FINAL),  # a tool call, or a plan, before any analysis
            ("<|start|>assistant{header}<|channel|>analysis{header}<|message|>", _FINAL),
            ("<|start|>assistant{header}<|channel|>commentary{header}<|message|>", _FINAL),
            # a message's header that a server sends though the prompt ends with its beginning
            ("<|start|>assistant{header}<|channel|>analysis{header}<|message|>", "<|start|>assistant{header}" + _FINAL),
        ),
        "sentence",
    ),
    "plain": Format("plain", ()),
    "granite": Format(  # Granite 3.2
        "granite",
        (
            ("Here is my thought process:", "Here is my response:"),
            ("Here's my thought process:", "Here's my response:"),
            ("Here is my thought process:", "Here's my response:"),
            ("Here's my thought process:", "Here is my response:"),
        ),
        by_name=True,
    ),
}

LAYOUTS: dict[str, tuple[str, str]] = {
    "<think>": ("{opening}\n{reasoning}\n{closing}\n\n", ""),
    "[THINK]": ("{opening}{reasoning}{closing}", ""),
    "<seed:think>": ("{opening}{reasoning}{closing}", ""),
    "<|START_THINKING|>": ("{opening}{reasoning}{closing}<|START_RESPONSE|>", "<|START_RESPONSE|>"),
    "◁think▷": ("{opening}{reasoning}{closing}", ""),
    "<|channel>thought": ("{opening}\n{reasoning}{closing}", ""),
    "<|inner_prefix|>": ("{opening}{reasoning}{closing}", ""),
    "Here is my thought process:": ("{opening}\n{reasoning}\n\n{closing}\n", ""),
    "<|channel|>analysis{header}<|message|>": (
        "{opening}{reasoning}<|end|><|start|>assistant{closing}",
        "{closing}",
    ),
}
"""By opening marker: what a response says before its content, with reasoning and without; others as `<think>`."""


@cache
def _pattern(marker: str) -> re.Pattern[str]:
    return re.compile(_HEADER.pattern.join(map(re.escape, marker.split(HEADER))), re.DOTALL)


def find_marker(marker: str, text: str, start: int = 0) -> tuple[int, int] | None:
    """Where the marker first begins and ends in the text, from `start` on.

    >>> find_marker("</think>", "So.</think>4")
    (3, 11)
    """
    start = text.find(marker.partition(HEADER)[0], start)  # asked for every token, and rarely there
    found = _pattern(marker).search(text, start) if start >= 0 else None
    return found.span() if found else None


def last_marker(marker: str, text: str) -> tuple[int, int] | None:
    """Where the marker last begins and ends in the text.

    >>> last_marker("<think>", "<think><think>4")
    (7, 14)
    """
    spans = [found.span() for found in _pattern(marker).finditer(text)]
    return spans[-1] if spans else None


def may_become(marker: str, text: str) -> bool:
    """Whether the text is a beginning of the marker. U+FFFD at its end stands for the first bytes of a character.

    >>> may_become("</think>", "</th"), may_become("</think>", "</them>")
    (True, False)
    >>> may_become("◁/think▷", "\ufffd"), may_become("</think>", "\ufffd")
    (True, False)
    """
    for index, piece in enumerate(marker.split(HEADER)):
        if index and (header := _HEADER.match(text)):
            text = text[header.end() :]
            if len(text) < 13 and "<|constrain|>".startswith(text.lstrip(" \t")):
                return True
        if not text.startswith(piece):
            whole = text.rstrip("\ufffd")  # half a surrogate pair in a marker is a token, of which no bytes are
            return piece.startswith(whole) and (whole == text or _has_bytes(piece[len(whole)]))
        text = text.removeprefix(piece)
    return not text


def _has_bytes(character: str) -> bool:
    """Whether a character takes several bytes, each of which may be a token."""
    return character > "\x7f" and not "\ud800" <= character <= "\udfff"


def usual(marker: str) -> str:
    """The marker with nothing in its header."""
    return marker.replace(HEADER, "")


def how_to_name(opening: str, closing: str) -> str:
    """What to say of a pair of markers that no format knows.

    >>> how_to_name("<a>", "</a>")[-41:]
    "(on the command line --format '<a>,</a>')"
    """
    return (
        f"give the pair of markers as format, such as format=({opening!r}, {closing!r}) "
        f"(on the command line --format {f'{opening},{closing}'!r})"
    )


def longest(marker: str) -> int:
    """How many characters the marker may have."""
    return len(marker) + _LONGEST_HEADER * marker.count(HEADER)


def _is_marker(text: object) -> bool:
    return isinstance(text, str) and bool(text) and text == text.strip()


def find_formats(format: FormatSpec) -> tuple[Format, ...]:
    """The formats that a name or a pair of markers allows: `auto` allows all of them but those that go by name only.

    >>> find_formats(("<reason>", "</reason>"))[0].markers
    (('<reason>', '</reason>'),)
    """
    if format == "auto":
        return tuple(each for each in FORMATS.values() if not each.by_name)
    if isinstance(format, str) and format in FORMATS:
        return (FORMATS[format],)
    if isinstance(format, tuple | list) and len(set(format)) == 2 == len(format) and all(map(_is_marker, format)):
        return (Format("custom", ((format[0], format[1]),)),)
    raise InputError(
        f"format={format!r} is not known. Choose 'auto', {', '.join(map(repr, FORMATS))}, or give a pair of different "
        "markers without white space around them, such as ('<reason>', '</reason>')."
    )


def find_rule(steps: StepsSpec, default: str) -> StepRule:
    """The step rule of that name, or the callable itself; `auto` is the default.

    >>> find_rule("auto", "line") is line
    True
    """
    name = default if steps == "auto" else steps
    if isinstance(name, str) and name in STEP_RULES:
        return STEP_RULES[name]
    if callable(name):
        _check_takes_two_texts(name)
        return name
    if steps == "auto":
        raise InputError(
            f"a format has thinking_rule={default!r}, which is not in STEP_RULES ({', '.join(map(repr, STEP_RULES))}): add the "
            f"rule, stepsal.formats.STEP_RULES[{default!r}] = ..., or name one that is there"
        )
    raise InputError(
        f"steps={steps!r} is not known. Choose 'auto', {', '.join(map(repr, STEP_RULES))}, or give a callable "
        "(step_text, token_text) -> bool."
    )


def _check_takes_two_texts(rule: StepRule) -> None:
    try:
        signature = inspect.signature(rule)
    except (TypeError, ValueError):  # some built-in functions do not say
        return
    try:
        signature.bind("", "")
    except TypeError as error:
        raise InputError(
            f"steps={rule!r} takes {signature} ({error}): a step rule is called as rule(step_text, token_text) and says "
            "whether the token opens a step"
        ) from error
