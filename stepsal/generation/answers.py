r"""The final answer in a text, and answers that are typeset differently.

In: a summary, or an answer as a problem or a model writes it. Out: the content of the last complete box; texts in one spelling.

1. A box is `\boxed{...}`, `\fbox{...}` or `\framebox{...}`, or one of them before a number without braces (`\boxed 5`).
   The last box that is complete counts; of nested ones, the outermost, and if that holds nothing but a box, what is in it.
2. `plain` takes typesetting away that says nothing: dollar signs, `\text{...}`, thin spaces, the full stop of the sentence.
3. `spellings` are the ways in which an answer may be read: as it stands, without its unit, without `x =` before it.
"""

import re
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_BARE = re.compile(r"(?:\\(?![)\]])|[^\s$\\{])(?:\\(?![)\]])|[^\s$\\])*")  # up to white space or the end of the formula
_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox|hbox|emph|bm|boldsymbol)\s*\{([^{}]*)\}"
)
_SIGNS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": r"\div ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^{\circ}",
    }
    | {"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "²": "^{2}", "³": "^{3}", "√": r"\sqrt ", "∪": r"\cup ", "∩": r"\cap "}
    | {"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2007": " "}
)
_THIN = re.compile(r"\\[,;:>]|\\(?:thinspace|quad|qquad|enspace|displaystyle|left|right|limits)(?![A-Za-z])|~")
_NO_SPACE = re.compile(r"\{\\[,;:!]\}|\\!\s*")
_BRACED_SIGN = re.compile(r"\{([:.;])\}")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\s)(?=\d{3}(?!\d))")
_EXPONENT = re.compile(r"(?<=\d)[eE]([-+]?\d+)(?![\d.])")
_MIXED = re.compile(r"^(-?\d+)\s+(\d+)\s*/\s*(\d+)$")
_EQUALS = re.compile(r"^([A-Za-z]\w?|\\[A-Za-z]+)\s*=\s*([^=,;]+)$")
_CHOICE = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|final\s+|right\s+)?(?:option|choice|answer)(?:\s+is)?:?\s*)?[(\[]?\s*([A-Za-z])\s*"
    r"(?:[)\]]\s*[.:]?(?P<rest>\s.*)?|[.:](?:\s.*)?)?$",
    re.DOTALL | re.IGNORECASE,
)

_ANOTHER = re.compile(r"\b(?:or|and)\s+(?:[(\[]\s*[A-Za-z]\s*[)\]]|[A-Z]\W*$)|^\s*[(\[]\s*[A-Z]\s*[)\]]")
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = rf"({'|'.join(_SCALES)})s?\b"
_SCALED = re.compile(rf"(?<=\d)(?:\s+|\s*(\\(?:text|textrm|mathrm|mbox)\s*\{{)\s*){_SCALE}(?(1)(\s*\}})?)")
_NO_UNIT = re.compile(
    rf"\b(?:or|and)\b|^(?:more|less|fewer|times|half|halves|factorial|squared|cubed|base|mod)\b|^{_SCALE}|[\d=]$(?<!\^\d)"
)


def last_box(text: str) -> str | None:
    r"""The content of the last complete box, None where there is none. Takes time in proportion to the text.

    >>> last_box(r"So \boxed{1}. No: \boxed{\frac{1}{2}}, not \boxed{2"), last_box(r"$\boxed 5$."), last_box("5")
    ('\\frac{1}{2}', '5', None)
    """
    closes = _closing_braces(text)
    found, at = None, 0
    while box := _BOX.search(text, at):
        at = box.end()
        if text[at : at + 1] == "{":
            if at in closes:
                found = (at + 1, closes[at])
                at = closes[at]
        elif bare := _BARE.match(text, at):
            found, at = bare.span(), bare.end()
    if found is None:
        return None
    start, stop = found
    while box := _BOX.match(text, _skip_space(text, start)):  # nothing but a box in the box
        if text[closes.get(box.end(), stop) + 1 : stop].strip() or box.end() not in closes:
            break
        start, stop = box.end() + 1, closes[box.end()]
    return text[start:stop].strip()


def _skip_space(text: str, start: int) -> int:
    return start + len(text[start : start + 80]) - len(text[start : start + 80].lstrip())


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is closed is closed. A brace behind a backslash is a character of the text."""
    closes, open_ones, at = {}, [], 0
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        at = token.start()
        if token[0] == "{":
            open_ones.append(at)
        elif token[0] == "}" and open_ones:
            closes[open_ones.pop()] = at
    return closes


def final_answer(summary: str) -> str:
    r"""The content of the last complete box of a summary, or the summary itself.

    >>> final_answer(r"So \boxed{1}. No: \boxed{\frac{1}{2}}."), final_answer(" 42\n")
    ('\\frac{1}{2}', '42')
    """
    box = last_box(summary)
    return summary.strip() if box is None else box


def plain(text: str) -> str:
    r"""An answer without typesetting that says nothing.

    >>> plain(r"$\text{A}$."), plain(r"1{,}000"), plain(r"\dfrac12"), plain("**5**")
    ('A', '1000', '\\frac12', '5')
    """
    text = text.translate(_SIGNS).strip()
    before = None
    while before != text:
        before = text
        text = _unwrap(text).strip().rstrip(".,;:").strip() if not re.search(r"\\[.,;:]$", text) else text[:-2].strip()
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", _BRACED_SIGN.sub(r"\1", _NO_SPACE.sub("", text)))
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi", _THIN.sub(" ", text.replace("\\ ", " ")))
    text = _THOUSANDS.sub("", re.sub(r"\s+", " ", text)).strip()
    text = _EXPONENT.sub(r"\\times 10^{\1}", text)
    while (scaled := _SCALED.sub(_times, text)) != text:  # 5 hundred thousand
        text = scaled
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text)


def _times(found: re.Match[str]) -> str:
    """A word for a number as a factor. What follows it in its typesetting, such as a unit, stays there."""
    return rf"\times {_SCALES[found[2]]}" + ("" if found[3] else found[1] or "")


_PAIRS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'), ("{", "}"))


def _unwrap(text: str) -> str:
    """The text without what stands around all of it."""
    for left, right in _PAIRS:
        inner = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
            if left == "{" and _closing_braces(text).get(0) != len(text) - 1:
                continue
            if (left not in inner and right not in inner) or left == "{":
                return inner
    whole = _WRAPPER.fullmatch(text)
    return whole[1] if whole else text


def letter(text: str) -> str | None:
    r"""The letter that is all of an expected answer, a capital or in brackets; None where it is anything else.

    >>> letter("(A)"), letter(r"\text{B}"), letter("(c)"), letter("E. coli"), letter("x")
    ('A', 'B', 'C', None, None)
    """
    bare = plain(_WRAPPER.sub(r"\1", plain(text)))
    found = re.fullmatch(r"[(\[]?\s*([A-Z])\s*[)\]]?|[(\[]\s*([a-j])\s*[)\]]", bare)
    return (found[1] or found[2]).upper() if found else None


def choice(text: str) -> str | None:
    r"""The letter that a multiple-choice answer chooses, as a capital; None where the text is no such answer.

    >>> choice("(A)"), choice(r"\text{(B)}"), choice("C. Paris"), choice("the answer is d"), choice("Paris"), choice("x+1")
    ('A', 'B', 'C', 'D', None, None)
    """
    bare = _WRAPPER.sub(r"\1", plain(text))
    found = _CHOICE.fullmatch(bare.strip())
    return found[1].upper() if found and not _ANOTHER.search(found["rest"] or "") else None


@dataclass(frozen=True)
class Spelling:
    """An answer, its unit apart, and the variable before the equals sign apart; empty where there is none."""

    text: str
    value: str
    unit: str = ""
    variable: str = ""


_WORD = r"[A-Za-z%µμΩ][A-Za-z.]*"
_UNIT = re.compile(
    r"^(?P<value>.*(?:[\d})]|\\pi))"
    r"(?:\s*(?:\\(?:text|textrm|mathrm|mbox|mathit|textbf|mathbf|operatorname)\s*\{\s*(?P<typeset>[^{}]*?)\s*\}"
    r"(?P<power>\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?"
    r"|\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\s*\{)?\s*(?P<scale>[CF]?)\s*\}?|\\degree(?![A-Za-z]))"
    r"|(?P<joined>mm|cm|km|mg|kg|ml|ft|min|ms)"
    rf"|\s+(?P<words>(?:{_WORD})(?:[\s/*]+(?:{_WORD}))*(?:\^\{{?-?\d\}}?)?))\s*$"
)
_UNIT_FRACTION = re.compile(r"\}\s*/\s*\\(?:text|textrm|mathrm)\s*\{(?=[^{}]*\}(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?\s*$)")
_CURRENCY = re.compile(r"^(-?)\s*(\\\$|\$|€|£|¥|US\\?\$)\s*(?=[\d.])")
_NAMES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gm",
    "kg": "kilogram kilo",
    "lb": "pound",
    "ms": "millisecond",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "ml": "milliliter millilitre",
    "l": "liter litre",
    "degree": "deg °",
    "degreec": "celsius degreecelsius",
    "degreef": "fahrenheit degreefahrenheit",
    "radian": "rad",
    "nm": "nanometer nanometre",
    "oz": "ounce",
    "ton": "tonne",
    "gallon": "gal",
    "quart": "qt",
    "pint": "pt",
    "cup": "",
    "mph": "",
    "knot": "",
    "hz": "hertz",
    "khz": "kilohertz",
    "mhz": "megahertz",
    "ghz": "gigahertz",
    "kb": "kilobyte",
    "mb": "megabyte",
    "gb": "gigabyte",
    "tb": "terabyte",
    "v": "volt",
    "a": "amp ampere",
    "w": "watt",
    "kw": "kilowatt",
    "n": "newton",
    "j": "joule",
    "kj": "kilojoule",
    "k": "kelvin",
    "pa": "pascal",
    "kpa": "kilopascal",
    "ohm": "ω",
    "mol": "mole",
    "am": "",
    "pm": "",
    "cent": "¢",
    "$": "dollar usd",
    "€": "euro eur",
}
_UNITS = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}


def spelling(text: str) -> Spelling:
    r"""An answer with its unit and its variable apart.

    >>> spelling(r"5\text{ cm}").unit, spelling("x = 5").value, spelling("2t").unit
    ('cm', '5', '')
    """
    text = plain(text)
    value, variable = text, ""
    if equation := _EQUALS.match(text):
        variable, value = equation[1], equation[2].strip()
    unit = ""
    if money := _CURRENCY.match(value):
        unit, value = money[2].replace("\\", "").removeprefix("US"), value[: money.end(1)] + value[money.end() :]
    elif found := _UNIT.match(_UNIT_FRACTION.sub("/", value)):
        words = next((found[name] for name in ("typeset", "words", "joined") if found[name] is not None), None)
        words = "degree" + (found["scale"] or "") if words is None else words + (found["power"] or "")
        if not _NO_UNIT.search(words) or found["power"]:
            unit, value = words, found["value"]
    return Spelling(text, value.strip(), _unit(unit), variable)


def _unit(text: str) -> str:
    """One name for a unit however it is written."""
    bare = re.sub(r"[\s{}\\~.]", "", text).lower()
    stem, power, number = bare.partition("^")
    if stem.startswith(("square", "cubic")):
        number, power, stem = (
            ("2" if stem.startswith("square") else "3"),
            "^",
            stem.removeprefix("square").removeprefix("cubic"),
        )
    parts = [
        _UNITS.get(part) or _UNITS.get(part.removesuffix("s")) or part.removesuffix("s") for part in stem.split("/")
    ]
    return "/".join(parts) + power + number


def _known(unit: str) -> bool:
    return all(part in _NAMES for part in unit.partition("^")[0].split("/"))


def _differ(one: str, other: str) -> bool:
    """Whether two units are known and not the same; degrees that do not say of which scale are those of any."""
    angle = "degree" in (one, other) and one.startswith("degree") and other.startswith("degree")
    return one != other and not angle and bool(one and other) and _known(one) and _known(other)


def pairs_to_compare(expected: str, given: str) -> list[tuple[str, str]]:
    r"""The spellings of two answers to compare as expressions: as they stand, then without what only one of them says.

    Two units that are known and differ are never left out, nor are two variables that differ.

    >>> pairs_to_compare("5", r"5\text{ cm}")[-1], pairs_to_compare("5 m", "5 cm")
    (('5', '5'), [('5 m', '5 cm')])
    """
    one, other = spelling(expected), spelling(given)
    pairs = [(one.text, other.text)]
    if not _differ(one.unit, other.unit) and (not one.variable or not other.variable or one.variable == other.variable):
        pairs.append((one.value, other.value))
    return list(dict.fromkeys(pairs))


def _letters(text: str) -> str:
    return re.sub(r"\s", "", _WRAPPER.sub(r"\1", plain(text)))


def other_symbol(expected: str, given: str) -> bool:
    """Whether both answers are a single letter, and not the same: math-verify does not tell `x` from `X`."""
    one, other = _letters(expected), _letters(given)
    return len(one) == len(other) == 1 and one.isalpha() and other.isalpha() and one != other


def same_text(expected: str, given: str) -> bool:
    r"""Whether two answers are the same text but for typesetting, and for capitals in words.

    >>> same_text("Yes", r"\text{yes}"), same_text("x", "X")
    (True, False)
    """
    one, other = _letters(expected), _letters(given)
    words = one.isalpha() and len(one) > 1
    return bool(one) and (one == other or (words and one.casefold() == other.casefold()))
