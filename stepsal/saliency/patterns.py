"""Attention without gradients: what a prediction attends to, and how much of it. Baselines for influence.

In: the host of a model, the layers, and the function `receive`. Out: calls of `receive` with blocks, chunk by chunk.

    attention          A[layer, head, t, k]
    value_attention    A[layer, head, t, k] * || v[layer, head, k] W_O[layer, head] ||

The second is the length of the vector that head `head` adds to the residual stream of `t` for having seen `k`: a token that is
attended to with a value near zero, as the first token often is, adds little. With grouped queries, each query head has its
group's value and a `W_O` of its own. Normalisations and what follows the projection are left out.
Source: Kobayashi et al. 2020 (arXiv 2004.10102), equation 5.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepsal.errors import UnsupportedModelError
from stepsal.models.host import Hook, Host, per_query_head
from stepsal.saliency.gradients import Receive, Rule


class AttentionReader:
    """Hooks for the forward passes of all chunks of a trace, in their order."""

    def __init__(self, host: Host, rule: Rule, layers: tuple[int, ...], receive: Receive) -> None:
        self.host, self.layers, self.receive = host, layers, receive
        self.weighted = rule == "value_attention"
        self.start = 0
        self.norms: dict[int, Float[Tensor, "head key"]] = {}  # by layer, of all keys so far
        if self.weighted and any(host.at_output_gate(layer, lambda gate, hook: None) for layer in layers):
            raise UnsupportedModelError(
                f"rule='value_attention' is not defined for {host.describe()['model']}: its head outputs are gated, so that "
                "what a value adds depends on who reads it. Use rule='attention'."
            )

    def hooks(self, start: int) -> list[Hook]:
        """The hooks for the chunk whose first query is at position `start`."""
        self.start = start
        of_values = [self.host.at_values(layer, self._value(layer)) for layer in self.layers if self.weighted]
        return of_values + [self.host.at_pattern(layer, self._pattern(layer)) for layer in self.layers]

    def _value(self, layer: int) -> Callable[[Tensor, Any], None]:
        def keep(value: Float[Tensor, "batch pos kv_head d_head"], hook: Any) -> None:
            added = self.host.project(layer, per_query_head(value, self.host.shape.heads)[0])
            norms = added.to(torch.promote_types(added.dtype, torch.float32)).norm(dim=-1).T
            self.norms[layer] = torch.cat([self.norms[layer], norms], 1) if layer in self.norms else norms

        return keep

    def _pattern(self, layer: int) -> Callable[[Tensor, Any], None]:
        def read(pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
            block = pattern[0] * self.norms[layer][:, None] if self.weighted else pattern[0]
            self.receive(self.layers.index(layer), self.start, block)

        return read
