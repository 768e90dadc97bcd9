"""Multiply the odds of some keys of attention rows, which is adding a constant to their scores before the softmax.

In: an attention pattern, the keys, and the factor of their odds, one for all rows or one for each. Out: the new pattern, each
row with the total that it had. `Starvation`, `Pasta` and `SpotLight` are such edits.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # a mass below this cannot be scaled up exactly, so it counts as zero
TINY_MASS = 1e-4  # rows that are lifted from less than this are counted in the report


class Scaled(NamedTuple):
    """A pattern after an edit. The mass of the keys was `before` the edit; in `active` rows it is now `after`."""

    pattern: Float[Tensor, "batch head query key"]
    active: Bool[Tensor, "batch head query"]
    before: Float[Tensor, "batch head query"]
    after: Float[Tensor, "batch head query"]


def scale_odds(
    pattern: Float[Tensor, "batch head query key"],
    keys: Bool[Tensor, "batch 1 query key"],
    odds: float | Float[Tensor, "batch head query"],
    heads: Bool[Tensor, " head"] | None = None,
) -> Scaled:
    """The pattern with the odds of `keys` multiplied by `odds`, in some of the heads. Each row keeps its total.

    A row of which nothing would be left stays as it is, and so does a row whose odds are multiplied by 1, to the bit.

    >>> row, keys = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    >>> scale_odds(row[None, None, None], keys[None, None, None], 0.25).pattern.flatten()
    tensor([0.2000, 0.8000])
    """
    wide = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
    total, before = wide.sum(-1), mass_of(pattern, keys)
    by_row = odds[..., None] if isinstance(odds, Tensor) else odds
    left = torch.where(keys, wide * by_row, wide).sum(-1)  # a difference to `before` would not be exact
    active = (before > 0) & (left >= TINY) & (odds != 1)
    if heads is not None:
        active = active & heads[:, None]
    scale = torch.where(active, total / torch.where(active, left, 1.0), 1.0)
    factor = torch.where(keys & active[..., None], by_row * scale[..., None], scale[..., None])
    after = torch.where(active, odds * scale * before, before)
    return Scaled((pattern * factor).to(pattern.dtype), active, before.detach(), after.detach())


def mass_of(
    pattern: Float[Tensor, "batch head query key"], keys: Bool[Tensor, "batch 1 query key"]
) -> Float[Tensor, "batch head query"]:
    """The attention that each row gives to the keys."""
    wide = torch.promote_types(pattern.dtype, torch.float32)
    return torch.where(keys, pattern, 0.0).sum(-1, dtype=wide)
