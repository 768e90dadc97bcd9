"""Follows the text that a model reads and writes, row by row of a batch, with nothing but what the model's hooks see.

In: for each forward pass its token ids, which of them are padding, and how many keys attention sees. Out: a `PassState`: the
segment and step of every token so far, and the steps that the tokens of this pass open. `stepsal.intervene` calls it.

1. A pass of `n` tokens with `n` keys begins new sequences. A pass with more keys goes on at the end of the cache.
2. A token that may not attend to itself is padding, as the attention mask of a left- or right-padded batch says. Without a
   mask (the model's own output is wrong then, as it reads the padding), the rule is that of `Trace.from_tokens`: padding before
   the text is left out, and so are the end tokens and the padding that follow an end token, as `generate` feeds them to a
   finished row. If text follows those after all, they were text. Padding anywhere else is text.
3. Every other token goes to the `Segmenter` of its row, which finds the same causal steps as in a `Trace`. A token that is
   undecided when it is read (`stepsal.traces.segment`) counts as question then: its own row stays as it is, whenever it is
   read. For the tokens after the decision it is a key of the segment that was decided.
4. The segment and step of each token are kept in buffers that double when they are full, so that a decoding step costs the same
   at any length. They are written there when an intervention asks for them, which in most decoding steps none does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stepsal.errors import InputError
from stepsal.traces.formats import FormatSpec, StepsSpec
from stepsal.traces.segment import Segmenter, Tokenizer, filling_token

NONE, QUESTION, THINKING, SUMMARY = -1, 0, 1, 2  # padding is NONE
CODES = {"question": QUESTION, "thinking": THINKING, "summary": SUMMARY}


@dataclass(frozen=True)
class Opening:
    """A token that opens a step.

    row, query: the row of the token in the batch, and its index among the tokens of this pass.
    step: the index of the step that the token opens. segment: the segment of that step. giver: the segment of the step before.
    """

    row: int
    query: int
    step: int
    segment: int
    giver: int


@dataclass
class PassState:
    """What is known about the text while one forward pass runs.

    Attributes:
        length, end: the tokens of this pass are the columns `[end - length, end)` of their sequences.
        device: the device of the token ids.
        codes: a function that makes `segments` and `steps`, which is called when an intervention asks for them.
        as_read: the segment of each token of this pass as it was when it was read, `batch length`; None where that is what
            `segments` says.
        first: the column of each row's first token, which padding may precede.
        openings: the tokens of this pass that open a step.
        answering: whether any token of this pass is thinking or summary.
        single: whether each row has exactly one token that is not padding, as in decoding.
        grows: whether `single` holds and each row sees one key more than in the pass before.
        new_steps: the step of each token of this pass, `batch length`.
        open_before, held_before: for each row the step that was open before this pass, and how many tokens were read in it.
    """

    length: int
    end: int
    device: torch.device
    codes: Callable[[], Int[Tensor, "2 batch pos"]]
    as_read: list[list[int]] | None
    first: list[int]
    openings: list[Opening]
    answering: bool
    single: bool
    grows: bool
    new_steps: list[list[int]]
    open_before: list[int]
    held_before: list[int]

    @cached_property
    def segments(self) -> Int[Tensor, "batch pos"]:
        """The segment of every token so far, as a number of `CODES`; -1 for padding."""
        return self.codes()[0]

    @cached_property
    def steps(self) -> Int[Tensor, "batch pos"]:
        """The step of every token so far; -1 for padding."""
        return self.codes()[1]

    @cached_property
    def own_segments(self) -> Int[Tensor, "batch query"]:
        """The segment of each token of this pass, as it was when the token was read."""
        if self.as_read is not None:
            return torch.tensor(self.as_read, dtype=torch.int32, device=self.device)
        return self.segments[:, self.end - self.length : self.end]

    @property
    def goes_on(self) -> bool:
        """Whether each row has one token, which belongs to the step that was open: the common case of decoding."""
        return self.single and not self.openings

    @property
    def segments_go_on(self) -> bool:
        """Whether each row has one token, which belongs to the segment that was open."""
        return self.single and all(opening.segment == opening.giver for opening in self.openings)

    @property
    def begins(self) -> bool:
        """Whether the tokens of this pass are the first of new sequences."""
        return self.end == self.length

    def closings(self) -> dict[int, list[Opening]]:
        """For each row, in order, the openings that close the step before theirs. A row without any is left out."""
        closings: dict[int, list[Opening]] = {}
        for opening in self.openings:
            if opening.step > 0:
                closings.setdefault(opening.row, []).append(opening)
        return closings

    def positions(self, keys: int) -> Int[Tensor, "batch key"]:
        """The positions of the last `keys` columns within their rows. A row begins after its padding."""
        device = self.device
        return torch.arange(self.end - keys, self.end, device=device) - torch.tensor(self.first, device=device)[:, None]


class _Row:
    """One sequence of the batch."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.step = NONE
        self.held = 0  # the number of tokens that were read in the open step
        self.ended = False  # whether the last token of the text ends a sequence
        self.first: int | None = None  # the column of the first token
        self.fill: list[tuple[int, int]] = []  # the columns and tokens since then that are text if more text follows
        self.undecided: list[int] = []  # the columns of the last tokens as long as their segment is open


