"""Traces to and from JSONL, one object a line.

Read: `{"id", "prompt", "response", "tokens"?, "answer"?, "correct"?, "meta"?}`, with `prompt` a string or messages;
chat-style `{"messages": [...]}` that ends with the assistant's message; and what OpenAI-compatible servers emit, the
reasoning in a field of its own (`reasoning_content` or `reasoning`, with `content`), in the message or with a `prompt`.

Written: the same, with the tokens and, under `segmentation`, what the steps were found with, so that reading gives the
same trace. `meta` and `answer` come back as JSON has them (a tuple as a list).
"""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stepsal.errors import FileError, InputError
from stepsal.files import atomic_path
from stepsal.formats import STEP_RULES, FormatSpec, StepsSpec, find_formats
from stepsal.prompt import Prompt, prompt_text, starts_thinking, tokens_within
from stepsal.segment import Tokenizer, decode
from stepsal.trace import Trace, check_tokens, split_tokens

_KINDS = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}


def read_traces(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    on_error: str = "raise",
) -> list[Trace]:
    """The traces of a JSONL file, in order.

    `format` and `steps` other than `auto` go before those in the file. `tokens` in the file are used as they are. A
    trace without an id is called `line-N`. Raises `FileError` or `InputError` with the line's number; `on_error="skip"`
    leaves such lines out and warns once, with their numbers and what is wrong with each.

    >>> import tempfile
    >>> from stepsal import load_tokenizer
    >>> path = Path(tempfile.mkdtemp()) / "traces.jsonl"
    >>> _ = path.write_text('{"prompt": "2+2?", "reasoning_content": "Add.", "content": "4"}')
    >>> read_traces(path, load_tokenizer())[0].response
    '<think>\\nAdd.\\n</think>\\n\\n4'
    """
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error={on_error!r} is not known. Choose 'raise' or 'skip'.")
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise FileError(f"cannot read traces from {path}: {error.strerror or error}") from error
    traces: list[Trace] = []
    line_of: dict[str, int] = {}
    left_out: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            trace = _from_record(_parse(line), tokenizer, format, steps, f"line-{number}")
            if trace.id in line_of:
                raise InputError(f"the id {trace.id!r} is already that of line {line_of[trace.id]}: ids must differ")
        except (FileError, InputError) as error:
            if on_error == "raise":
                raise type(error)(f"{path}, line {number}: {error}") from error
            left_out.append(f"line {number}: {error}")
            continue
        line_of[trace.id] = number
        traces.append(trace)
    if left_out:
        count = f"{len(left_out)} line" + ("s" if len(left_out) > 1 else "")
        warnings.warn(f"{path}: {count} left out. " + "; ".join(left_out), stacklevel=2)
    return traces


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
    with atomic_path(path) as part, part.open("wb") as file:
        for index, trace in enumerate(traces):
            if trace.id in ids:
                raise InputError(f"trace {index} has the id {trace.id!r} of an earlier one: ids must differ in a file")
            ids |= {trace.id} - {""}
            file.write(trace_line(trace) + b"\n")


