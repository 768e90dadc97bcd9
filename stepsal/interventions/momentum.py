"""Step momentum in one layer: values in, what to add to the head outputs out.

1. Each forward pass's values are added to a carry: the sum over the open step, or its last `window` values. A decoding step
   within a step of text costs one addition, whatever the length so far.
2. Where tokens open steps, the means of the steps that they close are weighted sums of carry and values; in a decoding step
   of the carry alone.
3. A step of `into` that follows a thinking step receives `alpha` times its momentum, in the chosen heads: the closed step's
   mean; a control takes an earlier step's, or noise of the same norm.

The values take part in no gradient: see `stepsal.intervene`.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepsal.interventions.activity import Tally
from stepsal.interventions.edits import add_at, share_norm, weigh_values
from stepsal.interventions.stepflow import NoiseMomentum, RandomMomentum, StepMomentum
from stepsal.interventions.text_state import CODES, Block, Opening
from stepsal.models.host import per_query_head


class MomentumState:
    """What one `StepMomentum` knows in one layer of the current sequences."""

    def __init__(self, part: StepMomentum, layer: int, chosen: Bool[Tensor, " head"] | None, tally: Tally) -> None:
        self._part, self._layer, self._chosen, self._tally = part, layer, chosen, tally
        self._into = tuple(CODES[segment] for segment in part.into)
        self._carry: Tensor | None = None  # batch carried kv_head d_head
        self._history: Tensor | None = None  # batch event kv_head d_head: means of all closed steps, for the control
        self._event_of: list[list[int]] = []  # row, step -> event in the history

    def inject(
        self,
        block: Block,
        values: Float[Tensor, "batch pos kv_head d_head"],
        output: Float[Tensor, "batch pos head d_head"],
    ) -> Float[Tensor, "batch pos head d_head"] | None:
        """The head outputs with momentum where it is due; None where it is not."""
        values = values.to(torch.float32)
        if block.begins or self._carry is None:
            self._carry = values.new_zeros(len(values), self._part.window or 1, *values.shape[2:])
            self._history, self._event_of = None, [[] for _ in range(len(values))]
        closed = self._decode(block, values) if block.single else self._read(block, values)
        if not block.openings:
            return None
        if isinstance(self._part, RandomMomentum):
            self._remember(closed, block)
        self._tally.opportunities += sum(opening.segment in self._into for opening in block.openings)
        openings, places = block.receiving(self._into)
        return self._add(openings, places, closed, output) if openings else None

    def _read(
        self, block: Block, values: Float[Tensor, "batch pos kv_head d_head"]
    ) -> Float[Tensor, "batch event kv_head d_head"]:
        """Take in several tokens a row. The means of the steps that they close."""
        assert self._carry is not None
        plan = block.momentum(self._part.window)
        sums = weigh_values(plan.weights.to(values.device), torch.cat([self._carry, values], 1))
        self._carry = sums[:, : plan.carried]
        return sums[:, plan.carried :]

    def _decode(
        self, block: Block, values: Float[Tensor, "batch 1 kv_head d_head"]
    ) -> Float[Tensor, "batch event kv_head d_head"]:
        """Take in one token a row. The mean of each row's open step, which some of them close."""
        carry = self._carry
        assert carry is not None
        closed = values[:, :0]
        if block.openings:
            held, goes_on = (each.to(carry.device) for each in block.open_steps(self._part.window))
            closed, carry = (carry.sum(1, keepdim=True) if self._part.window else carry) / held, carry * goes_on
        self._carry = torch.cat([carry[:, 1:], values], 1) if self._part.window else carry + values
        return closed

    def _add(
        self,
        openings: list[Opening],
        places: Int[Tensor, "3 receiver"],
        closed: Float[Tensor, "batch event kv_head d_head"],
        output: Float[Tensor, "batch pos head d_head"],
    ) -> Float[Tensor, "batch pos head d_head"]:
        rows, queries, events = places.to(output.device)
        part = self._part
        momentum = self._draw(openings, part.seed) if isinstance(part, RandomMomentum) else closed[rows, events]
        added = self._part.alpha * per_query_head(momentum[None], output.shape[2])[0]
        if isinstance(self._part, NoiseMomentum):
            added = share_norm(added, self._noise(openings, self._part.seed, added))
        if self._chosen is not None:
            added = added * self._chosen.to(added.device)[:, None]
        result, there = add_at(output, (rows, queries), added)
        self._tally.add_momentum(added, there)
        return result

    def _remember(self, closed: Float[Tensor, "batch event kv_head d_head"], block: Block) -> None:
        before = 0 if self._history is None else self._history.shape[1]
        for row, openings in block.closings().items():
            self._event_of[row] += range(before, before + len(openings))
        self._history = closed if self._history is None else torch.cat([self._history, closed], 1)

    def _draw(self, openings: list[Opening], seed: int) -> Float[Tensor, "event kv_head d_head"]:
        """The mean of a random step before the one that each opening closes."""
        assert self._history is not None
        steps = [int(np.random.default_rng((seed, each.step)).integers(each.step - 1)) for each in openings]
        chosen = [self._event_of[each.row][step] for each, step in zip(openings, steps, strict=True)]
        return self._history[[each.row for each in openings], chosen]

    def _noise(
        self, openings: list[Opening], seed: int, like: Float[Tensor, "event head d_head"]
    ) -> Float[Tensor, "event head d_head"]:
        """Gaussian directions that depend on the seed, the layer and the step only."""
        generators = [np.random.default_rng((seed, self._layer, each.step)) for each in openings]
        return torch.from_numpy(np.stack([each.standard_normal(like.shape[1:]) for each in generators])).to(like)
