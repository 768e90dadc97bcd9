"""The odds-equal bridge: StepFlow's first half, which acts on attention patterns.

A query in the current group `S` has the bridge group `B` and the rest `O`. Their attention is p_S + p_B + p_O = 1, and `|S|`
and `|B|` are the numbers of their keys that the query can see.

1. share  r = sqrt(|B| / (|B| + |S|)),     target  tau_B = min(r, tau_max)
2. cap = (1 - p_O) * r  (`feasible="share"`; it leaves `S` its count share) or 1 - p_O - e  (`"clamp"`), e = 1e-6
3. Where 0 < p_B < min(tau_B, cap) and p_S > 0, `B` is scaled to that minimum, `S` is scaled to what is left of 1 - p_O, and `O`
   stays as it is.

The result is the KL-closest row with those group masses. Where the probabilities of a row sum to less than 1 (an attention
sink), the remainder belongs to `O`. The result is differentiable in the pattern. Source: method.md section 5; the paper's
equations 5 to 8.

`feasible="official"` is the authors' code to the letter. It has the cap of `"clamp"`, but adds e to every mass before it takes
ratios, and then normalises the row again:

    B is scaled by (target + e) / (p_B + e),  S by (1 - p_O - target + e) / (p_S + e);  then the row, O too, to its total

where p_B < tau_B and p_S > e. So a bridge that holds less than e is lifted only in part (p_B = 0 not at all, while S is lowered
all the same), and O changes. `"clamp"` is that code without the addition.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepsal.errors import InputError
from stepsal.interventions.base import Intervention, PatternEdit, check_choice, is_number, option
from stepsal.interventions.heads import HeadSpec
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.odds import TINY, TINY_MASS
from stepsal.interventions.text_state import THINKING
from stepsal.models.layer_choice import LayerSpec

SCOPES, FEASIBLE = ("segment", "step"), ("share", "clamp", "official")
EPSILON = 1e-6  # as in the official code
_NO_SEGMENT = -9  # no token belongs to this segment

GroupMasks = tuple[Bool[Tensor, "batch query key"], Bool[Tensor, "batch query key"]]
"""The bridge group and the current group of each query, among the keys that it can see."""


@dataclass(frozen=True)
class OddsEqualBridge(Intervention):
    """Give the bridge group, `B`, at least its target mass in the chosen attention rows (odds-equal bridge).

    For thinking rows the bridge group is the question and the current group is the thinking. For summary rows they are the
    thinking and the summary. With `scope="step"` they are everything before the current step, and the step. Question rows are
    never changed.

    Attributes:
        layers: `"shallow"` (the bottom quarter), `"deep"`, `"all"`, an index or several indices.
        heads: None selects all heads. A sequence selects the same heads in every chosen layer. A mapping selects heads layer by
            layer; chosen layers that it does not mention keep all their heads. The field keeps them as tuples.
        tau_max: the upper limit of the target, in [0, 1). 0 changes nothing at all.
        scope: `segment` (the paper) or `step`.
        feasible: `share`, `clamp` (the official code's target, reached exactly) or `official` (the official code to the
            letter); see the equations above.
        bos_in_bridge: whether the first token, an attention sink in most models, can belong to the bridge group.

    Raises `InputError` for other values. Source: the paper's equations 5 to 8.

    >>> OddsEqualBridge(layers=[0, 1], heads={0: [3]}, tau_max=0.2).heads
    ((0, (3,)),)
    """

    name: ClassVar[str] = "oeb"
    label: ClassVar[str] = "OEB"
    strength: ClassVar[str | None] = "tau_max"
    measures: ClassVar[tuple[str, ...]] = ("mean_bridge_before", "mean_bridge_after")
    counts: ClassVar[tuple[str, ...]] = ("lifted_from_tiny",)

    layers: LayerSpec = "shallow"
    heads: HeadSpec = None
    tau_max: float | int = option(0.15, symbol="τ_max")
    scope: str = "segment"
    feasible: str = "share"
    bos_in_bridge: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.tau_max) or not 0 <= self.tau_max < 1:
            raise InputError(f"tau_max={self.tau_max!r} must be a number in [0, 1): it is a share of the attention")
        object.__setattr__(self, "tau_max", float(self.tau_max))
        check_choice("scope", self.scope, SCOPES)
        check_choice("feasible", self.feasible, FEASIBLE)
        if not isinstance(self.bos_in_bridge, bool):
            raise InputError(f"bos_in_bridge={self.bos_in_bridge!r} must be True or False")

    def edit_pattern(self, pattern: Float[Tensor, "batch head query key"], at: LayerPass) -> PatternEdit | None:
        """Lift the bridge group of those rows where its mass is below the target."""
        if not at.text.answering:
            return None
        groups = self._groups(at, pattern.device)
        heads = None if at.heads is None else at.heads.to(pattern.device)
        edited = bridge_pattern(pattern, groups, self.tau_max, self.feasible, heads)
        after = torch.where(edited.active, edited.target, edited.before)
        measures = {"mean_bridge_before": edited.before, "mean_bridge_after": after}
        counts = {"lifted_from_tiny": edited.active & (edited.before < TINY_MASS)}
        return PatternEdit(edited.pattern, groups.opportunity, edited.active, measures, counts)

    def idle_reason(self) -> str:
        """Why the bridge may never have acted."""
        return "no row had both groups and less bridge mass than its target"

    def _groups(self, at: LayerPass, device: torch.device) -> "Groups":
        """The groups of this pass's queries. They are made once for all layers of a kind, from the groups of the pass before
        where that is possible.
        """
        name = ("bridge", at.kind, device, self._group_options())
        if name not in at.shared:
            text, series = at.text, at.shared_before.get(name)
            goes_on = text.grows and (text.goes_on or (self.scope == "segment" and text.segments_go_on))
            if series is not None and goes_on and at.kind == "full_attention" and self._groups_grow():
                series.advance()
            else:
                series = GroupSeries(make_groups(*self._masks(at, at.visible.to(device))))
            at.shared[name] = series
        groups: GroupSeries = at.shared[name]
        return groups.now

    def _group_options(self) -> tuple[Any, ...]:
        """The options that the groups depend on, besides the text."""
        return (self.scope, self.bos_in_bridge)

    def _groups_grow(self) -> bool:
        """Whether a token that opens no group only adds its own key to the current group."""
        return True

    def _masks(self, at: LayerPass, visible: Bool[Tensor, "batch query key"]) -> GroupMasks:
        """The two groups among the visible keys."""
        name = ("bridge masks", visible.shape[2], self.scope, self.bos_in_bridge)
        if name not in at.shared:
            at.shared[name] = self._masks_of_text(at, visible.shape[2])
        bridge, current = at.shared[name]
        return bridge.to(visible.device) & visible, current.to(visible.device) & visible

    def _masks_of_text(self, at: LayerPass, keys: int) -> GroupMasks:
        """The groups among the last `keys` columns. Keys that come after their query are not left out here."""
        text = at.text
        columns, queries = slice(text.end - keys, text.end), slice(text.end - text.length, text.end)
        segments, own = text.segments[:, None, columns], text.own_segments[:, :, None]
        answer = own >= THINKING
        if self.scope == "segment":
            own = own.where(answer, _NO_SEGMENT)
            bridge, current = segments == own - 1, segments == own
        else:
            steps, own = text.steps[:, None, columns], text.steps[:, queries, None]
            bridge, current = (steps < own) & (steps >= 0) & answer, (steps == own) & answer
        if not self.bos_in_bridge:
            bridge = bridge & (text.positions(keys) != 0)[:, None]
        return bridge, current


class Groups(NamedTuple):
    """The visible keys in the bridge group of each query, in its current group, and in neither. All heads have the same groups.

    bridge, current, rest: 1 for the keys of the group, 0 for others. Products with numbers are several times faster than
    choices by booleans.
    opportunity: whether the row has keys in both groups. bridge_keys, both: |B| and |B| + |S|. share: sqrt(|B| / (|B| + |S|)).
    """

    bridge: Float[Tensor, "batch 1 query key"]
    current: Float[Tensor, "batch 1 query key"]
    rest: Float[Tensor, "batch 1 query key"]
    opportunity: Bool[Tensor, "batch 1 query"]
    bridge_keys: Int[Tensor, "batch 1 query"]
    both: Int[Tensor, "batch 1 query"]
    share: Float[Tensor, "batch 1 query"]


def make_groups(bridge: Bool[Tensor, "batch query key"], current: Bool[Tensor, "batch query key"]) -> Groups:
    """The groups of each query, with the numbers of their keys.

    >>> make_groups(torch.tensor([[[True, False, False, False]]]), torch.tensor([[[False, True, True, True]]])).share
    tensor([[[0.5000]]])
    """
    count = bridge.sum(-1)[:, None]
    both = current.sum(-1)[:, None] + count
    share = (count / both.clamp(min=1)).sqrt()
    rest = ~(bridge | current)
    of_bridge, of_current, of_rest = (group[:, None].to(torch.float32) for group in (bridge, current, rest))
    return Groups(of_bridge, of_current, of_rest, (count > 0) & (both > count), count, both, share)


class GroupSeries:
    """The groups of a pass (`now`), and of the decoding passes after it, for as long as the groups of every row go on.

    Each of these passes sees one key more than the pass before: its own, which belongs to the current group. The tensors for
    many passes are made at once, so that a pass costs only a few views.

    >>> series = GroupSeries(make_groups(torch.tensor([[[True, False]]]), torch.tensor([[[False, True]]])))
    >>> series.advance()
    >>> series.now.current, series.now.both
    (tensor([[[[0., 1., 1.]]]]), tensor([[[3]]]))
    """

    _AHEAD = 64

    def __init__(self, groups: Groups) -> None:
        self.now = groups
        self._ahead = groups
        self._over = self._AHEAD  # how many of the passes that were made ahead are over

    def advance(self) -> None:
        """Set `now` to the groups of the next pass."""
        if self._over == self._AHEAD:
            self._ahead, self._over = self._next(), 0
        ahead, at = self._ahead, self._over
        self._over += 1
        keys = ahead.bridge.shape[3] - self._AHEAD + self._over
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
        """The groups of the coming passes in one: the key axis has the keys of all passes, the query axis a count for each."""
        bridge, current, rest, opportunity, count, both = (field[:, :, -1:] for field in self.now[:6])
        own = (both > count).to(torch.float32)  # 0 for rows that are still in their question
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
    """A pattern after an edit. The mass of the bridge group was `before` the edit; in `active` rows it is now `target`."""

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
    """Apply the odds-equal bridge to attention rows, in some of the heads.

    >>> pattern, group = torch.tensor([0.02, 0.08, 0.9]), torch.tensor([0, 1, 2])
    >>> groups = make_groups((group == 0)[None, None], (group == 1)[None, None])
    >>> [round(mass, 4) for mass in bridge_pattern(pattern[None, None, None], groups, 0.5).pattern.flatten().tolist()]
    [0.0707, 0.0293, 0.9]
    """
    wide = torch.promote_types(pattern.dtype, torch.float32)
    before = (pattern * groups.bridge).sum(-1, dtype=wide)
    own = (pattern * groups.current).sum(-1, dtype=wide)
    reach = before + own  # 1 - p_O
    if feasible == "official":
        target = torch.minimum(groups.share.clamp(max=tau_max), reach - EPSILON).clamp(min=EPSILON)
        active = (before < groups.share.clamp(max=tau_max)) & (torch.minimum(reach, own) > EPSILON) & groups.opportunity
    else:
        cap = reach * groups.share if feasible == "share" else torch.minimum(reach - EPSILON, groups.share)
        target = cap.clamp(max=tau_max)
        active = (before < target) & (torch.minimum(before, own) >= TINY)
    if heads is not None:
        active = active & heads[:, None]
    from_before, from_own, smoothing = before, own, EPSILON if feasible == "official" else 0.0
    if pattern.requires_grad:  # inactive rows are divided by 1, since a division by zero would spoil the gradient
        from_before, from_own = torch.where(active, before, 1.0), torch.where(active, own, 1.0)
    lift = torch.where(active, (target + smoothing) / (from_before + smoothing), 1.0)
    lower = torch.where(active, (reach - target + smoothing) / (from_own + smoothing), 1.0)
    # For each key two of the three products are zero, so the sum is exact, and it is 1 outside both groups.
    factor = torch.addcmul(groups.rest.to(wide), lift[..., None], groups.bridge.to(wide))
    factor = torch.addcmul(factor, lower[..., None], groups.current.to(wide))
    if feasible == "official":  # what the sums of the two groups are off by is taken from, or given to, the whole row
        total = torch.where(active, 1 - reach + lift * before + lower * own, 1.0)
        factor, target = factor / total[..., None], lift * before / total
    return Bridged((pattern * factor).to(pattern.dtype), active, before.detach(), target.detach())
