"""A file of traces that need not fit into memory: each line is checked once, and a trace is made again when it is asked for.

In: a JSONL file of traces (`stepsal.traces.files`). Out: a `TraceFile`, a sequence of traces that holds a few hundred bytes of
each: where its line is, and its `TraceFacts`, which are all that a run must know of the traces that it will come to later.

1. The file is cut into parts of whole lines.
2. `PartReader`s make the traces of the parts, one reader in each process, and keep their facts. What takes the time is not the
   tokenizer but the rule that splits a text into steps token by token, so processes help, and a tokenizer's own threads would
   not.
3. Names that are there twice, and lines that cannot be read, are errors, before any model is loaded.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from stepsal import errors
from stepsal.checks import checked
from stepsal.checks import path as check_path
from stepsal.engines.local import Engine, InProcess, Processes
from stepsal.engines.messages import Item, Job, ModelToLoad
from stepsal.engines.worker import Worker, heard
from stepsal.errors import FileError, InputError
from stepsal.files import sha256_of
from stepsal.jsonl import locate_lines
from stepsal.models.cores import usable_cores
from stepsal.models.loading import load_tokenizer
from stepsal.models.memory import free_memory
from stepsal.plugins import loaded_plugins
from stepsal.traces.files import answered_requests, read_line, refuse_broken_lines, rule_name
from stepsal.traces.formats import FormatSpec, StepsSpec, find_formats, find_rule
from stepsal.traces.trace import Trace, has_plain_prompt

PART = 2**22
"""A part has about so many bytes, and one line at least: a few seconds of one core."""
READER = 2**29
"""About the memory that a reader's process takes: Python, torch, a tokenizer, one line at a time."""


@dataclass(frozen=True)
class TraceFacts:
    """What a run must know of a trace before it begins.

    Attributes:
        id: its name.
        tokens: how many it has.
        least, largest: the range of its token ids.
        sha256: of its token ids.
        made_with: the fingerprint of the tokenizer that the ids belong to.
    """

    id: str
    tokens: int
    least: int
    largest: int
    sha256: str
    made_with: Any

    @classmethod
    def of(cls, trace: Trace) -> "TraceFacts":
        """The facts of a trace.

        >>> import torch
        >>> from stepsal import Step
        >>> facts = TraceFacts.of(Trace(torch.tensor([3, 7]), (Step(0, "question", 0, 2, "2+2?"),), "2+2?", id="a"))
        >>> facts.id, facts.tokens, facts.least, facts.largest
        ('a', 2, 3, 7)
        """
        ids = trace.tokens.tolist()
        return cls(trace.id, len(ids), min(ids), max(ids), tokens_sha256(trace), trace.meta.get("tokenizer"))


def tokens_sha256(trace: Trace) -> str:
    """Of a trace's token ids."""
    return sha256_of(",".join(map(str, trace.tokens.tolist())))


def facts_of(traces: Sequence[Trace]) -> list[TraceFacts]:
    """The facts of traces, in order; those of a `TraceFile` are known."""
    return traces.facts if isinstance(traces, TraceFile) else [TraceFacts.of(trace) for trace in traces]


@dataclass(frozen=True)
class _Place:
    """Where a trace is: its line's number and offset in bytes, and its number among the traces of the line."""

    line: int
    offset: int
    which: int


class TraceFile(Sequence[Trace]):
    """The traces of a file, in order. Each is made from its line whenever it is asked for, and kept by nobody.

    Asking for a trace raises `FileError` where the file has changed since it was checked.
    """

    def __init__(self, job: "ReadJob", places: Sequence[_Place], facts: list[TraceFacts], plain: int) -> None:
        self._job, self._places, self.facts = job, places, facts
        self.plain = plain  # how many have a bare text as the prompt, where the tokenizer has a chat template

    def __len__(self) -> int:
        return len(self.facts)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> list[Trace]: ...
    def __getitem__(self, index: int | slice) -> Trace | list[Trace]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place, facts, path = self._places[index], self.facts[index], Path(self._job.path)
        try:
            with path.open("rb") as file:
                file.seek(place.offset)
                line = file.readline().rstrip(b"\r\n")
        except OSError as error:
            raise FileError(f"cannot read traces from {path}: {error.strerror or error}") from error
        found = list(self._job.read(place.line, line, self._tokenizer))[place.which :][:1]
        if not found or not isinstance(found[0], Trace) or TraceFacts.of(found[0]) != facts:
            raise FileError(f"{path}, line {place.line} has changed since it was checked: run the same command again")
        return found[0]

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self._job.model.path)


class ReadJob(Job):
    """A file, and how its lines are read (`stepsal.read_traces`). Of `model` the tokenizer is loaded, and nothing else."""

    worker = "stepsal.traces.tracefile:PartReader"
    path: str
    format: str | tuple[str, str]
    steps: str
    verify: bool
    requests: dict[str, Any]

    def read(self, number: int, line: bytes, tokenizer: Any) -> Iterator[Trace | FileError | InputError]:
        """The traces of a line, and errors in the place of those that cannot be made."""
        options = tokenizer, self.format, self.steps, f"line-{number}", self.requests, self.verify
        return read_line(line, *options)


