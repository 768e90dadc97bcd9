"""Traces to and from JSONL, one object a line.

Read: `{"id", "prompt", "response", "tokens"?, "answer"?, "correct"?, "meta"?}`, with `prompt` a string or messages, and the
other shapes of `stepsal.traces.shapes`: chats, what servers and harnesses log, batches, token ids.

Written: the first, with the tokens and, under `segmentation`, what the steps were found with, so that reading gives the
same trace. `meta` and `answer` come back as JSON has them (a tuple as a list). `stepsal_sha256` is a checksum of all that a
line says beside it, however that is laid out; it is compared where a line has one.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stepsal.checks import checked, shown
from stepsal.checks import path as check_path
from stepsal.checks import tokenizer as check_tokenizer
from stepsal.errors import FileError, InputError
from stepsal.files import atomic_path, sha256_of
from stepsal.jsonl import parse_line
from stepsal.jsonl import read_lines as lines_of
from stepsal.traces.checks import traces as check_traces
from stepsal.traces.formats import STEP_RULES, FormatSpec, StepsSpec, find_formats, find_rule
from stepsal.traces.records import trace_of
from stepsal.traces.segment import Tokenizer
from stepsal.traces.shapes import answers, is_request
from stepsal.traces.trace import Trace

_CHECKSUM = "stepsal_sha256"
LineResult = tuple[str | Path, int, Trace | FileError | InputError]
"""A trace, or why there is none, with the file and the number of its line."""


@checked(path=check_path, tokenizer=check_tokenizer)
def read_traces(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    on_error: str = "raise",
    verify: bool = True,
) -> list[Trace]:
    """The traces of a JSONL file, in order.

    `format` and `steps` other than `auto` take precedence over those in the file. `tokens` in the file are used as they are. A
    trace without an id is called `line-N`. Raises `FileError` or `InputError` with the line's number; `on_error="skip"`
    leaves such lines out and warns once, with their numbers and what is wrong with each. `verify=False` does not compare
    checksums.

    >>> import tempfile
    >>> from stepsal import load_tokenizer
    >>> path = Path(tempfile.mkdtemp()) / "traces.jsonl"
    >>> _ = path.write_text('{"prompt": "2+2?", "reasoning_content": "Add.", "content": "4"}')
    >>> read_traces(path, load_tokenizer())[0].response
    '<think>\\nAdd.\\n</think>\\n\\n4'
    """
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error={on_error!r} is not known. Choose 'raise' or 'skip'.")
    traces: list[Trace] = []
    wrong: list[tuple[int, Exception]] = []
    for _, number, found in read_lines([path], tokenizer, format, steps, verify):
        if isinstance(found, Trace):
            traces.append(found)
        else:
            wrong.append((number, found))
        if wrong and on_error == "raise":
            break
    refuse_broken_lines(path, wrong, on_error)
    return traces


def refuse_broken_lines(path: str | Path, wrong: Sequence[tuple[int, Exception]], on_error: str) -> None:
    """Raise the error of the first line that is wrong, or warn of all of them if `on_error` is `skip`."""
    if not wrong:
        return
    number, error = wrong[0]
    if on_error == "raise":
        raise type(error)(f"{path}, line {number}: {error}") from error
    count = f"{len(wrong)} line" + ("s" if len(wrong) > 1 else "")
    texts = "; ".join(f"line {number}: {error}" for number, error in wrong)
    warnings.warn(f"{path}: {count} left out. {texts}", stacklevel=4)


def read_lines(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    verify: bool = True,
) -> Iterator[LineResult]:
    """Everything in JSONL files, in order: traces, and errors that say what is wrong with the other lines.

    Raises `FileError` for a file that cannot be read.

    A batch's requests may stand anywhere in these files: they go with the responses of the same `custom_id`.
    """
    find_formats(format)  # a wrong option is no line's fault
    find_rule(steps, "paragraph")
    requests = answered_requests(paths)
    places: dict[str, str] = {}
    for path in paths:
        prefix = f"{Path(path).stem}-" if len(paths) > 1 else ""
        for number, line in lines_of(path, "traces"):
            for found in read_line(line, tokenizer, format, steps, f"{prefix}line-{number}", requests, verify):
                if not isinstance(found, Trace) or found.id not in places:
                    yield path, number, found
                else:
                    where = places[found.id]
                    yield path, number, InputError(f"the id {found.id!r} is already that of {where}: ids must differ")
                if isinstance(found, Trace):
                    places.setdefault(found.id, f"line {number}" if len(paths) == 1 else f"{path}, line {number}")


def read_line(
    line: bytes,
    tokenizer: Tokenizer,
    format: FormatSpec,
    steps: StepsSpec,
    id: str,
    requests: dict[str, Any],
    verify: bool,
) -> Iterator[Trace | FileError | InputError]:
    """The traces of a line, and in the place of each that cannot be made the error that says why."""
    try:
        records = answers(parse_record(line, verify), id, requests)
    except (FileError, InputError) as error:
        yield error
        return
    for record in records:
        try:
            yield trace_of(record, tokenizer, format, steps)
        except InputError as error:
            yield error if len(records) == 1 else InputError(f"answer {record['id']!r}: {error}")


def answered_requests(paths: Sequence[str | Path]) -> dict[str, dict[str, Any]]:
    """The requests of batches that are answered in these files, by `custom_id`."""
    requests: dict[str, dict[str, Any]] = {}
    answered: set[Any] = set()
    for path in paths:
        for number, line in lines_of(path, "traces"):
            record = {}
            if b'"custom_id"' in line:
                with suppress(FileError, InputError):  # said when its turn comes
                    record = parse_record(line, verify=False)
            id = record.get("custom_id")
            if not isinstance(id, str):
                continue
            if not is_request(record):
                answered.add(id)
            elif requests.setdefault(id, record["body"]) != record["body"]:
                raise InputError(
                    f"{path}, line {number}: another request has the custom_id {id!r} too: ids must differ"
                )
    return {id: body for id, body in requests.items() if id in answered}


@checked(path=check_path, traces=check_traces)
def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write traces as JSONL, atomically; `read_traces` with the same tokenizer gives them back.

    >>> import tempfile
    >>> from stepsal import load_tokenizer
    >>> tokenizer, path = load_tokenizer(), Path(tempfile.mkdtemp()) / "traces.jsonl"
    >>> write_traces(path, [Trace.from_text(tokenizer, "2+2?", "<think>Add.</think>4", id="a", correct=True)])
    >>> read_traces(path, tokenizer)
    [Trace('a', 11 tokens, steps: 1 question, 1 thinking, 1 summary)]
    """
    ids: set[str] = set()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for index, trace in enumerate(traces):
            if trace.id in ids:
                raise InputError(f"trace {index} has the id {trace.id!r} of an earlier one: ids must differ in a file")
            ids |= {trace.id} - {""}
            file.write(trace_line(trace) + b"\n")


