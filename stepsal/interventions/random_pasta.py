"""The negative control of PASTA: it emphasises random tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from stepsal.interventions.base import Intervention, check_seed, option
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.pasta import Pasta
from stepsal.interventions.spans import span_keys


@dataclass(frozen=True)
class RandomPasta(Pasta):
    """Negative control of `Pasta`: the same, but the span is as many random tokens before the query.

    The choice of tokens depends only on `seed` and the positions of the tokens, so it is the same in every layer, head and
    batch.

    >>> RandomPasta(seed=1).coefficient
    0.01
    """

    name: ClassVar[str] = "random-pasta"
    label: ClassVar[str] = "random PASTA"
    control_of: ClassVar[type[Intervention] | None] = Pasta

    seed: int = option(0, key="control_seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def span_keys(self, at: LayerPass, device: torch.device) -> Bool[Tensor, "batch 1 query key"]:
        """As many random keys as the span has."""
        return span_keys(at, device, self.span, self.bos_in_span, self.seed)
