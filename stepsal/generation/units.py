r"""Answers, their unit apart, and the variable before the equals sign apart.

In: two answers. Out: the pairs of expressions to compare.

1. A unit stands after a number: a currency, degrees, what is typeset as text, or a word. A single letter is a unit if it is the
   symbol of one (`2 m`), and nothing is where a sum stands before it (`x + 3 y`).
2. Of two units that differ none is left out. A unit that only one answer has is no matter.
"""

import re
from dataclasses import dataclass

from stepsal.generation.answers import SCALE, plain

_EQUALS = re.compile(
    r"^(?P<name>[A-Za-z]\w?|\\[A-Za-z]+)\s*=\s*(?P<value>[^=,;]+)$|^(?P<first>-?[\d./]+)\s*=\s*(?P<last>[A-Za-z])$"
)
_SEVERAL = re.compile(r"^([A-Za-z])\s*=\s*(.*(?:,|;|\bor\b|\band\b).*\1\s*=.*)$")  # x = 3 or x = 4
_WORD = r"[A-Za-z%µμΩ][A-Za-z.]*"
_TEXT = r"\\(?:text|textrm|mathrm|mbox|mathit|textbf|mathbf|operatorname)"
_UNIT = re.compile(
    r"^(?P<value>.*(?:[\d})]|\\pi))"
    rf"(?:\s*(?:{_TEXT}\s*\{{\s*(?P<typeset>[^{{}}]*?)\s*\}}(?P<power>\s*\^\s*(?:\{{\s*-?\d\s*\}}|\d))?"
    r"|\^\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\s*\{)?\s*(?P<scale>[CF]?)\s*\}?|\\deg(?:ree)?(?![A-Za-z]))"
    r"|(?P<joined>mm|cm|km|mg|kg|ml|ft|min|ms)"
    r"|\s*(?P<ideographs>[\u3400-\u9fff]{1,6})"
    rf"|\s+(?P<words>(?:{_WORD})(?:[\s/*]+(?:{_WORD}))*(?:\^\{{?-?\d\}}?)?))\s*$"
)
_RAISED = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|\d))?"
_JOINED_TEXTS = re.compile(
    rf"({_TEXT}\s*\{{[^{{}}]*)\}}({_RAISED})\s*(?:\\cdot|\*|(/))?\s*{_TEXT}\s*\{{(?=[^{{}}]*\}}{_RAISED}\s*$)"
)
_UNIT_FRACTION = re.compile(
    rf"\\frac\s*\{{\s*{_TEXT}\s*\{{([^{{}}]*)\}}\s*\}}\s*\{{\s*{_TEXT}\s*\{{([^{{}}]*)\}}\s*\}}\s*$"
)
_ORDINAL = re.compile(r"(?<=\d)\s*\^?\s*\{?\s*\\text\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?$|(?<=\d)(?:st|nd|rd|th)$")
_CURRENCIES = {
    "€": "€",
    "£": "£",
    "¥": "¥",
    "₹": "₹",
    "$": "$",
    "USD": "$",
    "EUR": "€",
    "GBP": "£",
    "元": "¥",
    "円": "¥",
    "¢": "cent",
}
_MONEY = r"\\\$|\$|€|£|¥|₹|US\\?\$|\\text\s*\{\s*\\?\$\s*\}|USD\s|EUR\s|GBP\s"
_CURRENCY = re.compile(rf"^(-?)\s*({_MONEY})\s*(?=[\d.])")
_CURRENCY_AFTER = re.compile(r"^(?P<value>.*\d)\s*(?P<money>\\?\$|€|£|¥|₹|¢|USD|EUR|GBP|元|円)$")
_NO_UNIT = re.compile(
    rf"\b(?:or|and)\b|^(?:more|less|fewer|times|half|halves|factorial|squared|cubed|base|mod)\b|^{SCALE}|[\d=]$(?<!\^\d)"
)
_FUNCTION_WORDS = {
    "log",
    "ln",
    "sin",
    "cos",
    "tan",
    "sqrt",
    "exp",
    "pi",
    "gcd",
    "lcm",
    "max",
    "mod",
    "frac",
    "cot",
    "sec",
    "csc",
}
_SUM = re.compile(r"(?<=[\w)}])\s*[+-]|=|<|>|\\(?:le|ge|ne|pm)(?![A-Za-z])")
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z]")
_NAMES = {
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre 米",
    "km": "kilometer kilometre 千米 公里",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram gm 克",
    "kg": "kilogram kilo 千克 公斤",
    "lb": "pound",
    "ms": "millisecond",
    "s": "second sec 秒",
    "min": "minute 分钟",
    "h": "hour hr 小时",
    "day": "天",
    "week": "",
    "month": "",
    "year": "yr 年",
    "mL": "ml milliliter millilitre 毫升",
    "L": "l liter litre 升",
    "degree": "deg ° 度",
    "degreeC": "celsius degreecelsius C",
    "degreeF": "fahrenheit degreefahrenheit F",
    "radian": "rad",
    "nm": "nanometer nanometre",
    "oz": "ounce",
    "ton": "tonne 吨",
    "gallon": "gal",
    "quart": "qt",
    "pint": "pt",
    "cup": "",
    "mph": "",
    "knot": "",
    "Hz": "hertz",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "mHz": "millihertz",
    "GHz": "gigahertz",
    "kB": "kilobyte KB",
    "MB": "megabyte",
    "GB": "gigabyte",
    "TB": "terabyte",
    "kb": "kilobit Kb kbit",
    "Mb": "megabit Mbit",
    "Gb": "gigabit Gbit",
    "V": "volt",
    "A": "amp ampere",
    "W": "watt",
    "mW": "milliwatt",
    "kW": "kilowatt",
    "MW": "megawatt",
    "N": "newton",
    "J": "joule",
    "kJ": "kilojoule",
    "K": "kelvin",
    "Pa": "pascal",
    "kPa": "kilopascal",
    "Ω": "ohm",
    "mol": "mole",
    "am": "",
    "pm": "",
    "cent": "¢",
    "$": "dollar usd",
    "€": "euro eur",
    "£": "gbp",
    "¥": "yuan yen",
    "₹": "rupee",
    "%": "percent pct",
    "厘米": "",
    "平方厘米": "",
    "平方米": "",
}
_UNITS = {name: unit for unit, names in _NAMES.items() for name in (unit, *names.split())}
_LOWER = {name.lower(): {unit for other, unit in _UNITS.items() if other.lower() == name.lower()} for name in _UNITS}
_GENERIC = {"unit", "unit^2", "unit^3"}


