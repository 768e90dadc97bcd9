"""Hooks that read attention patterns and the gradients that reach them, in one forward and one backward pass.

In: the host of a model, the layers, and the function `receive`. Out: calls of `receive` with blocks of influence.
`stepsal.saliency.influence` explains what is computed and why it is exact; `cut` turns on its steps 1 and 2.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.errors import NumericalError
from stepsal.models.host import Hook, Host

Rule = Literal["abs", "signed", "grad", "attention", "value_attention"]
WITHOUT_GRADIENT: tuple[Rule, ...] = ("attention", "value_attention")
"""The rules that need no backward pass (`stepsal.saliency.patterns`)."""

# A function that takes in a block of influence: (index in `layers`, first query position, influence). The keys of a block start
# at position 0. It returns what it computed from the block: where that is finite, the block was finite.
Receive = Callable[[int, int, Float[Tensor, "head query key"]], Tensor]


class PatternReader:
    """Hooks for one forward pass and its backward pass. `cut` severs the gradient through other positions (steps 1 and 2).
    `receive` has a function for each row of the batch.

    The pattern of the lowest layer is the leaf of the graph. What lies below it takes no part in any gradient.
    """

    def __init__(
        self, host: Host, rule: Rule, layers: tuple[int, ...], start: int, receive: Sequence[Receive], *, cut: bool
    ) -> None:
        self.host, self.rule, self.layers = host, rule, layers
        self.start, self.receive, self.cut = start, receive, cut
        self.leaf: Tensor | None = None
        self.now: dict[str, Tensor] = {}  # query, key, value and own (A_tt) of the layer that is running
        self.errors: list[NumericalError] = []

    def hooks(self) -> list[Hook]:
        host = self.host
        lowest = self.layers[0]
        hooks: list[Hook] = [host.at_pattern(lowest, self._start)]
        for layer in (layer for layer in host.attention_layers if layer > lowest):
            if self.cut:
                hooks += [
                    host.at_values(layer, self._detach("value")),
                    host.at_queries(layer, self._keep_query),
                    host.at_keys(layer, self._detach("key")),
                    host.at_scores(layer, self._own_key(layer)),
                ]
            hooks.append(host.at_pattern(layer, self._pattern(layer)))
            if self.cut:
                hooks.append(host.at_head_outputs(layer, self._own_value))
        return hooks

    def backward(self, logits: Tensor, gradient_of_logits: Tensor) -> None:
        assert self.leaf is not None
        # This computes no gradients of parameters. The layers above the leaf have tensor hooks.
        (gradient,) = torch.autograd.grad(logits, self.leaf, gradient_of_logits)
        self._take(0, self.leaf.detach(), gradient)
        if self.errors:
            raise self.errors[0]  # the error of the highest layer, since gradients flow down

    def _start(self, pattern: Tensor, hook: Any) -> Tensor:
        self.leaf = pattern.detach().requires_grad_(True)
        return self.leaf

    def _keep_query(self, query: Tensor, hook: Any) -> Tensor:
        self.now["query"] = query.detach()
        return query

    def _detach(self, name: str) -> Callable[[Tensor, Any], Tensor]:
        def detach(tensor: Tensor, hook: Any) -> Tensor:
            self.now[name] = tensor
            return tensor.detach()

        return detach

    def _pattern(self, layer: int) -> Callable[[Tensor, Any], None]:
        def read(pattern: Tensor, hook: Any) -> None:
            values = pattern.detach()
            if self.cut:
                self.now["own"] = values.diagonal(values.shape[-1] - values.shape[-2], -2, -1)  # batch head query
            if layer not in self.layers:
                return
            index = self.layers.index(layer)
            pattern.register_hook(lambda gradient: self._take(index, values, gradient))

        return read

    def _take(
        self,
        index: int,
        pattern: Float[Tensor, "batch head query key"],
        gradient: Float[Tensor, "batch head query key"],
    ) -> None:
        for row, receive in enumerate(self.receive):
            self._hand_on(index, pattern[row], gradient[row], receive)

    def _hand_on(
        self,
        index: int,
        pattern: Float[Tensor, "head query key"],
        gradient: Float[Tensor, "head query key"],
        receive: Receive,
    ) -> None:
        """Combine a pattern with the gradient that has reached it, and hand the influence on. Nothing is kept."""
        if self.rule == "grad":
            block = gradient.abs().masked_fill_(pattern == 0, 0)  # masked keys have a gradient but no influence
        else:
            block = gradient * pattern
            if self.rule == "abs":
                block.abs_()
        if not torch.isfinite(receive(index, self.start, block)).all():
            position = self.start + int((~torch.isfinite(block)).any(-1).any(0).nonzero()[0])
            self.errors.append(
                NumericalError(
                    f"the gradient of the attention pattern is not finite in layer {self.layers[index]} at query "
                    f"position {position}. Load the model in a wider precision (dtype='float32')."
                )
            )

    def _own_key(self, layer: int) -> Callable[[Tensor, Any], Tensor]:
        score = self.host.own_score(layer)

        def add(scores: Float[Tensor, "batch head query key"], hook: Any) -> Tensor:
            queries, keys = scores.shape[2:]
            query, key = self.now["query"], self.now["key"][:, -queries:]  # without the keys of the cache
            slope = score.slope(scores.detach().diagonal(keys - queries, -2, -1))  # batch head query, or one number

            def gradient(of_scores: Float[Tensor, "batch head query key"]) -> Tensor:
                own = slope * of_scores.diagonal(keys - queries, -2, -1)
                of_key = rearrange(own, "batch head pos -> batch pos head 1") * query
                return _for_key_heads(of_key if score.weights is None else of_key * score.weights, key)

            return _AddGradient.apply(scores, key, gradient)

        return add

    def _own_value(self, output: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
        value, own = self.now["value"], rearrange(self.now["own"], "batch head pos -> batch pos head 1")
        self.now.clear()
        return _AddGradient.apply(output, value, lambda of_output: _for_key_heads(own * of_output, value))


class _AddGradient(torch.autograd.Function):
    """Return the first tensor as it is, and send `gradient` of its gradient to the second tensor.

    That is all that the terms of step 2 do, since their value is zero. The first tensor is not copied.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, second: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.gradient = gradient
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, ctx.gradient(gradient), None


