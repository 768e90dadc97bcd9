r"""Seeded multi-step problems that need information carried over distance, and a rule-based grader.

A problem states *premises* in shuffled order, among decoys that belong to another chain:

    Facts: k + 25 = m. y - 12 = w. m - k = t. k = 37. y = 50.
    Start at k. What is t + m?

The solution is a chain of lookups. Each step takes the variable just computed, finds the one premise whose first
operand it is, recalls the second operand (a number in the question, or a variable computed at least two steps ago) and
does two-digit arithmetic:

    <think>
    First k = 37.

    Then k + 25 = m, giving m = 37 + 25 = 62, so m.

    So m - k = t, giving t = 62 - 37 = 25, so t.
    </think>

    From the steps, t = 25 and m = 62.

    So t + m = 25 + 62 = \boxed{87}

Nothing is searched for: the response is a deterministic function of the question. `length` counts the steps after the
first. Every value has two digits, so that every place a number stands in is alike.

**Splits are disjoint by construction**: what decides the split is a hash of the chain itself (numbers, operators, which
earlier step is reused), whatever the variables are called and however the premises are ordered.
"""

import hashlib
import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

SPLITS = ("train", "validation", "test")
DEFAULT_LENGTH = 3
"""The default difficulty: steps in the chain after the first."""
ERROR_KINDS = ("wrong premise", "wrong arithmetic", "wrong variable", "malformed")

SMALLEST, LARGEST = 10, 99
_REUSE = 0.6  # how often the second operand is an earlier variable where one fits
_CONNECTIVES = ("Then", "So", "Next")  # in turn: they say that a step begins, never what it will be about


@dataclass(frozen=True)
class Premise:
    """What the question says of a variable: `left op right = name`, or `name = value` for the start of a chain."""

    name: str
    value: int
    left: str | None = None
    op: str = ""
    right: str = ""  # a variable or a number, as written

    def __str__(self) -> str:
        return f"{self.left} {self.op} {self.right} = {self.name}" if self.left else f"{self.name} = {self.value}"


@dataclass(frozen=True)
class Problem:
    """One problem with its right solution.

    `id` is `split-length-index`, enough to make the problem again. `chain` holds the premises in the order in which the
    solution uses them; `asked` is the variable that the final sum or difference combines with the last one.
    """

    id: str
    split: str
    length: int
    question: str
    chain: tuple[Premise, ...]
    asked: str
    op: str
    answer: int

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a chat, for a tokenizer's chat template."""
        return [{"role": "user", "content": self.question}]

    @property
    def values(self) -> dict[str, int]:
        """The value of each variable of the chain."""
        return {premise.name: premise.value for premise in self.chain}

    @property
    def response(self) -> str:
        """The right thinking and summary, from just after the prompt's `<think>` and line break on."""
        values = self.values
        lines = [f"First {self.chain[0]}."]
        for i, p in enumerate(self.chain[1:]):
            left, right = values[p.left or ""], values.get(p.right, p.right)
            lines.append(
                f"{_CONNECTIVES[i % 3]} {p}, giving {p.name} = {left} {p.op} {right} = {p.value}, so {p.name}."
            )
        last, asked, op = self.chain[-1], self.asked, self.op
        return (
            "\n\n".join(lines)
            + f"\n</think>\n\nFrom the steps, {last.name} = {last.value} and {asked} = {values[asked]}."
            f"\n\nSo {last.name} {op} {asked} = {last.value} {op} {values[asked]} = \\boxed{{{self.answer}}}"
        )


