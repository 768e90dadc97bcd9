r"""Whether two answers are the same mathematics, within a time that no expression can exceed.

In: the expected answer and a summary. Out: a `Finding`.

1. The answer is in the last complete box; where nothing is boxed, it is what math-verify extracts from the summary.
2. The same text is the same answer, typesetting aside. A letter of a multiple-choice problem is compared as a letter.
3. All else math-verify compares (https://github.com/huggingface/Math-Verify), in a process of its own
   (`stepsal.generation.limited`): math-verify's own time limit is a signal, which only a main thread can have, and which
   does not interrupt a long multiplication.
"""

import os
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from stepsal.generation.answers import choice, last_box, letter, other_symbol, pairs_to_compare, same_text, spelling
from stepsal.generation.limited import LimitedProcess

LONGEST = 5_000
"""Characters of the longest answer that is read as mathematics."""
_CURE = "install math-verify with `pip install math-verify==0.9.0`, or grade by exact text (grader 'exact')"


@dataclass(frozen=True)
class Finding:
    """`answer`: what was graded. `boxed`: whether in a box. `failure`: why it could not be compared, and counts as wrong."""

    right: bool
    answer: str
    boxed: bool
    failure: str | None = None


def compare_math(expected: str, summary: str) -> Finding:
    r"""Whether the answer in a summary is the expected one.

    >>> compare_math("1/2", r"So it is $\boxed{0.5}$.")
    Finding(right=True, answer='0.5', boxed=True, failure=None)
    >>> compare_math("1,000", "The answer is $1{,}000$.")
    Finding(right=True, answer='1,000', boxed=False, failure=None)
    """
    box, chosen = last_box(summary), letter(expected)
    if box is not None and len(box) > LONGEST:
        return Finding(box == expected.strip(), box, True, f"longer than {LONGEST} characters")
    if box is not None:
        if same_text(expected, box):
            return Finding(True, box, True)
        if chosen or other_symbol(expected, box):
            return Finding(chosen is not None and choice(box) == chosen, box, True)
        reply = _ask(compare=pairs_to_compare(expected, box))
        return Finding(bool(reply.get("right")), box, True, reply.get("failed"))
    if len(summary) <= LONGEST and same_text(expected, summary):
        return Finding(True, summary.strip(), False)
    return _extracted_letter(chosen, summary) if chosen else _extracted(expected, summary)


def _extracted_letter(chosen: str, summary: str) -> Finding:
    """The finding for a multiple-choice problem where nothing is boxed."""
    if len(summary) <= LONGEST and (said := choice(summary)) is not None:
        return Finding(said == chosen, said, False)
    letters = [chr(code) for code in range(ord("A"), max(ord("E"), ord(chosen)) + 1)]
    reply = _ask(extract=_without_brackets(summary), letters=letters)
    text = reply.get("text")
    return Finding(text == chosen, text or summary.strip(), False, reply.get("failed"))


def _extracted(expected: str, summary: str) -> Finding:
    """The finding for any other problem where nothing is boxed."""
    one = spelling(expected)
    reply = _ask(extract=re.sub(r"\\\$\s*(?=[\d.])", "", summary), expected=list(dict.fromkeys((one.text, one.value))))
    text, right = reply.get("text"), bool(reply.get("right"))
    if text and not right and "failed" not in reply:
        right = same_text(expected, text)
        if not right:
            reply = _ask(compare=pairs_to_compare(expected, text))
            right = bool(reply.get("right"))
    return Finding(right, text or summary.strip(), False, reply.get("failed"))


def _without_brackets(summary: str) -> str:
    """A summary whose letters stand alone: math-verify finds `B`, and neither `(B)` nor `$\\text{B}$`."""
    bare = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?([A-Z])\)?\s*\}", r" \1 ", summary.replace("$", " "))
    return re.sub(r"[(\[]\s*([A-Z])\s*[)\]]", r" \1 ", bare)


@cache
def _process_of(pid: int) -> LimitedProcess:
    """One for each process that grades: a fork must not talk to its parent's."""
    return LimitedProcess("math_process.py", _CURE)


def _ask(**question: Any) -> dict[str, Any]:
    return _process_of(os.getpid()).ask(**question)
