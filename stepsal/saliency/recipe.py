"""How the step maps of traces are made: the recipe that workers follow (`stepsal.saliency.worker`).

In: a model and traces. Out: their step maps, as a folder keeps them: of these layers, with all heads or their mean, in a
precision. Traces that are short share a forward and a backward pass: see `passes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stepsal.models import host_of
from stepsal.models.host import Model
from stepsal.models.layer_choice import LayerSpec, resolve_layers
from stepsal.models.support import reads_in_chunks
from stepsal.saliency.gradients import WITHOUT_GRADIENT
from stepsal.saliency.influence import Objective, Rule, Score, saliency_together, step_saliency
from stepsal.saliency.stepmap import Precision, StepMap, in_precision
from stepsal.traces.trace import Trace

TOKENS_TOGETHER = 2048
PAIRS_TOGETHER = 2**19
"""The most tokens, padding included, and the most pairs of a query and a key in a pass that several traces share. Its patterns
take as much memory as those of a chunk of a trace of 3,000 tokens (`stepsal.saliency.influence`)."""


def passes(lengths: Sequence[int]) -> list[list[int]]:
    """The traces of these lengths, by index, the longest first, in groups that share a pass; a long trace is alone.

    The groups depend on the lengths alone, so that a map is the same to the bit whoever makes it, and however often a run is
    interrupted.

    >>> passes([100, 5000, 600, 500, 500, 90])
    [[1], [2], [3, 4], [0, 5]]
    """
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True):
        if not room:
            groups.append([])
            room = max(1, min(TOKENS_TOGETHER // lengths[index], PAIRS_TOGETHER // lengths[index] ** 2))
        groups[-1].append(index)
        room -= 1
    return groups


@dataclass(frozen=True)
class StepMapRecipe:
    """The options of `save_step_maps`."""

    objective: Objective = "token"
    rule: Rule = "abs"
    score: Score = "loss"
    layers: LayerSpec = "all"
    chunk: int | Literal["auto"] = "auto"
    heads: Literal["all", "mean"] = "all"
    precision: Precision | None = None

    def settings(self, model: Model) -> dict[str, Any]:
        host = host_of(model)
        indices = resolve_layers(self.layers, host.shape.layers, host.attention_layers or None)
        named = {name: getattr(self, name) for name in ("objective", "rule", "score", "heads", "precision")}
        return named | {"layers": list(indices)}

    def shares_passes(self, model: Model) -> bool:
        any_chunk = self.objective == "token" and self.rule not in WITHOUT_GRADIENT and self.chunk == "auto"
        return any_chunk and reads_in_chunks(model) and not host_of(model).has_hooks()

    def compute(self, model: Model, traces: Sequence[Trace]) -> list[StepMap]:
        of_each = {name: getattr(self, name) for name in ("rule", "score", "layers")}
        if len(traces) > 1:
            maps = saliency_together(model, traces, **of_each)
        else:
            maps = [step_saliency(model, traces[0], objective=self.objective, chunk=self.chunk, **of_each)]
        maps = [stepmap.mean_heads() if self.heads == "mean" else stepmap for stepmap in maps]
        return [stepmap if self.precision is None else in_precision(stepmap, self.precision) for stepmap in maps]
