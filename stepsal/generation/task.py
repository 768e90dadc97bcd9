"""A model's graded answers to problems of the bundled task, without a file in between.

What the demo, the notebooks and the tests begin with. `stepsal.generation.files` keeps answers in a file instead, so that an
interrupted run goes on.
"""

from collections.abc import Sequence
from dataclasses import replace

from stepsal.generation.generate import generate
from stepsal.generation.grading import grade_trace
from stepsal.generation.questions import task_questions, tokens_needed
from stepsal.interventions.base import Intervention
from stepsal.models.host import Model
from stepsal.reasoner.problems import DEFAULT_LENGTH
from stepsal.traces.trace import Trace


def answer_problems(
    model: Model,
    n: int,
    length: int = DEFAULT_LENGTH,
    split: str = "test",
    *,
    interventions: Intervention | Sequence[Intervention] = (),
    progress: bool = True,
) -> list[Trace]:
    """Greedy answers to the first `n` problems of a split and length (`stepsal.reasoner.make_problems`).

    Each trace says whether the answer is right (`correct`) and which kind of error it has (`meta["error"]`: None, or one of
    `stepsal.reasoner.ERROR_KINDS`, which a right answer may have on the way).

    >>> from stepsal import load_model
    >>> trace, = answer_problems(load_model(), 1, length=2, progress=False)
    >>> trace.id, trace.correct, trace.meta["error"]
    ('test-2-0', True, None)
    """
    questions = task_questions(split, [length], n)
    traces = generate(
        model,
        [question.prompt for question in questions],
        interventions=interventions,
        max_new_tokens=tokens_needed([length]),
        batch_size=64,
        progress=progress,
    )
    answers = []
    for question, trace in zip(questions, traces, strict=True):
        graded = grade_trace(model.tokenizer, question, trace)
        meta = trace.meta | {"length": length, "error": graded.error} | graded.record
        answers.append(replace(trace, id=question.id, answer=question.answer, correct=graded.correct, meta=meta))
    return answers
