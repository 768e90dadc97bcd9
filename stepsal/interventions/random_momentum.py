"""A negative control of step momentum: the momentum of another step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stepsal.interventions.base import Intervention, check_seed, option
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.momentum import ClosedSteps, StepMomentum
from stepsal.interventions.text_state import Opening


@dataclass(frozen=True)
class RandomMomentum(StepMomentum):
    """Negative control of `StepMomentum`: the same, but the giving step is a random one before the previous step.

    Any earlier step can be drawn, the question too, so it fires where `StepMomentum` does.

    >>> RandomMomentum(seed=1).alpha
    0.06
    """

    name: ClassVar[str] = "random-momentum"
    label: ClassVar[str] = "random momentum"
    control_of: ClassVar[type[Intervention] | None] = StepMomentum
    keeps_means: ClassVar[bool] = True

    seed: int = option(0, key="control_seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def momentum(
        self, openings: Sequence[Opening], closed: Float[Tensor, "event kv_head d_head"], at: LayerPass
    ) -> Float[Tensor, "event kv_head d_head"]:
        """The mean of a random step before the one that each opening closes."""
        memory = at.memory(ClosedSteps)
        steps = [int(np.random.default_rng((self.seed, each.step)).integers(each.step - 1)) for each in openings]
        chosen = [memory.events[each.row][step] for each, step in zip(openings, steps, strict=True)]
        return torch.cat(memory.means, 1)[[each.row for each in openings], chosen]
