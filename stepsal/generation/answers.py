r"""The final answer in a text, and answers that are typeset differently.

In: a summary, or an answer as a problem or a model writes it. Out: the content of the last complete box; texts in one spelling.

1. A box is `\boxed{...}`, `\fbox{...}`, `\framebox{...}` or `\bbox{...}`, with or without an option in brackets, or one of them
   before a number without braces (`\boxed 5`). The last box that is complete and holds something counts; of nested ones, the
   outermost, and if that holds nothing but a box, what is in it.
2. `plain` takes typesetting away that says nothing: dollar signs, `\text{...}`, thin spaces, the full stop of the sentence.
"""

import re

_BOX = re.compile(r"\\(?:boxed|Boxed|bbox|fbox|framebox)(?![A-Za-z])\s*(?:\[[^\][{}]*\])?\s*")
_BARE = re.compile(
    r"(?:\\(?![)\]])|[^\s$\\{`])(?:\\(?![)\]])|[^\s$\\`])*"
)  # up to white space or the end of the formula
_EMPTY = re.compile(r"(?:\s|\.|…|\\(?:l|c)?dots|\\[,;:!])*$")  # what a box holds that is only spoken of
WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox|hbox|emph|bm|boldsymbol|underline)\s*\{([^{}]*)\}"
)
_COLOUR = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}")
_SIZE = re.compile(
    r"\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge|bf|it|rm|displaystyle|textstyle|checkmark|mathbf|boldmath)(?![A-Za-z{])"
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
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
        "℃": r"^{\circ}C",
        "℉": r"^{\circ}F",
        "∅": r"\emptyset ",
        "。": ".",
        "、": ",",
    }
    | {"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "√": r"\sqrt ", "∪": r"\cup ", "∩": r"\cap "}
    | {"\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2007": " "}
    | _FULL_WIDTH
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISED = re.compile(r"⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_THIN = re.compile(r"\\[,;:>]|\\(?:thinspace|quad|qquad|enspace|left|right|limits)(?![A-Za-z])|~")
_NO_SPACE = re.compile(r"\{\\[,;:!]\}|\\!\s*")
_BRACED_SIGN = re.compile(r"\{([:.;])\}")
_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\s)(?=\d{3}(?!\d))")
_EXPONENT = re.compile(r"(?<=\d)[eE]([-+]?\d+)(?![\d.])")
_POWER_OF_TEN = re.compile(r"(?<=\d)\s*x\s*(?=10\s*\^)")
_POWER = re.compile(r"(?<=[\w)}])\*\*(?=[\w({-])")
_MIXED = re.compile(r"^(-?\d+)\s+(\d+)\s*/\s*(\d+)(?=\s+[A-Za-z]|$)")
_REPEATING = re.compile(r"^(-?)(\d*)\.(\d*)\\overline\{(\d+)\}$")
_FUNCTIONS = re.compile(
    r"(?<![A-Za-z\\])(ln|log|exp|sin|cos|tan|cot|sec|csc|sqrt|arcsin|arccos|arctan|gcd|lcm)(?![A-Za-z])"
)
_PREAMBLE = re.compile(r"^\\text\s*\{\s*(?:the\s+)?(?:final\s+)?answer\s+is:?\s*\}\s*", re.IGNORECASE)
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALE = rf"({'|'.join(_SCALES)})s?\b"
_SCALED = re.compile(rf"(?<=\d)(?:\s+|\s*(\\(?:text|textrm|mathrm|mbox)\s*\{{)\s*){SCALE}(?(1)(\s*\}})?)")


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
                if not _EMPTY.match(text[at + 1 : closes[at]][:200]) or closes[at] - at > 200:
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


def last_tag(text: str) -> str | None:
    """What stands in the last `<answer>...</answer>`, None where there is none.

    >>> last_tag("<answer>4</answer> or <answer>5</answer>"), last_tag("<answer>4")
    ('5', None)
    """
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>") : end].strip()


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

    >>> plain(r"$\text{A}$."), plain(r"1{,}000"), plain(r"\dfrac12"), plain("**5**"), plain(r"\color{red}{5}")
    ('A', '1000', '\\frac{1}{2}', '5', '5')
    """
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _PREAMBLE.sub("", text.translate(_SIGNS).strip())
    text = re.sub(r"^(?:\\approx(?![A-Za-z])|≈)\s*", "", _SIZE.sub(" ", _COLOUR.sub("", text)).strip())
    before = None
    while before != text:
        before = text
        text = _without_stop(_unwrap(text).strip())
    text = re.sub(r"\\(?:[dtc]|nice|x|s)frac(?![A-Za-z])", r"\\frac", _BRACED_SIGN.sub(r"\1", _NO_SPACE.sub("", text)))
    text = (
        re.sub(r"\\(binom|frac)\s*(\d)\s*(\d)", r"\\\1{\2}{\3}", _POWER.sub("^", text))
        .replace(r"\varnothing", r"\emptyset")
        .replace(r"\geq", r"\ge")
        .replace(r"\leq", r"\le")
    )
    text = re.sub(r"\\\\\[[^\][]*\]", r"\\\\", text)  # a row's end with its distance to the next
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi", _THIN.sub(" ", re.sub(r"(?<!\\)\\ ", " ", text)))
    text = _FUNCTIONS.sub(r"\\\1", text)
    text = _THOUSANDS.sub("", re.sub(r"\s+", " ", text)).strip()
    text = _EXPONENT.sub(r"\\times 10^{\1}", _POWER_OF_TEN.sub(r" \\times ", text))
    while (scaled := _SCALED.sub(_times, text)) != text:  # 5 hundred thousand
        text = scaled
    return _REPEATING.sub(_as_fraction, _MIXED.sub(r"\1\\frac{\2}{\3}", text))


def _without_stop(text: str) -> str:
    """The text without the full stop, comma, row's end or space of a formula that it ends with."""
    if text.endswith(r"\\"):
        return text[:-2].strip()
    if re.search(r"\\[.,;:]$", text):
        return text[:-2].strip()
    return text if text.endswith(("...", "…")) else text.rstrip(".,;:").strip()


def _times(found: re.Match[str]) -> str:
    """A word for a number as a factor. What follows it in its typesetting, such as a unit, stays there."""
    return rf"\times {_SCALES[found[2]]}" + ("" if found[3] else found[1] or "")


def _as_fraction(found: re.Match[str]) -> str:
    r"""A decimal that repeats: `0.1\overline{6}` is 15/90."""
    sign, whole, once, again = found.groups()
    nines = 10 ** len(again) - 1
    value = int((whole or "0") + once) * nines + int(again)
    return rf"{sign}\frac{{{value}}}{{{nines * 10 ** len(once)}}}"


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
    whole = WRAPPER.fullmatch(text)
    return whole[1] if whole else text


def bare(text: str) -> str:
    r"""An answer in plain spelling, the texts in it without their typesetting.

    >>> bare(r"\text{red} and \text{blue}.")
    'red and blue'
    """
    return WRAPPER.sub(r"\1", plain(text)).strip()


def same_text(expected: str, given: str) -> bool:
    r"""Whether two answers are the same text but for typesetting, and for capitals in words.

    >>> same_text("Yes", r"\text{yes}"), same_text("x", "X")
    (True, False)
    """
    one, other = (re.sub(r"(?<!\d)\s|\s(?!\d)", "", bare(text)) for text in (expected, given))
    words = one.isalpha() and len(one) > 1
    return bool(one) and (one == other or (words and one.casefold() == other.casefold()))