def make_problem(split: str, index: int, length: int = DEFAULT_LENGTH) -> Problem:
    """The problem at an index of a split, for one chain length; the same arguments always give the same problem.

    Raises `ValueError` for an unknown split or a length outside 2-16.

    >>> print(make_problem("test", 0, length=2).question)  # doctest: +ELLIPSIS
    Facts: ...
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if not 2 <= length <= 16:
        raise ValueError(
            f"length {length} is outside 2-16: longer ones were never trained on, shorter ones carry nothing far"
        )
    rng = random.Random(f"stepsal-{split}-{length}-{index}")
    steps, op, asked = _draw_task(rng, split, length)
    names = rng.sample(string.ascii_lowercase, length + 5)
    chain = [Premise(names[0], steps[0][0])]
    for i, (value, step_op, number, reused) in enumerate(steps[1:], start=1):
        right = str(number) if reused is None else names[reused]
        chain.append(Premise(names[i], value, names[i - 1], step_op, right))
    premises = chain + _draw_decoys(rng, names[length + 1 :], names[: length + 1])
    rng.shuffle(premises)
    question = (
        "Facts: "
        + ". ".join(map(str, premises))
        + f".\nStart at {names[0]}. What is {chain[-1].name} {op} {chain[asked].name}?"
    )
    return Problem(
        id=f"{split}-{length}-{index}",
        split=split,
        length=length,
        question=question,
        chain=tuple(chain),
        asked=chain[asked].name,
        op=op,
        answer=_apply(chain[-1].value, op, chain[asked].value),
    )


def make_problems(split: str, n: int, length: int = DEFAULT_LENGTH, start: int = 0) -> list[Problem]:
    """`n` different problems of one length, from index `start` on. An index whose question came up before is passed over."""
    return list(islice(_distinct(split, length, start), n))


def _distinct(split: str, length: int, start: int) -> Iterator[Problem]:
    seen: set[str] = set()
    for index in count(start):
        problem = make_problem(split, index, length)
        if problem.question not in seen:
            seen.add(problem.question)
            yield problem


# A drawn step: (value, operator, number, index of the reused step or None); the first has a value only.
_Step = tuple[int, str, int, int | None]


def _draw_task(rng: random.Random, split: str, length: int) -> tuple[list[_Step], str, int]:
    """A chain of this split, and the operator and the earlier step that the final question asks for."""
    while True:
        steps = _draw_chain(rng, length)
        last = steps[-1][0]
        questions = [
            (op, i)
            for i, (value, *_) in enumerate(steps[: max(1, length - 1)])
            for op in "+-"
            if SMALLEST <= _apply(last, op, value) <= LARGEST
        ]
        if questions:
            op, asked = rng.choice(questions)
            if _split_of((steps, op, asked)) == split:
                return steps, op, asked


def _draw_chain(rng: random.Random, length: int) -> list[_Step]:
    steps: list[_Step] = [(rng.randint(SMALLEST, LARGEST), "", 0, None)]
    for i in range(1, length + 1):
        value = steps[-1][0]
        reusable = [
            (op, steps[j][0], j)
            for j in range(i - 1)  # not the step before: that is the first operand
            for op in "+-"
            if SMALLEST <= _apply(value, op, steps[j][0]) <= LARGEST
        ]
        reused: int | None = None
        if reusable and rng.random() < _REUSE:
            op, number, reused = rng.choice(reusable)
        else:
            ops = ("+" if value + SMALLEST <= LARGEST else "") + ("-" if value - SMALLEST >= SMALLEST else "")
            op = rng.choice(ops)
            number = rng.randint(SMALLEST, LARGEST - value if op == "+" else value - SMALLEST)
        steps.append((_apply(value, op, number), op, number, reused))
    return steps


def _draw_decoys(rng: random.Random, names: list[str], chain_names: list[str]) -> list[Premise]:
    """A second chain of 2-4 premises that the question never asks for; it may use the first chain's variables."""
    decoys = [Premise(names[0], rng.randint(SMALLEST, LARGEST))]
    for i in range(1, rng.randint(2, 4)):
        right = rng.choice(chain_names) if rng.random() < _REUSE else str(rng.randint(SMALLEST, 89))
        decoys.append(Premise(names[i], 0, names[i - 1], rng.choice("+-"), right))
    return decoys


def _apply(left: int, op: str, right: int) -> int:
    return left + right if op == "+" else left - right


def _split_of(key: object) -> str:
    """One chain in twenty is test, one in twenty validation; decided by the chain's content alone."""
    bucket = hashlib.sha256(repr(key).encode()).digest()[0] % 20
    return {0: "test", 1: "validation"}.get(bucket, "train")


def chain_key(problem: Problem) -> str:
    """What the split is decided by: the chain with variable names replaced by their place in it."""
    place = {p.name: i for i, p in enumerate(problem.chain)}
    values = [p.value for p in problem.chain]
    steps: list[_Step] = [(values[0], "", 0, None)]
    for p in problem.chain[1:]:
        reused = place.get(p.right)
        steps.append((p.value, p.op, int(p.right) if reused is None else values[reused], reused))
    return repr((steps, problem.op, place[problem.asked]))


