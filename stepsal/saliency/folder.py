"""A folder of step maps, one file a trace: computed once each, resumable, every file whole.

OUT/saliency.json      what the maps were made with, which another run into the same folder must agree on; and under `traces`
                       the file and the tokens (SHA-256) of each trace that the last run was given: these maps are the folder's
OUT/maps/ID.safetensors

A map says itself what it was made of: the trace's id, its tokens, the model's weights and the settings. It is taken for done,
and read from the folder, only where that agrees. Other results that are made one for each trace have folders of the same kind:
`ResultKind` says what they are called, and `save_results` and `load_results` write and read them.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from stepsal.checks import checked, nearest, whole
from stepsal.checks import path as a_path
from stepsal.engines.local import Engine
from stepsal.engines.messages import ModelToLoad
from stepsal.engines.workforce import Workers, a_model_or_one_to_load
from stepsal.errors import FileError, InputError
from stepsal.files import agree_on_settings, locked, read_settings, write_settings
from stepsal.models.host import Model
from stepsal.models.layer_choice import LayerSpec
from stepsal.models.tokenizers import fingerprint
from stepsal.saliency.influence import Objective, Rule, Score, check_fits, check_options
from stepsal.saliency.recipe import StepMapRecipe, passes
from stepsal.saliency.stepmap import Precision, StepMap
from stepsal.saliency.stepmapfile import StepMapFile
from stepsal.saliency.worker import Piece, TraceItem, start_recipe
from stepsal.traces.checks import traces
from stepsal.traces.trace import Trace
from stepsal.traces.tracefile import TraceFacts, facts_of, tokens_sha256

_Map = TypeVar("_Map", StepMap, StepMapFile)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # names that Windows keeps for devices
_OF_THE_TRACE = ("its steps differ", "its tokens differ")
_FIX = "Use another --out folder."
_BEFORE = {"score": "loss", "heads": "all", "precision": None}  # what earlier versions did where they do not say it


@dataclass(frozen=True)
class ResultKind:
    """What results in a folder are called, one file for each trace.

    Attributes:
        name, short: of one of them, in messages.
        folder: the subfolder that holds their files.
        settings: the file that says what they were made with.
        command, made_by: the command that makes them, and all that do, in words.
        load: reads a file. What it returns has `steps`, `meta` and `save`.
    """

    name: str
    short: str
    folder: str
    settings: str
    command: str
    made_by: str
    load: Callable[..., Any]

    def unknown(self, out: Path) -> str:
        return f"nothing says what the {self.name}s in {out} were made with"

    @property
    def mend(self) -> str:
        """What to do where the file that says so cannot be read."""
        return (
            f"Put back the file as it was, or move it away and run `{self.command}` with the same traces and --out again: it "
            f"writes that file anew and keeps the {self.short}s."
        )


STEP_MAPS = ResultKind(
    "step map", "map", "maps", "saliency.json", "stepsal saliency", "`stepsal saliency` or `stepsal demo`", StepMap.load
)
_MAP_FILES = replace(STEP_MAPS, load=lambda path, verify: StepMapFile.open(path))


def map_path(out: str | Path, trace_id: str) -> Path:
    """Where the map of a trace is written; any id makes a safe file name of its own, also where case does not count.

    >>> map_path("out", "aime/3").as_posix()
    'out/maps/aime%2F3.safetensors'
    >>> map_path("out", "AIME").as_posix()
    'out/maps/AIME+b7073a3092198281.safetensors'
    """
    return _path(STEP_MAPS, Path(out), trace_id)


def _path(kind: ResultKind, out: Path, trace_id: str) -> Path:
    """Where the result of a trace is written."""
    name = quote(trace_id, safe=" ")
    if _RESERVED.match(name.lower()):
        name = f"+{name}"  # `quote` leaves no plus in a name
    alike = name.startswith("+") or any("A" <= letter <= "Z" for letter in trace_id)
    if len(name) > 180 or not name.strip(". ") or alike:
        name = f"{name[:120]}+{_short_hash(trace_id)}"
    return out / kind.folder / f"{name}.safetensors"


def find_map(out: str | Path, trace_id: str) -> Path:
    """Where the map of a trace is: `map_path`, or where stepsal 0.1 wrote it."""
    path = map_path(out, trace_id)
    name = quote(trace_id, safe=" ")
    if len(name) > 180 or not name.strip(". "):
        name = f"{name[:120]}-{_short_hash(trace_id)}"
    old = path.with_name(f"{name}.safetensors")
    # Where case does not count, the old name of one trace may be that of another.
    if old != path and not path.exists() and old.exists() and StepMapFile.open(old).meta.get("trace") == trace_id:
        return old
    return path


def _find(kind: ResultKind, out: Path, trace_id: str) -> Path:
    return find_map(out, trace_id) if kind is STEP_MAPS else _path(kind, out, trace_id)


def _short_hash(trace_id: str) -> str:
    return hashlib.sha256(trace_id.encode()).hexdigest()[:16]


@checked(model=a_model_or_one_to_load, traces=traces, out=a_path, workers=whole(1, optional=True))
def save_step_maps(
    model: Model | ModelToLoad,
    traces: Sequence[Trace],
    out: str | Path,
    *,
    objective: Objective = "token",
    rule: Rule = "abs",
    score: Score = "loss",
    layers: LayerSpec = "all",
    chunk: int | Literal["auto"] = "auto",
    heads: Literal["all", "mean"] = "all",
    precision: Precision | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Compute the step map of every trace that has none in `out` yet, and return the paths of all, in order.

    `heads="mean"` keeps the mean over heads alone (`StepMap.mean_heads`), and `precision="bfloat16"` two bytes of each number
    (`StepMap.save`): what is computed is the same, and the files are smaller.

    A model that is loaded does all of the work. A `stepsal.engines.messages.ModelToLoad` is loaded by each of the `workers`:
    processes on this machine (`engine="local"`), or actors of the Ray cluster at `address` (`engine="ray"`), whose machines
    must share `out`. A worker that dies is replaced, and its trace is done again. The longest traces come first.

    An interrupted run goes on where it stopped. Every trace, and every map that is there, is checked before the first map is
    computed. From then on these traces' maps are the folder's: those of others stay where they are and are left out.

    Warns where `out` holds maps of other traces, where `saliency.json` was lost, and where maps of stepsal 0.1 do not say what
    they were made of.

    Raises:
        InputError: an unknown option, a trace that this model cannot take, two traces with one id, or several workers for a
            model that is loaded already.
        UnsupportedModelError: a model on which this would not be exact.
        FileError: `out` holds maps made with other settings, with other weights, from other tokens, or of a trace that was
            graded otherwise; another run is at work in it; or it cannot be written.
        StepsalError: a trace whose worker died again and again.
    """
    if objective == "answer":
        raise InputError(
            "objective='answer' is about the answer's tokens, which differ from trace to trace: call "
            "step_saliency(model, trace, objective='answer', answer=(start, stop)) for every trace, and save the maps yourself"
        )
    check_options(0, objective, rule, chunk, None, score)
    for name, value, known in (("heads", heads, ("all", "mean")), ("precision", precision, (None, "bfloat16"))):
        if value not in known:
            raise InputError(f"unknown {name} {value!r}: expected one of {', '.join(map(repr, known))}")
    chosen = layers if isinstance(layers, str | int) else list(layers)
    recipe = StepMapRecipe(objective, rule, score, chosen, chunk, heads, precision)
    return save_results(STEP_MAPS, start_recipe(recipe, model, engine, workers, address), traces, Path(out), progress)


