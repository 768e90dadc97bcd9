"""Grading: is an answer right?

In: a question and the trace of an answer to it. Out: a `Graded`, which says who graded it.

1. The token that ended the answer is no part of it; neither is the thinking.
2. A problem of the bundled task is graded by its rule (`task`), which also names the kind of error. One of a task of
   reasoning-gym is by default scored by that task (`task` too); a score of 1 is right.
3. Another problem is graded by mathematics (`math`: `stepsal.generation.mathematics`), by exact text (`exact`), or by a grader
   of a user's own: a function under the decorator `grader`.

A built-in grader takes the last complete box of the summary for the final answer (`stepsal.generation.answers`).
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stepsal.checks import checked, shown
from stepsal.errors import InputError
from stepsal.generation.answers import final_answer, last_box, last_tag, plain
from stepsal.generation.gym import score
from stepsal.generation.mathematics import compare_math
from stepsal.generation.questions import Question
from stepsal.generation.units import spelling
from stepsal.reasoner.problems import grade, make_problem
from stepsal.traces.segment import Tokenizer
from stepsal.traces.trace import Trace

TASK, DEFAULT = "task", "math"

Function = Callable[[Question, str], Any]
_Function = TypeVar("_Function", bound=Function)


@dataclass(frozen=True)
class Graded:
    """The result of grading.

    Attributes:
        correct: whether the answer is right; None where the expected answer is not known.
        error: the kind of the first deviation from the right solution, where the problem is of the bundled task and there
            is a deviation; a right answer may have one on the way.
        answer: the final answer that was given.
        grader: the name of the grader; None where nothing was graded.
        answer_from: where the final answer stood: `box`, `summary` (all of it), `extracted` (taken out of a summary without a
            box), `tag` (`<answer>`), or `none` (there is none that a task's grader could be given).
        score: from 0 to 1, where the grader gives one: the tasks of reasoning-gym do.
    """

    correct: bool | None
    error: str | None
    answer: str
    grader: str | None = None
    answer_from: str | None = None
    score: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        """Who graded, and what: for a trace's meta. Empty where nothing was graded."""
        if not self.grader:
            return {}
        record = {"grader": self.grader, "answer_from": str(self.answer_from)}
        return record if self.score is None else record | {"score": self.score}


GRADERS: dict[str, Function] = {}
"""The graders by name, but for `task`: functions from a question and a summary to whether the answer is right."""


def _a_name(parameter: str, value: object) -> None:
    if not isinstance(value, str) or not value.replace("-", "").replace("_", "").isalnum():
        raise InputError(
            f"grader {parameter}={shown(value)}: expected a name of letters, digits, - and _, as in "
            "@stepsal.grader('last-line') over a function"
        )


@checked(name=_a_name)
def grader(name: str) -> Callable[[_Function], _Function]:
    """Make a function known as a grader: `stepsal generate --grader NAME`, and `[problems] grader = "NAME"` in a sweep.

    The function takes the question (`question.answer` is the expected answer, `question.prompt` and `question.id` are as in the
    file of problems) and the summary, which is the response after the thinking, and returns True or False. It is asked only
    where the problem has an expected answer. `stepsal.generation.answers.final_answer` finds the last box.

    Raises:
        InputError: a name that is empty, not made of letters, digits, `-` and `_`, or taken. Running the same definition again,
            as a notebook does, replaces it.

    >>> from stepsal import grader
    >>> @grader("same-number-of-words")
    ... def count_words(question, summary):
    ...     return len(summary.split()) == len(question.answer.split())
    >>> grade_answer(Question("a", "Say two words.", "like these"), "", "two words", "same-number-of-words").correct
    True
    >>> _ = GRADERS.pop("same-number-of-words")  # and it is gone
    """

    def register(function: _Function) -> _Function:
        if not callable(function):
            raise InputError(f"{function!r} cannot be the grader {name!r}: decorate a function of (question, summary)")
        known = GRADERS.get(name)
        if name == TASK or (known is not None and _origin(known) != _origin(function)):
            raise InputError(f"there is a grader {name!r} already: give yours another name")
        GRADERS[name] = function
        return function

    return register


def _origin(function: Function) -> tuple[str, str]:
    """Where a function is defined: the same for a definition that is run again."""
    return function.__module__, getattr(function, "__qualname__", "")


@grader("exact")
def exact(question: Question, summary: str) -> bool:
    """Whether the final answer is the expected text, white space around it aside."""
    return final_answer(summary) == str(question.answer).strip()


@grader("math")
def mathematics(question: Question, summary: str) -> Graded:
    """Whether the final answer is the expected one, as mathematics. What took too long to compare is wrong, with a warning."""
    finding = compare_math(str(question.answer), summary)
    if finding.failure is not None:
        warnings.warn(
            f"the answer to problem {question.id!r} could not be compared as mathematics ({finding.failure}) and counts as "
            f"wrong: {finding.answer[:60]!r}",
            stacklevel=2,
        )
    return Graded(finding.right, None, finding.answer, None, finding.answer_from)


def choose_grader(questions: Sequence[Question], name: str | None) -> str:
    """The name of the grader of these questions; `name` is what the user asked for, None for the default.

    Raises `InputError` for a grader that is not known, or that is not for these questions.
    """
    bundled = any(question.source is not None for question in questions)
    own = any(question.has_own_grader for question in questions)
    check_grader(name, bundled, own)
    return name or (TASK if own else DEFAULT)


def check_grader(name: str | None, bundled: bool, own: bool) -> None:
    """Raise `InputError` unless a grader of this name grades problems of the bundled task, or of another that has its `own`
    grader, or of a file."""
    if name is None or (name == TASK and own):
        return
    if name == TASK:
        raise InputError(f"grader={name!r} is for problems of a task: give {' or '.join(map(repr, GRADERS))}")
    if name not in GRADERS:
        raise InputError(
            f"unknown grader {name!r}: expected one of {', '.join(map(repr, GRADERS))}, or one of your own, from a module that "
            "is named with --plugin"
        )
    if bundled:
        raise InputError(
            f"grader={name!r} is for other problems: the bundled task is graded by its own rule; leave the grader out"
        )


def grade_trace(tokenizer: Tokenizer, question: Question, trace: Trace, grader: str | None = None) -> Graded:
    """Grade an answer that `stepsal.generate` gave.

    >>> from stepsal import Trace, load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> trace = Trace.from_text(tokenizer, "1+1?", "<think>Add.</think>2", meta={"truncated": True})
    >>> grade_trace(tokenizer, Question("sum", "1+1?", "2"), trace).correct
    True
    """
    end = "" if trace.meta["truncated"] else tokenizer.decode(trace.tokens[-1:].tolist())
    summary = "".join(step.text for step in trace.segment("summary"))
    return grade_answer(question, trace.response.removesuffix(end), summary.removesuffix(end), grader)


def grade_answer(question: Question, response: str, summary: str, grader: str | None = None) -> Graded:
    """Grade a response, given as text; `summary` is its part after the thinking. `grader`: by default as `choose_grader` says.

    >>> grade_answer(Question("sum", "1+1?", "2"), "Add.</think>2", "2", "exact")
    Graded(correct=True, error=None, answer='2', grader='exact', answer_from='summary', score=None)
    """
    name = choose_grader([question], grader)
    answer, found_in = final_answer(summary), "summary" if last_box(summary) is None else "box"
    if name == TASK and question.source is not None:
        split, index, length = question.source
        result = grade(make_problem(split, index, length), response)
        return Graded(result.correct, result.error, answer, TASK, found_in)
    if name == TASK:
        return _scored(question, summary)
    if question.answer is None:
        return Graded(None, None, answer, None, found_in)
    said = _ask(name, question, summary)
    if isinstance(said, Graded):
        return Graded(said.correct, said.error, said.answer, name, said.answer_from)
    return Graded(said, None, answer, name, found_in)


def _scored(question: Question, summary: str) -> Graded:
    """As the task of reasoning-gym scores the answer in the last box, or else in the last `<answer>`, its own way to ask.

    The answer with or without its typesetting, whichever scores more. Of a summary without a box there is none: graders of
    tasks take what they find first in a longer text, such as the 1 of "1. First".
    """
    box = last_box(summary)
    given = last_tag(summary) if box is None else box
    if given is None:
        return Graded(False, None, "", TASK, "none", score(question, [None])[0])
    answer, found_in = given, "tag" if box is None else "box"
    bare = spelling(answer).value
    number = bare.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", bare) else bare
    found, failure = score(question, list(dict.fromkeys((answer, plain(answer), bare, number))))
    if failure is not None:
        warnings.warn(
            f"the task's grader could not read the answer to problem {question.id!r} ({failure}), which counts as wrong: "
            f"{answer[:60]!r}",
            stacklevel=3,
        )
    return Graded(found == 1, None, answer, TASK, found_in, found)


def _ask(name: str, question: Question, summary: str) -> bool | Graded:
    """What the grader says. Raises `InputError` where it raises, or says neither True nor False."""
    try:
        said = GRADERS[name](question, summary)
    except Exception as error:
        if GRADERS[name].__module__ == __name__:
            raise
        raise InputError(
            f"grader {name!r} failed on problem {question.id!r}: {type(error).__name__}: {error}. Mend it so that it returns "
            "True or False for every summary."
        ) from error
    if isinstance(said, bool | Graded):
        return said
    raise InputError(
        f"grader {name!r} returned {said!r} for problem {question.id!r}: expected True or False. Mend its return value."
    )
