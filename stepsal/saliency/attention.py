"""How attention is computed for saliency: in float32, and with keys and values kept once instead of once a query head.

1. A model in half precision rounds its attention scores: a score of 30 is off by up to 0.06 in bfloat16, and its probability by
   6 %. That is nearly all of what half precision does to a step map (docs/precision.md). So queries, keys and values are made
   float32 where they enter attention, and the head outputs take the model's precision again: scores, pattern and their
   gradients are float32, as inside fused attention kernels.
2. For the backward pass every layer keeps the keys and values of all tokens so far, repeated for each query head that reads
   them. One copy for each key-value head is kept instead, and repeated again when it is asked for.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from stepsal.models.host import Hook, Host

# Elements of the smallest tensor that is worth a look: a look costs time, and the patterns of a chunk take more memory.
_LARGE = 2**22


def in_float32(host: Host, hooks: list[Hook]) -> list[Hook]:
    """The hooks, in a forward pass whose attention is computed in float32 (or better, if the model is)."""
    precision = host.dtype
    if torch.finfo(precision).bits >= 32:
        return hooks

    def widen(tensor: Tensor, hook: Any) -> Tensor:
        return tensor.to(torch.float32)

    def narrow(tensor: Tensor, hook: Any) -> Tensor:
        return tensor.to(precision)

    layers, entries = range(host.shape.layers), (host.at_queries, host.at_keys, host.at_values)
    before = [at(layer, widen) for layer in layers for at in entries]
    return before + hooks + [host.at_head_outputs(layer, narrow) for layer in layers]


def keeping_repeats_once(heads: int, kv_heads: int) -> AbstractContextManager[Any]:
    """Inside, autograd keeps one head of each group, of tensors whose first axis is heads and whose groups have equal heads.

    Whether the heads are equal is looked up in the tensor itself: the backward pass gets what was kept, whatever that was.
    """
    group = heads // kv_heads

    def pack(kept: Tensor) -> tuple[Tensor, bool]:
        if group > 1 and kept.ndim == 3 and len(kept) == heads and kept.numel() >= _LARGE:
            groups = kept.detach().unflatten(0, (kv_heads, group))
            if torch.equal(groups, groups[:, :1].expand_as(groups)):
                return groups[:, 0].clone(), True
        return kept, False

    def unpack(packed: tuple[Tensor, bool]) -> Tensor:
        tensor, repeated = packed
        return tensor.repeat_interleave(group, 0) if repeated else tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
