"""How the step map of a trace is made: the recipe that workers follow (`stepsal.saliency.worker`).

In: a model and a trace. Out: the step map, as a folder keeps it: of these layers, with all heads or their mean, in a precision.
"""

from dataclasses import dataclass
from typing import Any, Literal

from stepsal.models import host_of
from stepsal.models.host import Model
from stepsal.models.layer_choice import LayerSpec, resolve_layers
from stepsal.saliency.influence import Objective, Rule, Score, step_saliency
from stepsal.saliency.stepmap import Precision, StepMap, in_precision
from stepsal.traces.trace import Trace


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

    def compute(self, model: Model, trace: Trace) -> StepMap:
        options = {name: getattr(self, name) for name in ("objective", "rule", "score", "layers", "chunk")}
        stepmap = step_saliency(model, trace, **options)
        stepmap = stepmap.mean_heads() if self.heads == "mean" else stepmap
        return stepmap if self.precision is None else in_precision(stepmap, self.precision)
