"""Step momentum injection: StepFlow's second half, which acts on head outputs.

At the first token `t` of a step that follows thinking step `i`,

    z[t] += alpha * m,    m = mean of the values v[k], k in the window: the whole step `i`, or its last tokens.

In one layer:

1. The values of each forward pass are added to a carry: the sum of the values of the open step, or its last `window` values. A
   decoding step within a step of text costs one addition, whatever the length so far.
2. Where tokens open steps, the means of the steps that they close are weighted sums of the carry and the values. In a decoding
   step they are weighted sums of the carry alone.
3. A step in a segment of `into` that follows a thinking step receives `alpha` times its momentum in the chosen heads. The
   momentum is the mean of the closed step. Controls replace it (`stepsal.interventions.random_momentum`,
   `stepsal.interventions.noise_momentum`).

The values take part in no gradient: see `stepsal.interventions.intervene`. Source: method.md section 5; the paper's section
4.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.errors import InputError
from stepsal.interventions.base import HeadOutputEdit, Intervention, check_choice, is_number, is_whole, option
from stepsal.interventions.heads import HeadSpec
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.text_state import CODES, NONE, THINKING, Opening, PassState
from stepsal.models.host import per_query_head
from stepsal.models.layer_choice import LayerSpec

INTO = ("thinking", "summary")


@dataclass(frozen=True)
class StepMomentum(Intervention):
    """Add the mean value of the previous thinking step to the head outputs at the first token of a step.

    Attributes:
        layers, heads: as for `OddsEqualBridge`. By default they are all heads of the top quarter of the layers.
        alpha: the strength, a finite number. 0 adds nothing.
        window: None takes the mean over the whole previous step (the paper), `n` the mean over its last `n` tokens (the
            official code has 4).
        into: the segments whose steps receive momentum: `thinking`, `summary` or both.

    Raises `InputError` for other values. Source: the paper's section 4.2.

    >>> StepMomentum(layers=-1, window=4).into
    ('thinking', 'summary')
    """

    name: ClassVar[str] = "smi"
    label: ClassVar[str] = "SMI"
    strength: ClassVar[str | None] = "alpha"
    measures: ClassVar[tuple[str, ...]] = ("mean_injected_norm",)
    keeps_means: ClassVar[bool] = False  # whether the means of all closed steps are remembered

    layers: LayerSpec = "deep"
    heads: HeadSpec = None
    alpha: float | int = option(0.06, symbol="α")
    window: int | None = option(None, none="the step")
    into: Sequence[str] = INTO

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.alpha) or not math.isfinite(self.alpha):
            raise InputError(f"alpha={self.alpha!r} must be a finite number, such as the paper's 0.06")
        object.__setattr__(self, "alpha", float(self.alpha))
        if self.window is not None and (not is_whole(self.window) or self.window < 1):
            raise InputError(
                f"window={self.window!r} must be None (the whole previous step) or a whole number of tokens, at least 1"
            )
        into = (self.into,) if isinstance(self.into, str) else tuple(self.into)
        for name in into:
            check_choice("into", name, INTO)
        if not into or len(set(into)) < len(into):
            raise InputError(f"into={self.into!r} must name 'thinking', 'summary' or both, none twice")
        object.__setattr__(self, "into", into)

    def edit_head_outputs(
        self, outputs: Float[Tensor, "batch pos head d_head"], at: LayerPass
    ) -> HeadOutputEdit | None:
        """Take in the values of this pass, and add the momentum where a step opens that receives it."""
        text, memory = at.text, at.memory(ClosedSteps)
        closed = memory.take_in(text, at.values.to(torch.float32), self.window, at.shared)
        if not text.openings:
            return None
        if self.keeps_means:
            memory.remember(text, closed)
        into = tuple(CODES[segment] for segment in self.into)
        due = sum(opening.segment in into for opening in text.openings)
        openings, places = receiving(text, into, at.shared)
        if not openings:
            return HeadOutputEdit(None, due, 0, {})
        rows, queries, events = places.to(outputs.device)
        momentum = self.momentum(openings, closed[rows, events], at)
        added = self.alpha * per_query_head(momentum[None], outputs.shape[2])[0]
        added = self.redirect(openings, added, at)
        if at.heads is not None:
            added = added * at.heads.to(added.device)[:, None]
        result, there = add_at(outputs, (rows, queries), added)
        return HeadOutputEdit(result, due, len(added), {"mean_injected_norm": relative_norm(added, there)})

    def momentum(
        self, openings: Sequence[Opening], closed: Float[Tensor, "event kv_head d_head"], at: LayerPass
    ) -> Float[Tensor, "event kv_head d_head"]:
        """The momentum of each receiving step: the mean value of the step that its first token closes."""
        return closed

    def redirect(
        self, openings: Sequence[Opening], added: Float[Tensor, "event head d_head"], at: LayerPass
    ) -> Float[Tensor, "event head d_head"]:
        """The vectors to add. A control may turn them into another direction."""
        return added

    def idle_reason(self) -> str:
        """Why no step may have received momentum."""
        return f"no step of {' or '.join(self.into)} followed a thinking step"


class ClosedSteps:
    """What one `StepMomentum` remembers of a layer's values in the current sequences: the carry and, for a control, the means
    of all closed steps.
    """

    def __init__(self) -> None:
        self._carry: Tensor | None = None  # batch carried kv_head d_head
        # The means of each pass that closed steps, batch event kv_head d_head, where they are kept.
        self.means: list[Tensor] = []
        self.events: list[list[int]] = []  # for each row and closed step, the index of its event in `means`

    def take_in(
        self,
        text: PassState,
        values: Float[Tensor, "batch pos kv_head d_head"],
        window: int | None,
        shared: dict[object, object],
    ) -> Float[Tensor, "batch event kv_head d_head"]:
        """Take in the values of a pass, and return the means of the steps that it closes."""
        if text.begins or self._carry is None:
            self._carry = values.new_zeros(len(values), window or 1, *values.shape[2:])
            self.means, self.events = [], [[] for _ in range(len(values))]
        return self._decode(text, values, window, shared) if text.single else self._read(text, values, window, shared)

    def _read(
        self,
        text: PassState,
        values: Float[Tensor, "batch pos kv_head d_head"],
        window: int | None,
        shared: dict[object, object],
    ) -> Float[Tensor, "batch event kv_head d_head"]:
        """Take in several tokens for each row, and return the means of the steps that they close."""
        assert self._carry is not None
        plan = value_weights(text, window, shared)
        sums = weigh_values(plan.weights.to(values.device), torch.cat([self._carry, values], 1))
        self._carry = sums[:, : plan.carried]
        return sums[:, plan.carried :]

    def _decode(
        self,
        text: PassState,
        values: Float[Tensor, "batch 1 kv_head d_head"],
        window: int | None,
        shared: dict[object, object],
    ) -> Float[Tensor, "batch event kv_head d_head"]:
        """Take in one token for each row, and return the means of the rows' open steps, which some of the tokens close."""
        carry = self._carry
        assert carry is not None
        closed = values[:, :0]
        if text.openings:
            held, goes_on = (tensor.to(carry.device) for tensor in open_steps(text, window, shared))
            closed, carry = (carry.sum(1, keepdim=True) if window else carry) / held, carry * goes_on
        self._carry = torch.cat([carry[:, 1:], values], 1) if window else carry + values
        return closed

    def remember(self, text: PassState, closed: Float[Tensor, "batch event kv_head d_head"]) -> None:
        """Keep the means of the steps that a pass closes."""
        before = sum(means.shape[1] for means in self.means)
        for row, openings in text.closings().items():
            self.events[row] += range(before, before + len(openings))
        self.means.append(closed)


