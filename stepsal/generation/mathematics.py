r"""Whether two answers are the same mathematics, within a time that no expression can exceed.

In: the expected answer and a summary. Out: a `Finding`.

1. The answer is in the last complete box; where nothing is boxed, it is what math-verify extracts from the summary.
2. The same text is the same answer, typesetting aside. A letter of a multiple-choice problem is compared as a letter.
3. All else math-verify compares (https://github.com/huggingface/Math-Verify), in a process of its own
   (`stepsal.generation.math_process`): math-verify's own time limit is a signal, which only a main thread can have, and which
   does not interrupt a long multiplication. The process is started once, and anew after an expression that was too much for it.
"""

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stepsal.errors import StepsalError
from stepsal.generation.answers import choice, last_box, letter, other_symbol, pairs_to_compare, same_text, spelling

LONGEST = 5_000
"""Characters of the longest answer that is read as mathematics."""
WAIT = 60.0
"""Seconds by the clock after which a question is given up, whatever the process says."""
_START = 300.0
_SCRIPT = Path(__file__).with_name("math_process.py")


@dataclass(frozen=True)
class Finding:
    """`answer`: what was graded. `boxed`: whether in a box. `failure`: why it could not be compared, and counts as wrong."""

    right: bool
    answer: str
    boxed: bool
    failure: str | None = None


def compare_math(expected: str, summary: str) -> Finding:
    r"""Whether the answer in a summary is the expected one.

    >>> compare_math("1/2", r"So it is $\boxed{0.5}$.")
    Finding(right=True, answer='0.5', boxed=True, failure=None)
    >>> compare_math("1,000", "The answer is $1{,}000$.")
    Finding(right=True, answer='1,000', boxed=False, failure=None)
    """
    box, chosen = last_box(summary), letter(expected)
    if box is not None and len(box) > LONGEST:
        return Finding(box == expected.strip(), box, True, f"longer than {LONGEST} characters")
    if box is not None:
        if same_text(expected, box):
            return Finding(True, box, True)
        if chosen or other_symbol(expected, box):
            return Finding(chosen is not None and choice(box) == chosen, box, True)
        reply = _ask(compare=pairs_to_compare(expected, box))
        return Finding(bool(reply.get("right")), box, True, reply.get("failed"))
    if len(summary) <= LONGEST and same_text(expected, summary):
        return Finding(True, summary.strip(), False)
    return _extracted_letter(chosen, summary) if chosen else _extracted(expected, summary)


def _extracted_letter(chosen: str, summary: str) -> Finding:
    """The finding for a multiple-choice problem where nothing is boxed."""
    if len(summary) <= LONGEST and (said := choice(summary)) is not None:
        return Finding(said == chosen, said, False)
    letters = [chr(code) for code in range(ord("A"), max(ord("E"), ord(chosen)) + 1)]
    reply = _ask(extract=_without_brackets(summary), letters=letters)
    text = reply.get("text")
    return Finding(text == chosen, text or summary.strip(), False, reply.get("failed"))


def _extracted(expected: str, summary: str) -> Finding:
    """The finding for any other problem where nothing is boxed."""
    one = spelling(expected)
    reply = _ask(extract=summary, expected=list(dict.fromkeys((one.text, one.value))))
    text, right = reply.get("text"), bool(reply.get("right"))
    if text and not right and "failed" not in reply:
        right = same_text(expected, text)
        if not right:
            reply = _ask(compare=pairs_to_compare(expected, text))
            right = bool(reply.get("right"))
    return Finding(right, text or summary.strip(), False, reply.get("failed"))


def _without_brackets(summary: str) -> str:
    """A summary whose letters stand alone: math-verify finds `B`, and neither `(B)` nor `$\\text{B}$`."""
    bare = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?([A-Z])\)?\s*\}", r" \1 ", summary.replace("$", " "))
    return re.sub(r"[(\[]\s*([A-Z])\s*[)\]]", r" \1 ", bare)


class MathProcess:
    """The process that math-verify runs in. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, **question: Any) -> dict[str, Any]:
        """The reply; where the question took too much time or memory, only `failed`."""
        with self._lock:
            if self._process is None:
                self._start()
            reply = self._exchange(json.dumps(question) + "\n", WAIT)
            if reply is None or reply.get("failed") == "MemoryError":
                self._end()
            return {"failed": "too much time or memory"} if reply is None else reply

    def close(self) -> None:
        with self._lock:
            self._end()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        if self._exchange("", _START) is None:
            said = self._process.stderr.read() if self._process.stderr else ""
            self._end()
            raise StepsalError(
                f"math-verify cannot be started ({said.strip().splitlines()[-1:] or 'it said nothing'}): install it with "
                "`pip install math-verify==0.9.0`, or grade by exact text (grader 'exact')"
            )

    def _exchange(self, line: str, seconds: float) -> dict[str, Any] | None:
        """Say a line and hear one; None where the process ends before it answers, or is ended because it took too long."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            heard = process.stdout.readline()
        except OSError:
            heard = ""
        finally:
            timer.cancel()
        return json.loads(heard) if heard.endswith("\n") else None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what could not be said to a process that has ended
                    continue


@cache
def _process_of(pid: int) -> MathProcess:
    """One for each process that grades: a fork must not talk to its parent's."""
    process = MathProcess()
    atexit.register(process.close)
    return process


def _ask(**question: Any) -> dict[str, Any]:
    return _process_of(os.getpid()).ask(**question)
