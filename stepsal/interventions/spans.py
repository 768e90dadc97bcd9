"""The span of the text that an intervention emphasises, and a random one of the same size.

In: the text that a pass follows, and the span's name. Out: for each query the keys of the span that it can see.

Rows: those that the odds-equal bridge may change, thinking and summary. Question rows have no span, so they stay as they are.
Keys: only steps that are over when the query's own step begins, so that no row is told to look at itself:

- `question`: the question, for thinking and summary rows;
- `thinking`: the thinking steps before the query's own step; of a summary row that is the whole thinking;
- `last_steps`: the last three of these.

So the span depends on the text up to the query alone, and a whole pass and decoding have the same one.
"""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from stepsal.errors import InputError
from stepsal.interventions.base import check_choice
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.random_bridge import priorities, random_groups
from stepsal.interventions.text_state import QUESTION, THINKING

SPANS = ("question", "thinking", "last_steps")
LAST_STEPS = 3


def span_keys(
    at: LayerPass, device: torch.device, span: str, bos_in_span: bool, seed: int | None = None
) -> Bool[Tensor, "batch 1 query key"]:
    """The keys of the span that each query can see. With a `seed` they are as many random keys before the query instead.

    They are made once for all layers of a kind.
    """
    name: Any = ("span", at.kind, device, span, bos_in_span, seed)
    if name not in at.shared:
        visible = at.visible.to(device)
        allowed = visible
        if not bos_in_span:
            allowed = visible & (at.text.positions(visible.shape[2]) != 0)[:, None].to(device)
        keys = _span_of_text(at, span, visible.shape[2]).to(device) & allowed
        if seed is not None:
            keys = _random_keys(at, keys, allowed & ~keys, seed)
        at.shared[name] = keys[:, None]
    found: Bool[Tensor, "batch 1 query key"] = at.shared[name]
    return found


def check_span(span: object, bos_in_span: object) -> None:
    """Raise `InputError` unless these are a span's name, and True or False."""
    check_choice("span", span, SPANS)
    if not isinstance(bos_in_span, bool):
        raise InputError(f"bos_in_span={bos_in_span!r} must be True or False")


def _span_of_text(at: LayerPass, span: str, keys: int) -> Bool[Tensor, "batch query key"]:
    """The span's keys among the last `keys` columns. Keys that a sliding window hides are not left out here."""
    text = at.text
    columns, queries = slice(text.end - keys, text.end), slice(text.end - text.length, text.end)
    segments, steps = text.segments[:, None, columns], text.steps[:, None, columns]
    own = text.steps[:, queries, None]
    earlier = (steps >= 0) & (steps < own) & (text.own_segments >= THINKING)[..., None]
    if span == "question":
        return earlier & (segments == QUESTION)
    thinking = segments == THINKING
    if span == "thinking":
        return earlier & thinking
    last = torch.minimum(own - 1, torch.where(thinking, steps, -1).amax(-1, keepdim=True))
    return earlier & thinking & (steps > last - LAST_STEPS)


def _random_keys(
    at: LayerPass, span: Bool[Tensor, "batch query key"], others: Bool[Tensor, "batch query key"], seed: int
) -> Bool[Tensor, "batch query key"]:
    """As many keys before each query as the span has, drawn from the span and the other keys."""
    positions = at.text.positions(span.shape[2]).clamp(min=0)
    priority = priorities(seed, 1 << int(positions.max()).bit_length()).to(span.device)
    return random_groups(span, others, priority[positions.to(span.device)])[0]