@dataclass(frozen=True)
class Spelling:
    """An answer, its unit apart, and the variable before the equals sign apart; empty where there is none."""

    text: str
    value: str
    unit: str = ""
    variable: str = ""


def spelling(text: str) -> Spelling:
    r"""An answer with its unit and its variable apart.

    >>> spelling(r"5\text{ cm}").unit, spelling("x = 5").value, spelling("2t").unit, spelling("x + 3 y").unit
    ('cm', '5', '', '')
    """
    text = plain(text)
    value, variable = text, ""
    if several := _SEVERAL.match(text):
        variable = several[1]
        value = re.sub(
            rf"\s*(?:,|;|or|and|\\text\s*\{{\s*(?:or|and)\s*\}})\s*{re.escape(variable)}\s*=\s*", ", ", several[2]
        )
    elif equation := _EQUALS.match(text):
        variable = equation["name"] or equation["last"]
        value = (equation["value"] or equation["first"]).strip()
    value = _ORDINAL.sub("", value.replace(r"\Omega", r"\text{Ω}"))
    unit = ""
    if money := _CURRENCY.match(value):
        sign = re.sub(r"[\\\s{}]|text|(?<=US)(?=\$)", "", money[2]).replace("US$", "$")
        unit, value = _CURRENCIES[sign], value[: money.end(1)] + value[money.end() :]
    elif money := _CURRENCY_AFTER.match(value):
        unit, value = _CURRENCIES[money["money"].replace("\\", "")], money["value"]
    else:
        unit, value = _split_unit(value)
    return Spelling(text, value.strip(), _unit(unit), variable)


