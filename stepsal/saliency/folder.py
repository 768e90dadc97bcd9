"""A folder of step maps, one file a trace: computed once each, resumable, every file whole.

OUT/saliency.json      what the maps were made with, which another run into the same folder must agree on; and under `traces`
                       the file and the tokens (SHA-256) of each trace that the last run was given: these maps are the folder's
OUT/maps/ID.safetensors

A map says itself what it was made of: the trace's id, its tokens, the model's weights and the settings. It is taken for done,
and read from the folder, only where that agrees.
"""

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from stepsal._version import __version__
from stepsal.checks import checked
from stepsal.checks import path as a_path
from stepsal.errors import FileError, InputError
from stepsal.files import agree_on_settings, locked, read_settings, sha256_of, write_settings
from stepsal.models import host_of
from stepsal.models.checks import a_model
from stepsal.models.host import Model
from stepsal.models.layer_choice import LayerSpec, resolve_layers
from stepsal.models.lookup import model_fingerprint
from stepsal.models.support import check_supported
from stepsal.saliency.influence import Objective, Rule, check_options, check_trace, step_saliency
from stepsal.saliency.stepmap import StepMap
from stepsal.traces.checks import traces
from stepsal.traces.trace import Trace

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # names that Windows keeps for devices
_UNKNOWN = "nothing says what the step maps in {} were made with"
_OF_THE_TRACE = ("its steps differ", "its tokens differ")
_FIX = "Use another --out folder."


def map_path(out: str | Path, trace_id: str) -> Path:
    """Where the map of a trace is written; any id makes a safe file name of its own, also where case does not count.

    >>> map_path("out", "aime/3").as_posix()
    'out/maps/aime%2F3.safetensors'
    >>> map_path("out", "AIME").as_posix()
    'out/maps/AIME+b7073a3092198281.safetensors'
    """
    name = quote(trace_id, safe=" ")
    if _RESERVED.match(name.lower()):
        name = f"+{name}"  # `quote` leaves no plus in a name
    alike = name.startswith("+") or any("A" <= letter <= "Z" for letter in trace_id)
    if len(name) > 180 or not name.strip(". ") or alike:
        name = f"{name[:120]}+{_short_hash(trace_id)}"
    return Path(out) / "maps" / f"{name}.safetensors"


def find_map(out: str | Path, trace_id: str) -> Path:
    """Where the map of a trace is: `map_path`, or where stepsal 0.1 wrote it."""
    path = map_path(out, trace_id)
    name = quote(trace_id, safe=" ")
    if len(name) > 180 or not name.strip(". "):
        name = f"{name[:120]}-{_short_hash(trace_id)}"
    old = path.with_name(f"{name}.safetensors")
    # Where case does not count, the old name of one trace may be that of another.
    if old != path and not path.exists() and old.exists() and StepMap.load(old).meta.get("trace") == trace_id:
        return old
    return path


def _short_hash(trace_id: str) -> str:
    return hashlib.sha256(trace_id.encode()).hexdigest()[:16]


