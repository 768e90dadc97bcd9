"""What math-verify answers, in a process of its own (`stepsal.generation.limited_process`, which runs this file).

In: questions of `stepsal.generation.mathematics`. Out: replies.

    {"compare": [["1/2", "0.5"]]}                      -> {"right": true}
    {"extract": "The answer is 4.", "expected": ["4"]} -> {"right": true, "text": "4"}
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any


def load() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that answers a question. Raises `ImportError` without math-verify."""
    import math_verify

    return partial(_answer, math_verify)


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
