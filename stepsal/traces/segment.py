r"""Tokens to steps: the one segmenter, causal, for whole traces and for traces that are still being written.

In: token ids, one at a time. Out: for each, the segment of the step that it opens, or None. Nothing else in stepsal
splits steps, so a saliency map and an intervention see the same ones. (method.md section 1.)

For each token:

1. `TextStream` gives the text that has become final with it.
2. A marker that this text completes closes the segment: the *next* token opens the thinking, or the summary. Only the
   first opening marker and the first closing marker after it count; which pair, the opening marker decides.
3. Otherwise the step rule decides, from the step's text so far and the token's own, whether the token opens a step.
   A boundary inside a token, or just before what may become the closing marker, waits for the next token with text.

Formats and step rules are data: `stepsal.formats`.
"""

import copy
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

from stepsal.models.tokenizers import fast_backend
from stepsal.traces.formats import (
    FormatSpec,
    StepRule,
    StepsSpec,
    find_formats,
    find_marker,
    find_rule,
    last_marker,
    longest,
    may_become,
)

_UNDECIDED = "\ufffd"  # what a decoder writes for bytes that are no character (yet)
_INNER = re.compile(r"(?<=\S)\s+(?=\S)")


@runtime_checkable
class Tokenizer(Protocol):
    """What stepsal needs of a tokenizer; every Hugging Face tokenizer, fast or slow, is one."""

    def encode(self, text: Any, *args: Any, **kwargs: Any) -> Any: ...
    def decode(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any: ...
    def __len__(self) -> int: ...


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
        self._pairs = [
            (opening, closing, find_rule(steps, each.thinking_rule))
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
        self._seen = ""  # text in which a marker may be under way
        self._begun = ""  # the beginning of an opening marker that the prompt ends with
        self._closings: tuple[str, ...] = ()
        self._begin("question")
        self.text = ""
        """The text that the last token made final."""

    def push(self, token: int) -> str | None:
        """The segment (`question`, `thinking`, `summary`) of the step that this token opens, or None."""
        self.text = self._stream.push(token)
        shown = self.text + (_UNDECIDED if self._stream.held else "")
        opened, self._next = self._next, None
        self._tokens += 1
        if opened:
            self._begin(opened)
        if self.segment == "question":
            unmarked = self._read_question(shown)
            if not unmarked:
                return opened
            opened = unmarked
            self._begin(opened)
        return self._read_step(shown, opened)

    def fork(self) -> "Segmenter":
        """An independent copy in the same state, for another continuation of the same tokens."""
        other = copy.copy(self)
        other._stream = self._stream.fork()
        return other

    def _begin(self, segment: str) -> None:
        self.segment = segment
        """The segment that the last token is in."""
        self._step = ""
        self._blank = True  # no text yet, decided or not
        self._due = False  # a boundary that waits for a token to open a step at
        if segment == "summary":
            self._rule = self._summary_rule

    def _read_question(self, shown: str) -> str | None:
        """Look for the opening marker. The segment that this token opens, when the response shows there is none."""
        before = 0 if self._question_tokens is None else self._question_tokens - self._tokens
        if self._question_tokens is None:
            self._seen += self.text
            found = [(at, pair) for pair in self._pairs if (at := find_marker(pair[0], self._seen))]
            if found:
                (_, end), pair = min(found, key=lambda each: each[0])
                self._end_question(pair, self._seen[end:])
            else:
                self._seen = self._seen[-max((longest(opening) for opening, _, _ in self._pairs), default=1) :]
        elif before > 0:
            self._seen += self.text
        elif before == 0:
            prompt, self._seen = self._seen + self.text, ""
            for pair in self._pairs:
                if (at := last_marker(pair[0], prompt)) and not prompt[at[1] :].strip():
                    self._end_question(pair, "")
                    break
            else:
                self._next = None if self._pairs else "summary"
                self._begun = max((_begun(opening, prompt) for opening, _, _ in self._pairs), key=len, default="")
        else:  # the response's beginning: a marker, perhaps after white space or begun by the prompt, or none
            said = self._seen + shown
            heads = (said.lstrip(), self._begun + said)
            for head, pair in ((head, pair) for head in heads for pair in self._pairs):
                if (at := find_marker(pair[0], head)) and at[0] == 0:
                    self._end_question(pair, head[at[1] :])
                    return None
                if (at := find_marker(pair[1], head)) and at[0] == 0:  # nothing was thought
                    self._next = "summary"
                    return None
            if not any(may_become(marker, head) for head in heads for pair in self._pairs for marker in pair[:2]):
                if self._unmarked == "thinking":
                    self._closings, self._rule = tuple(pair[1] for pair in self._pairs), self._pairs[0][2]
                return self._unmarked
            self._seen += self.text
        return None

    def _end_question(self, pair: tuple[str, str, StepRule], rest: str) -> None:
        """The opening marker is complete; `rest` is what its last token says after it."""
        _, closing, self._rule = pair
        self._closings = (closing,)
        self._next = "summary" if find_marker(closing, rest) else "thinking"
        self._seen = rest

    def _read_step(self, shown: str, opened: str | None) -> str | None:
        """Take the token into the step it opened or, where a boundary is due, into a new one."""
        blank = not shown.strip()
        boundary = not (opened or blank or self._blank) and (self._due or self._rule(self._step, shown))
        if self.segment == "thinking":
            seen = self._seen + self.text
            found = [
                at for closing in self._closings if closing[-1] in self.text and (at := find_marker(closing, seen))
            ]
            if found:
                self._next = "summary"
                boundary = boundary and bool(seen[len(self._seen) : min(found)[0]].strip())
            elif boundary and any(_under_way(closing, self._seen + shown, shown) for closing in self._closings):
                boundary, self._due = False, True
            self._seen = seen[-max(map(longest, self._closings)) :]
        if boundary:
            self._begin(self.segment)
            opened = self.segment
        if not blank and len(shown) > 2:
            for inner in _INNER.finditer(shown):
                self._due = self._due or self._rule(self._step + shown[: inner.end()], shown[inner.end() :])
        self._step += self.text
        self._blank = self._blank and blank
        return opened


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
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in prompt_tokens]
    text = "".join(pieces)
    ends = [
        (at[1], closing)
        for each in find_formats(format)
        for opening, closing in each.markers
        if (at := last_marker(opening, text))
    ]
    if ends:
        marker_end, closing = max(ends)
        rest = text[marker_end:].strip()
        if not rest or find_marker(closing, rest) == (0, len(rest)):
            return 1 + next(i for i, end in enumerate(accumulate(map(len, pieces))) if end >= marker_end)
    return len(pieces)
