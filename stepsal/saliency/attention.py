"""How attention is computed for saliency: in float32, and with keys and values kept once instead of once for each query head.

1. A model in half precision rounds its attention scores: a score of 30 is off by up to 0.06 in bfloat16, and its probability by
   6 %. That is nearly all of the error that half precision makes in a step map (docs/precision.md). So queries, keys and values
   become float32 where they enter attention, and head outputs become the model's precision again. Scores, patterns and
   their gradients are float32, as inside fused attention kernels.
2. For the backward pass every layer keeps the keys and values of all tokens so far, repeated for each query head that reads
   them. Here one copy is kept for each key-value head, and it is repeated again when the backward pass needs it.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from stepsal.models.host import Hook, Host

# The number of elements from which a tensor is compared with its repetitions. Comparing takes time, and smaller tensors matter
# little beside the patterns of a chunk.
_LARGE = 2**22


def in_float32(host: Host, hooks: list[Hook]) -> list[Hook]:
    """The hooks, and others around them that compute attention in float32, or in the precision of a wider model."""
    precision = host.dtype
    if torch.finfo(precision).bits >= 32:
        return hooks

    def widen(tensor: Tensor, hook: Any) -> Tensor:
        return tensor.to(torch.float32)

    def narrow(tensor: Tensor, hook: Any) -> Tensor:
        return tensor.to(precision)

    layers, entries = host.attention_layers, (host.at_queries, host.at_keys, host.at_values)
    before = [at(layer, widen) for layer in layers for at in entries]
    return before + hooks + [host.at_head_outputs(layer, narrow) for layer in layers]


def keeping_repeats_once(heads: int, kv_heads: int) -> AbstractContextManager[Any]:
    """A context in which autograd keeps one head of each group of equal heads, in tensors whose first axis is the heads.

    Whether the heads of a group are equal is read from the tensor itself, so the backward pass always gets the values that were
    to be kept.
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
