"""The influence of token pairs, summed over the token pairs of each pair of steps, block by block as it arrives.

In: the steps of a trace, and blocks of influence, `head query key`, of some queries and all keys up to them. Out: `mass`, which
is in the machine's memory whatever device the blocks are on, and the number of token pairs behind each of its entries.

1. The query rows of one step are summed, in float32 or better.
2. The keys are summed by step with one prefix sum in float64, since steps are contiguous.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.traces.trace import Step


class StepPool:
    """Receives blocks of influence (it is a `stepsal.saliency.gradients.Receive`) and holds their sums over pairs of steps."""

    def __init__(self, steps: Sequence[Step], layers: int, heads: int) -> None:
        self.mass: Float[Tensor, "layer head query_step key_step"] = torch.zeros(layers, heads, len(steps), len(steps))
        self._ends = torch.tensor([step.stop for step in steps])

    def __call__(self, index: int, start: int, block: Float[Tensor, "head query key"]) -> Tensor:
        """Add a block of the layer with this index. `start` is the position of its first query.

        Returns the sums that the block was added to.
        """
        stop = start + block.shape[1]
        # The first and the last step that the queries of the block are in.
        first, last = torch.searchsorted(self._ends, torch.tensor([start + 1, stop])).tolist()
        ends = torch.clamp(self._ends[: last + 1], max=stop)
        counts = torch.diff(ends[first:], prepend=torch.tensor([start])).tolist()
        wide = torch.promote_types(block.dtype, torch.float32)
        sums = torch.stack([rows.sum(1, dtype=wide) for rows in block.split(counts, 1)], 1)
        if sums.device.type == "mps":  # MPS has no float64
            sums = sums.cpu()
        prefix = sums.cumsum(-1, dtype=torch.float64)[..., ends.to(sums.device) - 1]
        by_step = torch.diff(prefix, prepend=torch.zeros_like(prefix[..., :1]))
        mass = self.mass[index, :, first : last + 1, : last + 1]
        mass += by_step.to("cpu", torch.float32)
        return mass


def count_pairs(steps: Sequence[Step]) -> Int[Tensor, "query_step key_step"]:
    """The number of token pairs of each pair of steps.

    A pair is a query and a key that is not later than the query. The last token of the trace is no query.

    >>> from stepsal import Step
    >>> count_pairs([Step(0, "question", 0, 2, "2+2"), Step(1, "thinking", 2, 4, "= 4")]).tolist()
    [[3, 0], [2, 1]]
    """
    last = steps[-1].stop - 1
    queries = torch.tensor([min(step.stop, last) - min(step.start, last) for step in steps])
    keys = torch.tensor([step.stop - step.start for step in steps])
    return torch.tril(queries[:, None] * keys, -1) + torch.diag(queries * (queries + 1) // 2)