@dataclass(frozen=True)
class ValueWeights:
    """A linear map of the columns, which are the carried values followed by the values of this pass.

    weights: the weights of each result. The first `carried` results are the next carry: the sum of the open step (without a
    window) or its last values. The other results are the means of the steps that this pass closes, counted within each row.
    """

    weights: Float[Tensor, "batch result column"]
    carried: int


def value_weights(text: PassState, window: int | None, shared: dict[object, object]) -> ValueWeights:
    """The weights that turn values into the carry and the means of steps in this pass. They are made once for all layers."""
    name = ("value weights", window)
    if name not in shared:
        shared[name] = _value_weights(text, window)
    weights = shared[name]
    assert isinstance(weights, ValueWeights)
    return weights


def _value_weights(text: PassState, window: int | None) -> ValueWeights:
    steps = np.array(text.new_steps)
    batch, length = steps.shape
    size = window or 1
    # The step of each column. The carry of a window is filled from its end. A carried sum stands for all the tokens in it.
    held = np.minimum(text.held_before, size)
    carried = np.where(np.arange(size) >= size - held[:, None], np.array(text.open_before)[:, None], NONE)
    columns = np.concatenate([carried, steps], 1)
    last = columns.max(1)
    closings = text.closings()
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
            elif text.open_before[row] == opening.step - 1 and text.held_before[row]:
                count += int(text.held_before[row]) - 1
            weights[row, size + event, chosen] = 1 / max(1, count)
    return ValueWeights(torch.from_numpy(weights).to(text.device), size)


