"""SpotLight, a rival of the odds-equal bridge: a span whose share of a row's attention is too small gets a bias.

For a row in which the span G has the share psi_now of the attention, and a target psi:

    score_k += log(psi / psi_now)  for k in G, where psi_now < psi;    then softmax

The span's new share is psi / (1 + psi - psi_now). It is larger than psi_now and smaller than psi: the published bias multiplies
the span's odds against what the rest of the row was before, so the share is lifted towards the target, not to it. The share
is that of each row. (The authors' library takes one share for all rows and heads of a pass, so that what a row reads in a
prompt would depend on later rows; a pass over a whole trace would then differ from decoding it.)

Source: Venkateswaran and Contractor, *Spotlight Your Instructions* (arXiv 2505.12025).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepsal.errors import InputError
from stepsal.interventions.base import Intervention, PatternEdit, is_number, option
from stepsal.interventions.heads import HeadSpec
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.odds import TINY, TINY_MASS, mass_of, scale_odds
from stepsal.interventions.spans import check_span, span_keys
from stepsal.models.layer_choice import LayerSpec


@dataclass(frozen=True)
class SpotLight(Intervention):
    """Emphasise a span: where its share of a row is below `psi`, its scores get the bias log(psi / share) (SpotLight).

    Thinking and summary rows are changed, question rows never (`stepsal.interventions.spans`).

    Attributes:
        layers, heads: as for `OddsEqualBridge`; all layers and heads by default, as published.
        psi: the target share, in [0, 1). 0 changes nothing at all.
        span: `question`, `thinking` (the steps of it before the query's own) or `last_steps` (the last three of these).
        bos_in_span: whether the first token, an attention sink in most models, can belong to the span.

    Raises `InputError` for other values. Source: Venkateswaran and Contractor, arXiv 2505.12025.

    >>> SpotLight(psi=0.3, span="last_steps").layers
    'all'
    """

    name: ClassVar[str] = "spotlight"
    label: ClassVar[str] = "SpotLight"
    strength: ClassVar[str | None] = "psi"
    measures: ClassVar[tuple[str, ...]] = ("mean_span_before", "mean_span_after")
    counts: ClassVar[tuple[str, ...]] = ("lifted_from_tiny",)

    layers: LayerSpec = "all"
    heads: HeadSpec = None
    psi: float | int = option(0.1, symbol="ψ")
    span: str = "question"
    bos_in_span: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.psi) or not 0 <= self.psi < 1:
            raise InputError(f"psi={self.psi!r} must be a number in [0, 1): it is a share of the attention")
        object.__setattr__(self, "psi", float(self.psi))
        check_span(self.span, self.bos_in_span)

    def edit_pattern(self, pattern: Float[Tensor, "batch head query key"], at: LayerPass) -> PatternEdit | None:
        """Add the bias to the span in those rows where its share is below the target."""
        if not at.text.answering:
            return None
        span = self.span_keys(at, pattern.device)
        mass = mass_of(pattern, span)
        share = mass / pattern.sum(-1, dtype=mass.dtype).clamp(min=TINY)
        low = (share < self.psi) & (mass >= TINY)
        odds = torch.where(low, self.psi / torch.where(low, share, 1.0), 1.0)
        edited = scale_odds(pattern, span, odds, None if at.heads is None else at.heads.to(pattern.device))
        measures = {"mean_span_before": edited.before, "mean_span_after": edited.after}
        counts = {"lifted_from_tiny": edited.active & (edited.before < TINY_MASS)}
        return PatternEdit(edited.pattern, span.any(-1), edited.active, measures, counts)

    def idle_reason(self) -> str:
        """Why it may never have acted."""
        return f"no row gave the span ({self.span}) less than psi of its attention"

    def span_keys(self, at: LayerPass, device: torch.device) -> Bool[Tensor, "batch 1 query key"]:
        """The keys that are emphasised."""
        return span_keys(at, device, self.span, self.bos_in_span)
