"""math-verify in a process of its own: run as a script, never imported by the process that asks it.

In: lines of JSON on standard input, questions of `stepsal.generation.mathematics`. Out: a line of JSON for each of them, on
standard output.

    {"compare": [["1/2", "0.5"]]}                      -> {"right": true}
    {"extract": "The answer is 4.", "expected": ["4"]} -> {"right": true, "text": "4"}

Answers are whatever a model wrote, so an expression may be hostile: `9^{9^{9^9}}`, or one that sympy simplifies for hours. This
process may use so much processor time for a question, and so much memory, and no more; then the system ends it. It imports
nothing of stepsal, which would take seconds.
"""

import json
import logging
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from typing import Any

SECONDS = 5.0
"""Of processor time for a question: a busy machine does not change a grade."""
MEMORY = 4 * 2**30
"""Bytes of address space."""


def main() -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints gets between the replies
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; this process ends with its input
    answer = partial(_answer, _load())
    _limit_memory()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)  # nobody reads on there
    replies.write("{}\n")  # ready
    replies.flush()
    for line in sys.stdin:
        _limit_time(SECONDS)
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # whatever sympy may raise; MemoryError and RecursionError too
            reply = {"failed": type(error).__name__}
        _limit_time(0)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _load() -> Any:
    import math_verify

    return math_verify


def _answer(library: Any, question: dict[str, Any]) -> dict[str, Any]:
    if "compare" in question:
        pairs = question["compare"]
        return {"right": any(_same(library, _parse(library, one), _parse(library, other)) for one, other in pairs)}
    letters = question.get("letters")
    kinds = (
        [library.StringExtractionConfig(strings=tuple(letters), lowercase=False)]
        if letters
        else [_latex(library), library.ExprExtractionConfig()]
    )
    found = library.parse(question["extract"], kinds, parsing_timeout=None)
    text = next((each for each in reversed(found) if isinstance(each, str)), None)
    right = any(_same(library, _parse(library, one), found) for one in question.get("expected", ()))
    return {"right": right, "text": text}


def _parse(library: Any, text: str) -> Any:
    """What math-verify reads in a text that is all mathematics."""
    return library.parse(f"${text}$", [_latex(library)], fallback_mode="no_fallback", parsing_timeout=None)


def _latex(library: Any) -> Any:
    """Without math-verify's removal of units, which also takes the variable of `2t` for one."""
    default = library.LatexExtractionConfig(boxed_match_priority=-1)
    return replace(default, normalization_config=replace(default.normalization_config, units=False))


def _same(library: Any, expected: Any, given: Any) -> bool:
    return bool(expected and given) and library.verify(expected, given, timeout_seconds=None)


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
    main()
