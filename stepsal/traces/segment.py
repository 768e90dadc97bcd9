r"""Tokens to steps: the one segmenter, causal, for whole traces and for traces that are still being written.

In: token ids, one at a time. Out: for each, the segment of the step that it opens, or None. Nothing else in stepsal
splits steps, so a saliency map and an intervention see the same ones. (method.md section 1.)

For each token:

1. `TextStream` gives the text that has become final with it. `MarkerTokens` says which markers it is, if it is one: where the
   tokenizer has a token for a marker, or for a special part of one, only that token counts, and its spelling is text.
2. A marker that this completes closes the segment: the *next* token opens the thinking, or the summary. Only the
   first opening marker and the first closing marker after it count; which closing markers, the opening one decides.
3. Otherwise the step rule decides, from the step's text so far and the token's own, whether the token opens a step.
   A boundary inside a token, or just before what may become the closing marker, waits for the next token with text.

Undecided text. A response may begin with what may become a marker (white space, `<|channel|>`, `[` of `[THINK]`). As long as
that is open its tokens count as question. A marker stays there; whatever else it turns out to be opens the response's first
step, from the response's first token on: `Segmenter.back` says how many tokens before the deciding one that is.

Formats and step rules are data: `stepsal.formats`.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from stepsal.models.tokenizers import fast_backend
from stepsal.traces.formats import (
    HEADER,
    FormatSpec,
    StepsSpec,
    find_formats,
    find_marker,
    find_rule,
    last_marker,
    longest,
    may_become,
)
from stepsal.traces.rules import FED, INNER, StepRule, StepText

_UNDECIDED = "\ufffd"  # what a decoder writes for bytes that are no character (yet)


@runtime_checkable
class Tokenizer(Protocol):
    """What stepsal needs of a tokenizer; every Hugging Face tokenizer, fast or slow, is one."""

    def encode(self, text: Any, *args: Any, **kwargs: Any) -> Any: ...
    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any: ...
    def __len__(self) -> int: ...


def filling_token(tokenizer: Tokenizer) -> int | None:
    """What rows of a batch are filled up with: the padding token, or the end token where the tokenizer has none.

    >>> from stepsal import load_tokenizer
    >>> filling_token(load_tokenizer())
    0
    """
    pad, end = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos"))
    return end if pad is None else pad


def decode(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of tokens as they are: special tokens kept, spaces not tidied."""
    return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _decoder(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
    """`decode` with this tokenizer; without its class's overhead where that leaves the text to its Rust backend."""
    backend = fast_backend(tokenizer)
    return partial(decode, tokenizer) if backend is None else partial(backend.decode, skip_special_tokens=False)


class _WholeTexts(dict[int, str | None]):
    """The text of a token wherever it stands, if it has one: of a byte-level tokenizer, whose tokens are bytes one after
    the other, and where those are whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        backend = fast_backend(tokenizer)
        byte_level = backend is not None and type(backend.decoder).__name__ == "ByteLevel"
        self._decode = backend.decode if byte_level else None

    def __missing__(self, token: int) -> str | None:
        text = None if self._decode is None else self._decode([token], skip_special_tokens=False)
        self[token] = text if text and _UNDECIDED not in text else None
        return self[token]


# Kept as long as the tokenizer: a batch's rows share them, and so do the batches after it (2 % of decoding at batch 16).
_whole_texts: WeakKeyDictionary[Any, _WholeTexts] = WeakKeyDictionary()


def _whole_texts_of(tokenizer: Tokenizer) -> _WholeTexts:
    if fast_backend(tokenizer) is None:  # anything: perhaps not hashable
        return _WholeTexts(tokenizer)
    return _whole_texts.setdefault(tokenizer, _WholeTexts(tokenizer))


class TextStream:
    """The text of a token sequence, as far as each token makes it final.

    `push` gives the characters that became final; `held` is what is decoded but undecided, such as the first bytes of
    an emoji. The pieces and the last `held`, joined, are the decoded text. Only a short window is decoded each time.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decode = _decoder(tokenizer)
        self._whole = _whole_texts_of(tokenizer)
        self._window: list[int] = []
        self._final = ""  # the window's text that was given out
        self.held = ""

    def push(self, token: int) -> str:
        """The text that this token makes final; may be empty, and may begin with bytes of the tokens before."""
        whole = None if self.held else self._whole[token]
        if whole is not None:
            self._window, self._final = [token], whole
            return whole
        self._window.append(token)
        text, end = self._decoded()
        new = text[len(self._final) : end]
        if end == len(text) or text.startswith(self._final):
            self._final, self.held = text[: max(end, len(self._final))], text[end:]
        else:  # byte-fallback decoders write a whole run of bytes as U+FFFD until its last character is complete
            new, self.held = "", text[len(self._final) :]
        if len(self._window) > 8:
            self._shorten(text)
        return new

    def fork(self) -> "TextStream":
        """An independent copy."""
        other = copy.copy(self)
        other._window = self._window.copy()
        return other

    def _decoded(self) -> tuple[str, int]:
        """The window's text and where it stops being final: an incomplete character shows as up to three U+FFFD."""
        text = self._decode(self._window)
        return text, max(len(text.rstrip(_UNDECIDED)), len(text) - 3)

    def _shorten(self, text: str) -> None:
        """Forget old tokens where that leaves the text of the others alone; bytes without end are cut anywhere."""
        whole, endless = self._window, len(self._window) > 24
        if self.held and not endless:
            return
        for kept in range(4, 5 if self.held else len(whole)):
            self._window = whole[-kept:]
            part, end = self._decoded()
            if endless or text.endswith(part):
                self._final, self.held = part[:end], part[end:]
                return
        self._window = whole


class MarkerTokens:
    """The markers of a format as a tokenizer has them.

    A marker that is one added token, and each special token inside a marker, is written as half a surrogate pair, which no text
    has: then no spelling of it, token by token, is taken for it.

    >>> from stepsal import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> markers = MarkerTokens(tokenizer, ["<think>", "[THINK]"])
    >>> markers.written("[THINK]"), markers.written("<think>") == markers.said(348, "<think>")
    ('[THINK]', True)
    """

    def __init__(self, tokenizer: Tokenizer, markers: Iterable[str]) -> None:
        added = _added_tokens(tokenizer)
        self._ids: dict[int, tuple[str, str]] = {}  # token: how it is written here, and in the text
        self._written: dict[str, str] = {}
        for marker in markers:
            pieces = [self._piece(piece, added) for piece in marker.split(HEADER)]
            self._written[marker] = HEADER.join(pieces)

    def _piece(self, piece: str, added: dict[str, tuple[int, bool]]) -> str:
        inside = (
            [piece] if piece in added else [text for text, (_, special) in added.items() if special and text in piece]
        )
        for text in sorted(inside, key=len, reverse=True):
            if text in piece:
                id, _ = added[text]
                self._ids.setdefault(id, (chr(0xD800 + len(self._ids)), text))
                piece = piece.replace(text, self._ids[id][0])
        return piece

    def written(self, marker: str) -> str:
        """The marker as it is to be looked for in what `said` gives."""
        return self._written[marker]

    def said(self, token: int, text: str) -> str:
        """The text that a token made final, with the token itself as it is written in markers."""
        found = self._ids.get(token)
        if found is None:
            return text
        before, _, after = text.rpartition(found[1])
        return before + found[0] + after

    def among(self, text: str) -> bool:
        """Whether a text that `said` gave has any of these tokens."""
        return any("\ud800" <= each <= "\udfff" for each in text)


_added: WeakKeyDictionary[Any, tuple[int, dict[str, tuple[int, bool]]]] = WeakKeyDictionary()


def _added_tokens(tokenizer: Tokenizer) -> dict[str, tuple[int, bool]]:
    """By text: the id of each added token, and whether it is a special one."""
    try:
        known = _added.get(tokenizer)
    except TypeError:  # not hashable
        return _find_added_tokens(tokenizer)
    if known is None or known[0] != len(tokenizer):
        known = _added[tokenizer] = len(tokenizer), _find_added_tokens(tokenizer)
    return known[1]


def _find_added_tokens(tokenizer: Tokenizer) -> dict[str, tuple[int, bool]]:
    decoder = getattr(tokenizer, "added_tokens_decoder", None)
    if not isinstance(decoder, dict):
        return {}
    found = {str(token): (int(id), bool(getattr(token, "special", False))) for id, token in decoder.items()}
    return {text: each for text, each in found.items() if text}


def marked_text(
    tokenizer: Tokenizer, tokens: Sequence[int], pairs: Sequence[tuple[str, str]]
) -> tuple[str, list[tuple[str, str]]]:
    """The tokens' text as markers are looked for in it, and the pairs of markers to look for.

    >>> from stepsal import load_tokenizer
    >>> text, pairs = marked_text(load_tokenizer(), load_tokenizer().encode("a</think>"), [("<think>", "</think>")])
    >>> find_marker(pairs[0][1], text)
    (1, 2)
    """
    markers = MarkerTokens(tokenizer, (marker for pair in pairs for marker in pair))
    stream = TextStream(tokenizer)
    text = "".join(markers.said(token, stream.push(token)) for token in tokens) + stream.held
    return text, [(markers.written(opening), markers.written(closing)) for opening, closing in pairs]


class Segmenter:
    r"""Which tokens open a step, decided from the tokens up to and including each.

    Args:
        tokenizer: turns tokens to text.
        format: `auto`, a name in `FORMATS`, or a pair of markers.
        steps: `auto`, a name in `STEP_RULES`, or a callable `(step_text, token_text) -> bool`.
        question_tokens: how many tokens are the question, whatever markers they show (see `question_length`). None:
            the question ends with the first opening marker.

    >>> from stepsal import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> segmenter = Segmenter(tokenizer)
    >>> [segmenter.push(token) for token in tokenizer.encode("2+2?<think>\nIt\n\nis</think>4")]
    ['question', None, None, None, None, 'thinking', None, None, None, 'thinking', None, None, 'summary']
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: FormatSpec = "auto",
        steps: StepsSpec = "auto",
        question_tokens: int | None = None,
    ) -> None:
        formats = find_formats(format)
        self._marks = MarkerTokens(tokenizer, (marker for each in formats for pair in each.markers for marker in pair))
        self._pairs = [
            (self._marks.written(opening), self._marks.written(closing), find_rule(steps, each.thinking_rule))
            for each in formats
            for opening, closing in each.markers
        ]
        self._summary_rule = self._rule = find_rule(steps, "paragraph")
        # What a response without opening marker is; it may then end with the closing marker of any of the pairs.
        self._unmarked = "thinking" if self._pairs and format != "auto" else "summary"
        self._question_tokens = question_tokens
        self._stream = TextStream(tokenizer)
        self._tokens = 0
        self._next: str | None = "question"  # the segment that the next token opens, whatever it says
        self._prompt: list[str] = []  # what a prompt of known length says
        self._seen = ""  # text in which a marker may be under way
        self._begun = ""  # the beginning of an opening marker that the prompt ends with
        self._held: list[str] = []  # what the response's tokens say as long as they are undecided
        self._closings: tuple[str, ...] = ()
        self._known = StepText()
        self.segment = "question"
        """The segment that the last token is in."""
        self._begin("question")
        self.text = ""
        """The text that the last token made final."""
        self.back = 0
        """How many tokens before the last one the step begins that it opened: those that were undecided before it."""

    def push(self, token: int) -> str | None:
        """The segment (`question`, `thinking`, `summary`) of the step that this token opens, or None."""
        self.text = self._stream.push(token)
        said = self._marks.said(token, self.text)
        undecided = _UNDECIDED if self._stream.held else ""
        opened, self._next = self._next, None
        self._tokens += 1
        self.back = 0
        if opened:
            self._begin(opened)
        if self.segment == "question":
            unmarked = self._read_question(said, undecided)
            if not unmarked:
                return opened
            opened = unmarked
            self._open_response(unmarked)
        return self._read_step(said, undecided, opened)

    @property
    def undecided(self) -> bool:
        """Whether the last token may belong to a marker, or to the response."""
        return bool(self._held)

    def finish(self) -> str | None:
        """The segment of the step that the undecided tokens at the end are, `back` tokens long, or None.

        A response that ends before it is decided is the response, unless it ends within a marker's special tokens: those are
        question still. Call it once, after the last token; a copy (`fork`) can go on.
        """
        self.back = len(self._held)
        if not self._held or self._marks.among(self._seen):
            return None
        self._open_response(self._unmarked)
        return self.segment

    def fork(self) -> "Segmenter":
        """An independent copy in the same state, for another continuation of the same tokens."""
        other = copy.copy(self)
        other._stream, other._known = self._stream.fork(), self._known.fork()
        other._prompt, other._held, other._step = self._prompt.copy(), self._held.copy(), self._step.copy()
        return other

    def _begin(self, segment: str) -> None:
        if segment == "summary":
            self._rule = self._summary_rule
        if self.segment == segment:
            self._known.begin()
        else:  # a code block or an equation ends with its segment
            self._known = StepText()
        self.segment = segment
        self._fed = next((fed for rule, fed in FED.items() if rule is self._rule), None)
        self._step: list[str] = []  # the step's text, for rules that want it whole
        self._blank = True  # no text yet, decided or not
        self._due = False  # a boundary that waits for a token to open a step at

    def _open_response(self, segment: str) -> None:
        """The response's first step begins, with the tokens that were undecided until now."""
        if segment == "thinking":
            self._closings, self._rule = tuple(pair[1] for pair in self._pairs), self._pairs[0][2]
        self._begin(segment)
        self.back = len(self._held)
        self._seen = ""
        for text in self._held:
            self._feed(text)
        self._held = []

    def _feed(self, text: str) -> None:
        self._blank = self._blank and not text.strip()
        if self._fed:
            self._known.feed(text)
        else:
            self._step.append(text)

    def _read_question(self, said: str, undecided: str) -> str | None:
        """Look for the opening marker. The segment that this token opens, when the response shows there is none."""
        before = 0 if self._question_tokens is None else self._question_tokens - self._tokens
        if self._question_tokens is None:
            self._seen += said
            found = [(at, pair) for pair in self._pairs if (at := find_marker(pair[0], self._seen))]
            if found:
                (_, end), pair = min(found, key=lambda each: each[0])
                self._end_question(pair, self._seen[end:])
            else:
                self._seen = self._seen[-max((longest(opening) for opening, _, _ in self._pairs), default=1) :]
        elif before > 0:
            self._prompt.append(said)
        elif before == 0:
            self._end_prompt("".join(self._prompt) + said)
        else:
            return self._read_beginning(said, undecided)
        return None

    def _end_prompt(self, prompt: str) -> None:
        """The prompt is complete: it opens the thinking, or ends with a beginning of a marker, or neither."""
        self._prompt = []
        for pair in self._pairs:
            if (at := last_marker(pair[0], prompt)) and not prompt[at[1] :].strip():
                self._end_question(pair, "")
                return
        self._next = None if self._pairs else "summary"
        self._begun = max((_begun(opening, prompt) for opening, _, _ in self._pairs), key=len, default="")

    def _read_beginning(self, said: str, undecided: str) -> str | None:
        """The response's beginning: a marker, perhaps after white space or begun by the prompt, or none."""
        seen = self._seen + said
        heads = (seen.lstrip() + undecided, self._begun + seen + undecided)
        for head, pair in ((head, pair) for head in heads for pair in self._pairs):
            if (at := find_marker(pair[0], head)) and at[0] == 0:
                self._end_question(pair, head[at[1] :])
                self._held = []
                return None
            if (at := find_marker(pair[1], head)) and at[0] == 0:  # nothing was thought
                self._next, self._held = "summary", []
                return None
        if not any(may_become(marker, head) for head in heads for pair in self._pairs for marker in pair[:2]):
            return self._unmarked
        self._seen = seen if seen.strip() else seen[-longest(HEADER) :]
        self._held.append(self.text)
        return None

    def _end_question(self, pair: tuple[str, str, StepRule], rest: str) -> None:
        """The opening marker is complete; `rest` is what its last token says after it."""
        opening, _, self._rule = pair
        self._closings = tuple(each[1] for each in self._pairs if each[0] == opening)
        self._next = "summary" if any(find_marker(closing, rest) for closing in self._closings) else "thinking"
        self._seen = rest

    def _read_step(self, said: str, undecided: str, opened: str | None) -> str | None:
        """Take the token into the step it opened or, where a boundary is due, into a new one."""
        shown = self.text + undecided
        blank = not shown.strip()
        boundary = not (opened or blank or self._blank) and (self._due or self._opens(shown))
        if self.segment == "thinking":
            seen = self._seen + said
            found = [at for closing in self._closings if closing[-1] in said and (at := find_marker(closing, seen))]
            if found:
                self._next = "summary"
                boundary = boundary and bool(seen[len(self._seen) : min(found)[0]].strip())
            elif boundary and any(_under_way(each, seen + undecided, said + undecided) for each in self._closings):
                boundary, self._due = False, True
            self._seen = seen[-max(map(longest, self._closings)) :]
        if boundary:
            self._begin(self.segment)
            opened = self.segment
        if not blank and len(shown) > 1:
            self._look_inside(undecided)
        else:
            self._feed(self.text)
        self._blank = self._blank and blank
        return opened

    def _opens(self, shown: str) -> bool:
        """Whether the step rule lets a token that says this open a step."""
        return self._fed(self._known, shown) if self._fed else self._rule("".join(self._step), shown)

    def _look_inside(self, undecided: str) -> None:
        """Feed the token's text piece by piece: a boundary inside it waits for the next token."""
        text, start = self.text, 0
        for found in INNER.finditer(text):
            if self._fed is None and not found[0]:  # a callable of the user's is asked after white space alone
                continue
            self._feed(text[start : found.end()])
            start = found.end()
            self._due = self._due or self._opens(text[start:] + undecided)
        self._feed(text[start:])


def _under_way(marker: str, text: str, token_text: str) -> bool:
    """Whether the text ends with a beginning of the marker that the token's text lies wholly within."""
    own = len(token_text.lstrip())
    return any(may_become(marker, text[-size:]) for size in range(own, min(longest(marker), len(text) + 1)))


def _begun(marker: str, text: str) -> str:
    """The longest end of the text that may become the marker."""
    sizes = range(min(longest(marker), len(text)), 0, -1)
    return next((text[-size:] for size in sizes if may_become(marker, text[-size:])), "")


def question_length(tokenizer: Tokenizer, prompt_tokens: Sequence[int], format: FormatSpec = "auto") -> int:
    r"""How many of the prompt's tokens are the question: all, or, when the prompt opens the thinking, as R1's template
    does with `<think>\n`, those up to the opening marker. White space, or an empty thinking, may follow the marker.

    >>> from stepsal import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> question_length(tokenizer, tokenizer.encode("2+2?<think>\n"))
    5
    """
    pairs = [pair for each in find_formats(format) for pair in each.markers]
    markers = MarkerTokens(tokenizer, (marker for pair in pairs for marker in pair))
    stream = TextStream(tokenizer)
    pieces = [markers.said(token, stream.push(token)) for token in prompt_tokens]
    text = "".join(pieces)
    ends = [
        (at[1], markers.written(closing))
        for opening, closing in pairs
        if (at := last_marker(markers.written(opening), text))
    ]
    if ends:
        marker_end, closing = max(ends)
        rest = text[marker_end:].strip()
        if not rest or find_marker(closing, rest) == (0, len(rest)):
            return 1 + next(i for i, end in enumerate(accumulate(map(len, pieces))) if end >= marker_end)
    return len(pieces)
