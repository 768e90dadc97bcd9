"""The problems that a sweep or `stepsal generate` asks a model.

They are problems of the bundled task, of a task of reasoning-gym (`stepsal.generation.gym`), or they come from a JSONL file
with one object on each line:

    {"prompt": "What is 2 + 2?", "answer": "4", "id": "sum"}

The prompt is the text as the model sees it, or a list of chat messages; `messages` in its place, with `tools` and other fields
of a chat request beside it, goes through the model's chat template. `id` may be left out, and so may `answer` where answers
need not be graded (`stepsal.generation.grading`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stepsal.checks import shown
from stepsal.errors import FileError, InputError
from stepsal.jsonl import parse_line, read_lines
from stepsal.reasoner.problems import make_problems
from stepsal.traces.prompt import REQUEST_FIELDS, Prompt
from stepsal.traces.requests import prompt_of

_BESIDE_MESSAGES = (*REQUEST_FIELDS[1:], "system", "instructions", "functions", "enable_thinking")
"""Fields beside messages that change the prompt."""


@dataclass(frozen=True)
class GymProblem:
    """What makes a problem of a task of reasoning-gym again.

    Attributes:
        task, options: the task's name and its options as JSON, seed and size among them.
        index: the number of the problem.
        version: of reasoning-gym.
        sha256: of the problem with all that its grader needs.
    """

    task: str
    options: str
    index: int
    version: str
    sha256: str


@dataclass(frozen=True)
class Question:
    """A problem.

    Attributes:
        id: its name, which no other problem of the same run has.
        prompt: what the model is given.
        answer: the expected final answer, None where it is not known.
        length: the steps that a right answer takes, for a problem of the bundled task.
        source: the split, index and length that make the problem again, for a problem of the bundled task.
        gym: likewise for a problem of a task of reasoning-gym.
    """

    id: str
    prompt: Prompt
    answer: str | None
    length: int | None = None
    source: tuple[str, int, int] | None = None
    gym: GymProblem | None = None

    def __post_init__(self) -> None:
        for name in ("id", "prompt", "answer"):
            if half := _half_of_a_pair(getattr(self, name)):
                raise InputError(
                    f"the {name} of the problem {self.id!r} has half a surrogate pair, {half!r}, which is no character and "
                    "cannot be written to a file: read the file it comes from as UTF-8"
                )

    @property
    def has_own_grader(self) -> bool:
        """Whether it is of a task that grades answers itself."""
        return self.source is not None or self.gym is not None

    @property
    def record(self) -> dict[str, Any]:
        """The question as plain data, for a hash: what there is of it."""
        return {name: value for name, value in asdict(self).items() if name != "gym" or value is not None}


def as_chat(question: Question) -> Question:
    """The problem with a text as its prompt turned into what a user says, for the model's chat template.

    >>> as_chat(Question("sum", "2+2?", "4")).prompt
    [{'role': 'user', 'content': '2+2?'}]
    """
    if not isinstance(question.prompt, str):
        return question
    return replace(question, prompt=[{"role": "user", "content": question.prompt}])


def _half_of_a_pair(value: object) -> str:
    """The first half of a surrogate pair in the texts of a JSON value, "" for none."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            if half := next((each for each in inner if "\ud800" <= each <= "\udfff"), ""):
                return half
        elif isinstance(inner, Mapping):
            waiting.extend([*inner, *inner.values()])
        elif isinstance(inner, list | tuple):
            waiting.extend(inner)
    return ""


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


def task_record(questions: Iterable[Question]) -> dict[str, Any]:
    """Of which task of reasoning-gym questions are, and of which version; nothing where they are of none.

    >>> task_record([Question("a", "2+2?", "4", gym=GymProblem("sums", "{}", 0, "0.1.25", "ab"))])
    {'task': {'name': 'sums', 'options': {}, 'reasoning-gym': '0.1.25'}}
    """
    problem = next((question.gym for question in questions if question.gym is not None), None)
    if problem is None:
        return {}
    options = json.loads(problem.options)
    return {"task": {"name": problem.task, "options": options, "reasoning-gym": problem.version}}


def tokens_needed(lengths: Iterable[int]) -> int:
    """How many new tokens to allow for answers to the bundled task.

    A right answer takes about 23 tokens a step; an answer that is longer than this goes in circles.
    """
    return 40 + 26 * (max(lengths) + 3)


def read_questions(path: Path, count: int | None = None, *, graded: bool) -> list[Question]:
    """The first `count` problems of a JSONL file, or all of them. Where they are `graded`, every problem needs an answer.

    Raises `InputError`, which names the line, for a line that is no problem, and `FileError` for a file that cannot be read.
    """
    questions: dict[str, Question] = {}
    for number, line in read_lines(path, "problems"):
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


def _question(where: str, line: bytes, number: int, graded: bool) -> Question:
    try:
        given = parse_line(line)
    except FileError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    try:
        prompt = _prompt(given) if isinstance(given, dict) else None
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if not prompt:
        raise InputError(
            f"{where} needs a 'prompt', a text or a list of chat messages, or 'messages'; given: {shown(given)}"
            + ": `jq -c '.[]'` makes lines of a list" * isinstance(given, list)
        )
    answer, name = given.get("answer"), given.get("id")
    known = isinstance(answer, str | int | float) and not isinstance(answer, bool) and str(answer).strip() != ""
    if not known and (graded or answer is not None):
        raise InputError(f"{where} needs an 'answer': a text or a number; given: {answer!r}")
    try:
        return Question(
            f"problem-{number}" if name is None else str(name), prompt, None if answer is None else str(answer)
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _prompt(given: dict[str, Any]) -> Prompt | None:
    prompt, messages = given.get("prompt"), given.get("messages")
    if messages is None:
        lost = next((name for name in _BESIDE_MESSAGES if given.get(name) is not None), "")
        if lost and isinstance(prompt, str):
            raise InputError(f"{lost!r} beside a 'prompt' that is a text would be lost: give the prompt as 'messages'")
        return _request({**given, "messages": prompt}) if lost else prompt if isinstance(prompt, str | list) else None
    if prompt is not None or not isinstance(messages, list) or not messages:
        return None
    return _request(given)


def _request(given: dict[str, Any]) -> Prompt:
    """The chat request in a line; of those fields alone that say something about a prompt."""
    return prompt_of({name: given[name] for name in ("messages", *_BESIDE_MESSAGES) if given.get(name) is not None})[0]
