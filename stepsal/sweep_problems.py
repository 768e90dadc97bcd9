r"""The problems of a sweep, and how an answer is graded.

Of the bundled task: graded by its rule, with the kind of error. From a JSONL file, an object a line:

    {"prompt": "What is 2 + 2?", "answer": "4", "id": "sum"}

The prompt is a text as the model sees it or a list of chat messages; `id` may be left out. Right is an answer whose last
`\boxed{...}` in the summary, or the summary itself where there is none, is the same text, white space around it aside.
"""

import json
from dataclasses import dataclass
from typing import Any

from stepsal.errors import FileError, InputError
from stepsal.prompt import Prompt
from stepsal.reasoner.problems import grade, make_problem, make_problems
from stepsal.sweep_config import SweepConfig


@dataclass(frozen=True)
class Question:
    """A problem: `source` is its (split, index, length) in the bundled task, if it is of that."""

    id: str
    prompt: Prompt
    answer: str
    length: int | None = None
    source: tuple[str, int, int] | None = None


def load_questions(config: SweepConfig) -> list[Question]:
    """The problems of a configuration; those of like length are neighbours, which makes for little padding.

    Raises `InputError` for problems that cannot be, `FileError` for a file that cannot be read.

    >>> from stepsal.sweep_config import read_config
    >>> [each.length for each in load_questions(read_config({"problems": {"length": [4, 2], "count": 2}}))]
    [2, 2, 4, 4]
    """
    questions = _of_task(config) if config.problems.file is None else _of_file(config)
    return sorted(questions, key=lambda each: (each.length or 0, len(str(each.prompt))))


def _of_task(config: SweepConfig) -> list[Question]:
    given = config.problems
    split = given.split or ("validation" if config.grid.shape == "forward-selection" else "test")
    found = []
    try:
        for length in given.length:
            for problem in make_problems(split, given.count or 100, length, given.start):
                source = (split, int(problem.id.rsplit("-", 1)[1]), length)
                found.append(Question(problem.id, problem.messages, str(problem.answer), length, source))
    except ValueError as error:
        raise InputError(f"[problems]: {error}") from error
    return found


def _of_file(config: SweepConfig) -> list[Question]:
    path = config.folder / str(config.problems.file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the problems {path}: {error}") from error
    found: dict[str, Question] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question = _question(f"{path}, line {number}", line, number)
        if question.id in found:
            raise InputError(
                f"{path}, line {number}: the id {question.id!r} was there before; give each problem its own"
            )
        found[question.id] = question
        if len(found) == config.problems.count:
            break
    if not found:
        raise InputError(f"{path} holds no problem: give one JSON object a line, with 'prompt' and 'answer'")
    return list(found.values())


def _question(where: str, line: str, number: int) -> Question:
    try:
        given = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    if not isinstance(given, dict) or not isinstance(given.get("prompt"), str | list) or not given["prompt"]:
        raise InputError(f"{where} needs a 'prompt': a text or a list of chat messages; given: {line[:80]}")
    answer = given.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise InputError(f"{where} needs an 'answer': a text or a number; given: {answer!r}")
    return Question(str(given.get("id", f"problem-{number}")), given["prompt"], str(answer))


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
    """`correct`, the kind of `error` (bundled task only) and the `answer` given.

    >>> grade_answer(Question("a", "1+1?", "2"), "Add.</think>2", "2")
    {'correct': True, 'error': None, 'answer': '2'}
    """
    answer = final_answer(summary)
    if question.source is None:
        return {"correct": answer == question.answer.strip(), "error": None, "answer": answer}
    split, index, length = question.source
    result = grade(make_problem(split, index, length), response)
    return {"correct": result.correct, "error": result.error, "answer": answer}
