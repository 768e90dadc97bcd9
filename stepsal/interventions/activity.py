"""What one part did in one layer: counts and means, kept on the device until somebody asks.

In: what each forward pass did. Out: the numbers of a row of `live.report()`. Decoding steps are put together and summed up
every 64th time: summing each by itself would cost a good part of the intervention.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_TOGETHER = 64
NAN = float("nan")


class Tally:
    """Opportunities, activations and means of a part in a layer."""

    def __init__(self) -> None:
        self.opportunities = 0  # momentum's; a bridge's are in the sums
        self.activations = 0
        self._norms: Tensor | None = None  # head
        self._received: list[tuple[Tensor, Tensor]] = []  # that is not in it yet: what was added to what
        self._sums: Tensor | None = None  # opportunities, activations, mass before, mass after; head
        self._waiting: list[tuple[Tensor, ...]] = []

    def add_bridge(
        self,
        opportunity: Bool[Tensor, "batch 1 query"],
        active: Bool[Tensor, "batch head query"],
        before: Float[Tensor, "batch head query"],
        target: Float[Tensor, "batch head query"],
    ) -> None:
        """One forward pass of a bridge; the masses are those of the bridge group, `target` in the active rows."""
        if self._waiting and len(self._waiting[0][0]) != len(active):
            self._sum_up()
        self._waiting.append((active, opportunity, before, target))
        if len(self._waiting) == _TOGETHER or active.shape[2] > 1:
            self._sum_up()

    def add_momentum(
        self, added: Float[Tensor, "event head d_head"], there: Float[Tensor, "event head d_head"]
    ) -> None:
        """One forward pass of momentum: what steps received, and the head outputs that it was added to."""
        self.activations += len(added)
        self._received.append((added, there))
        if len(self._received) == _TOGETHER:
            self._sum_up()

    def acted(self) -> bool:
        """Whether anything was done."""
        self._sum_up()
        return self.activations > 0 or (self._sums is not None and bool((self._sums[1] > 0).any()))

    def of_head(self, head: int, momentum: bool) -> dict[str, float | int]:
        """The numbers of a head."""
        self._sum_up()
        if momentum:
            norm = NAN if self._norms is None else float(self._norms[head]) / self.activations
            counts: dict[str, float | int] = {"opportunities": self.opportunities, "activations": self.activations}
            return counts | {"mean_bridge_before": NAN, "mean_bridge_after": NAN, "mean_injected_norm": norm}
        rows, active, before, after = (0.0,) * 4 if self._sums is None else self._sums[:, head].tolist()
        return {
            "opportunities": round(rows),
            "activations": round(active),
            "mean_bridge_before": before / rows if rows else NAN,
            "mean_bridge_after": after / rows if rows else NAN,
            "mean_injected_norm": NAN,
        }

    def _sum_up(self) -> None:
        if self._received:
            added, there = (
                torch.cat(each).to(torch.float32).norm(dim=-1) for each in zip(*self._received, strict=True)
            )
            self._received = []
            norms = (added / there.clamp(min=torch.finfo(torch.float32).tiny)).sum(0)  # head
            self._norms = norms if self._norms is None else self._norms + norms
        if not self._waiting:
            return
        active, opportunity, before, target = (torch.cat(each, -1) for each in zip(*self._waiting, strict=True))
        self._waiting = []
        after = torch.where(active, target, before)
        numbers = torch.stack([opportunity.expand_as(active), active, before * opportunity, after * opportunity])
        sums = numbers.sum((1, 3), dtype=torch.float32 if numbers.device.type == "mps" else torch.float64)
        self._sums = sums if self._sums is None else self._sums + sums