class Follower:
    """Follows one batch of sequences. Its state is made anew whenever a new batch begins."""

    def __init__(
        self, tokenizer: Tokenizer, format: FormatSpec, steps: StepsSpec, ends: frozenset[int], pads: frozenset[int]
    ) -> None:
        self._pad = filling_token(tokenizer)
        self._begins_with_pad = self._pad == getattr(tokenizer, "bos_token_id", None)
        self._segmenter = partial(Segmenter, tokenizer, format, steps)
        self._segmenter()  # this refuses an unknown format or step rule at once
        self.question_tokens: Sequence[int] | int | None = None  # of each row of the next batch, or of all rows
        self._ends, self._fills = ends, ends | pads
        self._rows: list[_Row] = []
        self._end = 0
        self._kept = torch.zeros(0)  # the buffers: (segments, steps), batch, capacity
        self._waiting: list[list[list[list[int]]]] = []  # the segments and steps of passes not in the buffers yet
        self._decided: list[
            tuple[int, int, int, int]
        ] = []  # row, column, segment, step of tokens decided after they were read
        self._seen: list[int] = []  # for each row, how many keys its last token could see
        self.passes = 0
        self.answered = False  # whether any token so far was thinking or summary

    def advance(
        self, tokens: Int[Tensor, "batch pos"], visible: Bool[Tensor, "batch pos key"], slides: bool
    ) -> PassState:
        """Take in one forward pass: its tokens, and the keys that each token may attend to. Padding may not even attend to
        itself.

        Raises `InputError` where the cache does not hold exactly the tokens that were followed so far.
        """
        batch, length, keys = visible.shape
        if keys == length:
            self._rows, self._end = [_Row(self._segmenter(count)) for count in self._questions(batch)], 0
            self._waiting, self._decided = [], []
        self._check_cache(batch, length, keys, slides)
        own = visible.diagonal(keys - length, -2, -1)
        ids, real, seen = tokens.tolist(), own.tolist(), visible.sum(-1).tolist()
        codes = [[[NONE] * length for _ in range(batch)] for _ in range(2)]  # the segments, and the steps
        open_before, held_before = [row.step for row in self._rows], [row.held for row in self._rows]
        openings: list[Opening] = []
        settled = len(self._decided)
        for index, row in enumerate(self._rows):
            for query in range(length):
                if real[index][query]:
                    self._push(index, row, query, ids[index][query], codes, openings)
        self._end += length
        self._waiting.append(codes)
        before, self._seen = self._seen, [row[-1] for row in seen]
        answering = any(code >= THINKING for row in codes[0] for code in row)
        self.answered = self.answered or answering
        self.passes += 1
        first = [-1 if row.first is None else row.first for row in self._rows]
        single = length == 1 and all(row[0] >= 0 for row in codes[1])
        return PassState(
            length,
            self._end,
            tokens.device,
            partial(self._codes, tokens.device),
            codes[0] if len(self._decided) > settled else None,
            first,
            openings,
            answering,
            single,
            single and self._seen == [count + 1 for count in before],
            codes[1],
            open_before,
            held_before,
        )

    def _questions(self, batch: int) -> Sequence[int | None]:
        """The number of question tokens of each row; None where the markers of the format tell the question."""
        lengths = self.question_tokens
        if lengths is None or isinstance(lengths, int):
            return [lengths] * batch
        if len(lengths) != batch:
            raise InputError(
                f"question_tokens={list(lengths)[:8]} has {len(lengths)} entries, but a batch of {batch} begins: give one "
                "entry for each row, or one number for all of them"
            )
        return lengths

    def _push(self, index: int, row: _Row, query: int, token: int, codes: Any, openings: list[Opening]) -> None:
        """Take in a token of a row, if it is text, and before it those that are text because of it."""
        column = self._end + query
        if row.first is None and token == self._pad:
            row.fill = [(column, token)] if self._begins_with_pad else []
        elif row.ended and token in self._fills:
            row.fill.append((column, token))
        else:
            for earlier, fill in row.fill:
                segment, step = self._read(index, row, query, earlier, fill, openings)
                self._decided.append((index, earlier, segment, step))
            row.fill = []
            codes[0][index][query], codes[1][index][query] = self._read(index, row, query, column, token, openings)
            row.held += 1

    def _read(
        self, index: int, row: _Row, query: int, column: int, token: int, openings: list[Opening]
    ) -> tuple[int, int]:
        """Give a token to the segmenter of its row: its segment and step. Add what it opens to `openings`."""
        row.ended = token in self._ends and row.first is not None
        if row.first is None:
            row.first = column
        giver = CODES[row.segmenter.segment] if row.step >= 0 else NONE
        if opened := row.segmenter.push(token):
            row.step, row.held = row.step + 1, 0
            if openings and (openings[-1].row, openings[-1].query) == (
                index,
                query,
            ):  # of a step that has no other token
                giver = openings.pop().giver
            openings.append(Opening(index, query, row.step, CODES[opened], giver))
            if row.segmenter.back:
                held_back = row.undecided[-row.segmenter.back :]
                self._decided += [(index, column, CODES[opened], row.step) for column in held_back]
        row.undecided = [*row.undecided, column] if row.segmenter.undecided else []
        return CODES[row.segmenter.segment], row.step

    def _check_cache(self, batch: int, length: int, keys: int, slides: bool) -> None:
        before = keys - length
        if batch == len(self._rows) and (before == self._end or (slides and before < self._end)):
            return
        raise InputError(
            f"a forward pass of {batch} row(s) and {length} token(s) attends to {before} token(s) in the cache, but "
            f"{self._end} token(s) of {len(self._rows)} row(s) were followed inside this context. Run each sequence from "
            "its first token on inside the context, one batch at a time, with a growing cache (not a static or cropped one)."
        )

    def _codes(self, device: torch.device) -> Int[Tensor, "2 batch pos"]:
        """The segments and steps of all tokens so far. The buffers belong to this object, so they are appended to in place."""
        if self._waiting:
            new = torch.cat([torch.tensor(codes, dtype=torch.int32) for codes in self._waiting], 2)
            self._waiting = []
            start, batch = self._end - new.shape[2], new.shape[1]
            capacity = self._kept.shape[2] if start else 0
            if self._end > capacity or start == 0:
                grown = torch.full((2, batch, max(64, 2 * self._end)), NONE, dtype=torch.int32, device=device)
                if start:
                    grown[:, :, :start] = self._kept[:, :, :start]
                self._kept = grown
            self._kept.narrow(2, start, new.shape[2]).copy_(new)
            for row, column, segment, step in self._decided:
                self._kept[0, row, column], self._kept[1, row, column] = segment, step
            self._decided = []
        return self._kept.narrow(2, 0, self._end)