def save_results(kind: ResultKind, workers: Workers, traces: Sequence[Trace], out: Path, progress: bool) -> list[Path]:
    """Compute the result of every trace that has none in `out` yet, and return the paths of all, in order.

    What `save_step_maps` says of its folder holds. It calls this itself, so that warnings name the line that called it.
    """
    at_work = f"another run is making {kind.name}s in {out}: wait for it, or use another --out folder"
    with closing(workers):
        facts = facts_of(traces)
        check_ids([each.id for each in facts])
        ((_, said),) = workers.engine.run([TraceItem()])
        check_traces(traces, facts, said["context"], said["vocabulary"], workers.tokenizer)
        with locked(out / kind.settings, at_work, also=[f"{kind.folder}/*"]):
            paths = _begin(kind, out, traces, facts, said["settings"])
            work = _Work(traces, facts, paths, said["settings"], said["shares_passes"])
            _compute(kind, workers.engine, work, progress)
            return paths


def check_ids(ids: Sequence[str]) -> None:
    """Raise `InputError` unless every trace has an id of its own, that can name a file."""
    seen: set[str] = set()
    for id in ids:
        try:
            id.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the id {id!r} holds half a surrogate pair, which no file can hold: give another"
            ) from error
        if id in seen:
            raise InputError(f"two traces have the id {id!r}; give each its own, it names the map's file")
        seen.add(id)


