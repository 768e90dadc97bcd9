"""PASTA, a rival of the odds-equal bridge: less attention to everything outside the emphasised span.

For a row with attention A_k, in the chosen heads, and the span G:

    A_k -> A_k / C  for k in G,    alpha A_k / C  for other k,    C = sum_{k in G} A_k + alpha sum_{k not in G} A_k

Source: Zhang et al., *Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs* (arXiv 2311.02262), equation 2.
Where the probabilities of a row sum to less than 1 (an attention sink), the row keeps its total.
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
from stepsal.interventions.odds import TINY, mass_of, scale_odds
from stepsal.interventions.spans import check_span, span_keys
from stepsal.models.layer_choice import LayerSpec


@dataclass(frozen=True)
class Pasta(Intervention):
    """Emphasise a span: attention outside it is multiplied by `coefficient`, and the row is normalised again (PASTA).

    Thinking and summary rows are changed, question rows never (`stepsal.interventions.spans`).

    Attributes:
        layers, heads: as for `OddsEqualBridge`. The paper chooses heads by the accuracy with each of them on other problems;
            with all heads, the default here, every row loses its own text.
        coefficient: the paper's alpha, in [0, 1]. 1 changes nothing at all; 0 leaves only the span. The authors' code has 0.01.
        span: `question`, `thinking` (the steps of it before the query's own) or `last_steps` (the last three of these).
        bos_in_span: whether the first token, an attention sink in most models, can belong to the span.

    Raises `InputError` for other values. Source: Zhang et al., arXiv 2311.02262, equation 2.

    >>> Pasta(layers=[3], heads=[0, 2], span="thinking").coefficient
    0.01
    """

    name: ClassVar[str] = "pasta"
    label: ClassVar[str] = "PASTA"
    strength: ClassVar[str | None] = "coefficient"
    neutral: ClassVar[float] = 1.0
    measures: ClassVar[tuple[str, ...]] = ("mean_span_before", "mean_span_after")

    layers: LayerSpec = "all"
    heads: HeadSpec = None
    coefficient: float | int = option(0.01, symbol="PASTA's α")
    span: str = "question"
    bos_in_span: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_number(self.coefficient) or not 0 <= self.coefficient <= 1:
            raise InputError(
                f"coefficient={self.coefficient!r} must be a number in [0, 1]: attention outside the span is multiplied by it"
            )
        object.__setattr__(self, "coefficient", float(self.coefficient))
        check_span(self.span, self.bos_in_span)

    def edit_pattern(self, pattern: Float[Tensor, "batch head query key"], at: LayerPass) -> PatternEdit | None:
        """Take attention away from what is outside the span."""
        if not at.text.answering:
            return None
        span = self.span_keys(at, pattern.device)
        outside = at.visible.to(pattern.device)[:, None] & ~span
        opportunity = span.any(-1) & outside.any(-1)
        before = mass_of(pattern, span)
        reads = opportunity & (
            before >= TINY
        )  # of a row that reads nothing of the span, nothing would be left to emphasise
        odds = torch.where(reads, before.new_tensor(self.coefficient), 1.0)
        edited = scale_odds(pattern, outside, odds, None if at.heads is None else at.heads.to(pattern.device))
        measures = {"mean_span_before": before.detach(), "mean_span_after": mass_of(edited.pattern, span).detach()}
        return PatternEdit(edited.pattern, opportunity, edited.active, measures)

    def idle_reason(self) -> str:
        """Why it may never have acted."""
        return f"no row read both the span ({self.span}) and something else"

    def span_keys(self, at: LayerPass, device: torch.device) -> Bool[Tensor, "batch 1 query key"]:
        """The keys that are emphasised."""
        return span_keys(at, device, self.span, self.bos_in_span)
