r"""The letter of a multiple-choice answer.

In: an expected answer, a box, or a summary. Out: a capital letter, or None.
"""

import re

from stepsal.generation.answers import bare

_CALLED = r"(?:the\s+)?(?:correct\s+|final\s+|right\s+|best\s+)?(?:option|choice|answer)(?:\s+is)?:?\s*"
_CHOICE = re.compile(
    rf"(?:{_CALLED})?[(\[]?\s*(?P<letter>[A-Za-z])\s*"
    r"(?:[)\]]\s*[.:]?(?P<rest>\s.*)?|[.:=](?P<after>\s.*)?|\s[-–=]\s?(?P<dash>.*))?$",
    re.DOTALL | re.IGNORECASE,
)
_BEFORE_WORDS = re.compile(r"([B-HJ])\s+(?P<rest>[A-Za-z(\d$\\].*)$", re.DOTALL)  # "A" and "I" may be words themselves
_ANOTHER = re.compile(
    r"\b(?:or|and)\s+(?:[(\[]\s*[A-Za-z]\s*[)\]]|[A-Z]\W*$)|^\s*[(\[]\s*[A-Z]\s*[)\]]|^\s*[A-Z]\W*$"
    r"|\b[A-Z]\s*(?:is|:)\s|\b(?:not|in)\s*correct\b|\bfalse\b|\bwrong\b"
)
_LETTER = r"(?P<letter>[A-Z])(?![A-Za-z'’\d])"
_OPENS = r"[\s*_$({\[\"'“‘]*(?:\\(?:text|textbf|mathrm|mathbf|boxed)\s*\{[\s(]*)?"
_SAYS_RIGHT = re.compile(rf"(?<![A-Za-z]){_LETTER}\s*\W{{0,3}}\s*(?:is|:)\s+(?:the\s+)?(?:right|correct|true|yes)\b")
_SAID = re.compile(
    rf"(?:(?i:answer|option|choice|choose|select)\b(?i:\s+(?:would\s+be|must\s+be|should\s+be|is))?(?!\s+not\b)|答案|故?选择?|应选)"
    rf"(?:\s*(?:为|是))?\s*[:：]?{_OPENS}{_LETTER}"
)
_IN_BRACKETS = re.compile(rf"[(\[]\s*{_LETTER}\s*[)\]]")
_ALONE = re.compile(rf"(?<![A-Za-z'’\d\\]){_LETTER}(?!\s+[a-z])")  # not "A triangle", with an article
_BUT = re.compile(rf"\bnot\b[^.]*?\bbut\s+{_OPENS}{_LETTER}")
_NEGATED = re.compile(r"\bnot\s+\W{0,3}$")
_NO = re.compile(r"\s*(?:is\s+)?(?:no|not|wrong|false|incorrect)\b")


def letter(text: str) -> str | None:
    r"""The letter that is all of an expected answer, a capital or in brackets, or that stands before its text in brackets; None
    where it is anything else.

    >>> letter("(A)"), letter(r"\text{B}"), letter("(c)"), letter("(D) 5"), letter("E. coli"), letter("x")
    ('A', 'B', 'C', 'D', None, None)
    """
    found = re.fullmatch(r"[(\[]?\s*([A-Z])\s*(?:[)\]].*)?|[(\[]\s*([a-j])\s*[)\]]", bare(text), re.DOTALL)
    return (found[1] or found[2]).upper() if found else None


def choice(text: str) -> str | None:
    r"""The letter that a multiple-choice answer chooses, as a capital; None where the text is no such answer.

    >>> choice("(A)"), choice(r"\text{(B)}"), choice("C. Paris"), choice("the answer is d"), choice("Paris"), choice("x+1")
    ('A', 'B', 'C', 'D', None, None)
    """
    said = bare(re.sub(r"\*\*|__", "", text)).strip()
    found = _CHOICE.fullmatch(said) or _BEFORE_WORDS.fullmatch(said)
    if found is None:
        return None
    rest = next((each for name, each in found.groupdict().items() if name != "letter" and each), "")
    if _ANOTHER.search(rest) and not re.match(r"\s*(?:both|all|neither|none)\b", rest, re.IGNORECASE):
        return None
    return found[1].upper()


def said_letter(summary: str) -> str | None:
    r"""The letter that a summary without a box chooses: the one that it calls right, or the answer; otherwise the last in
    brackets, or the last alone.

    >>> said_letter("The answer is (B)."), said_letter("A is wrong. B is right."), said_letter("No.")
    ('B', 'B', None)
    """
    for pattern in (_BUT, _SAID, _SAYS_RIGHT, _IN_BRACKETS, _ALONE):
        found = [
            each["letter"]
            for each in pattern.finditer(summary)
            if not _NEGATED.search(summary[max(0, each.start("letter") - 20) : each.start("letter")])
            and not _NO.match(summary[each.end() :])
        ]
        if found:
            return found[-1]
    return None
