"""Measure what deletion and insertion need: the answer without ever more steps, in the order of each map.

In: a model, a trace, its knockout and its step maps. Out: the knockout with these sets among those that it has measured.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from stepsal.causality.answers import answer_entries, sets_to_measure
from stepsal.causality.knockout import Knockout
from stepsal.causality.matching import match
from stepsal.causality.subsets import answer_without
from stepsal.checks import checked, whole
from stepsal.errors import InputError
from stepsal.models.checks import a_model
from stepsal.models.host import Model
from stepsal.saliency.checks import maps
from stepsal.saliency.stepmap import StepMap
from stepsal.traces.checks import a_trace
from stepsal.traces.trace import Trace


@checked(model=a_model, trace=a_trace, stepmaps=maps, seed=whole(0))
def measure_orders(
    model: Model,
    trace: Trace,
    knockout: Knockout,
    stepmaps: Sequence[StepMap],
    *,
    seed: int = 0,
    progress: bool = False,
) -> Knockout:
    """The knockout with all that deletion and insertion need for these maps of the trace and for the baselines.

    With n thinking steps, each map and baseline costs at most 2 (n - 1) runs of the trace, and so do the knockout's own order
    and its reverse. `seed` is that of `faithfulness`, for the random order.

    Raises `InputError` where maps, knockout and trace do not match or the trace has no answer; and as `step_knockout` does.
    """
    (_, of_kind) = next(iter(match(stepmaps, [knockout]).values()))
    if trace.steps != knockout.steps:
        raise InputError(
            f"the knockout of trace {knockout.meta.get('trace')!r} and the trace {trace.id!r} have other steps"
        )
    if knockout.meta.get("answer") is None:
        raise InputError(f"the knockout of trace {trace.id!r} has no answer: knock out with answer=(start, stop)")
    new = sets_to_measure(knockout, answer_entries(knockout, of_kind, seed, knockout.meta.get("trace", "")))
    answer = tuple(knockout.meta["answer"])
    options = {name: knockout.meta[name] for name in ("mode", "keep_first")}
    found = answer_without(model, trace, new, answer=answer, progress=progress, **options)
    if knockout.removed is None or knockout.answers is None:
        return replace(knockout, removed=new, answers=found)
    return replace(knockout, removed=torch.cat([knockout.removed, new]), answers=torch.cat([knockout.answers, found]))
