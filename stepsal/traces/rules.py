r"""Step rules: where steps begin, from the text of the step so far and of the token that may open the next one.

In: the step's text, piece by piece (`StepText.feed`), and a token's text. Out: whether the token opens a step.

A rule asks a `StepText`, which keeps what rules need of a step and never the step itself: its end, the white space after it,
and whether a code block or a display equation is open. A step of any length costs the same for each token.

Blocks. A code block goes from a line that begins with three backticks or tildes, or ends with three backticks that are alone in
it, to a line that ends with as many. A display equation goes from `\[` to `\]`, from `$$` to `$$`, or from `\begin{align}` (and
its like) to its `\end`. An equation that has not closed after 4,000 characters, or code after 8,000, is taken for text, so that
a stray delimiter does not swallow what follows. No equation begins with a delimiter in backticks or in a quotation of code,
with a `$$` that closes one formula and opens another (`$a$$b$`), or with one in mid-line before a number or words alone.
"""

import copy
import re
from collections.abc import Callable
from unicodedata import east_asian_width

StepRule = Callable[[str, str], bool]
"""`(step_text, token_text) -> bool`: does the token open a new step? Asked once the step has text, for text only."""

_BREAK = re.compile(r"\r\n?|\n")
_SHORTEST_SENTENCE = 15  # characters; an ideograph, which says what a syllable or a word does, counts as three
_KEPT = 80  # characters of the step's end: more than an abbreviation with its brackets
_LONGEST_LINE = 2_000  # of a longer one its beginning and its end are kept
_LONGEST_EQUATION = 4_000
_LONGEST_CODE = 8_000

_CLOSERS = "\"'”’»›)]}）】」』》〉*_`~"
_UNSPACED = "。！？｡‼⁇⁈⁉︒︕︖﹒﹖﹗．।॥۔؟։።፧။။།༎។៕"  # they end a sentence whatever follows
_SPACED = ".!?…"
_NOT_FIRST = _CLOSERS + _UNSPACED + _SPACED + ",;:，；：、）"  # no sentence begins with these
_AFTER_FACTORIAL = "=+-*/×·÷<>≤≥≠^|\\"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER_LAST = _words(
    "Mr Mrs Ms Dr Prof vs cf viz eg ie wrt aka e.g i.e w.r.t s.t a.k.a c.f resp approx "
    "bzw vgl sog ggf evtl bspw d.h z.b u.a o.b.d.a abb gl nr kap bd "  # German
    "Mme Mlle MM p.ex Sr Sra Srta Dra Lic pág págs núm p.ej Sig Dott "  # French, Spanish, Portuguese, Italian
    "т.е т.к т.н рис стр табл гл напр np tzn tzw tj bijv d.w.z bl.a t.ex"  # Russian, Polish, Dutch, Swedish
)
_RARELY_LAST = _words(
    "eq eqs eqn eqns fig figs sec sect ch chap thm lem prop cor def defn ex ref refs tab vol no nos p pp art num ver "
    "etc al ph.d st inc ltd co corp dept univ ave blvd mt jr sr gen gov sen rep rev capt lt col sgt "
    "jan feb mar apr jun jul aug sep sept oct nov dec est ca incl esp misc avg ft lb lbs oz yd sq hr hrs"
)
_SPACED_ABBREVIATION = re.compile(
    r"(?<!\w)(?:z\.\s?B|d\.\s?h|u\.\s?a|o\.\s?ä|i\.\s?e|e\.\s?g|p\.\s?ex|p\.\s?ej|c\.\s?-?\s?à\s?-?\s?d|т\.\s?[екнд])$"
)
_STARTERS = _words(
    "A After All Also Alternatively And Another Are As At Because But By Can Check Compute Consider Could Did Do Does Each "
    "Find First For From Given He Hence Her Here Hmm How However I If In Is It Its Let Maybe Moreover My Next Not Now "
    "OK Okay On One Or Our Same Second She Similarly Since So Still Suppose That The Their Then There Therefore These "
    "They This Those Thus To Using Wait We What When Where Which While Why With Would Yes You"
)
_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|\.(?=[^\W\d_]))*$")
_FIRST_WORD = re.compile(r"[\"'“‘(\[*_]*([^\W\d_]+)")
_NUMERAL = r"(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{2,5})"  # of a list's item
_ENDED_IN_FORMULA = re.compile(r"[.?](?:\$|\\\))$")
_FACTORIAL = re.compile(r"(?:\d|[)\]}]|(?<![^\W\d_])[a-z])!$")

