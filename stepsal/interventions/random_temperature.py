"""The negative control of attention temperature: the same mass moves, but to random keys."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from stepsal.interventions.attention_temperature import AttentionTemperature
from stepsal.interventions.base import Intervention, check_seed, option
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.random_bridge import priorities


@dataclass(frozen=True)
class RandomTemperature(AttentionTemperature):
    """Negative control of `AttentionTemperature`: the same keys lose the same attention, but random keys gain it.

    What the keys of a row gain is permuted among all keys that the query can see, so exactly as much attention moves. (The
    factors are not permuted: that of a key with tiny attention is in the millions, and any other key with it would take the
    whole row.) The permutation depends only on `seed` and on the positions of the keys that the query can see.

    >>> RandomTemperature(seed=1).tau
    1.5
    """

    name: ClassVar[str] = "random-attention-temperature"
    label: ClassVar[str] = "random attention temperature"
    control_of: ClassVar[type[Intervention] | None] = AttentionTemperature

    seed: int = option(0, key="control_seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def redirect(
        self,
        pattern: Float[Tensor, "batch head query key"],
        tempered: Float[Tensor, "batch head query key"],
        at: LayerPass,
    ) -> Float[Tensor, "batch head query key"]:
        """The i-th key that a query can see gains what the i-th of these keys in a random order would gain."""
        name = ("permutation", at.kind, pattern.device, self.seed)
        if name not in at.shared:
            visible = at.visible.to(pattern.device)
            positions = at.text.positions(visible.shape[2]).clamp(min=0)
            priority = priorities(self.seed, 1 << int(positions.max()).bit_length())[positions.cpu()].to(pattern.device)
            order = torch.where(visible, rearrange(priority, "batch key -> batch 1 key"), torch.inf).argsort(-1)
            source = order.gather(-1, (visible.cumsum(-1) - 1).clamp(min=0))
            at.shared[name] = source[:, None], visible[:, None]
        source, visible = at.shared[name]
        gain = (tempered - pattern).clamp(min=0)
        moved = torch.where(visible, gain.gather(-1, source.expand_as(gain)), 0.0)
        return torch.minimum(tempered, pattern.to(tempered.dtype)) + moved