def check_traces(
    traces: Sequence[Trace], facts: Sequence[TraceFacts], context: int, vocabulary: int, tokenizer: Any
) -> None:
    """Raise `InputError` unless every trace fits the model (`check_trace`). A trace whose facts do is not looked at itself."""
    here = None if tokenizer is None else fingerprint(tokenizer)
    for index, each in enumerate(facts):
        if 2 <= each.tokens <= context and 0 <= each.least <= each.largest < vocabulary and each.made_with == here:
            continue
        try:
            check_fits(traces[index], context, vocabulary, tokenizer)
        except InputError as error:
            raise InputError(f"trace {each.id!r}: {error}") from error


def _begin(
    kind: ResultKind, out: Path, traces: Sequence[Trace], facts: Sequence[TraceFacts], settings: Mapping[str, Any]
) -> list[Path]:
    """Where the result of each trace is or will be, once all that is there was found to be what this run would make."""
    path = out / kind.settings
    begun, files = path.exists(), _files(kind, out)
    refusal, unknown = f"{out} holds {kind.name}s made with other settings", kind.unknown(out)
    agree_on_settings(
        path,
        settings,
        begun=begun,
        refusal=refusal,
        unknown=unknown,
        fix=_FIX,
        defaults={name: settings[name] for name in ("model_sha256", "host")}
        | {name: value for name, value in _BEFORE.items() if name in settings},
        beside=("traces",),
        indent=2,
    )
    if files and not begun:
        warnings.warn(
            f"{out} holds {kind.name}s, but no {path.name} says of what. Those of the traces given now are gone on with as far "
            "as they say so themselves.",
            stacklevel=5,
        )
    paths = [_find(kind, out, each.id) for each in facts]
    there = [index for index, where in enumerate(paths) if where.exists()]
    _check_made(kind, ((traces[index], paths[index]) for index in there), len(there), settings)
    if others := sorted(set(files) - set(paths)):
        warnings.warn(
            f"{_of_others(kind, out, others)} The traces given now are the folder's from now on.", stacklevel=5
        )
    listed = {
        each.id: {"file": where.name, "tokens_sha256": each.sha256} for each, where in zip(facts, paths, strict=True)
    }
    write_settings(path, read_settings(path, unknown, _FIX) | {"traces": listed}, indent=2)
    return paths


def _check_made(kind: ResultKind, there: Iterable[tuple[Trace, Path]], count: int, settings: Mapping[str, Any]) -> None:
    """Raise `FileError` where a result is not what this run would make of its trace; warn where that cannot be seen."""
    silent = []
    for trace, path in there:
        result = kind.load(path)
        meta = result.meta
        made_of = dict(settings) | {"tokens_sha256": tokens_sha256(trace)}
        different = _differences(kind, result, made_of, trace.id)
        if result.steps != trace.steps:
            different = ["its steps differ", *different]
        if different:
            how = "from another trace with the id" if different[0] in _OF_THE_TRACE else "otherwise than now, of trace"
            raise FileError(
                f"{path} was made {how} {trace.id!r}: {', '.join(different)}. {_FIX} Or move that file "
                "away, and it is made anew."
            )
        if meta.get("correct", trace.correct) is not trace.correct:
            anyway = "`stepsal compare DIR --traces FILE` takes the grades of a file, and no map has to be made anew. Or use "
            raise FileError(
                f"trace {trace.id!r} has correct={trace.correct} now, and had correct={meta['correct']} when {path} was made. "
                f"{anyway if kind is STEP_MAPS else 'Use '}another --out folder."
            )
        if "made_of" not in meta:
            silent.append(path)
    if silent:
        warnings.warn(
            f"{len(silent)} of {count} step maps that are there ({silent[0]}, ...) are of stepsal 0.1 and do not say from "
            "which tokens and weights they were made. Their steps and settings are those given now; that their tokens and the "
            "model's weights are cannot be checked. They are taken as they are.",
            stacklevel=6,
        )


def _differences(kind: ResultKind, result: Any, made_of: Mapping[str, Any], trace_id: str | None) -> list[str]:
    """What a result says of itself that differs from what it should have been made of; what it does not say is left out.

    A map of stepsal 0.1 says some of it elsewhere.
    """
    said = _BEFORE | result.meta.get("made_of", result.meta)
    if "made_of" not in result.meta and isinstance(result, StepMap | StepMapFile):
        said = said | {"layers": list(result.layers)}
    texts = {"tokens_sha256": _OF_THE_TRACE[1], "model_sha256": "the model's weights or configuration differ"}
    different = [
        texts.get(name, f"{name} {said[name]!r} in the place of {expected!r}")
        for name, expected in made_of.items()
        if said.get(name, expected) != expected
    ]
    if trace_id is not None and (its_trace := result.meta.get("trace", trace_id)) != trace_id:
        different.append(f"it is the {kind.short} of trace {its_trace!r}")
    return different


