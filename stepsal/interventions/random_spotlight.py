"""The negative control of SpotLight: it emphasises random tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from stepsal.interventions.base import Intervention, check_seed, option
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.spans import span_keys
from stepsal.interventions.spotlight import SpotLight


@dataclass(frozen=True)
class RandomSpotLight(SpotLight):
    """Negative control of `SpotLight`: the same, but the span is as many random tokens before the query.

    The choice of tokens depends only on `seed` and the positions of the tokens, so it is the same in every layer, head and
    batch.

    >>> RandomSpotLight(seed=1).psi
    0.1
    """

    name: ClassVar[str] = "random-spotlight"
    label: ClassVar[str] = "random SpotLight"
    control_of: ClassVar[type[Intervention] | None] = SpotLight

    seed: int = option(0, key="control_seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def span_keys(self, at: LayerPass, device: torch.device) -> Bool[Tensor, "batch 1 query key"]:
        """As many random keys as the span has."""
        return span_keys(at, device, self.span, self.bos_in_span, self.seed)
