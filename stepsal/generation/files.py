"""Answers to a file: as many as there are problems, each decoded once, whatever interrupts it.

In: problems (`stepsal.generation.questions`). Out: a JSONL file of traces, graded where the answers are known.

While it is being made, finished traces stand in `.NAME.partial` beside it, and in `.NAME.settings` what they were made with,
with hashes of the model's weights, of the prompts' tokens and of the tokenizer. The same call goes on from there; other
settings are refused, and so is a second run while a first one is at work. When all traces are there, the file is written whole,
in order.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from glob import escape
from pathlib import Path
from typing import IO, Any

from stepsal.errors import FileError, InputError
from stepsal.files import agree_on_settings, cannot_write, locked, sha256_of
from stepsal.generation.generate import Decoding, stream
from stepsal.generation.grading import TASK, choose_grader, grade_trace
from stepsal.generation.questions import Question, task_record
from stepsal.interventions.base import Intervention
from stepsal.models import host_of
from stepsal.models.host import Model
from stepsal.models.lookup import model_fingerprint, tokenizer_fingerprint
from stepsal.traces.files import read_traces, rule_name, trace_line, write_traces
from stepsal.traces.formats import FormatSpec, StepsSpec
from stepsal.traces.prompt import encode_prompt, prompt_record
from stepsal.traces.trace import Trace


def generate_file(
    model: Model,
    questions: Sequence[Question],
    path: str | Path,
    decoding: Decoding,
    interventions: Sequence[Intervention] = (),
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    grader: str | None = None,
    progress: bool = True,
) -> list[Trace]:
    """Answer every question and write the traces; `trace.id` is the question's, with `-SAMPLE` where there are several.

    Args:
        grader: the name of a grader (`stepsal.generation.grading`); None is `task` for the bundled task, else `math`.

    Raises:
        FileError: the file is there already, it was begun with other settings, another run is writing it, or it cannot be
            written.
        InputError: as `stepsal.generate`.

    >>> import tempfile
    >>> from stepsal import load_model
    >>> path = Path(tempfile.mkdtemp()) / "traces.jsonl"
    >>> generate_file(load_model(), [Question("a", "2+2?", "4")], path, Decoding(max_new_tokens=2), progress=False)[0].id
    'a'
    """
    from tqdm import tqdm

    path, grader = Path(path), choose_grader(questions, grader)
    refuse_existing(path)
    ids = [question.id for question in questions]
    if wrong := [name for name in ids if not name or ids.count(name) > 1]:
        raise InputError(f"the id {wrong[0]!r} is empty, or that of several questions: give each its own")
    encoded = [encode_prompt(model.tokenizer, question.prompt) for question in questions]
    settings = (
        _settings(model, questions, decoding, interventions, format, steps)
        | {"grader": grader}
        | _made_of(model, encoded)
    )
    partial, about = (path.with_name(f".{path.name}{suffix}") for suffix in (".partial", ".settings"))
    at_work = f"another run is writing answers to {path}: wait for it, or give another --out"
    with locked(path, at_work, also=[escape(about.name)]):
        refuse_existing(path)  # another run may have finished it just now
        done = {trace.id: trace for trace in _begin(partial, about, settings, model)}
        names = [_name(question, sample, decoding) for question in questions for sample in range(decoding.samples)]
        skip = {index for index, name in enumerate(names) if name in done}
        batches = stream(model, encoded, decoding, interventions, format=format, steps=steps, skip=skip)
        with (
            tqdm(total=len(names), initial=len(skip), desc="generating", unit="trace", disable=not progress) as bar,
            _appending(partial) as file,
        ):
            for batch in batches:
                new = {
                    names[index]: _grade(model, trace, questions[index // decoding.samples], names[index], grader)
                    for index, trace in batch.items()
                }
                _append(file, partial, new.values())
                done |= new
                bar.update(len(batch))
        traces = [done[name] for name in names]
        write_traces(path, traces)
        partial.unlink()
        about.unlink()
    return traces


def _settings(
    model: Model,
    questions: Sequence[Question],
    decoding: Decoding,
    interventions: Sequence[Intervention],
    format: FormatSpec,
    steps: StepsSpec,
) -> dict[str, Any]:
    """What the answers depend on, as plain data."""
    return {
        "model": host_of(model).describe(),
        "decoding": {name: value for name, value in asdict(decoding).items() if name != "batch_size"},
        "interventions": [each.record for each in interventions],
        "segmentation": {"format": format, "steps": rule_name(steps, "these traces are to be")},
        **task_record(questions),
        "questions": hashlib.sha256(json.dumps([question.record for question in questions]).encode()).hexdigest(),
    }


def _made_of(model: Model, encoded: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What may change in place while it keeps its name: weights, and all that turns a question into tokens and back."""
    return {
        "model_sha256": model_fingerprint(model),
        "tokenizer_sha256": tokenizer_fingerprint(model.tokenizer),
        "prompts_sha256": sha256_of(*(",".join(map(str, tokens)) for tokens in encoded)),
        "stop_tokens": sorted(host_of(model).stop_tokens()),
    }


