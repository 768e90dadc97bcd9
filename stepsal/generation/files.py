"""Answers to a file: as many as there are problems, each decoded once, whatever interrupts it.

In: problems (`stepsal.generation.questions`). Out: a JSONL file of traces, graded where the answers are known.

While it is being made, finished traces stand in `.NAME.partial` beside it, and in `.NAME.settings` what they were made with.
The same call goes on from there; other settings are refused. When all are there, the file is written whole, in order.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from stepsal.errors import FileError, InputError
from stepsal.files import atomic_path
from stepsal.generation.generate import Decoding, stream
from stepsal.generation.grading import grade_trace
from stepsal.generation.questions import Question
from stepsal.interventions.stepflow import Part, part_record
from stepsal.models import host
from stepsal.models.host import Model
from stepsal.traces.files import read_traces, rule_name, trace_line, write_traces
from stepsal.traces.formats import FormatSpec, StepsSpec
from stepsal.traces.prompt import encode_prompt
from stepsal.traces.trace import Trace


def generate_file(
    model: Model,
    questions: Sequence[Question],
    path: str | Path,
    decoding: Decoding,
    interventions: Sequence[Part] = (),
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    progress: bool = True,
) -> list[Trace]:
    """Answer every question and write the traces; `trace.id` is the question's, with `-SAMPLE` where there are several.

    Raises:
        FileError: the file is there already, it was begun with other settings, or it cannot be written.
        InputError: as `stepsal.generate`.

    >>> import tempfile
    >>> from stepsal import load_model
    >>> path = Path(tempfile.mkdtemp()) / "traces.jsonl"
    >>> generate_file(load_model(), [Question("a", "2+2?", "4")], path, Decoding(max_new_tokens=2), progress=False)[0].id
    'a'
    """
    from tqdm import tqdm

    path = Path(path)
    refuse_existing(path)
    ids = [question.id for question in questions]
    if twice := [each for each in ids if not each or ids.count(each) > 1]:
        raise InputError(f"the id {twice[0]!r} is empty, or that of several questions: give each its own")
    partial = path.with_name(f".{path.name}.partial")
    settings = {
        "model": host.describe(model),
        "decoding": {name: value for name, value in asdict(decoding).items() if name != "batch_size"},
        "interventions": [part_record(part) for part in interventions],
        "segmentation": {"format": format, "steps": rule_name(steps, "these traces are to be")},
        "questions": hashlib.sha256(json.dumps([asdict(each) for each in questions]).encode()).hexdigest(),
    }
    done = {trace.id: trace for trace in _begin(partial, settings, model)}
    names = [_name(question, sample, decoding) for question in questions for sample in range(decoding.samples)]
    skip = {index for index, name in enumerate(names) if name in done}
    encoded = [encode_prompt(model.tokenizer, question.prompt) for question in questions]
    with (
        tqdm(total=len(names), initial=len(skip), desc="generating", unit="trace", disable=not progress) as bar,
        _appending(partial) as file,
    ):
        for batch in stream(model, encoded, decoding, interventions, format=format, steps=steps, skip=skip):
            for index, trace in batch.items():
                graded = _grade(model, trace, questions[index // decoding.samples], names[index])
                done[names[index]] = graded
                file.write(trace_line(graded) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(batch))
    traces = [done[name] for name in names]
    write_traces(path, traces)
    partial.unlink()
    partial.with_suffix(".settings").unlink()
    return traces


def refuse_existing(path: str | Path) -> None:
    """Nothing is written over: raise `FileError` where the file is there."""
    if Path(path).exists():
        raise FileError(f"{path} is there already: give another --out, or delete it yourself")


def _name(question: Question, sample: int, decoding: Decoding) -> str:
    return f"{question.id}-{sample}" if decoding.samples > 1 else question.id


def _grade(model: Model, trace: Trace, question: Question, name: str) -> Trace:
    graded = grade_trace(model.tokenizer, question, trace)
    known = {"length": question.length, "error": graded.error}
    meta = trace.meta | {key: value for key, value in known.items() if value is not None}
    return replace(trace, id=name, answer=question.answer, correct=graded.correct, meta=meta)


def _begin(partial: Path, settings: dict[str, Any], model: Model) -> list[Trace]:
    """The traces that are done, if these settings are those that the file was begun with; a half line at its end is cut off."""
    about = partial.with_suffix(".settings")
    delete = f"Give another --out, or delete {partial} and {about} yourself."
    try:
        text = partial.read_bytes() if partial.exists() else b""
        if b"\n" not in text:  # nothing is done yet: what was refused before may have been put right
            with atomic_path(about) as part:
                part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            partial.write_bytes(b"")
            return []
        begun = json.loads(about.read_text(encoding="utf-8"))
        if not text.endswith(b"\n"):
            os.truncate(partial, text.rfind(b"\n") + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"cannot go on from {partial}: {error}. {delete}") from error
    settings = json.loads(json.dumps(settings))
    if differ := [name for name in settings if settings[name] != begun.get(name)]:
        raise FileError(f"{partial} was begun with other settings ({', '.join(differ)}). {delete}")
    return read_traces(partial, model.tokenizer)


def _appending(partial: Path) -> IO[bytes]:
    try:
        return partial.open("ab")
    except OSError as error:
        raise FileError(f"cannot write {partial}: {error.strerror}. Choose a folder you may write to.") from error
