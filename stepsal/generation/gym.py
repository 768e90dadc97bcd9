r"""Problems of reasoning-gym's tasks (https://github.com/open-thought/reasoning-gym), with the tasks' own graders.

In: a task's name, a seed, how many problems, and the task's own options. Out: questions, each of which says how it is made
again (`GymProblem`); and the scores of answers.

1. The prompt is the problem's text and, after a blank line, an instruction: to reason in paragraphs, which are the steps of a
   trace, and to put the answer into a box, where it is found. It is what a user says, for the model's chat template.
2. The same task, seed, number, options and version of reasoning-gym give the same problems. A hash of each is part of its id.
3. An answer is scored by the task, from 0 to 1, on the problem made anew, which must have the same hash. 1 is right.

The library runs in a process of its own (`stepsal.generation.limited`): tasks draw from global random numbers, and several of
its graders evaluate the answer, which a model wrote, as Python.
"""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stepsal.checks import shown
from stepsal.errors import InputError
from stepsal.generation.limited import LimitedProcess
from stepsal.generation.questions import GymProblem, Question

INSTRUCTION = (
    "Reason step by step, one step in each paragraph, with a blank line between paragraphs. "
    "Put only the final answer into \\boxed{} at the end."
)
SIZE = 100
"""How many problems where nothing is said."""

_CURE = "install it with `pip install 'stepsal[tasks]'`"
_NONSENSE = "stepsal asks whether this is right"
_MAKING = 300.0
"""Seconds of processor time to make one problem."""


def gym_version() -> str:
    """The version of reasoning-gym. Raises `InputError` where it is not installed."""
    try:
        return version("reasoning-gym")
    except PackageNotFoundError as error:
        raise InputError(f"a task needs reasoning-gym, which is not installed: {_CURE}") from error


def gym_questions(
    task: str,
    size: int = SIZE,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    *,
    instruction: str = INSTRUCTION,
    own_grader: bool = True,
) -> list[Question]:
    """The problems of a task.

    Args:
        size: how many; for some tasks the problems depend on it.
        options: the task's own, by name.
        instruction: what stands after each problem; "" for nothing.
        own_grader: whether the task is to grade the answers.

    Raises:
        InputError: reasoning-gym is not installed; an unknown task or option, or a value that the task does not take; a task
            that cannot be graded as asked.

    >>> question, = gym_questions("gsm_symbolic", size=1)
    >>> question.id, question.answer
    ('gsm_symbolic-0-0-295edb54', '28080')
    """
    here, given = gym_version(), dict(options or {})
    _check_task(task, given, here)
    if size < 1 or seed < 0:
        raise InputError(
            f"task {task!r}: size={size} and seed={seed}: give a size of at least 1 and a seed of at least 0"
        )
    complete = given | {"seed": seed, "size": size}
    questions = []
    for index in range(size):
        made = _ask(make=index, task=task, options=complete, seconds=_MAKING)
        if "failed" in made:
            raise InputError(
                f"task {task!r} makes no problem {index} of options {shown(complete)}: {made['failed']}"
                f"{': ' * bool(made.get('said'))}{made.get('said', '')}. Give other options, or another task."
            )
        if made["answer"] is None and not own_grader:
            raise InputError(
                f"task {task!r} has no expected answers, so that only the task can grade: leave the grader out"
            )
        problem = GymProblem(task, json.dumps(complete, sort_keys=True), index, here, made["sha256"])
        text = made["question"] + (f"\n\n{instruction}" if instruction else "")
        id = f"{task}-{seed}-{index}-{made['sha256'][:8]}"
        questions.append(Question(id, [{"role": "user", "content": text}], made["answer"], gym=problem))
    if own_grader and score(questions[0], [_NONSENSE])[0] == 1:
        raise InputError(
            f"the grader of task {task!r} in reasoning-gym {here} calls any answer right, {_NONSENSE!r} too: give the grader "
            "'exact' or 'math'"
        )
    return questions


def score(question: Question, spellings: Sequence[str | None]) -> tuple[float, str | None]:
    """The task's score of an answer, from 0 to 1, the best of several spellings of it (None: no answer was given);
    and why it could not be scored, or None.

    Raises `InputError` where the problem made anew is another one than the question's.
    """
    problem = question.gym
    assert problem is not None
    source = {"task": problem.task, "options": json.loads(problem.options)}
    made = _ask(make=problem.index, **source, seconds=_MAKING)
    if made.get("sha256") != problem.sha256:
        raise InputError(
            f"problem {question.id!r} was made by reasoning-gym {problem.version}, and {gym_version()}, which is installed, "
            f"makes another one in its place: `pip install reasoning-gym=={problem.version}` to grade its answers"
        )
    reply = _ask(score=list(spellings), index=problem.index, **source)
    return float(reply.get("score", 0.0)), reply.get("failed")


def _check_task(task: str, options: Mapping[str, Any], here: str) -> None:
    """Raise `InputError` for a task that reasoning-gym lacks, and for an option that the task lacks."""
    tasks = _ask(tasks=True)["tasks"]
    if task not in tasks:
        near = difflib.get_close_matches(task, tasks, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(tasks)}."
        raise InputError(f"reasoning-gym {here} has no task {task!r}: {hint}")
    known = [name for name in _ask(options_of=task)["options"] if name not in ("seed", "size")]
    for name in options:
        if name in ("seed", "size"):
            raise InputError(f"task {task!r}: {name} is no option of the task: give it beside the options")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"task {task!r} has no option {name!r}: {hint}It knows {', '.join(known) or 'none'}.")


@cache
def _process_of(pid: int) -> LimitedProcess:
    """One for each process that asks: a fork must not talk to its parent's."""
    return LimitedProcess("task_process.py", _CURE, wait=600.0)


def _ask(**question: Any) -> dict[str, Any]:
    return _process_of(os.getpid()).ask(**question)