_DISPLAYED = (
    "alignat|align|flalign|xalignat|xxalignat|equation|gather|multline|eqnarray|displaymath|dmath|dgroup|IEEEeqnarray"
)
_ALIGNED = "aligned|alignedat|gathered"
_INNER = "split|cases|dcases|rcases|array|matrix|pmatrix|bmatrix|Bmatrix|vmatrix|Vmatrix|smallmatrix"  # in a line, too
_DELIMITER = re.compile(rf"(?<!\\)(?:\\[\[\]]|\\(?:begin|end)\{{(?:{_DISPLAYED}|{_ALIGNED}|{_INNER})\*?\}}|\$\$)")
_DISPLAY = re.compile(rf"\\\[|\$\$|\\begin\{{(?:{_DISPLAYED})\*?\}}")
_FORMULA = re.compile(r"(?<!\\)\$[^$]+(?<!\\)\$")
_OPENS_FORMULA = re.compile(r"(?<!\\)\$(?!\d[\d.,]*(?:\s|$))")  # a dollar that is no price's
_IN_QUOTES = re.compile(r"(?:^|[\s(,=\[{]|\b[rbf])(?:'[^'\s]*|\"[^\"\s]*)$")  # of code: r'\[', not It's \[
_NO_FORMULA = re.compile(r"(?!.*[\\=^_{}<>+])(?:\d|\s*\d[\d.,]*(?:\s|$)|.*[^\W\d_]{3})")
_ENDS_INNER = re.compile(rf"\\end\{{(?:{_INNER})\*?\}}")
_FENCE = re.compile(r"\s*(?:[-*+]\s+|\d{1,3}[.)]\s+)?(`{3,}|~{3,})([^`]*)$")
# In mid-line, at its end: not right after what a line of code ends with.
_LATE_FENCE = re.compile(r"(?<![A-Za-z0-9_)\]}\"';`])(`{3,})[\w+#.-]*\s*$")
_FENCE_END = re.compile(r"(`{3,}|~{3,})[\s.,;:!?…。，；：！？*_]*$")
_FENCES = {"`": re.compile("`{3,}"), "~": re.compile("~{3,}")}
_HEADING = re.compile(r"\s*(?:#{1,6}\s|\*\*[^*]+\*\*[:.]?\s*$|__[^_]+__[:.]?\s*$|={3,}\s*$)")
_BULLETS = "-*+•⁃‣◦▪–●○■□◆◇▶►➤✓✔✗✘☐☑"
_ITEM_NUMBER = re.compile(rf"(?:^|[\r\n])[\s>#{_BULLETS}]*[(\[]?{_NUMERAL}$")
_CIRCLED = "①-⑳⑴-⑽"
_ITEM = re.compile(
    rf"\s*(?:[{_BULLETS}·]|{_NUMERAL}\.|\d{{1,3}}\)|\(?[a-zA-Z0-9]{{1,3}}\)|\[\d{{1,3}}\])\s"
    rf"|\s*(?:[{_CIRCLED}]|[（(]?[\d一二三四五六七八九十]{{1,3}}[、）．])"
    r"|\s*[^\W\d_]{2,12} \d{1,3}:\s"  # Case 1: ...
)
_ITEM_BEGINS = re.compile(
    rf"(?:[{_BULLETS}]|\d{{1,3}}[.)]|\(?[a-zA-Z0-9]{{1,3}}\))\s|[{_BULLETS}]$|[{_CIRCLED}]|\*\*|#{{1,6}}(?:\s|$)|`{{3}}|~{{3}}|\\$"
)
_ITEM_MAY_BEGIN = re.compile(r"[（(]?(?:\d{0,3}|[一二三四五六七八九十]{1,3})[.)、）．]?$")


