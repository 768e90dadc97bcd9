"""What interventions do to attention patterns and head outputs: tensors in, new tensors of the same precision out.

The odds-equal bridge, its control with random groups, and the sums and additions of step momentum. The equations are at the
top of `stepsal.interventions.stepflow`. All of it is differentiable in the pattern and in the head output. Nothing here knows a model.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

EPSILON = 1e-6  # the official code's
TINY = torch.finfo(torch.float32).tiny  # a mass below it cannot be scaled up exactly: it counts as zero


class Groups(NamedTuple):
    """Which visible keys are the bridge group of each query, its current group, and neither; the same for all heads.

    bridge, current, rest: 1 in one of them, 0 in the others: numbers multiply several times faster than truths choose.
    opportunity: rows with some of both. bridge_keys, both: |B| and |B| + |S|. share: sqrt(|B| / (|B| + |S|)).
    """

    bridge: Float[Tensor, "batch 1 query key"]
    current: Float[Tensor, "batch 1 query key"]
    rest: Float[Tensor, "batch 1 query key"]
    opportunity: Bool[Tensor, "batch 1 query"]
    bridge_keys: Int[Tensor, "batch 1 query"]
    both: Int[Tensor, "batch 1 query"]
    share: Float[Tensor, "batch 1 query"]


def make_groups(bridge: Bool[Tensor, "batch query key"], current: Bool[Tensor, "batch query key"]) -> Groups:
    """Count the groups of each query.

    >>> make_groups(torch.tensor([[[True, False, False, False]]]), torch.tensor([[[False, True, True, True]]])).share
    tensor([[[0.5000]]])
    """
    count = bridge.sum(-1)[:, None]
    both = current.sum(-1)[:, None] + count
    share = (count / both.clamp(min=1)).sqrt()
    rest = ~(bridge | current)
    of_bridge, of_current, of_rest = (each[:, None].to(torch.float32) for each in (bridge, current, rest))
    return Groups(of_bridge, of_current, of_rest, (count > 0) & (both > count), count, both, share)


class GroupSeries:
    """The groups of a pass (`now`), and of the decoding passes after it for as long as each row's groups go on.

    Each such pass sees one key more, its own, which belongs to the current group. What the next passes need is made for
    many of them at once: then a pass costs a few views.

    >>> series = GroupSeries(make_groups(torch.tensor([[[True, False]]]), torch.tensor([[[False, True]]])))
    >>> series.advance()
    >>> series.now.current, series.now.both
    (tensor([[[[0., 1., 1.]]]]), tensor([[[3]]]))
    """

    _AHEAD = 64

    def __init__(self, groups: Groups) -> None:
        self.now = groups
        self._ahead = groups
        self._made = self._AHEAD  # passes of those made ahead that are over

    def advance(self) -> None:
        """On to the next pass."""
        if self._made == self._AHEAD:
            self._ahead, self._made = self._next(), 0
        ahead, at = self._ahead, self._made
        self._made += 1
        keys = ahead.bridge.shape[3] - self._AHEAD + self._made
        self.now = Groups(
            ahead.bridge.narrow(3, 0, keys),
            ahead.current.narrow(3, 0, keys),
            ahead.rest.narrow(3, 0, keys),
            ahead.opportunity,
            ahead.bridge_keys,
            ahead.both.narrow(2, at, 1),
            ahead.share.narrow(2, at, 1),
        )

    def _next(self) -> Groups:
        """Keys and counts of the passes to come, in the places of keys and queries."""
        bridge, current, rest, opportunity, count, both = (each[:, :, -1:] for each in self.now[:6])
        own = (both > count).to(torch.float32)  # not in rows that are still in their question
        more = own[..., None].expand(-1, -1, -1, self._AHEAD)
        both = both + own.long() * torch.arange(1, self._AHEAD + 1, device=own.device)
        return Groups(
            torch.cat([bridge, torch.zeros_like(more)], 3),
            torch.cat([current, more], 3),
            torch.cat([rest, 1 - more], 3),
            opportunity,
            count,
            both,
            (count / both.clamp(min=1)).sqrt(),
        )


class Bridged(NamedTuple):
    """A pattern after an edit, and what was done to it: the bridge group's mass was `before`; in active rows it is `target`."""

    pattern: Float[Tensor, "batch head query key"]
    active: Bool[Tensor, "batch head query"]
    before: Float[Tensor, "batch head query"]
    target: Float[Tensor, "batch head query"]


