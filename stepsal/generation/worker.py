"""A worker that answers questions: a model, loaded once, that turns batches of requests into lines of a file of traces.

In: an `AnswerJob` (the model, how it decodes, who grades), then `AnswerItem`s: a batch each. Out: a line for each answer
(`stepsal.traces.files.trace_line`), graded, and what was warned of. An item without requests asks what the model is; the
answer is what the settings of a file of answers say.
"""

from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from pydantic import Field

from stepsal.engines.messages import Item, Job
from stepsal.engines.worker import Worker, heard
from stepsal.errors import InputError
from stepsal.generation.generate import Decoding, Request, stream
from stepsal.generation.grading import grade_trace
from stepsal.generation.questions import Question
from stepsal.interventions.base import from_record
from stepsal.models import host_of
from stepsal.models.lookup import model_fingerprint, tokenizer_fingerprint
from stepsal.traces.files import trace_line
from stepsal.traces.prompt import prompt_record
from stepsal.traces.trace import Trace


class AnswerJob(Job):
    """How all answers are made: `interventions` are records, `format` and `steps` say how traces are split."""

    worker = "stepsal.generation.worker:AnswerWorker"
    decoding: Decoding
    interventions: tuple[dict[str, Any], ...]
    format: str | tuple[str, str]
    steps: str
    grader: str


class AnswerItem(Item):
    """A batch: requests, and the question of each; without any: what is the model? `made_of`: what the model must be."""

    smaller = "a smaller batch_size"
    requests: tuple[Request, ...] = ()
    questions: tuple[Question, ...] = ()
    made_of: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        if not self.requests:
            return "check of the model"
        return f"batch of {len(self.requests)} answers (the first is to problem {self.questions[0].id!r})"


class AnswerWorker(Worker):
    """Generates and grades."""

    job_class, item_class = AnswerJob, AnswerItem

    def answer(self, item: AnswerItem) -> dict[str, Any]:
        """`lines`, with the texts of the warnings; or what the model is."""
        if not item.requests:
            host = host_of(self.model)
            host.check_decodes()
            return {"made_of": self._made_of, "context": host.shape.context}
        if different := [name for name, value in self._made_of.items() if item.made_of[name] != value]:
            raise InputError(
                f"a worker's model differs from that of the others ({', '.join(different)}): give every machine the same files"
            )
        lines, warned = heard(lambda: self._lines(item))
        return {"lines": lines, "warnings": warned}

    @cached_property
    def _made_of(self) -> dict[str, Any]:
        """What may change in place while it keeps its name: weights, and all that turns a question into tokens and back."""
        return {
            "model": host_of(self.model).describe(),
            "model_sha256": model_fingerprint(self.model),
            "tokenizer_sha256": tokenizer_fingerprint(self.model.tokenizer),
            "stop_tokens": sorted(host_of(self.model).stop_tokens()),
        }

    def _lines(self, item: AnswerItem) -> list[str]:
        job, traces = self.job, dict[int, Trace]()
        interventions = tuple(map(from_record, job.interventions))
        for batch in stream(self.model, item.requests, job.decoding, interventions, format=job.format, steps=job.steps):
            traces |= batch
        pairs = zip(item.requests, item.questions, strict=True)
        return [
            trace_line(self._graded(traces[request.index], request, question)).decode() for request, question in pairs
        ]

    def _graded(self, trace: Trace, request: Request, question: Question) -> Trace:
        tokenizer = self.model.tokenizer
        graded = grade_trace(tokenizer, question, trace, self.job.grader)
        known = {"length": question.length, "error": graded.error} | graded.record
        known |= {"task": asdict(question.gym)} if question.gym else {}
        known |= prompt_record(tokenizer, question.prompt)
        meta = trace.meta | {key: value for key, value in known.items() if value is not None}
        name = answer_id(question, request.sample, self.job.decoding)
        return replace(trace, id=name, answer=question.answer, correct=graded.correct, meta=meta)


def answer_id(question: Question, sample: int, decoding: Decoding) -> str:
    """What the trace of an answer is called: as its question, with the sample's number where there are several.

    >>> answer_id(Question("sum", "2+2?", "4"), 1, Decoding(temperature=0.6, samples=2))
    'sum-1'
    """
    return f"{question.id}-{sample}" if decoding.samples > 1 else question.id