class StepText:
    """What rules know of the step so far.

    Attributes:
        tail: the last characters of its text, without the white space at the end; empty as long as it has no text.
        breaks: how many line breaks stand after that text. spaced: whether any white space does.
        block: what would close the code block or display equation that is open, or None.
        ended: the text ends with a heading's line, a code block or a display equation.
        in_item: the last whole line belongs to a list item.
        weight: how long the text is, as sentences are measured; it stops counting at the shortest sentence.
    """

    def __init__(self) -> None:
        self.block: str | None = None
        self.in_item = False
        self.ended = False
        self._line = ""  # the line that the text ends in
        self._carry = ""  # the end of the line, in which a delimiter may have begun
        self._size = 0  # characters since the block was opened
        self._given_up: str | None = None  # the fence of a code block that was taken for text
        self._return = False  # the text ends with a carriage return
        self.begin()

    @classmethod
    def of(cls, text: str) -> "StepText":
        """A step that has this text."""
        step = cls()
        step.feed(text)
        return step

    def begin(self) -> None:
        """A new step begins here; blocks and lines go on."""
        self.tail = ""
        self.breaks = 0
        self.spaced = False
        self.weight = 0
        self._pending = 0

    def fork(self) -> "StepText":
        """An independent copy."""
        return copy.copy(self)

    def breaks_before(self, lead: str) -> int:
        """How many line breaks stand between the text and a token that begins with this white space."""
        joined = self._return and lead.startswith("\n")
        return self.breaks + len(_BREAK.findall(lead)) - joined

    def line_with(self, lead: str) -> str:
        """The line so far, where a token goes on with this white space."""
        return _BREAK.split(self._line + lead)[-1]

    def feed(self, text: str) -> None:
        """The step goes on with this text."""
        if not text:
            return
        start = 0
        for found in _BREAK.finditer(text):
            self._within_line(text[start : found.start()])
            if not (self._return and found.start() == 0 and text[0] == "\n"):
                self._end_line()
                self.breaks += 1
            start, self.spaced = found.end(), True
        self._within_line(text[start:])
        self._return = text[-1] == "\r"

    def _within_line(self, text: str) -> None:
        """Text without a line break."""
        if not text:
            return
        self._line += text
        if len(self._line) > _LONGEST_LINE:
            self._line = self._line[: _LONGEST_LINE // 2] + self._line[-_LONGEST_LINE // 2 :]
        self._weigh(text)
        said = text.rstrip()
        if said:
            lead = "\n" * min(self.breaks, 2) or " " * self.spaced
            self.tail = (self.tail + lead + said[-_KEPT:])[-_KEPT:] if self.tail else said.lstrip()[-_KEPT:]
            self.breaks, self.spaced = 0, False
        self.spaced = self.spaced or len(said) < len(text)
        self._size += len(text)
        self._give_up()
        self._find_delimiters(text)

    def _give_up(self) -> None:
        """A block that is longer than any is text."""
        if self.block and self.block[0] in "`~":
            if self._size > _LONGEST_CODE:
                self.block, self._given_up = None, self.block
        elif self._size > _LONGEST_EQUATION:
            self.block = None

    def _find_delimiters(self, text: str) -> None:
        seen, old, end = self._carry + text, len(self._carry), 0
        if "\\" in seen or "$$" in seen:
            for found in _DELIMITER.finditer(seen):
                before = self._line[: len(self._line) - len(seen) + found.start()]
                if found.end() > old and (self.block or not _is_mentioned(before, found[0])):
                    self.ended = self.ended and not seen[max(old, end) : found.start()].strip()
                    self._delimiter(found[0])
                    end = found.end()
        if seen[max(old, end) :].strip():
            self.ended = False
        self._carry = seen[max(end, len(seen) - 24) :]

    def _delimiter(self, found: str) -> None:
        closing = {"\\[": "\\]", "$$": "$$"}.get(found, found.replace("begin", "end"))
        if self.block == found:
            self.block, self.ended = None, not _ENDS_INNER.match(found)
        elif self.block is None and (found[1] in "[$" or found.startswith("\\begin")):
            self.block, self._size = closing, 0

    def _end_line(self) -> None:
        line = self._line
        if self.block == "$$":
            before, opened, after = line.rpartition("$$")
            if opened and before.strip() and _NO_FORMULA.match(after):  # a price, or a name of the shell
                self.block = None
        if self.block and self.block[0] in "`~":
            if _closes(self.block, line):
                self.block, self.ended = None, True
        elif self.block is None:
            fence = _opened_fence(line)
            if self._given_up and _closes(self._given_up, line):  # the end of what was taken for text
                self._given_up, self.ended = None, True
            elif fence:
                self.block, self._size, self._given_up = fence, 0, None
            elif _HEADING.match(line):
                self.ended = True
        if line.strip():
            self.in_item = bool(_ITEM.match(line + " ")) or (self.in_item and line[0].isspace())
        self._size += 1
        self._line = self._carry = ""

    def _weigh(self, text: str) -> None:
        if self.weight >= _SHORTEST_SENTENCE:
            return
        said = text.strip()
        if said:
            before = self._pending + self.breaks + len(text) - len(text.lstrip()) if self.weight else 0
            wide = sum(east_asian_width(each) in "WF" for each in said[:_SHORTEST_SENTENCE])
            self.weight += before + len(said) + 2 * wide
            self._pending = len(text) - len(text.rstrip())
        else:
            self._pending += len(text)


def _is_mentioned(line: str, delimiter: str) -> bool:
    """Whether an equation's delimiter is none after this line: in backticks, in quotes, or of the formulas in the line."""
    if line.count("`") % 2 or _IN_QUOTES.search(line):
        return True
    return delimiter == "$$" and len(_OPENS_FORMULA.findall(_FORMULA.sub("", line))) % 2 == 1


def _opened_fence(line: str) -> str | None:
    """The fence of the code block that a line opens: at its beginning, or at its end where it is not a pair's second."""
    if fence := _FENCE.match(line):
        return fence[1]
    late = _LATE_FENCE.search(line) if "```" in line else None
    return late[1] if late and len(_FENCES["`"].findall(line)) % 2 else None


def _closes(fence: str, line: str) -> bool:
    """Whether a line ends the code block of that fence: it ends with one, punctuation aside, which is not a pair's second."""
    found = _FENCE_END.search(line)
    return bool(found and found[1].startswith(fence)) and len(_FENCES[fence[0]].findall(line)) % 2 == 1


def opens_paragraph(step: StepText, token_text: str) -> bool:
    """`paragraph`, of a step that was fed."""
    said = token_text.lstrip()
    if not (said and step.tail) or step.block:
        return False
    return step.breaks_before(token_text[: len(token_text) - len(said)]) >= 2


def opens_line(step: StepText, token_text: str) -> bool:
    """`line`, of a step that was fed."""
    said = token_text.lstrip()
    return bool(said and step.tail) and step.breaks_before(token_text[: len(token_text) - len(said)]) >= 1


def opens_sentence(step: StepText, token_text: str) -> bool:
    """`sentence`, of a step that was fed."""
    said = token_text.lstrip()
    if not (said and step.tail):
        return False
    if step.tail.endswith("<|message|>"):
        return True
    lead = token_text[: len(token_text) - len(said)]
    breaks, spaced = step.breaks_before(lead), step.spaced or bool(lead)
    if breaks >= 2 or step.block:
        return breaks >= 2
    display = _DISPLAY.match(said)
    if (display and not _is_mentioned(step.line_with(lead), display[0])) or (step.ended and spaced):
        return True
    if breaks and _opens_line_of_its_own(step, lead, said):
        return True
    return step.weight >= _SHORTEST_SENTENCE and _ends_sentence(step.tail, said, spaced)


def _opens_line_of_its_own(step: StepText, lead: str, said: str) -> bool:
    """Whether the line that the token begins is a list item, a heading or a code block, or stands after a list."""
    if _ITEM_BEGINS.match(said):
        return True
    if step.in_item and not step.line_with(lead):
        return True
    after = step.in_item or step.tail.rstrip(_CLOSERS)[-1:] in {*".!?:;：；", *_UNSPACED}
    return after and bool(_ITEM_MAY_BEGIN.match(said))


def _ends_sentence(tail: str, said: str, spaced: bool) -> bool:
    """Whether the step's end is a sentence's, given what follows."""
    text, follows = tail.rstrip(_CLOSERS + "“‘"), said[0]  # German closes with what English opens with
    if ended := _ENDED_IN_FORMULA.search(tail.rstrip("*_`~")):
        text = tail[: ended.start() + 1]
    if not text or (follows in _NOT_FIRST and not (spaced and follows in "\"'*_`~")):
        return False
    last = text[-1]
    if tail.rfind("《") > tail.rfind("》"):  # in a title
        return False
    closed = tail[len(text) :].strip("*_`~")  # a quotation, or what stands in brackets, within a sentence
    if closed and (follows.islower() or follows == "と"):
        return False
    if last in _UNSPACED:
        number = last == "．" and follows.isdigit()
        return spaced or not (number or said.startswith(("<|", "<｜", "</")))
    if not spaced or last not in _SPACED:
        return False
    if (last == "…" or text.endswith(("..", ". ."))) and follows.islower():
        return False
    if last == "!" and _FACTORIAL.search(text):
        return not (follows in _AFTER_FACTORIAL or follows.islower())
    return last != "." or _period_ends(text[:-1], said)


def _period_ends(text: str, said: str) -> bool:
    """Whether the period after the text ends a sentence: not after an abbreviation, an initial or a list item's number."""
    if _ITEM_NUMBER.search(text):
        return False
    found = _WORD.search(text)
    if found is None:
        return True
    word = found[0]
    if word in _NEVER_LAST or word.lower() in _NEVER_LAST or _SPACED_ABBREVIATION.search(text):
        return False
    first = _FIRST_WORD.match(said)
    if first and len(word) == 1 and _SPACED_ABBREVIATION.search(f"{text}. {first[1]}"):
        return False
    initial = len(word) == 1 and word.isupper()
    if word.lower() in _RARELY_LAST or initial or (len(word) == 2 * word.count(".") + 1 > 1):
        return first is not None and first[1] in _STARTERS
    return True


def paragraph(step_text: str, token_text: str) -> bool:
    r"""A blank line stands between the step and the token, and no code block or display equation is open.

    >>> paragraph("First.\n", "\nThen"), paragraph("First.\n", "Then"), paragraph("\\[ x = 1\n", "\ny = 2 \\]")
    (True, False, False)
    """
    return opens_paragraph(StepText.of(step_text), token_text)


def line(step_text: str, token_text: str) -> bool:
    r"""A line break stands between the step and the token.

    >>> line("First.\n", "Then"), line("First.", " Then")
    (True, False)
    """
    return opens_line(StepText.of(step_text), token_text)


def sentence(step_text: str, token_text: str) -> bool:
    r"""The step ends like a sentence, is 15 characters or longer, and white space follows: never inside `3.14`, nor after
    `e.g.`. After `。！？` and their like no white space is needed.

    A blank line, a heading, a list item, a display equation and a code block end a sentence of any length. What a Harmony
    message says begins a step, too: the step before ends with the message's header.

    >>> sentence("This is a whole sentence.", " Then"), sentence("Pi is close to 3.", "14"), sentence("No.", " Then")
    (True, False, False)
    >>> sentence("We add the two, e.g.", " two"), sentence("我们先把它们相加。", "然后"), sentence("So\n", "- one")
    (False, True, True)
    """
    return opens_sentence(StepText.of(step_text), token_text)


STEP_RULES: dict[str, StepRule] = {"paragraph": paragraph, "line": line, "sentence": sentence}

FED: dict[StepRule, Callable[[StepText, str], bool]] = {
    paragraph: opens_paragraph,
    line: opens_line,
    sentence: opens_sentence,
}
"""The rules that need not see a step's whole text again for each token."""

INNER = re.compile(rf"(?<=\S)\s+(?=\S)|(?<=[{_UNSPACED}])(?=\S)|(?<=[{_UNSPACED}][{re.escape(_CLOSERS)}])(?=\S)")
"""Where a step may begin inside a token."""
