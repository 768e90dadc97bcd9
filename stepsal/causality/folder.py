"""A folder of knockouts, one file a trace: computed once each, resumable, every file whole.

OUT/knockout.json      what the knockouts were made with, and the traces that they are of
OUT/knockouts/ID.safetensors

It is kept as a folder of step maps is (`stepsal.saliency.folder`), and may be the same folder.
"""

from collections.abc import Sequence
from pathlib import Path

from stepsal.causality.knockout import Knockout, check_knockout, step_knockout
from stepsal.causality.removal import Mode
from stepsal.checks import checked, whole
from stepsal.checks import path as a_path
from stepsal.models.checks import a_model
from stepsal.models.host import Model
from stepsal.models.support import check_supported
from stepsal.saliency.folder import ResultKind, check_traces, load_results, model_settings, save_results
from stepsal.traces.checks import traces
from stepsal.traces.trace import Trace

KNOCKOUTS = ResultKind(
    "knockout", "knockout", "knockouts", "knockout.json", "stepsal knockout", "`stepsal knockout`", Knockout.load
)


@checked(model=a_model, traces=traces, out=a_path, subsets=whole(0), seed=whole(0))
def save_knockouts(
    model: Model,
    traces: Sequence[Trace],
    out: str | Path,
    *,
    mode: Mode = "total",
    subsets: int = 0,
    seed: int = 0,
    progress: bool = True,
) -> list[Path]:
    """Compute the knockout of every trace that has none in `out` yet, and return the paths of all, in order.

    Every step but the question is knocked out, as `step_knockout` does by default; `mode`, `subsets` and `seed` are its own.
    An interrupted run goes on where it stopped. Every trace, and every knockout that is there, is checked before the first one
    is computed. From then on these traces' knockouts are the folder's: those of others stay where they are and are left out,
    with a warning.

    Raises:
        InputError: an unknown option, a trace that this model cannot take, or two traces with one id.
        UnsupportedModelError: a model on which this would not be exact.
        FileError: `out` holds knockouts made with other settings, with other weights, or from other tokens; another run is at
            work in it; or it cannot be written.
    """
    check_traces(model, traces)
    for trace in traces:
        check_knockout(trace.steps, mode, "all", None)
    check_supported(model)
    settings = {"mode": mode, "subsets": subsets, "seed": seed} | model_settings(model)

    def compute(trace: Trace) -> Knockout:
        return step_knockout(model, trace, mode=mode, subsets=subsets, seed=seed)

    return save_results(KNOCKOUTS, traces, Path(out), settings, compute, progress)


def load_knockouts(out: str | Path, *, progress: bool = False, verify: bool = True) -> list[Knockout]:
    """Every knockout of a folder that `save_knockouts` wrote, in the order of their file names.

    Warns where knockouts of the folder's traces are not there (yet), and of files that are no knockouts of its traces. Raises
    `FileError` for a folder without knockouts, and for one that is damaged or was not made as the folder says.
    """
    return load_results(KNOCKOUTS, Path(out), progress, verify)
