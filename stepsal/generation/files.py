"""Answers to a file: as many as there are problems, each decoded once, whatever interrupts it and whoever decodes it.

In: problems (`stepsal.generation.questions`). Out: a JSONL file of traces, graded where the answers are known.

1. All prompts are cut into batches, those of like length together: the same ones, however often the run is interrupted, and
   whoever decodes them (`stepsal.generation.worker`). A batch of which every answer is there is done.
2. Finished traces stand in `.NAME.partial` beside the file, and in `.NAME.settings` what they were made with, with hashes of
   the model's weights, of the prompts' tokens and of the tokenizer. The same call goes on from there; other settings are
   refused, and so is a second run while a first one is at work.
3. When all traces are there, the file is written whole, in order.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial as partially
from glob import escape
from pathlib import Path
from typing import IO, Any

from stepsal.checks import checked, whole
from stepsal.checks import path as a_path
from stepsal.engines.messages import ModelToLoad
from stepsal.engines.workforce import a_model_or_one_to_load, start_workers
from stepsal.errors import FileError, InputError
from stepsal.files import agree_on_settings, cannot_write, locked, sha256_of
from stepsal.generation.generate import Decoding, check_beginnings, check_room, in_batches, make_requests
from stepsal.generation.grading import GRADERS, TASK, choose_grader
from stepsal.generation.questions import Question, task_record
from stepsal.generation.worker import AnswerItem, AnswerJob, answer_id
from stepsal.interventions.base import Intervention
from stepsal.models.host import Model
from stepsal.traces.files import read_traces, rule_name, write_traces
from stepsal.traces.formats import STEP_RULES, FormatSpec, StepsSpec
from stepsal.traces.prompt import encode_prompt
from stepsal.traces.trace import Trace


@checked(model=a_model_or_one_to_load, path=a_path, workers=whole(1, optional=True))
def generate_file(
    model: Model | ModelToLoad,
    questions: Sequence[Question],
    path: str | Path,
    decoding: Decoding,
    interventions: Sequence[Intervention] = (),
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    grader: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> list[Trace]:
    """Answer every question and write the traces; `trace.id` is the question's, with `-SAMPLE` where there are several.

    Args:
        model: a loaded model, which does all of the work, or a `ModelToLoad`, which each of the workers loads.
        grader: the name of a grader (`stepsal.generation.grading`); None is `task` for the bundled task, else `math`.
        engine, workers, address: who does the work, as in `stepsal.save_step_maps`. This process alone writes the file.

    Raises:
        FileError: the file is there already, it was begun with other settings, another run is writing it, or it cannot be
            written.
        InputError: as `stepsal.generate`; or several workers for a model that is loaded already.
        StepsalError: a batch whose worker died again and again.

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
    rule = rule_name(steps, "these traces are to be")
    job = partially(
        AnswerJob,
        decoding=decoding,
        interventions=tuple(each.record for each in interventions),
        format=format,
        steps=rule,
        grader=grader,
    )
    definitions: list[Any] = [type(each) for each in interventions]
    definitions += [GRADERS[grader]] if grader in GRADERS else []
    definitions += [STEP_RULES[rule]] if rule in STEP_RULES else []
    force = start_workers(job, model, engine, workers, address, definitions)
    with closing(force):
        ((_, said),) = force.engine.run([AnswerItem()])
        made_of = said["made_of"]
        requests = make_requests(
            [encode_prompt(force.tokenizer, question.prompt) for question in questions], decoding.samples
        )
        check_room(requests, decoding, said["context"], made_of["stop_tokens"])
        check_beginnings(requests, force.tokenizer)
        settings = _settings(questions, decoding, interventions, format, rule) | {"grader": grader} | made_of
        settings["prompts_sha256"] = sha256_of(*(_numbers(each.prompt) for each in requests[:: decoding.samples]))
        names = [answer_id(questions[each.prompt_index], each.sample, decoding) for each in requests]
        partial, about = (path.with_name(f".{path.name}{suffix}") for suffix in (".partial", ".settings"))
        at_work = f"another run is writing answers to {path}: wait for it, or give another --out"
        with locked(path, at_work, also=[escape(about.name)]):
            refuse_existing(path)  # another run may have finished it just now
            done = {trace.id: trace for trace in _begin(partial, about, settings, force.tokenizer)}
            items = [
                AnswerItem(
                    requests=tuple(batch),
                    questions=tuple(questions[each.prompt_index] for each in batch),
                    made_of=made_of,
                )
                for batch in in_batches(requests, decoding.batch_size)
                if any(names[each.index] not in done for each in batch)
            ]
            with (
                tqdm(total=len(names), initial=len(done), desc="generating", unit="trace", disable=not progress) as bar,
                _appending(partial) as file,
                closing(force.engine.run(items)) as answers,
            ):
                warned = set[str]()
                for item, said in answers:
                    for text in said["warnings"]:
                        if text not in warned:
                            warnings.warn(text, stacklevel=3)
                        warned.add(text)
                    # Of a batch that was half written when a run was killed, what is there is kept.
                    lines = [
                        line
                        for each, line in zip(item.requests, said["lines"], strict=True)
                        if names[each.index] not in done
                    ]
                    _append(file, partial, lines)
                    bar.update(len(lines))
            done = {trace.id: trace for trace in read_traces(partial, force.tokenizer)}
            traces = [done[name] for name in names]
            write_traces(path, traces)
            partial.unlink()
            about.unlink()
    return traces


def _settings(
    questions: Sequence[Question],
    decoding: Decoding,
    interventions: Sequence[Intervention],
    format: FormatSpec,
    rule: str,
) -> dict[str, Any]:
    """What the answers depend on beside the model, as plain data."""
    return {
        "decoding": {name: value for name, value in asdict(decoding).items() if name != "batch_size"},
        "interventions": [each.record for each in interventions],
        "segmentation": {"format": format, "steps": rule},
        **task_record(questions),
        "questions": hashlib.sha256(json.dumps([question.record for question in questions]).encode()).hexdigest(),
    }


def _numbers(tokens: Sequence[int]) -> str:
    return ",".join(map(str, tokens))


def refuse_existing(path: str | Path) -> None:
    """Nothing is written over: raise `FileError` where the file is there."""
    if Path(path).exists():
        raise FileError(f"{path} is there already: give another --out, or move it away")


def _begin(partial: Path, about: Path, settings: Mapping[str, Any], tokenizer: Any) -> list[Trace]:
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
    return read_traces(partial, tokenizer) if begun else []


@contextmanager
def _appending(partial: Path) -> Iterator[IO[bytes]]:
    try:
        file = partial.open("ab", buffering=0)  # nothing is left to write when it is closed
    except OSError as error:
        raise cannot_write(partial, error) from error
    with file:
        yield file


def _append(file: IO[bytes], partial: Path, lines: Iterable[str]) -> None:
    """Put finished traces on the disk; where there is no room for them, what was finished before them is kept."""
    left = memoryview("".join(line + "\n" for line in lines).encode())
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError as error:
        raise FileError(
            f"cannot write {partial}: {error.strerror or error}. What is finished is kept: make room, and the same command "
            "goes on from there."
        ) from error