_FIRST = re.compile(r"First (\w+) = (\d+)\.")
_STEP = re.compile(
    r"(?:Then|So|Next) (\w+) ([+-]) (\w+) = (\w+), giving (\w+) = (\d+) ([+-]) (\d+) = (\d+), so (\w+)\."
)
_RECALL = re.compile(r"From the steps, (\w+) = (\d+) and (\w+) = (\d+)\.")
_ANSWER = re.compile(r"So (\w+) ([+-]) (\w+) = (\d+) ([+-]) (\d+) = \\boxed\{(\d+)\}")
_BOXED = re.compile(r"\\boxed\{(\d+)\}\s*$")


@dataclass(frozen=True)
class Grade:
    """`correct`: the boxed answer is right. `error`: the kind of the first deviation from the right solution, if any."""

    correct: bool
    error: str | None


def grade(problem: Problem, response: str) -> Grade:
    r"""Grade a response (the text after the prompt) by rule.

    The first deviation names the kind of error:

    - `wrong variable`: a line that goes on from another variable than the one just found, too few or too many steps, or a
      number put in that is not the named variable's value;
    - `wrong premise`: the right variable, but not what the question says of it;
    - `wrong arithmetic`: the right numbers, but not their sum or difference;
    - `malformed`: not the form of a solution, or no answer.

    >>> problem = make_problem("test", 0)
    >>> grade(problem, problem.response)
    Grade(correct=True, error=None)
    >>> grade(problem, "I do not know.").error
    'malformed'
    """
    boxed = _BOXED.search(response)
    return Grade(bool(boxed) and int(boxed[1]) == problem.answer if boxed else False, _first_error(problem, response))


def _first_error(problem: Problem, response: str) -> str | None:
    thinking, closed, summary = response.partition("</think>")
    lines = thinking.strip().split("\n\n")
    for index, line in enumerate(lines):
        if error := _step_error(problem, index, line):
            return error
    if not closed:
        return "malformed"
    if len(lines) < len(problem.chain):
        return "wrong variable"
    return _summary_error(problem, summary)


def _step_error(problem: Problem, index: int, line: str) -> str | None:
    """The first deviation of a line of the thinking from the right solution's line at this index."""
    match = (_STEP if index else _FIRST).fullmatch(line)
    if not match:
        return "malformed"
    if index >= len(problem.chain):
        return "wrong variable"
    premise = problem.chain[index]
    if match[1] != (premise.left or premise.name):
        return "wrong variable"
    if index == 0:
        return None if int(match[2]) == premise.value else "wrong premise"
    if match.group(2, 3, 4) != (premise.op, premise.right, premise.name):
        return "wrong premise"
    if match[5] != premise.name:
        return "wrong variable"
    error = _check(match.group(6, 7, 8, 9), problem.values, (match[1], match[2], match[3]))
    return error or (None if match[10] == premise.name else "wrong variable")


def _summary_error(problem: Problem, summary: str) -> str | None:
    """The first deviation of the text after the thinking: what is recalled, then the last sum or difference."""
    paragraphs = summary.strip().split("\n\n")
    if len(paragraphs) != 2:
        return "malformed"
    recall, answer = _RECALL.fullmatch(paragraphs[0]), _ANSWER.fullmatch(paragraphs[1])
    if not recall or not answer:
        return "malformed"
    last, values = problem.chain[-1].name, problem.values
    if recall.groups() != (last, str(values[last]), problem.asked, str(values[problem.asked])):
        return "wrong variable"
    if answer.group(1, 3) != (last, problem.asked):
        return "wrong variable"
    if answer[2] != problem.op:
        return "wrong premise"
    return _check(answer.group(4, 5, 6, 7), values, (last, problem.op, problem.asked))


def _check(numbers: tuple[str, ...], values: dict[str, int], formula: tuple[str, str, str]) -> str | None:
    """Check `left op right = result` as written against the formula it was put into."""
    left, op, right, result = numbers
    expected_right = values[formula[2]] if formula[2] in values else int(formula[2])
    if (int(left), int(right)) != (values[formula[0]], expected_right):
        return "wrong variable"
    if op != formula[1]:
        return "wrong premise"
    return None if int(result) == _apply(int(left), op, int(right)) else "wrong arithmetic"