def trace_line(trace: Trace) -> bytes:
    """A trace as one line of a file. Raises `InputError` for what JSON cannot hold."""
    try:
        return json.dumps(_to_record(trace), ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
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


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileError(f"not UTF-8 (byte {error.start} of the line): save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"not a whole JSON object ({error}): one object a line, and the last line may be cut"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"expected an object with 'prompt' and 'response', found {_shown(record)}")
    return record


def _from_record(record: dict[str, Any], tokenizer: Tokenizer, format: FormatSpec, steps: StepsSpec, id: str) -> Trace:
    stored = _field(record, "segmentation", dict) or {}
    if format == "auto" and stored:
        kept = _field(stored, "format", str, list)
        if isinstance(kept, list):
            if [type(marker) for marker in kept] != [str, str]:
                raise InputError(f"format={kept!r} is not known: a pair of markers is two strings")
            kept = (kept[0], kept[1])
        format = kept or "auto"
    if isinstance(steps, str) and steps == "auto":
        steps = _field(stored, "steps", str) or "auto"
    given = _field(record, "id", str, int)
    keep: dict[str, Any] = {
        "id": id if given is None else str(given),
        "answer": record.get("answer"),
        "correct": _field(record, "correct", bool),
        "meta": _field(record, "meta", dict),
        "format": format,
        "steps": steps,
    }
    tokens = _field(record, "tokens", list)
    prompt, response = _texts(record, tokenizer, format, needed=tokens is None)
    if tokens is None:
        return Trace.from_text(tokenizer, prompt, response, **keep)
    tokens = check_tokens(tokens, len(tokenizer))
    if "prompt_tokens" in stored:  # it was a trace before
        return split_tokens(tokenizer, tokens, prompt_tokens=_field(stored, "prompt_tokens", int), **keep)
    prompt_tokens = _prompt_length(tokenizer, tokens, prompt_text(tokenizer, prompt))
    return Trace.from_tokens(tokenizer, tokens, prompt_tokens=prompt_tokens, **keep)


def _texts(
    record: dict[str, Any], tokenizer: Tokenizer, format: FormatSpec, *, needed: bool = True
) -> tuple[Prompt, str]:
    """Prompt and response; a response in two fields is put together with the format's markers."""
    message, prompt = record, _field(record, "prompt", str, list)
    messages = _field(record, "messages", list)
    if messages is not None:
        *prompt, message = messages or [None]
        if prompt == [] or not isinstance(message, dict) or message.get("role") != "assistant":
            raise InputError("'messages' must be a prompt's messages, then one with the role 'assistant', the response")
    if not prompt:
        raise InputError(f"there is no 'prompt' (or it is empty) and no 'messages'; found {_shown(list(record))}")
    if isinstance(prompt, list) and not all(isinstance(each, dict) for each in prompt):
        raise InputError(f"the messages of a prompt must be objects, found {_shown(prompt)}")
    response, content = (_field(message, name, str) for name in ("response", "content"))
    reasoning = _field(message, "reasoning_content", str) or _field(message, "reasoning", str)
    if response is not None and reasoning:
        raise InputError("'response' and 'reasoning_content' cannot both be given: call the answer alone 'content'")
    if response is None:
        response = content
        if reasoning:
            response = _join(tokenizer, prompt_text(tokenizer, prompt), reasoning, content or "", format)
    if response is None and needed:
        raise InputError(f"there is no 'response' (nor 'content'); found {_shown(list(message))}")
    return prompt, response or ""


def _join(tokenizer: Tokenizer, prompt: str, reasoning: str, content: str, format: FormatSpec) -> str:
    """The response as the model wrote it, with the markers that the prompt opened, or that the template names."""
    pairs = [(each.layout, pair) for each in find_formats(format) for pair in each.markers]
    if not pairs:
        raise InputError(f"format={format!r} has no markers to put 'reasoning_content' between: choose another format")
    started = starts_thinking(prompt, format)
    template = str(getattr(tokenizer, "chat_template", None))
    likely = [each for each in pairs if each[1] == started] or [each for each in pairs if each[1][0] in template]
    layout, (opening, closing) = (likely or pairs)[0]
    lead, _, rest = layout.partition("{reasoning}")
    if started:
        lead = lead.removeprefix("{opening}") if prompt == prompt.rstrip() else ""
    parts = {
        "opening": opening,
        "closing": closing,
        "reasoning": reasoning.strip("\n"),
        "content": content.lstrip("\n"),
    }
    return (lead + "{reasoning}" + (rest if content else "")).format(**parts)  # no content: cut off while thinking


def _prompt_length(tokenizer: Tokenizer, tokens: list[int], prompt: str) -> int:
    text = decode(tokenizer, tokens)
    at = text.find(prompt)
    if at < 0 or text[:at].strip() not in ("", getattr(tokenizer, "bos_token", None)):
        raise InputError(
            f"the tokens decode to {text[:50]!r}, the prompt is {prompt[:50]!r}: the tokens must begin with the "
            "prompt's. Leave 'tokens' out, or use the tokenizer they come from."
        )
    return tokens_within(tokenizer, tokens, at + len(prompt))


def _field(record: dict[str, Any], name: str, *kinds: type) -> Any:
    """The field, None where it is missing or null; an `InputError` where it is of another kind."""
    value = record.get(name)
    if value is None or (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
        return value
    raise InputError(f"{name!r} must be {' or '.join(_KINDS[kind] for kind in kinds)}, found {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_grades(path: str | Path) -> dict[str, bool]:
    """`correct` by id, of the lines of a JSONL file that have both; nothing else of them is read.

    Raises `FileError` for a file that cannot be read and `InputError`, with its number, for a line that is not JSON.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read grades from {path}: {error}") from error
    grades: dict[str, bool] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"line {number} of {path} is not JSON ({error})") from error
        if isinstance(record, dict) and isinstance(record.get("correct"), bool) and "id" in record:
            grades[str(record["id"])] = record["correct"]
    return grades