class _Work(Sequence[TraceItem]):
    """What there is to do: the traces whose results are not there, the longest first, each made when its turn comes.

    So no worker is left alone with a long one at the end, and what has no room in memory is known at once. Traces that share a
    pass are done together, also where only some of their results are missing: each is then the same to the bit.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        facts: Sequence[TraceFacts],
        paths: Sequence[Path],
        settings: Mapping[str, Any],
        shared: bool,
    ) -> None:
        self._traces, self._facts, self._paths, self._settings = traces, facts, paths, settings
        self.traces = len(traces)
        self.missing = {os.path.abspath(path) for path in paths if not path.exists()}
        groups = passes([each.tokens for each in facts])
        groups = groups if shared else [[index] for group in groups for index in group]
        self._left = [
            group for group in groups if any(os.path.abspath(paths[index]) in self.missing for index in group)
        ]

    def __len__(self) -> int:
        return len(self._left)

    def __getitem__(self, at: Any) -> Any:
        return TraceItem(
            pieces=tuple(
                Piece(
                    trace=self._traces[index],
                    path=os.path.abspath(self._paths[index]),
                    made_of=dict(self._settings) | {"tokens_sha256": self._facts[index].sha256},
                )
                for index in self._left[at]
            )
        )


def _compute(kind: ResultKind, engine: Engine, work: _Work, progress: bool) -> None:
    """Make the results that are not there."""
    from tqdm import tqdm

    with (
        tqdm(
            total=work.traces,
            initial=work.traces - len(work.missing),
            desc=f"{kind.name}s",
            unit="trace",
            disable=not progress,
        ) as bar,
        closing(engine.run(work)) as answers,
    ):
        for item, said in answers:
            for text in said.get("warnings", ()):
                warnings.warn(f"{item.name}: {text}", stacklevel=5)
            if unseen := [piece.path for piece in item.pieces if not os.path.exists(piece.path)]:
                raise FileError(
                    f"a worker wrote {unseen[0]}, and it is not on this machine: the machines of a cluster must share the "
                    "folder. Give an --out folder that all of them see under this name."
                )
            bar.update(sum(piece.path in work.missing for piece in item.pieces))


def load_step_maps(out: str | Path, *, progress: bool = False, verify: bool = True) -> list[StepMap]:
    """Every map of a folder that `save_step_maps` wrote, in the order of their file names.

    Warns where maps of the folder's traces are not there (yet), and where files are there that are no maps of its traces: these
    are left out. `verify=False` does not compare checksums.

    Raises `FileError` for a folder without maps, for a damaged map, and for a map that was not made of the folder's trace or
    with its settings.
    """
    return load_results(STEP_MAPS, Path(out), progress, verify)


def open_step_maps(out: str | Path, *, progress: bool = False) -> list[StepMapFile]:
    """What `load_step_maps` reads, as files of which the headers alone were read: any number of maps takes little memory.

    All that can be seen in the headers is checked, with the same warnings and errors. The rest is checked when a map is loaded.
    """
    return load_results(_MAP_FILES, Path(out), progress, verify=False)


def load_results(kind: ResultKind, out: Path, progress: bool, verify: bool) -> list[Any]:
    """Every result of a folder that `save_results` wrote. What `load_step_maps` says of its folder holds."""
    from tqdm import tqdm

    files = _files(kind, out)
    path = out / kind.settings
    settings = read_settings(path, kind.unknown(out), kind.mend) if path.exists() else {}
    listed = _listed(kind, out, settings)
    if files and not settings:
        warnings.warn(
            f"{out} holds {kind.name}s, but no {kind.settings} says of which traces and with which settings: all are read. "
            f"Run `{kind.command}` with the same traces and --out again: it writes that file anew and keeps the {kind.short}s.",
            stacklevel=3,
        )
    if listed is not None:
        files = _belonging(kind, out, files, listed)
    if not files:
        raise FileError(f"there are no {kind.name}s in {out / kind.folder}: make them with {kind.made_by}")
    maps = []
    for file in tqdm(files, desc="reading", unit=kind.short, disable=not progress):
        maps.append(kind.load(file, verify=verify))
        entry = (listed or {}).get(file.name, {})
        made_of = {name: value for name, value in (settings | entry).items() if name not in ("traces", "file", "id")}
        if different := _differences(kind, maps[-1], made_of, entry.get("id")):
            raise FileError(
                f"{file} is no {kind.short} of this folder: {', '.join(different)}. Put the folder's own {kind.short} back, or "
                f"move this one away and make the folder's again with `{kind.command}`."
            )
    _check_made_alike(kind, files, maps)
    return maps


def folder_traces(out: str | Path) -> set[str] | None:
    """The ids of the traces whose maps are the folder's; None where nothing says which they are. Raises `FileError`."""
    out = Path(out)
    if not (path := out / STEP_MAPS.settings).exists():
        return None
    listed = _listed(STEP_MAPS, out, read_settings(path, STEP_MAPS.unknown(out), STEP_MAPS.mend))
    return None if listed is None else {entry["id"] for entry in listed.values()}