def _split_unit(value: str) -> tuple[str, str]:
    """The unit at the end of a value, "" for none, and what stands before it."""
    joined = _UNIT_FRACTION.sub(r"\\text{\1/\2}", value)
    while (shorter := _JOINED_TEXTS.sub(_join, joined)) != joined:  # \text{m}\,\text{s}^{-2}
        joined = shorter
    found = _UNIT.match(joined)
    if not found:
        return "", value
    words = next(
        (found[name] for name in ("typeset", "words", "joined", "ideographs") if found[name] is not None), None
    )
    if words is None:
        return "degree" + (found["scale"] or ""), found["value"]
    raised = found["power"] or ""
    if _NO_UNIT.search(words) and not raised:
        return "", value
    if found["words"] is not None and not _are_unit(words, found["value"]):
        return "", value
    return words + raised, found["value"]


def _join(found: re.Match[str]) -> str:
    raised = re.sub(r"[{}\s]", "", found[2])
    return found[1] + raised + ("/" if found[3] else " ")


def _are_unit(words: str, value: str) -> bool:
    """Whether words that nothing but a space parts from what stands before them are its unit, and no factor of it."""
    if _SUM.search(value) or _VARIABLE.search(re.sub(r"\\[A-Za-z]+", "", value)):
        return False
    for word in re.split(r"[\s/*]+", words.partition("^")[0]):
        bare = word.rstrip(".")
        if bare.lower() in _FUNCTION_WORDS or (len(bare) == 1 and bare not in _UNITS):
            return False
    return True


def unit_that_begins(text: str) -> str:
    """The unit that is known and that a text begins with, "" for none.

    >>> unit_that_begins(" cm, as said."), unit_that_begins(" apples")
    ('cm', '')
    """
    found = re.match(r"[\s$]*(?:\\text\s*\{\s*)?(\^?\{?\\?°?(?:circ\}?)?\s*[A-Za-z%°µΩ/]+(?:\^?\d)?)", text)
    unit = _unit(re.sub(r"\^?\{?\\circ\}?\s*|°", "degree", found[1])) if found else ""
    return unit if unit and _known(unit) else ""


def _unit(text: str) -> str:
    """One name for a unit however it is written; words that are no unit that is known, as they stand."""
    text = re.sub(r"[{}\\~]", "", text).strip()
    text = re.sub(r"\bper\b", "/", text)
    stem, power, number = text.partition("^")
    shape = re.match(r"(square|sq\.?|cubic|cu\.?)\s*(?=[A-Za-z])", stem)
    if shape and not stem.startswith(("square root", "cup")):
        number, power, stem = ("2" if shape[1].startswith("s") else "3"), "^", stem[shape.end() :]
    parts = [_name(part.strip()) for part in stem.split("/")]
    return "/".join(parts) + power + number.strip()


def _name(words: str) -> str:
    """The unit that a word, or a word in the plural, is a name of; otherwise the words in lower case and the singular."""
    joined = re.sub(r"[\s.]", "", words)
    for word in (joined, joined.removesuffix("s")):
        if word in _UNITS:
            return _UNITS[word]
        if len(word) > 1 and len(units := _LOWER.get(word.lower(), set())) == 1:
            return next(iter(units))
    return " ".join(word.rstrip(".").removesuffix("s").lower() for word in words.split())


def _known(unit: str) -> bool:
    return all(part in _NAMES for part in unit.partition("^")[0].split("/"))


def units_differ(one: str, other: str) -> bool:
    """Whether both answers have a unit, and not the same.

    Degrees that do not say of which scale are those of any. Of words that are no known units, more of them say the same thing
    more exactly (`apples`, `red apples`).
    """
    if not one or not other or one == other or one in _GENERIC or other in _GENERIC:
        return False
    if "degree" in (one, other) and one.startswith("degree") and other.startswith("degree"):
        return False
    if _known(one) or _known(other):
        return True
    words, others = set(one.split()), set(other.split())
    return not (words <= others or others <= words)


def pairs_to_compare(expected: str, given: str) -> list[tuple[str, str]]:
    r"""The spellings of two answers to compare as expressions: as they stand, then without what only one of them says.

    Where both have a unit, and not the same, there is nothing to compare. Two variables that differ are never left out.

    >>> pairs_to_compare("5", r"5\text{ cm}")[-1], pairs_to_compare("5 m", "5 cm")
    (('5', '5'), [])
    """
    one, other = spelling(expected), spelling(given)
    if units_differ(one.unit, other.unit):
        return []
    pairs = [(one.text, other.text)]
    if not one.variable or not other.variable or one.variable == other.variable:
        pairs.append((one.value, other.value))
    return list(dict.fromkeys(pairs))
