"""A library in a process of its own, within limits: run as a script, never imported by the process that asks it.

In: on the command line the path of a script whose `load()` gives the function that answers (`math_process.py`,
`task_process.py`); then questions on standard input, a line of JSON each. Out: a line of JSON for each, on standard output.

What is asked holds whatever a model wrote, so it may be hostile: `9^{9^{9^9}}`, an expression that sympy simplifies for hours,
or a program, since some libraries evaluate answers as Python. For a question this process may use so much processor time and
memory and no more; then the system ends it. It may read files, but start no program, change no file and open no connection:
that stops accidents, and is no prison for code that is written to break out. It imports nothing of stepsal, which would take
seconds.
"""

import json
import logging
import os
import runpy
import signal
import sys
from typing import Any

SECONDS = 5.0
"""Of processor time for a question: a busy machine does not change a grade."""
MEMORY = 4 * 2**30
"""Bytes of address space."""

_READING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr")
_ACTING = (
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
    "pty.",
    "signal.",
)


def main(library: str) -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints gets between the replies
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; this process ends with its input
    answer = runpy.run_path(library)["load"]()
    _limit_memory()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)  # nobody reads on there
    sys.dont_write_bytecode = True
    sys.addaudithook(_refuse)
    replies.write("{}\n")  # ready
    replies.flush()
    for line in sys.stdin:
        question = json.loads(line)
        _limit_time(question.pop("seconds", SECONDS))
        try:
            reply = answer(question)
        except Exception as error:  # whatever the library may raise; MemoryError and RecursionError too
            reply = {"failed": type(error).__name__, "said": str(error)[:1000]}
        _limit_time(0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook that lets nothing outside this process be changed."""
    changes = event.startswith(_ACTING) and event not in _READING
    if event == "open":
        _, mode, flags = arguments
        changes = any(letter in str(mode) for letter in "wax+") or bool(
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
    if changes:
        raise PermissionError(f"what grades an answer may not do this: {event}")


def _limit_time(seconds: float) -> None:
    """Let the system end this process after so much more processor time; 0 takes the limit away."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main(sys.argv[1])
