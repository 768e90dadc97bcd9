"""The problems that a sweep or `stepsal generate` asks a model.

They are problems of the bundled task, or they come from a JSONL file with one object on each line:

    {"prompt": "What is 2 + 2?", "answer": "4", "id": "sum"}

The prompt is the text as the model sees it, or a list of chat messages. `id` may be left out, and so may `answer` where
answers need not be graded (`stepsal.generation.grading`).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepsal.errors import FileError, InputError
from stepsal.reasoner.problems import make_problems
from stepsal.traces.prompt import Prompt


@dataclass(frozen=True)
class Question:
    """A problem.

    Attributes:
        id: its name, which no other problem of the same run has.
        prompt: what the model is given.
        answer: the expected final answer, None where it is not known.
        length: the steps that a right answer takes, for a problem of the bundled task.
        source: the split, index and length that make the problem again, for a problem of the bundled task.
    """

    id: str
    prompt: Prompt
    answer: str | None
    length: int | None = None
    source: tuple[str, int, int] | None = None


def task_questions(split: str, lengths: Sequence[int], count: int, start: int = 0) -> list[Question]:
    """The first `count` problems of the bundled task for each length, from index `start` on.

    Raises `InputError` for an unknown split and for a length that the task does not have.

    >>> [each.id for each in task_questions("test", [4, 2], 1)]
    ['test-4-0', 'test-2-0']
    """
    questions = []
    try:
        for length in lengths:
            for problem in make_problems(split, count, length, start):
                source = (split, int(problem.id.rsplit("-", 1)[1]), length)
                questions.append(Question(problem.id, problem.messages, str(problem.answer), length, source))
    except ValueError as error:
        raise InputError(f"problems of the bundled task: {error}") from error
    return questions


def tokens_needed(lengths: Iterable[int]) -> int:
    """How many new tokens to allow for answers to the bundled task.

    A right answer takes about 23 tokens a step; an answer that is longer than this goes in circles.
    """
    return 40 + 26 * (max(lengths) + 3)


def read_questions(path: Path, count: int | None = None, *, graded: bool) -> list[Question]:
    """The first `count` problems of a JSONL file, or all of them. Where they are `graded`, every problem needs an answer.

    Raises `InputError`, which names the line, for a line that is no problem, and `FileError` for a file that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the problems {path}: {error}") from error
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _question(f"{path}, line {number}", line, number, graded)
        if question.id in questions:
            raise InputError(
                f"{path}, line {number}: the id {question.id!r} was there before; give each problem its own"
            )
        questions[question.id] = question
        if len(questions) == count:
            break
    if not questions:
        raise InputError(f"{path} holds no problem: give one JSON object a line, with 'prompt' and 'answer'")
    return list(questions.values())


def _question(where: str, line: str, number: int, graded: bool) -> Question:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("prompt"), str | list) or not given["prompt"]:
        raise InputError(f"{where} needs a 'prompt': a text or a list of chat messages; given: {line[:80]}")
    answer, name = given.get("answer"), given.get("id")
    known = isinstance(answer, str | int | float) and not isinstance(answer, bool) and str(answer).strip() != ""
    if not known and (graded or answer is not None):
        raise InputError(f"{where} needs an 'answer': a text or a number; given: {answer!r}")
    return Question(
        f"problem-{number}" if name is None else str(name), given["prompt"], None if answer is None else str(answer)
    )
