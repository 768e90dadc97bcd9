"""A positive control: it plants a failure that other interventions should mend, so that "no effect" can be believed."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepsal.errors import InputError
from stepsal.interventions.base import Intervention, PatternEdit, check_choice, is_number
from stepsal.interventions.heads import HeadSpec
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.odds import scale_odds
from stepsal.interventions.text_state import CODES, QUESTION, THINKING
from stepsal.models.layer_choice import LayerSpec

ROWS = ("steps", "thinking", "summary", "openings")


@dataclass(frozen=True)
class Starvation(Intervention):
    """Positive control: plants a failure, by multiplying the odds of some keys by `odds` (adding log odds to their scores).

    The rest of the row grows in proportion, so that the row's total stays as it is. Put this intervention before the one that
    is to mend the failure.

    Attributes:
        rows: which rows lose which keys. With `steps`, thinking rows lose everything before their step (Shallow Lock-in). With
            `thinking`, thinking rows lose the question. With `summary`, summary rows lose the thinking (Deep Decay). With
            `openings`, the first token of each thinking step loses the thinking before it.
        layers, heads: as for `OddsEqualBridge`, but the layers have no default.
        odds: the factor, in [0, 1]. 1 changes nothing at all, 0 hides the keys.

    Raises `InputError` for other values. Source: none; this intervention is ours.

    >>> Starvation("summary", layers="deep").odds
    0.0
    """

    name: ClassVar[str] = "starvation"
    label: ClassVar[str] = "starvation"
    strength: ClassVar[str | None] = "odds"
    neutral: ClassVar[float] = 1.0
    measures: ClassVar[tuple[str, ...]] = ("mean_bridge_before", "mean_bridge_after")

    rows: str
    layers: LayerSpec
    heads: HeadSpec = None
    odds: float | int = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rows", self.rows, ROWS)
        if not is_number(self.odds) or not 0 <= self.odds <= 1:
            raise InputError(
                f"odds={self.odds!r} must be a number in [0, 1]: the odds of the starved keys are multiplied by it"
            )
        object.__setattr__(self, "odds", float(self.odds))

    def edit_pattern(self, pattern: Float[Tensor, "batch head query key"], at: LayerPass) -> PatternEdit | None:
        """Take attention away from the starved keys."""
        if not at.text.answering:
            return None
        visible = at.visible.to(pattern.device)
        name = ("starved", visible.shape[2], self.rows)
        if name not in at.shared:
            at.shared[name] = self._starved(at, visible.shape[2])
        starved = at.shared[name].to(pattern.device) & visible
        heads = None if at.heads is None else at.heads.to(pattern.device)
        edited = scale_odds(pattern, starved[:, None], self.odds, heads)
        measures = {"mean_bridge_before": edited.before, "mean_bridge_after": edited.after}
        return PatternEdit(edited.pattern, starved.any(-1)[:, None], edited.active, measures)

    def idle_reason(self) -> str:
        """Why the intervention may never have acted."""
        return f"no {self.rows} row gave any attention to what is starved"

    def _starved(self, at: LayerPass, keys: int) -> Bool[Tensor, "batch query key"]:
        """The keys, among the last `keys` columns, that each query loses."""
        text = at.text
        columns, queries = slice(text.end - keys, text.end), slice(text.end - text.length, text.end)
        segments, own = text.segments[:, None, columns], text.own_segments[:, :, None]
        if self.rows in ("thinking", "summary"):
            return (segments == own - 1) & (own == CODES[self.rows])
        earlier = text.steps[:, None, columns] < text.steps[:, queries, None]
        if self.rows == "steps":
            return (segments >= QUESTION) & earlier & (own == THINKING)
        opens = torch.zeros_like(text.steps[:, queries], dtype=torch.bool)
        for opening in text.openings:
            opens[opening.row, opening.query] = opening.segment == THINKING
        return (segments == THINKING) & earlier & opens[..., None]
