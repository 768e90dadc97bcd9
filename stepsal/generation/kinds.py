r"""Answers that are no expressions, though a computer algebra takes them for some: words, dates, times, lists, other bases.

In: two answers. Out: whether they are the same, or None where it takes mathematics to tell.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from stepsal.generation.answers import bare, same_text

_BETWEEN_WORDS = re.compile(r"[\s,;'’.-]+")
_WORDS = re.compile(rf"[^\W\d_]+(?:{_BETWEEN_WORDS.pattern}[^\W\d_]+)*")
_CAPITALS = re.compile(r"[A-Z](?:(?:[\s,;]|and)*[A-Z])+")
_NUMBER = r"-?\d+(?:\.\d+)?"
_ROW = re.compile(rf"{_NUMBER}(?: {_NUMBER})+")
_DATE = re.compile(r"\d+(?:\s*[-/.]\s*\d+){2,}")
_SCORE = re.compile(r"\d+\s*-\s*\d+")
_COLONS = re.compile(r"\d+(?:\s*:\s*\d+)+")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d))?(?::(\d\d))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_LITERAL = re.compile(r"-?0(?:[xX][\dA-Fa-f]+|[bB][01]+|[oO][0-7]+)")
_CODE = re.compile(r"(?=.*\d)(?=.*[A-Z])[\dA-Z]+")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"} | {
    "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip
_IN_BASE = re.compile(rf"(?P<digits>(?=[A-F]*\d)[\dA-F]+)\s*_\s*\{{?\s*\(?(?P<base>{'|'.join(_BASES)}|\d+)\)?\s*\}}?")
_GEOMETRY = re.compile(r"\\(angle|triangle|overline|overrightarrow|vec)\s*\{?\s*([A-Z]{2,4})\s*\}?")
_THOUSANDS = re.compile(r"[(\[{]?-?\d{1,3}(?:,\d{3})+(?:\.\d+)?[)\]}]?")
_NAME = re.compile(
    r"[A-Za-z][A-Za-z ]*'?(?:_\{?\w+\}?)?(?:\^\{?[-+*']+\}?)?|\\[A-Za-z]+(?:_\{?\w+\}?)?(?:\s*[A-Z]+)?"
    r"|(?:[A-Za-z]+|\\[A-Za-z]+)\s*\(.*\)|\|.*\||\\(?:overline|vec|hat|bar)\s*\{\w+\}|[A-Za-z]+:"
)
_LETTERS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]")
_RELATION = re.compile(r"[<>=]|\\(?:le|ge|ne|in)(?![A-Za-z])")

Verdict = bool | None


def same_kind(expected: str, given: str) -> Verdict:
    r"""Whether two answers are the same, where it takes no mathematics to tell; None where it does.

    >>> same_kind("Paris", "Pairs"), same_kind("2024-03-05", "2024-3-5"), same_kind("10:30", "20:60"), same_kind("1/2", "0.5")
    (False, True, False, None)
    """
    if same_text(expected, given):
        return True
    one, other = bare(expected), bare(given)
    if len(one) == len(other) == 1 and one.isalpha() and other.isalpha():
        return False  # math-verify does not tell `x` from `X`
    if one != other and one.lower() == other.lower() and re.fullmatch(r"[\d\s.]+[A-KM-Za-km-z]", one):
        return False  # nor `2x` from `2X`
    for rule in _RULES:
        if (verdict := rule(one, other)) is not None:
            return verdict
    return None


def _words(one: str, other: str) -> Verdict:
    """Words, and letters in a row, are no products of letters; `x - y` is no word, and `A, C` are the letters of `AC`."""
    if _CAPITALS.fullmatch(one) and _CAPITALS.fullmatch(other) and (one.isalpha() or other.isalpha()):
        letters = [re.sub(r"[\s,;]|and", "", text) for text in (one, other)]
        return letters[0] == letters[1]
    if not all(_WORDS.fullmatch(text) and re.search(r"[^\W\d_]{2}", text) for text in (one, other)):
        return None
    said = [[word for word in _BETWEEN_WORDS.split(text.casefold()) if word != "and"] for text in (one, other)]
    return said[0] == said[1]


def _codes(one: str, other: str) -> Verdict:
    """Capitals and digits in a row, as in a number of base sixteen."""
    return one == other if _CODE.fullmatch(one) and _CODE.fullmatch(other) else None


def _literals(one: str, other: str) -> Verdict:
    """`0x1F`, as programs write it."""
    if not (_LITERAL.fullmatch(one) or _LITERAL.fullmatch(other)):
        return None
    try:
        return int(one, 0) == int(other, 0)
    except ValueError:
        return False


def _numbers_in_a_base(one: str, other: str) -> Verdict:
    r"""`1101_2`, and `1101_{two}`; a base that only one says is no matter."""
    found = [_IN_BASE.fullmatch(text) for text in (one, other)]
    if not any(found):
        return None
    digits = [each["digits"] if each else text for each, text in zip(found, (one, other), strict=True)]
    bases = {_BASES.get(each["base"], each["base"]) for each in found if each}
    return digits[0] == digits[1] and len(bases) == 1


def _times(one: str, other: str) -> Verdict:
    """`6 PM` and `6:00 pm`; half of the day may be left out by one."""
    found = [_CLOCK.fullmatch(text) for text in (one, other)]
    if not any(each and each[4] for each in found):
        return None
    if not all(found):
        return False
    values = [(int(each[1]), int(each[2] or 0), int(each[3] or 0)) for each in found if each]
    halves = {each[4].lower() for each in found if each and each[4]}
    return values[0] == values[1] and len(halves) == 1


def _colons(one: str, other: str) -> Verdict:
    """Times, which are compared as they stand, and ratios, which may be reduced."""
    found = [bool(_COLONS.fullmatch(text)) for text in (one, other)]
    if not any(found):
        return None
    clock = any(re.fullmatch(r"\d{1,2}:\d\d(?::\d\d)?", text) for text in (one, other))
    parts = [[int(each) for each in text.split(":")] for text, has in zip((one, other), found, strict=True) if has]
    if all(found):
        return parts[0] == parts[1] or (not clock and _proportional(*parts))
    return False if clock or len(parts[0]) > 2 else None


def _proportional(one: list[int], other: list[int]) -> bool:
    if len(one) != len(other) or 0 in (*one, *other):
        return False
    return len({Fraction(a, b) for a, b in zip(one, other, strict=True)}) == 1


def _dates(one: str, other: str) -> Verdict:
    """Dates, scores and numbers of telephones are no differences."""
    for pattern in (_DATE, _SCORE):
        found = [bool(pattern.fullmatch(text)) for text in (one, other)]
        if any(found):
            parts = [[int(each) for each in re.findall(r"\d+", text)] for text in (one, other)]
            return all(found) and parts[0] == parts[1]
    return None


def _rows(one: str, other: str) -> Verdict:
    """Numbers with nothing but a space between them are a list, and no product."""
    if not (_ROW.fullmatch(one) or _ROW.fullmatch(other)):
        return None
    return re.split(r"[\s,]+", one) == re.split(r"[\s,]+", other)


def _geometry(one: str, other: str) -> Verdict:
    r"""`\angle ABC` is `\angle CBA`, and not `\angle BAC`."""
    found = [_GEOMETRY.fullmatch(text) for text in (one, other)]
    if not (found[0] and found[1]):
        return None
    kind, names = found[0][1], found[0][2]
    if kind != found[1][1]:
        return False
    if kind == "triangle":
        return sorted(names) == sorted(found[1][2])
    return names == found[1][2] or (kind in ("angle", "overline") and names[::-1] == found[1][2])


def _brackets(one: str, other: str) -> Verdict:
    r"""A pair is no set, and a list in brackets no number."""
    kinds = [_bracket(text) for text in (one, other)]
    if not any(kinds):
        return None
    if all(kinds):
        return False if ("{" in kinds) and kinds[0] != kinds[1] else None
    return None if "," in (other if kinds[0] else one) or _RELATION.search(one) or _RELATION.search(other) else False


def _bracket(text: str) -> str:
    """The bracket around a list, "" where there is none."""
    text = text.replace("\\", "").replace("lbrace", "{").replace("rbrace", "}").strip()
    whole = text[:1] in ("(", "[", "{") and text[-1:] in (")", "]", "}") and "," in text
    return text[0] if whole and not _THOUSANDS.fullmatch(text) and re.search(r"[)\]}].*[(\[{]", text) is None else ""


def _connectives(one: str, other: str) -> Verdict:
    """`x < 2 or x > 3` is not `x < 2 and x > 3`."""
    if not (_RELATION.search(one) and _RELATION.search(other)):
        return None
    words = [set(re.findall(r"\b(or|and)\b", text)) for text in (one, other)]
    return False if all(words) and words[0] != words[1] else None


def _equations(one: str, other: str) -> Verdict:
    """An equation says what a number is if its left side is a name, or has no variable: `2x = 5` is no answer for 5."""
    if ("=" in one) == ("=" in other):
        return None
    left, *_, right = (each.strip() for each in (one if "=" in one else other).split("="))
    named = _NAME.fullmatch(left) or re.fullmatch("[A-Za-z]", right)
    return None if named or not _LETTERS.search(re.sub(r"\\[A-Za-z]+", "", left)) else False


_RULES: tuple[Callable[[str, str], Verdict], ...] = (
    _words, _codes, _literals, _numbers_in_a_base, _times, _colons, _dates, _rows, _geometry, _brackets, _connectives,
    _equations,
)  # fmt: skip