def _for_key_heads(
    gradient: Float[Tensor, "batch pos head d_head"], like: Float[Tensor, "batch pos kv_head d_head"]
) -> Float[Tensor, "batch pos kv_head d_head"]:
    """The gradient summed over the query heads that read each key-value head, in the precision of `like`."""
    grouped = "batch pos (kv_head group) d -> batch pos kv_head d"
    return reduce(gradient, grouped, "sum", kv_head=like.shape[2]).to(like.dtype)


def check_logits(
    host: Host, logits: Float[Tensor, "batch pos vocabulary"], tokens: Int[Tensor, "batch all_pos"], start: int
) -> None:
    """Raise `NumericalError` where a logit is not finite. The message names the first layer and position that are not."""
    if torch.isfinite(logits.sum()) or torch.isfinite(logits).all():  # the sum is quick to compute and seldom overflows
        return
    position = start + int((~torch.isfinite(logits)).any(-1).any(0).nonzero()[0])
    sources: list[str] = []

    def look(layer: int) -> Callable[[Tensor, Any], None]:
        def look_at(residual: Tensor, hook: Any) -> None:
            bad = (~torch.isfinite(residual)).any(-1).any(0)
            if bad.any() and not sources:
                sources.append(f"first in layer {layer} at position {int(bad.nonzero()[0])}")

        return look_at

    hooks: list[Hook] = [host.at_residual(layer, look(layer)) for layer in range(host.shape.layers)]
    with torch.no_grad():
        host.forward(tokens, hooks)
    where = sources[0] if sources else "every layer is finite, so the unembedding is the cause"
    raise NumericalError(
        f"the logits at position {position} are not finite; {where}. Check the weights, or load the model in a wider "
        "precision (dtype='float32')."
    )