def trace_line(trace: Trace) -> bytes:
    """A trace as one line of a file. Raises `InputError` for what JSON cannot hold."""
    try:
        line = json.dumps(_to_record(trace), ensure_ascii=False, allow_nan=False)
        checksum = json.dumps({_CHECKSUM: _checksum(json.loads(line))})
        return f"{line[:-1]}, {checksum[1:]}".encode()
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"trace {trace.id!r} cannot be written as JSON ({error}): its answer, correct and meta must be text, numbers, "
            "true, false, null, lists and dicts of these"
        ) from error


def rule_name(steps: StepsSpec, whose: str) -> str:
    """The name of a step rule, as a file can hold it. Raises `InputError` for a callable that has none."""
    if isinstance(steps, str):
        return steps
    if names := [name for name, rule in STEP_RULES.items() if rule is steps]:
        return names[0]
    raise InputError(
        f"{whose} split by {steps!r}, and a file cannot hold a callable: name it, stepsal.formats.STEP_RULES['mine'] = ..., "
        "and give steps='mine'"
    )


def _to_record(trace: Trace) -> dict[str, Any]:
    steps = rule_name(trace.step_rule, f"trace {trace.id!r} was")
    optional = {"id": trace.id or None, "answer": trace.answer, "correct": trace.correct, "meta": trace.meta or None}
    return {
        **{name: value for name, value in optional.items() if value is not None},
        "prompt": trace.prompt,
        "response": trace.response,
        "tokens": trace.tokens.tolist(),
        "segmentation": {"format": trace.format, "steps": steps, "prompt_tokens": trace.prompt_tokens},
    }


def _checksum(record: dict[str, Any]) -> str:
    """Of what a record says, beside its checksum: the same for every layout of the JSON and every order of the fields."""
    said = {name: value for name, value in record.items() if name != _CHECKSUM}
    return sha256_of(json.dumps(said, sort_keys=True))


def _verify(record: dict[str, Any]) -> None:
    """Raise `FileError` where a record has a checksum, and another one than that of what it says."""
    if record.get(_CHECKSUM, expected := _checksum(record)) != expected:
        raise FileError(
            "it does not say what was written to it: its checksum differs, as where a bit flipped. Take the file again from "
            "where it came. If it was changed on purpose, take the checksum out of it: "
            f"`jq -c 'del(.{_CHECKSUM})' OLD > NEW` (or read it in Python with verify=False)"
        )


def parse_record(line: bytes, verify: bool) -> dict[str, Any]:
    """What a line of a file of traces says, without its checksum, which is compared if `verify`."""
    record = parse_line(line)
    if not isinstance(record, dict):
        cure = ": `jq -c '.[]'` makes lines of a list" if isinstance(record, list) else ""
        raise InputError(f"expected an object with 'prompt' and 'response', found {shown(record)}{cure}")
    if _CHECKSUM in record:
        if verify:
            _verify(record)
        del record[_CHECKSUM]
    return record


def read_grades(path: str | Path) -> dict[str, bool]:
    """The value of `correct` by `id`, for the lines of a JSONL file that have both. Other fields are not read.

    Raises `FileError` for a file that cannot be read, and for a line whose checksum differs; `InputError`, with its number, for
    a line that is not JSON, no object, or has a grade other than `true` and `false`, and for an id with two grades.
    """
    grades: dict[str, bool] = {}
    for number, line in lines_of(path, "traces"):
        try:
            record = parse_line(line)
        except FileError as error:
            raise InputError(f"line {number} of {path} is not JSON ({error})") from error
        if isinstance(record, dict) and _CHECKSUM in record:
            try:
                _verify(record)
            except FileError as error:
                raise FileError(f"{path}, line {number}: {error}") from error
        if not isinstance(record, dict):
            raise InputError(
                f"line {number} of {path} is no object, found {shown(record)}. Of a list, `jq -c '.[]' {path}` makes a line "
                "for each object"
            )
        grade, id = record.get("correct"), record.get("id")
        if grade is None or id is None:
            continue
        if not isinstance(grade, bool) or not isinstance(id, str | int) or isinstance(id, bool):
            raise InputError(
                f"line {number} of {path}: 'correct' must be true or false, and 'id' a text or a number, found "
                f"{shown({'id': id, 'correct': grade})}"
            )
        if grades.setdefault(str(id), grade) is not grade:
            raise InputError(f"line {number} of {path} grades {id!r} otherwise than an earlier line: keep one of them")
    return grades