class Part(Item):
    """The lines of a file from an offset to another, in bytes; the first one has this number."""

    smaller = "a smaller file"
    start: int
    stop: int
    number: int

    @property
    def name(self) -> str:
        return f"part of the traces from line {self.number} on"


class PartReader(Worker):
    """Reads parts of a file."""

    job_class, item_class = ReadJob, Part

    def answer(self, item: Part) -> dict[str, Any]:
        """For each trace its place and its facts, or its place and what is wrong; and the texts of warnings."""
        found, warned = heard(lambda: list(self._read(item)))
        return {"found": found, "warnings": warned}

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.job.model.path)

    def _read(self, item: Part) -> Iterator[dict[str, Any]]:
        lines = locate_lines(self.job.path, "traces", item.start, item.stop, item.number)
        for number, offset, line in lines:
            for which, trace in enumerate(self.job.read(number, line, self._tokenizer)):
                place = {"place": asdict(_Place(number, offset, which))}
                if isinstance(trace, Trace):
                    plain = has_plain_prompt(self._tokenizer, trace)
                    yield place | {"facts": asdict(TraceFacts.of(trace)), "plain": plain}
                else:
                    yield place | {"error": str(trace), "kind": type(trace).__name__}


@checked(path=check_path)
def open_traces(
    path: str | Path,
    model: str | None,
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    on_error: str = "raise",
    verify: bool = True,
    processes: int | None = None,
    progress: bool = False,
) -> TraceFile:
    """The traces of a JSONL file as `read_traces` gives them, all of them checked, and none of them in memory.

    Args:
        model: what `load_tokenizer` takes: the tokenizer is loaded by every process that reads.
        format, steps, on_error, verify: as in `read_traces`.
        processes: how many read at a time. None: one for each core, as far as memory allows and there is work for; a file of
            one part is read by this process.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "traces.jsonl"
    >>> _ = path.write_text('{"id": "a", "prompt": "2+2?", "response": "<think>Add.</think>4"}')
    >>> traces = open_traces(path, "bundled")
    >>> traces.facts[0].tokens, traces[0]
    (11, Trace('a', 11 tokens, steps: 1 question, 1 thinking, 1 summary))
    """
    from tqdm import tqdm

    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error={on_error!r} is not known. Choose 'raise' or 'skip'.")
    find_formats(format)  # a wrong option is no line's fault
    find_rule(steps, "paragraph")
    job = ReadJob(
        model=ModelToLoad(path=model),
        plugins=loaded_plugins(),
        path=str(Path(path).absolute()),
        format=format,
        steps=rule_name(steps, "these traces are to be"),
        verify=verify,
        requests=answered_requests([path]),
    )
    parts = list(_parts(path))
    at_once = processes or max(1, min(usable_cores(), int(0.5 * free_memory() / READER)))
    engine: Engine = Processes(job, at_once) if min(at_once, len(parts)) > 1 else InProcess(job)
    said = dict[int, dict[str, Any]]()
    with (
        closing(engine),
        tqdm(total=len(parts), desc="reading", unit="part", disable=not progress or len(parts) < 2) as bar,
    ):
        for part, answer in engine.run(parts):
            said[part.start] = answer
            for text in answer["warnings"]:
                warnings.warn(text, stacklevel=3)
            bar.update()
    places, facts, plain = _checked(path, [each for start in sorted(said) for each in said[start]["found"]], on_error)
    return TraceFile(job, places, facts, plain)


def _parts(path: str | Path) -> Iterator[Part]:
    """The parts of a file."""
    start, first, end = 0, 1, 0
    for number, offset, line in locate_lines(path, "traces"):
        if number > first and offset - start >= PART:
            yield Part(start=start, stop=offset, number=first)
            start, first = offset, number
        end = offset + len(line)
    if end > start:
        yield Part(start=start, stop=end, number=first)


def _checked(
    path: str | Path, found: Sequence[Mapping[str, Any]], on_error: str
) -> tuple[list[_Place], list[TraceFacts], int]:
    """The places and facts of the traces, and how many have a plain prompt. Raises, or warns of, what is no trace, and of
    names that are there twice.
    """
    plain = 0
    places, facts, lines, wrong = list[_Place](), list[TraceFacts](), dict[str, int](), list[tuple[int, Exception]]()
    for each in found:
        place = _Place(**each["place"])
        if "error" in each:
            wrong.append((place.line, getattr(errors, each["kind"])(each["error"])))
            continue
        fact = TraceFacts(**each["facts"])
        if fact.id in lines:
            twice = f"the id {fact.id!r} is already that of line {lines[fact.id]}: ids must differ"
            wrong.append((place.line, InputError(twice)))
            continue
        lines[fact.id] = place.line
        places.append(place)
        facts.append(fact)
        plain += each["plain"]
    refuse_broken_lines(path, wrong, on_error)
    return places, facts, plain