def open_steps(
    text: PassState, window: int | None, shared: dict[object, object]
) -> tuple[Float[Tensor, "batch 1 1 1"], Float[Tensor, "batch 1 1 1"]]:
    """The open step of each row, in a pass of one token for each row.

    The first tensor has the number of its values that the carry holds (at least 1). The second has 1 where the step goes on and
    0 where this pass closes it.
    """
    name = ("open steps", window)
    if name not in shared:
        closed = text.closings()
        held = [max(1, count if window is None else min(count, window)) for count in text.held_before]
        both = torch.tensor([held, [float(row not in closed) for row in range(len(held))]], device=text.device)
        shared[name] = tuple(both[..., None, None, None])
    held_and_going_on: tuple[Tensor, Tensor] = shared[name]  # type: ignore[assignment]
    return held_and_going_on


def receiving(
    text: PassState, into: tuple[int, ...], shared: dict[object, object]
) -> tuple[list[Opening], Int[Tensor, "3 receiver"]]:
    """The openings of steps in the segments `into` that follow a thinking step, and the row, query and event of each."""
    name = ("receiving", into)
    if name not in shared:
        receivers = [
            (event, opening)
            for openings in text.closings().values()
            for event, opening in enumerate(openings)
            if opening.segment in into and opening.giver == THINKING
        ]
        places = [(opening.row, opening.query, event) for event, opening in receivers]
        indices = torch.tensor(places, dtype=torch.long, device=text.device).reshape(-1, 3).T
        shared[name] = [opening for _, opening in receivers], indices
    openings_and_places: tuple[list[Opening], Tensor] = shared[name]  # type: ignore[assignment]
    return openings_and_places


def weigh_values(
    weights: Float[Tensor, "batch event pos"], values: Float[Tensor, "batch pos kv_head d_head"]
) -> Float[Tensor, "batch event kv_head d_head"]:
    """Weighted sums of values over positions: the momentum `m` of each event, and the sums that are carried on.

    >>> weigh_values(torch.tensor([[[0.5, 0.5, 0.0]]]), torch.tensor([1.0, 3.0, 9.0])[None, :, None, None]).item()
    2.0
    """
    return (weights @ values.flatten(2)).unflatten(2, values.shape[2:])


def add_at(
    output: Float[Tensor, "batch pos head d_head"],
    places: tuple[Tensor, Tensor],
    added: Float[Tensor, "event head d_head"],
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "event head d_head"]]:
    """The head outputs with `added` at the places (row, position), and the outputs at these places as they were.

    >>> add_at(torch.ones(1, 2, 1, 1), (torch.tensor([0]), torch.tensor([1])), torch.full((1, 1, 1), 0.5))[0].flatten()
    tensor([1.0000, 1.5000])
    """
    return output.index_put(places, added.to(output.dtype), accumulate=True), output[places].detach()


def relative_norm(
    added: Float[Tensor, "event head d_head"], there: Float[Tensor, "event head d_head"]
) -> Float[Tensor, "event head"]:
    """The norm of the added vectors relative to the norm of the outputs that they were added to."""
    norms = [vectors.to(torch.float32).norm(dim=-1) for vectors in (added, there)]
    return norms[0] / norms[1].clamp(min=torch.finfo(torch.float32).tiny)
