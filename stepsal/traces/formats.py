"""Formats (how a model marks its thinking) and step rules (where steps begin), as data.

Add an entry to `FORMATS` or `STEP_RULES`, at any time, and its name is known everywhere: both are looked up when they are used.
`stepsal.traces.segment` applies them.

A marker is a text. `{header}` in it stands for what a message's header says there, none or up to 200 characters: Harmony
writes `<|channel|>analysis to=python code<|message|>` as well as `<|channel|>analysis<|message|>`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from stepsal.errors import InputError

StepRule = Callable[[str, str], bool]
"""`(step_text, token_text) -> bool`: does the token open a new step? Asked once the step has text, for text only."""
FormatSpec = str | tuple[str, str]
"""A name in `FORMATS`, `auto`, or a pair of markers such as `("<reason>", "</reason>")`."""
StepsSpec = str | StepRule
"""A name in `STEP_RULES`, `auto` (the format's own rule), or a callable."""

HEADER = "{header}"
_LONGEST_HEADER = 200
# A header says anything but where a message or its content begins or ends.
_HEADER = re.compile(rf"(?:(?!<\|(?:start|channel|message|end|return|call)\|>).){{0,{_LONGEST_HEADER}}}", re.DOTALL)
_BREAK = re.compile(r"\r\n?|\n")
_TERMINATORS = tuple(".!?。！？…")
_CLOSERS = "\"'”’»›)]}）】」』*_`~"
_SHORTEST_SENTENCE = 15


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
        ),
        "sentence",
    ),
    "plain": Format("plain", ()),
    "granite": Format(  # Granite 3.2
        "granite",
        (
            ("Here is my thought process:", "Here is my response:"),
            ("Here's my thought process:", "Here's my response:"),
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
    """Whether the text is a beginning of the marker.

    >>> may_become("</think>", "</th"), may_become("</think>", "</them>")
    (True, False)
    """
    for index, piece in enumerate(marker.split(HEADER)):
        if index and (header := _HEADER.match(text)):
            text = text[header.end() :]
        if not text.startswith(piece):
            return piece.startswith(text)
        text = text.removeprefix(piece)
    return not text


def usual(marker: str) -> str:
    """The marker with nothing in its header."""
    return marker.replace(HEADER, "")


def longest(marker: str) -> int:
    """How many characters the marker may have."""
    return len(marker) + _LONGEST_HEADER * marker.count(HEADER)


def _gap(step_text: str, token_text: str) -> str:
    """The white space between the step's last text and the token's first; none when either is blank."""
    if not (step_text[-1:].isspace() or token_text[:1].isspace()):  # most tokens
        return ""
    last = len(step_text.rstrip())
    first = len(token_text) - len(token_text.lstrip())
    return step_text[last:] + token_text[:first] if last and first < len(token_text) else ""


def paragraph(step_text: str, token_text: str) -> bool:
    r"""A blank line stands between the step and the token.

    >>> paragraph("First.\n", "\nThen"), paragraph("First.\n", "Then")
    (True, False)
    """
    return len(_BREAK.findall(_gap(step_text, token_text))) >= 2


def line(step_text: str, token_text: str) -> bool:
    r"""A line break stands between the step and the token.

    >>> line("First.\n", "Then"), line("First.", " Then")
    (True, False)
    """
    return _BREAK.search(_gap(step_text, token_text)) is not None


def sentence(step_text: str, token_text: str) -> bool:
    """The step ends like a sentence, is 15 characters or longer, and white space follows: never inside `3.14`.

    What a Harmony message says begins a step, too: the step before ends with the message's header.

    >>> sentence("This is a whole sentence.", " Then"), sentence("Pi is close to 3.", "14"), sentence("No.", " Then")
    (True, False, False)
    """
    if step_text.endswith("<|message|>"):
        return True
    if not _gap(step_text, token_text):
        return False
    said = step_text.strip()
    return len(said) >= _SHORTEST_SENTENCE and said.rstrip(_CLOSERS).endswith(_TERMINATORS)


STEP_RULES: dict[str, StepRule] = {"paragraph": paragraph, "line": line, "sentence": sentence}


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
