"""Hooks that forbid later steps to attend to chosen steps, for a batch whose rows are one trace with other steps forbidden.

In: the host of a model, the step of every token, and for each row of the batch the steps that are forbidden. Out: hooks for
forward passes over chunks of queries. The first row is the untouched run: nothing is forbidden in it.

1. A query of a later step than a forbidden one has the most negative number of the precision as its score for each of that
   step's keys, before the softmax, so that the rest renormalises. Its own key is never forbidden, so no query is left without
   one.
2. `direct` gives every row the keys and values of the untouched run, for all positions but the query's own. A query's score for
   itself, and the part of its own value in the head output, are made of its own key and value:

       score_tt = own(q_t . k_t),     z_t += A_tt (v_t - v_t of the untouched run)

   So the rows of the pattern do not depend on each other, and one pass serves all readers of a source.

Source: causal.md section 1.
"""

import math
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepsal.models.host import Hook, Host, per_query_head

Mode = Literal["total", "direct"]


class StepRemoval:
    """Hooks for forward passes over chunks of queries.

    `part` is what is taken of the attention on a forbidden step: with 1, all of it; otherwise `log(1 - part)` is added to the
    scores.
    """

    def __init__(
        self,
        host: Host,
        mode: Mode,
        step_of: Int[Tensor, " pos"],
        removed: Bool[Tensor, "batch step"],
        keep_first: bool,
        part: float = 1.0,
    ) -> None:
        self.host, self.mode, self.part = host, mode, part
        self.step_of, self.removed, self.keep_first = step_of, removed, keep_first
        self.forbidden = torch.zeros(0, dtype=torch.bool)
        self.now: dict[str, Tensor] = {}  # of the layer that is running: query, key, change of value, own probability

    def at(self, start: int, stop: int) -> None:
        """The next pass has the queries `[start, stop)`."""
        earlier = rearrange(self.step_of[start:stop], "query -> query 1") > self.step_of[:stop]
        forbidden = rearrange(self.removed[:, self.step_of[:stop]], "batch key -> batch 1 key") & earlier
        if self.keep_first:
            forbidden[..., 0] = False
        self.forbidden = rearrange(forbidden, "batch query key -> batch 1 query key")

    def hooks_of_base(self) -> list[Hook]:
        """Hooks that put the keys and values of the base run in the place of the others. They come before all other hooks."""
        if self.mode == "total":
            return []
        hooks: list[Hook] = []
        for layer in self.host.attention_layers:
            hooks += [self.host.at_keys(layer, self._base_keys), self.host.at_values(layer, self._base_values)]
        return hooks

    def hooks(self) -> list[Hook]:
        """The other hooks. They come after all that are there."""
        hooks: list[Hook] = []
        for layer in self.host.attention_layers:
            if self.mode == "direct":
                hooks.append(self.host.at_queries(layer, self._keep_query))
            hooks.append(self.host.at_scores(layer, self._scores(layer)))
            if self.mode == "direct":
                hooks += [
                    self.host.at_pattern(layer, self._keep_own),
                    self.host.at_head_outputs(layer, self._own_value),
                ]
        return hooks

    def _base_keys(self, keys: Float[Tensor, "batch pos kv_head d_head"], hook: Any) -> Tensor:
        self.now["key"] = keys
        return keys[:1].expand_as(keys)

    def _base_values(self, values: Float[Tensor, "batch pos kv_head d_head"], hook: Any) -> Tensor:
        self.now["value"] = _wide(values) - _wide(values[:1])
        return values[:1].expand_as(values)

    def _keep_query(self, query: Tensor, hook: Any) -> None:
        self.now["query"] = query

    def _scores(self, layer: int) -> Any:
        score, heads = self.host.own_score(layer), self.host.shape.heads

        def edit(scores: Float[Tensor, "batch head query key"], hook: Any) -> Tensor:
            queries, keys = scores.shape[2:]
            if self.mode == "direct":
                key = self.now.pop("key")[:, -queries:]  # without the keys of the cache
                product = _wide(self.now.pop("query")) * per_query_head(_wide(key), heads)
                own = score.of((product if score.weights is None else product * score.weights).sum(-1))
                scores = scores.clone()
                scores.diagonal(keys - queries, -2, -1).copy_(rearrange(own, "batch pos head -> batch head pos"))
            forbidden = self.forbidden[..., -keys:].to(scores.device)  # a sliding window may have fewer keys
            if self.part < 1:
                return torch.where(forbidden, scores + math.log1p(-self.part), scores)
            return scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)

        return edit

    def _keep_own(self, pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
        self.now["own"] = pattern.diagonal(pattern.shape[-1] - pattern.shape[-2], -2, -1)

    def _own_value(self, outputs: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
        change = per_query_head(self.now.pop("value"), self.host.shape.heads)
        return outputs + rearrange(self.now.pop("own"), "batch head pos -> batch pos head 1") * change


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
