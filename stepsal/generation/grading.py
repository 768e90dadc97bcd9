r"""Grading: is an answer right?

In: a question and the trace of an answer to it. Out: a `Graded`.

1. The token that ended the answer is no part of it; neither is the thinking, for the final answer.
2. The final answer is the content of the last `\boxed{...}` in the summary, or the whole summary where nothing is boxed.
3. A problem of the bundled task is graded by its rule (`stepsal.reasoner`), which also names the kind of error. Another
   problem is answered right if the final answer is the expected text, white space around it aside.
"""

from dataclasses import dataclass

from stepsal.generation.questions import Question
from stepsal.reasoner.problems import grade, make_problem
from stepsal.traces.segment import Tokenizer
from stepsal.traces.trace import Trace


@dataclass(frozen=True)
class Graded:
    """The result of grading.

    Attributes:
        correct: whether the answer is right; None where the expected answer is not known.
        error: the kind of the first deviation from the right solution, where the problem is of the bundled task and there
            is a deviation; a right answer may have one on the way.
        answer: the final answer that was given.
    """

    correct: bool | None
    error: str | None
    answer: str


def grade_trace(tokenizer: Tokenizer, question: Question, trace: Trace) -> Graded:
    """Grade an answer that `stepsal.generate` gave.

    >>> from stepsal import Trace, load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> trace = Trace.from_text(tokenizer, "1+1?", "<think>Add.</think>2", meta={"truncated": True})
    >>> grade_trace(tokenizer, Question("sum", "1+1?", "2"), trace)
    Graded(correct=True, error=None, answer='2')
    """
    end = "" if trace.meta["truncated"] else tokenizer.decode(trace.tokens[-1:].tolist())
    summary = "".join(step.text for step in trace.segment("summary"))
    return grade_answer(question, trace.response.removesuffix(end), summary.removesuffix(end))


def grade_answer(question: Question, response: str, summary: str) -> Graded:
    """Grade a response, given as text; `summary` is its part after the thinking.

    >>> grade_answer(Question("sum", "1+1?", "2"), "Add.</think>2", "2")
    Graded(correct=True, error=None, answer='2')
    """
    answer = final_answer(summary)
    if question.source is None:
        correct = None if question.answer is None else answer == question.answer.strip()
        return Graded(correct, None, answer)
    split, index, length = question.source
    result = grade(make_problem(split, index, length), response)
    return Graded(result.correct, result.error, answer)


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
