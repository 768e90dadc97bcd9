"""Attention temperature, a rival of the odds-equal bridge: flatter or sharper attention, without a target.

The scores of a row are divided by tau before the softmax. For a row A that is a softmax already this is

    A_k -> A_k^(1/tau) / sum_j A_j^(1/tau)

since a score is log A_k plus a constant of the row. With tau > 1 a row reads more keys, as it does under the odds-equal bridge,
but whichever they are. Where a row sums to less than 1 (an attention sink), it keeps its total. A key whose probability was
rounded to 0 stays at 0. Source of the form: the temperature t of YaRN (Peng et al., arXiv 2309.00071).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from stepsal.errors import InputError
from stepsal.interventions.base import Intervention, PatternEdit, is_number, option
from stepsal.interventions.heads import HeadSpec
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.odds import TINY
from stepsal.models.layer_choice import LayerSpec


@dataclass(frozen=True)
class AttentionTemperature(Intervention):
    """Divide attention scores by `tau`: more than 1 flattens attention rows, less than 1 sharpens them.

    It has no span: it acts on all keys of thinking and summary rows. Question rows are never changed.

    Attributes:
        layers, heads: as for `OddsEqualBridge`; all layers and heads by default.
        tau: the temperature, above 0. 1 changes nothing at all. The default is ours.

    Raises `InputError` for other values.

    >>> AttentionTemperature("shallow", tau=0.8).tau
    0.8
    """

    name: ClassVar[str] = "attention-temperature"
    label: ClassVar[str] = "attention temperature"
    strength: ClassVar[str | None] = "tau"
    neutral: ClassVar[float] = 1.0
    measures: ClassVar[tuple[str, ...]] = ("mean_entropy_before", "mean_entropy_after")

    layers: LayerSpec = "all"
    heads: HeadSpec = None
    tau: float | int = option(1.5, symbol="τ")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.tau) or not 0 < self.tau < float("inf"):
            raise InputError(f"tau={self.tau!r} must be a finite number above 0: attention scores are divided by it")
        object.__setattr__(self, "tau", float(self.tau))

    def edit_pattern(self, pattern: Float[Tensor, "batch head query key"], at: LayerPass) -> PatternEdit | None:
        """Temper the rows of the answer."""
        if not at.text.answering:
            return None
        rows = at.queries_answering().to(pattern.device)
        active = rows & (pattern.sum(-1, dtype=torch.float32) >= TINY) & (self.tau != 1)
        if at.heads is not None:
            active = active & at.heads.to(pattern.device)[:, None]
        tempered = self.redirect(pattern, temper(pattern, self.tau), at)
        new = torch.where(active[..., None], tempered.to(pattern.dtype), pattern)
        measures = {"mean_entropy_before": entropy(pattern.detach()), "mean_entropy_after": entropy(new.detach())}
        return PatternEdit(new, rows, active, measures)

    def redirect(
        self,
        pattern: Float[Tensor, "batch head query key"],
        tempered: Float[Tensor, "batch head query key"],
        at: LayerPass,
    ) -> Float[Tensor, "batch head query key"]:
        """The pattern that is used in the place of the tempered one; a control gives another."""
        return tempered


def temper(pattern: Float[Tensor, "batch head query key"], tau: float) -> Float[Tensor, "batch head query key"]:
    """The softmax of a row's scores divided by `tau`, times the row's total, in float32 or more.

    >>> temper(torch.tensor([0.1, 0.9])[None, None, None], 0.5).flatten()
    tensor([0.0122, 0.9878])
    """
    wide = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
    read = wide > 0
    ratio = wide / wide.detach().amax(-1, keepdim=True).clamp(
        min=TINY
    )  # the largest power is 1, so the sum is no underflow
    power = torch.where(read, torch.where(read, ratio, 1.0) ** (1 / tau), 0.0)  # the slope of a power is infinite at 0
    return power * (wide.sum(-1, keepdim=True) / power.sum(-1, keepdim=True).clamp(min=TINY))


def entropy(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query"]:
    """The entropy of each row in nats.

    >>> entropy(torch.tensor([0.5, 0.5, 0.0])[None, None, None]).flatten()
    tensor([0.6931])
    """
    return torch.special.entr(pattern.to(torch.promote_types(pattern.dtype, torch.float32))).sum(-1)
