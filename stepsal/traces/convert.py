"""Logs of servers, batches and chats to one file of traces, with the tokens and steps that every later stage reads.

In: JSONL files, in any of the shapes of `stepsal.traces.shapes`. Out: one file as `stepsal.write_traces` writes it, and a list
of what could not be read, line by line. Nothing is left out in silence.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepsal.errors import InputError
from stepsal.files import exclusive_path
from stepsal.traces.files import read_lines, rule_name, trace_line
from stepsal.traces.formats import FormatSpec, StepsSpec
from stepsal.traces.segment import Tokenizer
from stepsal.traces.trace import Trace, has_plain_prompt

PLAIN_PROMPT = "a bare text as the prompt, without the model's chat template ('messages' in its place apply it)"


@dataclass(frozen=True)
class Unread:
    """A line of a file that gave no trace, and why. A line with several answers may have several."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {' '.join(self.reason.split())}"


@dataclass(frozen=True)
class Conversion:
    """What was written and what was not.

    Attributes:
        out: the file of traces.
        written: the number of traces in it.
        lossy: the number of these whose text the tokenizer does not give back.
        rebuilt: the number of these whose response was put together from fields.
        plain: the number of these whose prompt is a bare text, though the tokenizer has a chat template.
        unread: the lines that gave no trace.
    """

    out: Path
    written: int
    lossy: int
    rebuilt: int
    plain: int
    unread: tuple[Unread, ...]

    def __str__(self) -> str:
        counts = [f"{self.written} trace{'s' * (self.written != 1)}"]
        if self.lossy:
            counts.append(f"{self.lossy} whose text the tokenizer does not give back (meta: lossy_tokenization)")
        if self.rebuilt:
            counts.append(f"{self.rebuilt} put together from fields (meta: rebuilt_response)")
        if self.plain:
            counts.append(f"{self.plain} with {PLAIN_PROMPT}")
        counts.append(f"{len(self.unread)} not read" if self.unread else "everything read")
        return f"{self.out}   {', '.join(counts)}"


def convert_traces(
    paths: Sequence[str | Path],
    out: str | Path,
    tokenizer: Tokenizer,
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
) -> Conversion:
    """Read everything in JSONL files and write its traces to one, atomically, in order.

    A batch's requests and its results are two files: give both. Where nothing can be read, nothing is written. Raises
    `FileError` for a file that cannot be read or written, `InputError` for a wrong option.

    >>> import tempfile
    >>> from stepsal import load_tokenizer
    >>> log = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> _ = log.write_text('{"prompt": "2+2?", "choices": [{"message": {"reasoning": "Add.", "content": "4"}}]}\\n4')
    >>> result = convert_traces([log], log.with_name("traces.jsonl"), load_tokenizer())
    >>> result.written, [each.line for each in result.unread]
    (1, [2])
    """
    out = Path(out)
    if any(Path(path).resolve() == out.resolve() for path in paths):
        raise InputError(f"{out} is to be read and written: give the result another name")
    rule_name(steps, "these traces would be")
    unread: list[Unread] = []
    counts = {"written": 0, "lossy_tokenization": 0, "rebuilt_response": 0, "plain": 0}
    lines = _lines(paths, tokenizer, format, steps, unread, counts)
    first = next(lines, None)
    if first is not None:
        with exclusive_path(out) as temporary, temporary.open("wb") as file:
            file.write(first + b"\n")
            file.writelines(line + b"\n" for line in lines)
    elif not unread:
        raise InputError(f"there is no line in {', '.join(map(str, paths))}: give one JSON object a line")
    written, lossy, rebuilt, plain = counts.values()
    return Conversion(out, written, lossy, rebuilt, plain, tuple(unread))


def _lines(
    paths: Sequence[str | Path],
    tokenizer: Tokenizer,
    format: FormatSpec,
    steps: StepsSpec,
    unread: list[Unread],
    counts: dict[str, int],
) -> Iterator[bytes]:
    """Every trace as a line of the result. A line that gives none is appended to `unread`; the traces are added to `counts`."""
    results = read_lines(paths, tokenizer, format, steps)
    while True:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="trace .* does not give the text back")  # counted
            result = next(results, None)
        if result is None:
            return
        path, number, trace = result
        try:
            line = trace_line(trace) if isinstance(trace, Trace) else None
        except InputError as error:
            line, trace = None, error
        if isinstance(trace, Trace) and line:
            for name in counts:
                counts[name] += name == "written" or name in trace.meta
            counts["plain"] += has_plain_prompt(tokenizer, trace)
            yield line
        else:
            unread.append(Unread(Path(path), number, str(trace)))