def bridge_pattern(
    pattern: Float[Tensor, "batch head query key"],
    groups: Groups,
    tau_max: float,
    feasible: str = "share",
    heads: Bool[Tensor, " head"] | None = None,
) -> Bridged:
    """The odds-equal bridge on attention rows, in some of the heads.

    >>> pattern, group = torch.tensor([0.02, 0.08, 0.9]), torch.tensor([0, 1, 2])
    >>> groups = make_groups((group == 0)[None, None], (group == 1)[None, None])
    >>> [round(mass, 4) for mass in bridge_pattern(pattern[None, None, None], groups, 0.5).pattern.flatten().tolist()]
    [0.0707, 0.0293, 0.9]
    """
    wide = torch.promote_types(pattern.dtype, torch.float32)
    before = (pattern * groups.bridge).sum(-1, dtype=wide)
    own = (pattern * groups.current).sum(-1, dtype=wide)
    reach = before + own  # 1 - p_O
    cap = reach * groups.share if feasible == "share" else torch.minimum(reach - EPSILON, groups.share)
    target = cap.clamp(max=tau_max)
    active = (before < target) & (torch.minimum(before, own) >= TINY)
    if heads is not None:
        active = active & heads[:, None]
    from_before, from_own = before, own
    if pattern.requires_grad:  # divide by 1 where nothing is done: a division by zero there would spoil the gradient
        from_before, from_own = torch.where(active, before, 1.0), torch.where(active, own, 1.0)
    lift = torch.where(active, target / from_before, 1.0)
    lower = torch.where(active, (reach - target) / from_own, 1.0)
    # Of each three products two are zero: the sum is exact, and 1 outside both groups.
    factor = torch.addcmul(groups.rest.to(wide), lift[..., None], groups.bridge.to(wide))
    factor = torch.addcmul(factor, lower[..., None], groups.current.to(wide))
    return Bridged((pattern * factor).to(pattern.dtype), active, before.detach(), target.detach())


def random_groups(
    bridge: Bool[Tensor, "batch query key"],
    current: Bool[Tensor, "batch query key"],
    priority: Float[Tensor, "batch key"],
) -> tuple[Bool[Tensor, "batch query key"], Bool[Tensor, "batch query key"]]:
    """Other groups of the same sizes: the bridge is the earlier keys of both groups with the lowest `priority`.

    The queries are the last keys, one each.

    >>> bridge = torch.tensor([[[True, False, False, False]]])
    >>> random_groups(bridge, ~bridge, torch.tensor([[0.9, 0.8, 0.1, 0.0]]))[0].tolist()
    [[[False, False, True, False]]]
    """
    queries, keys = bridge.shape[-2:]
    both = bridge | current
    before = torch.ones(queries, keys, dtype=torch.bool, device=both.device).tril(keys - queries - 1)
    order = torch.where(both & before, priority[:, None], torch.inf)
    count = bridge.sum(-1, keepdim=True)
    limit = order.sort(-1).values.gather(-1, (count - 1).clamp(min=0))
    picked = (order <= limit) & (count > 0) & torch.isfinite(order)
    return picked, both & ~picked


def starve_pattern(
    pattern: Float[Tensor, "batch head query key"],
    starved: Bool[Tensor, "batch 1 query key"],
    odds: float,
    heads: Bool[Tensor, " head"] | None = None,
) -> Bridged:
    """The odds of the starved keys times `odds`, in some of the heads; `before` and `target` are their mass.

    A row with nothing else to read stays as it is.

    >>> row, starved = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    >>> starve_pattern(row[None, None, None], starved[None, None, None], 0.25).pattern.flatten()
    tensor([0.2000, 0.8000])
    """
    wide = torch.promote_types(pattern.dtype, torch.float32)
    total = pattern.sum(-1, dtype=wide)
    before = torch.where(starved, pattern, 0.0).sum(-1, dtype=wide)
    left = torch.where(starved, pattern * odds, pattern).sum(-1, dtype=wide)  # exact where little is left
    active = (before > 0) & (left >= TINY)
    if heads is not None:
        active = active & heads[:, None]
    scale = torch.where(active, total / torch.where(active, left, 1.0), 1.0)
    factor = torch.where(starved & active[..., None], odds * scale[..., None], scale[..., None])
    return Bridged((pattern * factor).to(pattern.dtype), active, before.detach(), (odds * scale * before).detach())


def weigh_values(
    weights: Float[Tensor, "batch event pos"], values: Float[Tensor, "batch pos kv_head d_head"]
) -> Float[Tensor, "batch event kv_head d_head"]:
    """Weighted sums of values over positions: the momentum `m` of each event, and the running sums that it is made of.

    >>> weigh_values(torch.tensor([[[0.5, 0.5, 0.0]]]), torch.tensor([1.0, 3.0, 9.0])[None, :, None, None]).item()
    2.0
    """
    return (weights @ values.flatten(2)).unflatten(2, values.shape[2:])


def add_at(
    output: Float[Tensor, "batch pos head d_head"],
    places: tuple[Tensor, Tensor],
    added: Float[Tensor, "event head d_head"],
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "event head d_head"]]:
    """Head outputs with something added at some (row, position), and what they were there.

    >>> add_at(torch.ones(1, 2, 1, 1), (torch.tensor([0]), torch.tensor([1])), torch.full((1, 1, 1), 0.5))[0].flatten()
    tensor([1.0000, 1.5000])
    """
    return output.index_put(places, added.to(output.dtype), accumulate=True), output[places].detach()


def share_norm(
    momentum: Float[Tensor, "event head d_head"], directions: Float[Tensor, "event head d_head"]
) -> Float[Tensor, "event head d_head"]:
    """Vectors along `directions` with the norms of `momentum`.

    >>> share_norm(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])).flatten()
    tensor([0., 5.])
    """
    norms = rearrange(momentum.norm(dim=-1), "event head -> event head 1")
    return directions / directions.norm(dim=-1, keepdim=True) * norms