@checked(model=a_model, traces=traces, out=a_path)
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

    An interrupted run goes on where it stopped. Every trace, and every map that is there, is checked before the first map is
    computed. From then on these traces' maps are the folder's: those of others stay where they are and are left out.

    Warns where `out` holds maps of other traces, where `saliency.json` was lost, and where maps of stepsal 0.1 do not say what
    they were made of.

    Raises:
        InputError: an unknown option, a trace that this model cannot take, or two traces with one id.
        UnsupportedModelError: a model on which this would not be exact.
        FileError: `out` holds maps made with other settings, with other weights, from other tokens, or of a trace that was
            graded otherwise; another run is at work in it; or it cannot be written.
    """
    out = Path(out)
    if objective == "answer":
        raise InputError(
            "objective='answer' is about the answer's tokens, which differ from trace to trace: call "
            "step_saliency(model, trace, objective='answer', answer=(start, stop)) for every trace, and save the maps yourself"
        )
    check_options(0, objective, rule, chunk, None)
    _check_traces(model, traces)
    host = host_of(model)
    indices = resolve_layers(layers, host.shape.layers, host.attention_layers or None)
    check_supported(model)
    about = host.describe()
    settings = {
        "model": about["model"],
        "dtype": about["dtype"],
        "host": about["host"],
        "objective": objective,
        "rule": rule,
        "layers": list(indices),
        "stepsal": __version__,
        "model_sha256": model_fingerprint(model),
    }
    at_work = f"another run is making step maps in {out}: wait for it, or use another --out folder"
    with locked(_settings_path(out), at_work, also=["maps/*"]):
        paths = _begin(out, traces, settings)
        return _compute(
            model, traces, paths, settings, progress, objective=objective, rule=rule, layers=layers, chunk=chunk
        )


def _settings_path(out: Path) -> Path:
    return out / "saliency.json"


def _check_traces(model: Model, traces: Sequence[Trace]) -> None:
    seen: set[str] = set()
    for trace in traces:
        try:
            trace.id.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the id {trace.id!r} holds half a surrogate pair, which no file can hold: give another"
            ) from error
        if trace.id in seen:
            raise InputError(f"two traces have the id {trace.id!r}; give each its own, it names the map's file")
        seen.add(trace.id)
        try:
            check_trace(model, trace)
        except InputError as error:
            raise InputError(f"trace {trace.id!r}: {error}") from error


def _begin(out: Path, traces: Sequence[Trace], settings: Mapping[str, Any]) -> list[Path]:
    """Where the map of each trace is or will be, once all that is there was found to be what this run would make."""
    path = _settings_path(out)
    begun, files = path.exists(), _map_files(out)
    refusal, unknown = f"{out} holds step maps made with other settings", _UNKNOWN.format(out)
    agree_on_settings(
        path,
        settings,
        begun=begun,
        refusal=refusal,
        unknown=unknown,
        fix=_FIX,
        defaults={name: settings[name] for name in ("model_sha256", "host")},
        beside=("traces",),
        indent=2,
    )
    if files and not begun:
        warnings.warn(
            f"{out} holds step maps, but no {path.name} says of what. Those of the traces given now are gone on with as far as "
            "they say so themselves.",
            stacklevel=4,
        )
    paths = [find_map(out, trace.id) for trace in traces]
    _check_made([pair for pair in zip(traces, paths, strict=True) if pair[1].exists()], settings)
    if others := sorted(set(files) - set(paths)):
        warnings.warn(f"{_of_others(out, others)} The traces given now are the folder's from now on.", stacklevel=4)
    listed = {
        trace.id: {"file": where.name, "tokens_sha256": tokens_sha256(trace)}
        for trace, where in zip(traces, paths, strict=True)
    }
    write_settings(path, read_settings(path, unknown, _FIX) | {"traces": listed}, indent=2)
    return paths


def tokens_sha256(trace: Trace) -> str:
    """Of a trace's token ids."""
    return sha256_of(",".join(map(str, trace.tokens.tolist())))


def _check_made(there: Sequence[tuple[Trace, Path]], settings: Mapping[str, Any]) -> None:
    """Raise `FileError` where a map is not what this run would make of its trace; warn where that cannot be seen."""
    silent = []
    for trace, path in there:
        stepmap = StepMap.load(path)
        meta = stepmap.meta
        made_of = dict(settings) | {"tokens_sha256": tokens_sha256(trace)}
        different = _differences(stepmap, made_of, trace.id)
        if stepmap.steps != trace.steps:
            different = ["its steps differ", *different]
        if different:
            how = "from another trace with the id" if different[0] in _OF_THE_TRACE else "otherwise than now, of trace"
            raise FileError(
                f"{path} was made {how} {trace.id!r}: {', '.join(different)}. {_FIX} Or move that file "
                "away, and it is made anew."
            )
        if meta.get("correct", trace.correct) is not trace.correct:
            raise FileError(
                f"trace {trace.id!r} has correct={trace.correct} now, and had correct={meta['correct']} when {path} was made. "
                "`stepsal compare DIR --traces FILE` takes the grades of a file, and no map has to be made anew. Or use "
                "another --out folder."
            )
        if "made_of" not in meta:
            silent.append(path)
    if silent:
        warnings.warn(
            f"{len(silent)} of {len(there)} step maps that are there ({silent[0]}, ...) are of stepsal 0.1 and do not say from "
            "which tokens and weights they were made. Their steps and settings are those given now; that their tokens and the "
            "model's weights are cannot be checked. They are taken as they are.",
            stacklevel=5,
        )


def _differences(stepmap: StepMap, made_of: Mapping[str, Any], trace_id: str | None) -> list[str]:
    """What a map says of itself that differs from what it should have been made of; what it does not say is left out.

    A map of stepsal 0.1 says some of it elsewhere.
    """
    said = stepmap.meta.get("made_of", stepmap.meta | {"layers": list(stepmap.layers)})
    texts = {"tokens_sha256": _OF_THE_TRACE[1], "model_sha256": "the model's weights or configuration differ"}
    different = [
        texts.get(name, f"{name} {said[name]!r} in the place of {expected!r}")
        for name, expected in made_of.items()
        if said.get(name, expected) != expected
    ]
    if trace_id is not None and (its_trace := stepmap.meta.get("trace", trace_id)) != trace_id:
        different.append(f"it is the map of trace {its_trace!r}")
    return different


