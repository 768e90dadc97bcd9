"""The negative control of the odds-equal bridge: it gives the same target mass to random tokens."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepsal.interventions.base import Intervention, check_seed, option
from stepsal.interventions.bridge import GroupMasks, OddsEqualBridge
from stepsal.interventions.layer_pass import LayerPass


@dataclass(frozen=True)
class RandomBridge(OddsEqualBridge):
    """Negative control of `OddsEqualBridge`: the same, but the bridge is as many random earlier tokens of `B` and `S`.

    The choice of tokens depends only on `seed` and the positions of the tokens, so it is the same in every layer, head and
    batch.

    >>> RandomBridge(seed=1).tau_max
    0.15
    """

    name: ClassVar[str] = "random-bridge"
    label: ClassVar[str] = "random bridge"
    control_of: ClassVar[type[Intervention] | None] = OddsEqualBridge

    seed: int = option(0, key="control_seed")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)

    def _group_options(self) -> tuple[Any, ...]:
        return (self.scope, self.bos_in_bridge, self.seed)

    def _groups_grow(self) -> bool:
        return False  # a new key may be chosen in the place of an earlier one

    def _masks(self, at: LayerPass, visible: Bool[Tensor, "batch query key"]) -> GroupMasks:
        bridge, current = super()._masks(at, visible)
        positions = at.text.positions(visible.shape[2]).clamp(min=0)
        priority = priorities(self.seed, 1 << int(positions.max()).bit_length()).to(visible.device)
        return random_groups(bridge, current, priority[positions.to(visible.device)])


@lru_cache(maxsize=16)
def priorities(seed: int, length: int) -> Float[Tensor, " position"]:
    """The ranks of random numbers. Each number is drawn for its position alone, so their order stays in longer texts."""
    numbers = [np.random.default_rng((seed, position)).random() for position in range(length)]
    return torch.from_numpy(np.argsort(np.argsort(numbers))).to(torch.float32)


def random_groups(
    bridge: Bool[Tensor, "batch query key"],
    current: Bool[Tensor, "batch query key"],
    priority: Float[Tensor, "batch key"],
) -> tuple[Bool[Tensor, "batch query key"], Bool[Tensor, "batch query key"]]:
    """Other groups of the same sizes: the new bridge is the earlier keys of both groups that have the lowest `priority`.

    The queries are the last keys, in the same order.

    >>> bridge = torch.tensor([[[True, False, False, False]]])
    >>> random_groups(bridge, ~bridge, torch.tensor([[0.9, 0.8, 0.1, 0.0]]))[0].tolist()
    [[[False, False, True, False]]]
    """
    queries, keys = bridge.shape[-2:]
    both = bridge | current
    before = torch.ones(queries, keys, dtype=torch.bool, device=both.device).tril(keys - queries - 1)
    order = torch.where(both & before, priority[:, None], torch.inf)
    count = bridge.sum(-1, keepdim=True)
    limit = order.sort(-1).values.gather(-1, (count - 1).clamp(min=0))
    picked = (order <= limit) & (count > 0) & torch.isfinite(order)
    return picked, both & ~picked
