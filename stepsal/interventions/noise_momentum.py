"""A negative control of step momentum: noise of the same norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from stepsal.interventions.base import Intervention, check_seed, option
from stepsal.interventions.layer_pass import LayerPass
from stepsal.interventions.momentum import StepMomentum
from stepsal.interventions.text_state import Opening


@dataclass(frozen=True)
class NoiseMomentum(StepMomentum):
    """Negative control of `StepMomentum`: noise of the same norm, in a random direction for every layer, head and step.

    >>> NoiseMomentum(seed=1).alpha
    0.06
    """

    name: ClassVar[str] = "noise-momentum"
    label: ClassVar[str] = "noise momentum"
    control_of: ClassVar[type[Intervention] | None] = StepMomentum

    seed: int = option(0, key="control_seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def redirect(
        self, openings: Sequence[Opening], added: Float[Tensor, "event head d_head"], at: LayerPass
    ) -> Float[Tensor, "event head d_head"]:
        """Gaussian directions that depend on the seed, the layer and the step only, with the norms of the momentum."""
        generators = [np.random.default_rng((self.seed, at.layer, each.step)) for each in openings]
        noise = np.stack([each.standard_normal(added.shape[1:]) for each in generators])
        return share_norm(added, torch.from_numpy(noise).to(added))


def share_norm(
    momentum: Float[Tensor, "event head d_head"], directions: Float[Tensor, "event head d_head"]
) -> Float[Tensor, "event head d_head"]:
    """Vectors along `directions` with the norms of `momentum`.

    >>> share_norm(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[0.0, 2.0]]])).flatten()
    tensor([0., 5.])
    """
    norms = rearrange(momentum.norm(dim=-1), "event head -> event head 1")
    return directions / directions.norm(dim=-1, keepdim=True) * norms
