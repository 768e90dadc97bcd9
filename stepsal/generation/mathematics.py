r"""Whether two answers are the same mathematics, within a time that no expression can exceed.

In: the expected answer and a summary. Out: a `Finding`.

1. The answer is in the last complete box, or between the last `<answer>` and its end. Where there is neither, it is what the
   last line says (`The answer is 5.`), or what math-verify extracts from the summary.
2. The same text is the same answer, typesetting aside. A letter of a multiple-choice problem is compared as a letter; words,
   dates, times and their like as what they are (`stepsal.generation.kinds`).
3. All else math-verify compares (https://github.com/huggingface/Math-Verify), in a process of its own
   (`stepsal.generation.limited`): math-verify's own time limit is a signal, which only a main thread can have, and which
   does not interrupt a long multiplication.
"""

import os
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from stepsal.generation.answers import bare, last_box, last_tag, plain, same_text
from stepsal.generation.choices import choice, letter, said_letter
from stepsal.generation.kinds import same_kind
from stepsal.generation.limited import LimitedProcess
from stepsal.generation.units import pairs_to_compare, spelling, unit_that_begins, units_differ

LONGEST = 5_000
"""Characters of the longest answer that is read as mathematics."""
_CURE = "install math-verify with `pip install math-verify==0.9.0`, or grade by exact text (grader 'exact')"


@dataclass(frozen=True)
class Finding:
    """`answer`: what was graded. `answer_from`: where it stood, `box`, `tag` or `extracted`. `failure`: why it could not be
    compared, and counts as wrong."""

    right: bool
    answer: str
    answer_from: str
    failure: str | None = None


def compare_math(expected: str, summary: str) -> Finding:
    r"""Whether the answer in a summary is the expected one.

    >>> compare_math("1/2", r"So it is $\boxed{0.5}$.")
    Finding(right=True, answer='0.5', answer_from='box', failure=None)
    >>> compare_math("1,000", "The answer is $1{,}000$.")
    Finding(right=True, answer='1000', answer_from='extracted', failure=None)
    """
    box = last_box(summary)
    if box is not None:
        return _compared(expected, box, "box")
    if len(summary) <= LONGEST and same_text(expected, summary):
        return Finding(True, summary.strip(), "extracted")
    if (tagged := last_tag(summary)) is not None:
        return _compared(expected, tagged, "tag")
    chosen = letter(expected)
    if chosen:
        said = choice(summary) if len(summary) <= LONGEST else None
        said = said or said_letter(summary[-LONGEST:])
        return Finding(said == chosen, said or summary.strip(), "extracted")
    return _extracted(expected, summary)


def _compared(expected: str, given: str, place: str) -> Finding:
    """The finding for an answer that stands alone."""
    if len(given) > LONGEST:
        return Finding(given == expected.strip(), given, place, f"longer than {LONGEST} characters")
    if same_text(expected, given):
        return Finding(True, given, place)
    if chosen := letter(expected):
        said = choice(given)
        text = _TEXT_OF_CHOICE.sub("", bare(expected))
        if said is None and text:
            return _compared(text, given, place)
        return Finding(said == chosen, given, place)
    if (lettered := _LETTERED.fullmatch(bare(expected))) and bare(given) == lettered[1]:
        return Finding(True, given, place)
    decided = same_kind(expected, given)
    if decided is not None:
        return Finding(decided, given, place)
    pairs = pairs_to_compare(expected, given)
    reply = _ask(compare=pairs) if pairs else {}
    return Finding(bool(reply.get("right")), given, place, reply.get("failed"))


_LETTERED = re.compile(r"([A-J])\.\s+.+", re.DOTALL)
_TEXT_OF_CHOICE = re.compile(r"^[(\[]?\s*[A-Z]\s*[)\]]?\s*[.:]?\s*")
_LIMITS = re.compile(
    r"\b(?:not|n't|less than|more than|fewer than|greater than|at least|at most|cannot)\s*\W*$", re.IGNORECASE
)


def _extracted(expected: str, summary: str) -> Finding:
    """The finding where nothing says which part of the summary is the answer."""
    last = summary.strip().splitlines()[-1][-500:] if summary.strip() else ""
    for said in _answers_of(last):
        found = _compared(expected, plain(said), "extracted")
        if found.right:
            return found
    one = spelling(expected)
    text_only = re.sub(r"\\\$\s*(?=[\d.])", "", summary).replace("。", ". ").replace("：", ": ")
    reply = _ask(extract=text_only, expected=list(dict.fromkeys((one.text, one.value))))
    text, right = reply.get("text"), bool(reply.get("right"))
    if text and "failed" not in reply:
        decided = same_kind(expected, text)
        right = right or bool(decided)
        if not right and decided is None and (pairs := pairs_to_compare(expected, text)):
            reply = _ask(compare=pairs)
            right = bool(reply.get("right"))
        right = right and decided is not False and not _contradicted(one.unit, text, text_only)
    return Finding(right, text or summary.strip(), "extracted", reply.get("failed"))


def _answers_of(sentence: str) -> list[str]:
    """What a sentence that names an answer may say it is, the longest first: what follows `is`, `=` or a colon."""
    found, end = [sentence.strip(" .。*")] if re.match(r"\$?[A-Za-z]\s*=", sentence) else [], len(sentence)
    for at in re.finditer(r"\b(?:is|are|be|equals|takes|was)\b|[:：=]|答案[是为]?|[是为]", sentence):
        said = re.sub(r"^[\s:：*]+|[\s.。!*]+$", "", sentence[at.end() : end])
        if said and len(said) <= 200 and not re.match(r"(?:not|less|more|fewer|greater|at least|at most)\b", said):
            found.append(said)
    return found


def _contradicted(unit: str, text: str, summary: str) -> bool:
    """Whether the words around what was extracted say that it is something else: another unit, a bound, or that it is not."""
    at = summary.rfind(text)
    if at < 0:
        return False
    return bool(_LIMITS.search(summary[max(0, at - 40) : at])) or units_differ(
        unit, unit_that_begins(summary[at + len(text) :])
    )


@cache
def _process_of(pid: int) -> LimitedProcess:
    """One for each process that grades: a fork must not talk to its parent's."""
    return LimitedProcess("math_process.py", _CURE)


def _ask(**question: Any) -> dict[str, Any]:
    return _process_of(os.getpid()).ask(**question)