def refuse_existing(path: str | Path) -> None:
    """Nothing is written over: raise `FileError` where the file is there."""
    if Path(path).exists():
        raise FileError(f"{path} is there already: give another --out, or move it away")


def _name(question: Question, sample: int, decoding: Decoding) -> str:
    return f"{question.id}-{sample}" if decoding.samples > 1 else question.id


def _grade(model: Model, trace: Trace, question: Question, name: str, grader: str) -> Trace:
    graded = grade_trace(model.tokenizer, question, trace, grader)
    known = {"length": question.length, "error": graded.error} | graded.record
    known |= {"task": asdict(question.gym)} if question.gym else {}
    known |= prompt_record(model.tokenizer, question.prompt)
    meta = trace.meta | {key: value for key, value in known.items() if value is not None}
    return replace(trace, id=name, answer=question.answer, correct=graded.correct, meta=meta)


def _begin(partial: Path, about: Path, settings: dict[str, Any], model: Model) -> list[Trace]:
    """The traces that are done, if these settings are those that the file was begun with; a half line at its end is cut off."""
    fix = f"Give another --out, or move {partial} and {about} away to begin anew."
    # Before there was a choice of graders, and before the host was written down, which the weights' hash tells as well.
    older = {"grader": TASK if settings["grader"] == TASK else "exact", "model": {"host": settings["model"]["host"]}}
    unseen = {name: settings[name] for name in ("model_sha256", "tokenizer_sha256", "prompts_sha256", "stop_tokens")}
    try:
        text = partial.read_bytes() if partial.exists() else b""
        begun = b"\n" in text  # if nothing is done yet, what was refused before may have been put right
        agree_on_settings(
            about,
            settings,
            begun=begun,
            refusal=f"{partial} was begun with other settings",
            unknown=f"cannot go on from {partial}",
            fix=fix,
            defaults=unseen | older,
        )
        if begun and not unseen.keys() <= json.loads(about.read_text(encoding="utf-8")).keys():
            warnings.warn(
                f"{partial} was begun by stepsal 0.1, which did not write down with which weights, template and tokenizer. "
                "That they are those of now cannot be checked. It is gone on with as it is.",
                stacklevel=3,
            )
        if not text.endswith(b"\n"):
            partial.touch()
            os.truncate(partial, text.rfind(b"\n") + 1)
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot go on from {partial}: {error.strerror or error}. {fix}") from error
    return read_traces(partial, model.tokenizer) if begun else []


@contextmanager
def _appending(partial: Path) -> Iterator[IO[bytes]]:
    try:
        file = partial.open("ab", buffering=0)  # nothing is left to write when it is closed
    except OSError as error:
        raise cannot_write(partial, error) from error
    with file:
        yield file


def _append(file: IO[bytes], partial: Path, traces: Iterable[Trace]) -> None:
    """Put finished traces on the disk; where there is no room for them, what was finished before them is kept."""
    left = memoryview(b"".join(trace_line(trace) + b"\n" for trace in traces))
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise FileError(
            f"cannot write {partial}: {error.strerror or error}. What is finished is kept: make room, and the same command "
            "goes on from there."
        ) from error
