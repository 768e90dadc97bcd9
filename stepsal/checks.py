"""Checks of what a public function is given, before it does any work.

In: a value and the name of its parameter. Out: nothing, or an `InputError` that says what was given, what was expected, and how
to get it.

    @checked(stepmap=instance(StepMap, "the step map of one trace", "Make it with `stepsal.step_saliency`."))
    def diagnose(stepmap, *, reference=None): ...
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from inspect import signature
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar, cast

from stepsal.errors import InputError

Check = Callable[[str, Any], None]
"""A function of a parameter's name and its value that raises `InputError`."""
Kinds = type | tuple[type, ...]
_Function = TypeVar("_Function", bound=Callable[..., Any])


def checked(**checks: Check) -> Callable[[_Function], _Function]:
    """Check these parameters of a function whenever it is called with them.

    >>> @checked(n=instance(int, "a number of steps", "Count them."))
    ... def twice(n):
    ...     return 2 * n
    >>> twice("2")
    Traceback (most recent call last):
    stepsal.errors.InputError: n='2' is a str: expected a number of steps. Count them.
    """

    def decorate(function: _Function) -> _Function:
        parameters = signature(function)

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            try:
                given = parameters.bind_partial(*arguments, **options).arguments
            except TypeError:  # Python itself says what is wrong with the call
                given = {}
            for name, check in checks.items():
                if name in given:
                    check(name, given[name])
            return function(*arguments, **options)

        return cast(_Function, call)

    return decorate


def instance(kinds: Kinds, expected: str, fix: str, *, optional: bool = False) -> Check:
    """An object of one of these classes; None too, where it is optional."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, kinds) and not (optional and value is None):
            raise InputError(f"{name}={shown(value)} is {kind_of(value)}: expected {expected}. {fix}")

    return check


def several(kinds: Kinds, expected: str, fix: str, *, optional: bool = False) -> Check:
    """A list, or another sequence, of objects of these classes. Of anything but a list or a tuple, such as a generator or a
    sequence that reads its objects from a file, no object is looked at."""

    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        if isinstance(value, kinds):
            raise InputError(f"{name}={shown(value)} is one {type(value).__name__}: expected {expected}. {fix}")
        if isinstance(value, str | bytes | Path | Mapping) or not isinstance(value, Iterable):
            raise InputError(f"{name}={shown(value)} is {kind_of(value)}: expected {expected}. {fix}")
        for index, each in enumerate(value if isinstance(value, list | tuple) else ()):
            if not isinstance(each, kinds):
                raise InputError(f"{name}[{index}]={shown(each)} is {kind_of(each)}: expected {expected}. {fix}")

    return check


def path(name: str, value: Any) -> None:
    """The name of a file or folder."""
    if not isinstance(value, str | Path) or not str(value):
        raise InputError(
            f"{name}={shown(value)} is {kind_of(value)}: expected the path of a file or folder, a text or a pathlib.Path"
        )


def tokenizer(name: str, value: Any) -> None:
    """A tokenizer, and not its name."""
    if isinstance(value, str | Path):
        raise InputError(
            f"{name}={shown(value)} is a name, and no tokenizer: load it first, stepsal.load_tokenizer({str(value)!r})"
        )
    if not all(callable(getattr(value, method, None)) for method in ("encode", "decode")):
        raise InputError(
            f"{name}={shown(value)} is {kind_of(value)}: expected a tokenizer. Give `stepsal.load_tokenizer(name)`, or "
            "`model.tokenizer` of a model that you loaded."
        )


def prompts(name: str, value: Any) -> None:
    """A list of prompts, each a text or a list of chat messages."""
    if isinstance(value, str | Mapping) or (
        isinstance(value, Sequence) and len(value) and isinstance(value[0], Mapping)
    ):
        raise InputError(f"{name}={shown(value)} is one prompt: give a list of prompts, [prompt]")
    if not isinstance(value, Sequence):
        raise InputError(
            f"{name}={shown(value)} is {kind_of(value)}: expected a list of prompts, such as ['What is 2+2?']"
        )
    for index, each in enumerate(value):
        if not isinstance(each, str | Sequence):
            raise InputError(
                f"{name}[{index}]={shown(each)} is {kind_of(each)}: expected a prompt, a text or a list of chat messages"
            )


def whole(least: int, *, optional: bool = False) -> Check:
    """A whole number; True and False are none."""

    def check(name: str, value: Any) -> None:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise InputError(f"{name}={shown(value)} must be a whole number, at least {least}")

    return check


def shown(value: Any) -> str:
    """A value as a message shows it: on one line, and short.

    >>> shown("a" * 100)[-5:]
    'aa...'
    """
    try:
        text = " ".join(repr(value).split())
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply to show"
    except Exception:  # whatever a foreign object's own method may raise
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def kind_of(value: Any) -> str:
    """What a value is, as words in a message.

    >>> kind_of(None), kind_of([1]), kind_of([]), kind_of(Path("a"))
    ('None', 'a list of int', 'an empty list', 'a path')
    """
    if value is None:
        return "None"
    if isinstance(value, Path):
        return "a path"
    name = type(value).__name__
    if isinstance(value, list | tuple):
        return f"a {name} of {type(value[0]).__name__}" if value else f"an empty {name}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def nearest(name: str, known: Iterable[str]) -> str:
    """What a message adds to an unknown name: the known one that is nearest to it, or nothing where none is near.

    >>> nearest("lockin", ["lock_in", "last_steps"]), nearest("x", ["lock_in"])
    (" (did you mean 'lock_in'?)", '')
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
