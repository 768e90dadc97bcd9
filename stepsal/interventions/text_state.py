"""Follow the text that a model reads and writes, row by row of a batch, with nothing but what its hooks see.

In: for each forward pass its token ids, which of them are padding, and how many keys attention sees. Out: a `Block`: the
segment and step of every token so far, and the steps that these tokens open. `stepsal.intervene` calls it.

1. A pass of `n` tokens with `n` keys is a new sequence: everything starts again. With more keys it goes on at the cache's end.
2. Padding is a token that may not attend to itself, as a left- or right-padded batch's attention mask says. Without a mask
   padding cannot be told from text (and the model's own output is wrong). A token that ends or fills a sequence, right
   after another such token, is what `generate` feeds a finished row: it is left out too.
3. Each other token goes to its row's own `Segmenter`: the same causal steps as in a `Trace`.
4. What each token belongs to is kept in buffers that double when full, so that a decoding step costs the same at any length;
   it is written there when somebody asks, which most decoding steps do not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepsal.errors import InputError
from stepsal.traces.formats import FormatSpec, StepsSpec
from stepsal.traces.segment import Segmenter, Tokenizer

NOTHING, NONE, QUESTION, THINKING, SUMMARY = -9, -1, 0, 1, 2  # no token is NOTHING; padding is NONE
CODES = {"question": QUESTION, "thinking": THINKING, "summary": SUMMARY}


@dataclass(frozen=True)
class Opening:
    """A token that opens a step. `query` is its index in the block, `giver` the segment of the step before."""

    row: int
    query: int
    step: int
    segment: int
    giver: int


@dataclass(frozen=True)
class Momentum:
    """What a layer does with `columns`, its carried numbers followed by this block's values: linear maps of them.

    weights: the first `carried` give the next carry: the open step's sum (no window) or its last values. The others give the
    means of the steps that this block closes, `event` counting within each row.
    """

    weights: Float[Tensor, "batch result column"]
    carried: int


@dataclass
class Block:
    """The tokens of one forward pass among those of their sequence: columns `[end - length, end)`.

    segments, steps: of every token so far, -1 for padding. first: the column of each row's first token.
    """

    length: int
    end: int
    device: torch.device
    codes: Callable[[], Int[Tensor, "2 batch pos"]]
    first: list[int]
    openings: list[Opening]
    answering: bool  # whether any of these tokens is thinking or summary
    single: bool  # whether each row has one token of its own: decoding
    grows: bool  # whether, moreover, each row sees one key more than in the pass before
    new_steps: list[list[int]]  # batch length
    open_before: list[int]  # batch; the step that was open before this block, and its tokens before this block
    held_before: list[int]
    priority_seeds: dict[int, Tensor]
    shared: dict[Any, Any] = field(default_factory=dict)  # what layers share

    @cached_property
    def segments(self) -> Int[Tensor, "batch pos"]:
        return self.codes()[0]

    @cached_property
    def steps(self) -> Int[Tensor, "batch pos"]:
        return self.codes()[1]

    @property
    def goes_on(self) -> bool:
        """Whether each row has one token, of the step that was open: the common case of decoding."""
        return self.single and not self.openings

    @property
    def segments_go_on(self) -> bool:
        """Whether each row has one token, of the segment that was open."""
        return self.single and all(opening.segment == opening.giver for opening in self.openings)

    @property
    def begins(self) -> bool:
        """Whether these are the first tokens of new sequences."""
        return self.end == self.length

    def groups(
        self, keys: int, scope: str, bos: bool
    ) -> tuple[Bool[Tensor, "batch query key"], Bool[Tensor, "batch query key"]]:
        """The bridge and the current group of each query, among the last `keys` columns; later ones are not left out."""
        name = ("groups", keys, scope, bos)
        if name not in self.shared:
            columns = slice(self.end - keys, self.end)
            segments, own = self.segments[:, None, columns], self.segments[:, self.end - self.length : self.end, None]
            answer = own >= THINKING
            if scope == "segment":
                own = own.where(answer, NOTHING)
                bridge, current = segments == own - 1, segments == own
            else:
                steps, own = self.steps[:, None, columns], self.steps[:, self.end - self.length : self.end, None]
                bridge, current = (steps < own) & (steps >= 0) & answer, (steps == own) & answer
            if not bos:
                bridge = bridge & (self._positions(keys) != 0)[:, None]
            self.shared[name] = bridge, current
        return self.shared[name]

    def starved(self, keys: int, rows: str) -> Bool[Tensor, "batch query key"]:
        """The keys, among the last `keys` columns, that a `Starvation` of these rows takes from each query."""
        name = ("starved", keys, rows)
        if name not in self.shared:
            columns, queries = slice(self.end - keys, self.end), slice(self.end - self.length, self.end)
            segments = self.segments[:, None, columns]
            if rows == "openings":
                opens = torch.zeros_like(self.steps[:, queries], dtype=torch.bool)
                for each in self.openings:
                    opens[each.row, each.query] = each.segment == THINKING
                earlier = self.steps[:, None, columns] < self.steps[:, queries, None]
                self.shared[name] = (segments == THINKING) & earlier & opens[..., None]
            else:
                own = self.segments[:, queries, None]
                if rows == "steps":
                    earlier = self.steps[:, None, columns] < self.steps[:, queries, None]
                    self.shared[name] = (segments >= QUESTION) & earlier & (own == THINKING)
                else:
                    self.shared[name] = (segments == own - 1) & (own == CODES[rows])
        return self.shared[name]

    def momentum(self, window: int | None) -> Momentum:
        """How values become running sums and means of steps; `window` as in `StepMomentum`."""
        name = ("momentum", window)
        if name not in self.shared:
            self.shared[name] = self._momentum(window)
        return self.shared[name]

    def _momentum(self, window: int | None) -> Momentum:
        steps = np.array(self.new_steps)
        batch, length = steps.shape
        size = window or 1
        # The step of each column. A windowed carry is filled from its end; a sum stands for all the tokens it holds.
        held = np.minimum(self.held_before, size)
        carried = np.where(np.arange(size) >= size - held[:, None], np.array(self.open_before)[:, None], NONE)
        columns = np.concatenate([carried, steps], 1)
        last = columns.max(1)
        closings = self.closings()
        events = max(map(len, closings.values()), default=0)
        weights = np.zeros((batch, size + events, size + length), dtype=np.float32)
        kept = (columns == last[:, None]) & (columns >= 0)
        if window is None:
            weights[:, 0] = kept
        else:
            rank = kept[:, ::-1].cumsum(1)[:, ::-1]  # 1 for the newest
            rows, chosen = np.nonzero(kept & (rank <= size))
            weights[rows, size - rank[rows, chosen], chosen] = 1
        for row, openings in closings.items():
            for event, opening in enumerate(openings):
                chosen = np.flatnonzero(columns[row] == opening.step - 1)
                count = len(chosen)
                if window is not None:
                    chosen = chosen[-size:]
                    count = len(chosen)
                elif self.open_before[row] == opening.step - 1 and self.held_before[row]:
                    count += int(self.held_before[row]) - 1
                weights[row, size + event, chosen] = 1 / count
        return Momentum(torch.from_numpy(weights).to(self.device), size)

    def open_steps(self, window: int | None) -> tuple[Float[Tensor, "batch 1 1 1"], Float[Tensor, "batch 1 1 1"]]:
        """In a pass of one token a row: how many of its values the carry of each row's open step holds (at least 1), and 1
        where the step goes on, 0 where it is closed."""
        name = ("open steps", window)
        if name not in self.shared:
            closed = self.closings()
            held = [max(1, count if window is None else min(count, window)) for count in self.held_before]
            both = torch.tensor([held, [float(row not in closed) for row in range(len(held))]], device=self.device)
            self.shared[name] = tuple(both[..., None, None, None])
        return self.shared[name]

    def closings(self) -> dict[int, list[Opening]]:
        """For each row the openings that close a step before them, in order."""
        closings: dict[int, list[Opening]] = {}
        for opening in self.openings:
            if opening.step > 0:
                closings.setdefault(opening.row, []).append(opening)
        return closings

    def receiving(self, into: tuple[int, ...]) -> tuple[list[Opening], Int[Tensor, "3 receiver"]]:
        """The openings of steps of the segments `into` that follow a thinking step; for each its row, query and event."""
        name = ("receiving", into)
        if name not in self.shared:
            found = [
                (event, opening)
                for openings in self.closings().values()
                for event, opening in enumerate(openings)
                if opening.segment in into and opening.giver == THINKING
            ]
            places = [(opening.row, opening.query, event) for event, opening in found]
            indices = torch.tensor(places, dtype=torch.long, device=self.device).reshape(-1, 3).T
            self.shared[name] = [opening for _, opening in found], indices
        return self.shared[name]

    def priority(self, seed: int, keys: int) -> Float[Tensor, "batch key"]:
        """A random number for each of the last `keys` columns, from the seed and the token's position in its row."""
        name = ("priority", seed, keys)
        if name not in self.shared:
            known = self.priority_seeds.get(seed, torch.zeros(0))
            if len(known) < self.end:  # position by position, so that a longer sequence begins alike
                more = [np.random.default_rng((seed, at)).random() for at in range(len(known), 2 * self.end)]
                known = self.priority_seeds[seed] = torch.cat([known, torch.tensor(more, dtype=torch.float32)])
            self.shared[name] = known.to(self.device)[self._positions(keys).clamp(min=0)]
        return self.shared[name]

    def _positions(self, keys: int) -> Int[Tensor, "batch key"]:
        """The positions of the last `keys` columns in their rows, which begin after the padding."""
        device = self.device
        return torch.arange(self.end - keys, self.end, device=device) - torch.tensor(self.first, device=device)[:, None]


