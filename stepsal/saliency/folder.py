"""A folder of step maps, one file a trace: computed once each, resumable, every file whole.

OUT/saliency.json      what the maps were made with; another run into the same folder must agree
OUT/maps/ID.safetensors
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from stepsal._version import __version__
from stepsal.checks import checked, path
from stepsal.errors import FileError, InputError
from stepsal.files import agree_on_settings, locked
from stepsal.models import host_of
from stepsal.models.checks import a_model
from stepsal.models.host import Model
from stepsal.models.layers import LayerSpec, resolve_layers
from stepsal.models.support import check_supported
from stepsal.saliency.influence import Objective, Rule, check_options, check_trace, step_saliency
from stepsal.saliency.stepmap import StepMap
from stepsal.traces.checks import traces
from stepsal.traces.trace import Trace


def map_path(out: str | Path, trace_id: str) -> Path:
    """Where the map of a trace is kept; any id makes a safe file name.

    >>> map_path("out", "aime/3").as_posix()
    'out/maps/aime%2F3.safetensors'
    """
    name = quote(trace_id, safe=" ")
    if len(name) > 180 or not name.strip(". "):
        name = name[:120] + "-" + hashlib.sha256(trace_id.encode()).hexdigest()[:16]
    return Path(out) / "maps" / f"{name}.safetensors"


@checked(model=a_model, traces=traces, out=path)
def save_step_maps(
    model: Model,
    traces: Sequence[Trace],
    out: str | Path,
    *,
    objective: Objective = "token",
    rule: Rule = "abs",
    layers: LayerSpec = "all",
    chunk: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> list[Path]:
    """Compute the step map of every trace that has none in `out` yet, and return the paths of all, in order.

    An interrupted run goes on where it stopped. Every trace is checked before the first is computed.

    Raises:
        InputError: an unknown option, a trace that this model cannot take, or two traces with one id.
        UnsupportedModelError: a model on which this would not be exact.
        FileError: `out` holds maps made with other settings or from other tokens, another run is at work in it, or it cannot
            be written.
    """
    out = Path(out)
    check_options(0, objective, rule, chunk, None)
    _check_traces(model, traces)
    host = host_of(model)
    indices = resolve_layers(layers, host.shape.layers)
    check_supported(model)
    about = host.describe()
    settings = {
        "model": about["model"],
        "dtype": about["dtype"],
        "objective": objective,
        "rule": rule,
        "layers": list(indices),
        "stepsal": __version__,
    }
    path = out / "saliency.json"
    at_work = f"another run is making step maps in {out}: wait for it, or use another --out folder"
    with locked(path, at_work, also=["maps/*"]):
        agree_on_settings(
            path,
            settings,
            begun=path.exists(),
            refusal=f"{out} holds step maps made with other settings",
            unknown=f"nothing says what the step maps in {out} were made with",
            fix="Use another --out folder.",
            indent=2,
        )
        return _compute(model, traces, out, progress, objective=objective, rule=rule, layers=layers, chunk=chunk)


def _check_traces(model: Model, traces: Sequence[Trace]) -> None:
    seen: set[str] = set()
    for trace in traces:
        if trace.id in seen:
            raise InputError(f"two traces have the id {trace.id!r}; give each its own, it names the map's file")
        seen.add(trace.id)
        try:
            check_trace(model, trace)
        except InputError as error:
            raise InputError(f"trace {trace.id!r}: {error}") from error


def _compute(model: Model, traces: Sequence[Trace], out: Path, progress: bool, **options: Any) -> list[Path]:
    """The paths of all maps, in order; those that are not there are made with the options of `step_saliency`."""
    from tqdm import tqdm

    paths = [map_path(out, trace.id) for trace in traces]
    left = [(trace, path) for trace, path in zip(traces, paths, strict=True) if not _is_done(trace, path)]
    done = len(traces) - len(left)
    with tqdm(total=len(traces), initial=done, desc="step maps", unit="trace", disable=not progress) as bar:
        for trace, path in left:
            step_saliency(model, trace, **options).save(path)
            bar.update()
    return paths


def _is_done(trace: Trace, path: Path) -> bool:
    if not path.exists():
        return False
    if StepMap.load(path).steps != trace.steps:
        raise FileError(
            f"{path} was made from another trace with the id {trace.id!r}: its steps differ. Use another --out folder, or "
            "delete that file."
        )
    return True


def load_step_maps(out: str | Path, *, progress: bool = False) -> list[StepMap]:
    """Every map of a folder that `save_step_maps` wrote, in the order of their file names.

    Raises `FileError` for a folder without maps and for a damaged map.
    """
    from tqdm import tqdm

    paths = sorted((Path(out) / "maps").glob("*.safetensors"))
    if not paths:
        raise FileError(
            f"there are no step maps in {Path(out) / 'maps'}: make them with `stepsal saliency` or `stepsal demo`"
        )
    return [StepMap.load(path) for path in tqdm(paths, desc="reading", unit="map", disable=not progress)]


def group_maps(maps: Sequence[StepMap], graded: Mapping[str, bool | None] | None = None) -> dict[str, list[StepMap]]:
    """Maps of correct and of wrong traces, by what the trace said when the map was made, or by `graded` (id -> correct).

    Raises `InputError` where that is not known of a trace.
    """
    groups: dict[str, list[StepMap]] = {"correct": [], "wrong": []}
    for stepmap in maps:
        name = stepmap.meta.get("trace", "")
        correct = stepmap.meta.get("correct") if graded is None else graded.get(name)
        if correct is None:
            raise InputError(
                f'whether trace {name!r} is correct is not known. Give "correct": true or false in its line of the traces\' '
                "file, and that file with --traces."
            )
        groups["correct" if correct else "wrong"].append(stepmap)
    return groups