def _compute(
    model: Model,
    traces: Sequence[Trace],
    paths: Sequence[Path],
    settings: Mapping[str, Any],
    progress: bool,
    **options: Any,
) -> list[Path]:
    """The paths; the maps that are not there are made with the options of `step_saliency`."""
    from tqdm import tqdm

    left = [(trace, path) for trace, path in zip(traces, paths, strict=True) if not path.exists()]
    done = len(traces) - len(left)
    with tqdm(total=len(traces), initial=done, desc="step maps", unit="trace", disable=not progress) as bar:
        for trace, path in left:
            stepmap = step_saliency(model, trace, **options)
            made_of = dict(settings) | {"tokens_sha256": tokens_sha256(trace)}
            replace(stepmap, meta=stepmap.meta | {"made_of": made_of}).save(path)
            bar.update()
    return list(paths)


def load_step_maps(out: str | Path, *, progress: bool = False, verify: bool = True) -> list[StepMap]:
    """Every map of a folder that `save_step_maps` wrote, in the order of their file names.

    Warns where maps of the folder's traces are not there (yet), and where files are there that are no maps of its traces: these
    are left out. `verify=False` does not compare checksums.

    Raises `FileError` for a folder without maps, for a damaged map, and for a map that was not made of the folder's trace or
    with its settings.
    """
    from tqdm import tqdm

    out = Path(out)
    files = _map_files(out)
    settings = (
        read_settings(path, _UNKNOWN.format(out), "Make them again.") if (path := _settings_path(out)).exists() else {}
    )
    listed = _listed(out, settings)
    if files and not settings:
        warnings.warn(
            f"{out} holds step maps, but no {_settings_path(out).name} says of which traces and with which settings: all are "
            "read. Run `stepsal saliency` with the same traces and --out again: it writes that file anew and keeps the maps.",
            stacklevel=2,
        )
    if listed is not None:
        files = _belonging(out, files, listed)
    if not files:
        raise FileError(
            f"there are no step maps in {out / 'maps'}: make them with `stepsal saliency` or `stepsal demo`"
        )
    maps = []
    for file in tqdm(files, desc="reading", unit="map", disable=not progress):
        maps.append(StepMap.load(file, verify=verify))
        entry = (listed or {}).get(file.name, {})
        made_of = {name: value for name, value in (settings | entry).items() if name not in ("traces", "file", "id")}
        if different := _differences(maps[-1], made_of, entry.get("id")):
            raise FileError(
                f"{file} is no map of this folder: {', '.join(different)}. Put the folder's own map back, or move this one "
                "away and make the folder's again with `stepsal saliency`."
            )
    _check_made_alike(files, maps)
    return maps


def folder_traces(out: str | Path) -> set[str] | None:
    """The ids of the traces whose maps are the folder's; None where nothing says which they are. Raises `FileError`."""
    out = Path(out)
    if not (path := _settings_path(out)).exists():
        return None
    listed = _listed(out, read_settings(path, _UNKNOWN.format(out), "Make them again."))
    return None if listed is None else {entry["id"] for entry in listed.values()}


def _map_files(out: Path) -> list[Path]:
    try:
        return sorted(path for path in (out / "maps").iterdir() if path.suffix == ".safetensors")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FileError(f"cannot read {out / 'maps'}: {error.strerror or error}") from error


def _listed(out: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, str]] | None:
    """What `saliency.json` says of each file of the folder, with the trace's `id`; None where it is of stepsal 0.1."""
    if "traces" not in settings:
        return None
    try:
        return {entry["file"]: entry | {"id": name} for name, entry in settings["traces"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise FileError(
            f"{_settings_path(out)} is damaged: its 'traces' is no object of records that name a 'file'. Run `stepsal "
            "saliency` with the same traces and --out again: it writes the list anew, and keeps the maps."
        ) from error


def _belonging(out: Path, files: Sequence[Path], listed: Mapping[str, Any]) -> list[Path]:
    """Those files that are maps of the folder's traces; warns of the others, and of those that are not there."""
    if others := [path for path in files if path.name not in listed]:
        warnings.warn(_of_others(out, others), stacklevel=3)
    if missing := listed.keys() - {path.name for path in files}:
        first = listed[min(missing)]["id"]
        warnings.warn(
            f"{out} lacks the maps of {len(missing)} of its {len(listed)} traces ({first!r}, ...): run `stepsal saliency` (or "
            "`demo`) again to make them. What follows is of the others alone.",
            stacklevel=3,
        )
    return [path for path in files if path.name in listed]


def _of_others(out: Path, others: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return (
        f"{out / 'maps'} holds {len(others)} file(s) that are no maps of its traces ({names}{more}): they are left out."
    )


def _check_made_alike(files: Sequence[Path], maps: Sequence[StepMap]) -> None:
    """Raise `FileError` where maps say that they were made with other weights or settings than their neighbours."""
    said = [(file, each) for file, each in zip(files, maps, strict=True) if "made_of" in each.meta]
    for file, stepmap in said:
        of_the_first = {name: value for name, value in said[0][1].meta["made_of"].items() if name != "tokens_sha256"}
        if different := _differences(stepmap, of_the_first, None):
            raise FileError(
                f"{file} was not made as {said[0][0]} was: {', '.join(different)}. Keep maps of each in a folder of their own."
            )


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