def _files(kind: ResultKind, out: Path) -> list[Path]:
    try:
        return sorted(path for path in (out / kind.folder).iterdir() if path.suffix == ".safetensors")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FileError(f"cannot read {out / kind.folder}: {error.strerror or error}") from error


def _listed(kind: ResultKind, out: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, str]] | None:
    """What the settings say of each file of the folder, with the trace's `id`; None where it is of stepsal 0.1."""
    if "traces" not in settings:
        return None
    try:
        return {entry["file"]: entry | {"id": name} for name, entry in settings["traces"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise FileError(
            f"{out / kind.settings} is damaged: its 'traces' is no object of records that name a 'file'. Run `{kind.command}` "
            f"with the same traces and --out again: it writes the list anew, and keeps the {kind.short}s."
        ) from error


def _belonging(kind: ResultKind, out: Path, files: Sequence[Path], listed: Mapping[str, Any]) -> list[Path]:
    """Those files that are results of the folder's traces; warns of the others, and of those that are not there."""
    if others := [path for path in files if path.name not in listed]:
        warnings.warn(_of_others(kind, out, others), stacklevel=4)
    if missing := listed.keys() - {path.name for path in files}:
        first = listed[min(missing)]["id"]
        warnings.warn(
            f"{out} lacks the {kind.short}s of {len(missing)} of its {len(listed)} traces ({first!r}, ...): run {kind.made_by} "
            "again to make them. What follows is of the others alone.",
            stacklevel=4,
        )
    return [path for path in files if path.name in listed]


def _of_others(kind: ResultKind, out: Path, others: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in others[:3])
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return (
        f"{out / kind.folder} holds {len(others)} file(s) that are no {kind.short}s of its traces ({names}{more}): they are "
        "left out."
    )


def _check_made_alike(kind: ResultKind, files: Sequence[Path], maps: Sequence[Any]) -> None:
    """Raise `FileError` where results say that they were made with other weights or settings than their neighbours."""
    said = [(file, each) for file, each in zip(files, maps, strict=True) if "made_of" in each.meta]
    for file, result in said:
        of_the_first = {name: value for name, value in said[0][1].meta["made_of"].items() if name != "tokens_sha256"}
        if different := _differences(kind, result, of_the_first, None):
            raise FileError(
                f"{file} was not made as {said[0][0]} was: {', '.join(different)}. Keep {kind.short}s of each in a folder of "
                "their own."
            )


def choose_traces(maps: Sequence[_Map], chosen: Sequence[str], folder: Path | str) -> list[_Map]:
    """The maps of the traces with these ids, in the order of the ids, each once. An entry may list several, with commas; maps
    of several folders may be of one trace.

    Raises `InputError` for an id that no map of the folder has.
    """
    by_id: dict[str, list[_Map]] = {}
    for stepmap in maps:
        by_id.setdefault(str(stepmap.meta.get("trace")), []).append(stepmap)
    ids = [each for entry in chosen for each in ([entry] if entry in by_id else entry.split(","))]
    for wanted in ids:
        if wanted not in by_id:
            some = ", ".join(list(by_id)[:5]) + ", ..." * (len(by_id) > 5)
            raise InputError(f"there is no trace {wanted!r}{nearest(wanted, by_id)} in {folder}: it holds {some}")
    return [stepmap for wanted in dict.fromkeys(ids) for stepmap in by_id[wanted]]


def group_maps(maps: Sequence[_Map], graded: Mapping[str, bool | None] | None = None) -> dict[str, list[_Map]]:
    """Maps of correct and of wrong traces, by what the trace said when the map was made, or by `graded` (id -> correct).

    Raises `InputError` where that is not known of a trace.
    """
    groups: dict[str, list[_Map]] = {"correct": [], "wrong": []}
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