class _Row:
    """One sequence of the batch."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.step = NONE
        self.held = 0  # tokens of the open step
        self.ended = False  # the last token ends a sequence
        self.first: int | None = None


class Follower:
    """The state of one batch of sequences, made anew whenever a new sequence begins."""

    def __init__(self, tokenizer: Tokenizer, format: FormatSpec, steps: StepsSpec, ends: frozenset[int]) -> None:
        self._segmenter = partial(Segmenter, tokenizer, format, steps)
        self._segmenter()  # an unknown format or rule is refused here
        self.question_tokens: Sequence[int] | None = None  # of each row of the sequences that begin next
        self._ends = ends
        self._rows: list[_Row] = []
        self._end = 0
        self._kept = torch.zeros(0)  # (segments, steps), batch, capacity
        self._waiting: list[list[list[list[int]]]] = []  # the same of passes that are not in it yet
        self._seen: list[int] = []  # how many keys each row's last token could see
        self._priorities: dict[int, Tensor] = {}
        self.passes = 0
        self.answered = False  # whether any token was thinking or summary

    def advance(self, tokens: Int[Tensor, "batch pos"], visible: Bool[Tensor, "batch pos key"], slides: bool) -> Block:
        """Take in one forward pass: its tokens, and the keys that each may attend to; padding not even to itself.

        Raises `InputError` where the cache does not hold what was followed so far.
        """
        batch, length, keys = visible.shape
        if keys == length:
            self._rows, self._end = [_Row(self._segmenter(given)) for given in self._questions(batch)], 0
            self._waiting = []
        self._check_cache(batch, length, keys, slides)
        own = visible.diagonal(keys - length, -2, -1)
        ids, real, seen = tokens.tolist(), own.tolist(), visible.sum(-1).tolist()
        codes = [[[NONE] * length for _ in range(batch)] for _ in range(2)]  # of segments and steps
        open_before, held_before = [row.step for row in self._rows], [row.held for row in self._rows]
        openings: list[Opening] = []
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
        return Block(
            length,
            self._end,
            tokens.device,
            partial(self._codes, tokens.device),
            first,
            openings,
            answering,
            single,
            single and self._seen == [count + 1 for count in before],
            codes[1],
            open_before,
            held_before,
            self._priorities,
        )

    def _questions(self, batch: int) -> Sequence[int | None]:
        given = self.question_tokens
        if given is not None and len(given) != batch:
            raise InputError(
                f"question_tokens={list(given)[:8]} has {len(given)} entries, but a batch of {batch} begins: give one for "
                "each row"
            )
        return [None] * batch if given is None else given

    def _push(self, index: int, row: _Row, query: int, token: int, codes: Any, openings: list[Opening]) -> None:
        if row.ended and token in self._ends:
            return
        row.ended = token in self._ends and row.first is not None
        if row.first is None:
            row.first = self._end + query
        giver = CODES[row.segmenter.segment] if row.step >= 0 else NONE
        if opened := row.segmenter.push(token):
            row.step, row.held = row.step + 1, 0
            openings.append(Opening(index, query, row.step, CODES[opened], giver))
        row.held += 1
        codes[0][index][query], codes[1][index][query] = CODES[row.segmenter.segment], row.step

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
        """The segments and steps of all tokens so far. Appends to the buffers, in place: they are this object's own."""
        if self._waiting:
            new = torch.cat([torch.tensor(each, dtype=torch.int32) for each in self._waiting], 2)
            self._waiting = []
            start, batch = self._end - new.shape[2], new.shape[1]
            capacity = self._kept.shape[2] if start else 0
            if self._end > capacity or start == 0:
                grown = torch.full((2, batch, max(64, 2 * self._end)), NONE, dtype=torch.int32, device=device)
                if start:
                    grown[:, :, :start] = self._kept[:, :, :start]
                self._kept = grown
            self._kept.narrow(2, start, new.shape[2]).copy_(new)
        return self._kept.narrow(2, 0, self._end)
