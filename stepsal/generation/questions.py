r"""The problems that a model is asked, of a sweep or of `stepsal generate`, and how an answer is graded.

Of the bundled task: graded by its rule, with the kind of error. From a JSONL file, an object a line:

    {"prompt": "What is 2 + 2?", "answer": "4", "id": "sum"}

The prompt is a text as the model sees it or a list of chat messages; `id` may be left out, and `answer` where nothing is
graded. Right is an answer whose last `\boxed{...}` in the summary, or the summary itself where there is none, is the same
text, white space around it aside.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepsal.errors import FileError, InputError
from stepsal.reasoner.problems import grade, make_problem, make_problems
from stepsal.traces.prompt import Prompt


@dataclass(frozen=True)
class Question:
    """A problem: `source` is its (split, index, length) in the bundled task, if it is of that. `answer` may be unknown."""

    id: str
    prompt: Prompt
    answer: str | None
    length: int | None = None
    source: tuple[str, int, int] | None = None


def task_questions(split: str, lengths: Sequence[int], count: int, start: int = 0) -> list[Question]:
    """`count` problems of the bundled task for each length. Raises `InputError` for what it does not have.

    >>> [each.id for each in task_questions("test", [4, 2], 1)]
    ['test-4-0', 'test-2-0']
    """
    found = []
    try:
        for length in lengths:
            for problem in make_problems(split, count, length, start):
                source = (split, int(problem.id.rsplit("-", 1)[1]), length)
                found.append(Question(problem.id, problem.messages, str(problem.answer), length, source))
    except ValueError as error:
        raise InputError(f"problems of the bundled task: {error}") from error
    return found


def task_room(lengths: Iterable[int]) -> int:
    """How many new tokens answers of the bundled task need; a right one takes about 23 a step, a longer one goes in circles."""
    return 40 + 26 * (max(lengths) + 3)


def read_questions(path: Path, count: int | None = None, *, graded: bool) -> list[Question]:
    """The first `count` problems of a JSONL file, or all. `graded`: each needs an answer.

    Raises `InputError`, with the line's number, for a line that is no problem, `FileError` for a file that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the problems {path}: {error}") from error
    found: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _question(f"{path}, line {number}", line, number, graded)
        if question.id in found:
            raise InputError(
                f"{path}, line {number}: the id {question.id!r} was there before; give each problem its own"
            )
        found[question.id] = question
        if len(found) == count:
            break
    if not found:
        raise InputError(f"{path} holds no problem: give one JSON object a line, with 'prompt' and 'answer'")
    return list(found.values())


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


def final_answer(summary: str) -> str:
    r"""The content of the last `\boxed{...}` of a summary, or the summary itself.

    >>> final_answer(r"So \boxed{1}. No: \boxed{\frac{1}{2}}."), final_answer(" 42\n")
    ('\\frac{1}{2}', '42')
    """
    _, boxed, rest = summary.rpartition(r"\boxed{")
    depth = 1
    for at, character in enumerate(rest if boxed else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return rest[:at].strip()
    return summary.strip()


def grade_answer(question: Question, response: str, summary: str) -> dict[str, Any]:
    """`correct` (None without an answer to compare), the kind of `error` (bundled task only) and the `answer` given.

    >>> grade_answer(Question("a", "1+1?", "2"), "Add.</think>2", "2")
    {'correct': True, 'error': None, 'answer': '2'}
    """
    answer = final_answer(summary)
    if question.source is None:
        correct = None if question.answer is None else answer == question.answer.strip()
        return {"correct": correct, "error": None, "answer": answer}
    split, index, length = question.source
    result = grade(make_problem(split, index, length), response)
    return {"correct": result.correct, "error": result.error, "answer": answer}
