"""One worker of a sweep: a model, loaded once, that turns work items into rows.

In: a `Job` (model, problems, decoding), then `WorkItem`s: the parts of a setting, a seed, and a slice of the problems.
Out: for each item its answers, in order. What an answer holds depends on the job and the item alone, but for what was measured:
`seconds` and `cpu_seconds`, an answer's share of its batch by the clock and of the processor, without loading, tokenising and
warming up; and `notes`, which may say how much memory was free.
"""

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from stepsal.engines import worker
from stepsal.generation.generate import Decoding, make_requests, stream
from stepsal.generation.grading import grade_trace
from stepsal.generation.questions import Question
from stepsal.interventions.base import from_record
from stepsal.models import host_of
from stepsal.models.versions import versions
from stepsal.sweeps.messages import Answer, Job, WorkItem
from stepsal.traces.prompt import encode_prompt
from stepsal.traces.trace import Trace


class Worker(worker.Worker):
    """Generates and grades."""

    job_class, item_class = Job, WorkItem

    def __init__(self, job: Job, model: Any = None) -> None:
        super().__init__(job, model)
        self._prompts: dict[str, list[int]] = {}
        self._warm: set[tuple[type, ...]] = set()

    def answer(self, item: WorkItem) -> list[Answer]:
        """The answers of an item."""
        answers, warned = worker.heard(lambda: self._answers(item))
        return [answer | {"notes": "; ".join(warned) or None} for answer in answers]

    def _answers(self, item: WorkItem) -> list[Answer]:
        model, decoding = self.model, replace(self.job.decoding, seed=item.seed)
        host = host_of(model)
        questions = self.job.questions[item.start : item.stop]
        parts = tuple(map(from_record, item.parts))
        prompts = [self._prompt(question) for question in questions]
        self._warm_up(parts, prompts[0])
        begin, begin_cpu = time.perf_counter(), time.process_time()
        traces = self._generate(prompts, parts, decoding)
        spent = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
        measured = {name: value / len(traces) for name, value in spent.items()}
        about = {"model": json.dumps(host.describe()), "versions": json.dumps(versions())}
        rows = []
        for index, trace in enumerate(traces):
            question = questions[index // decoding.samples]
            tokens, prompt_tokens = trace.tokens.tolist(), int(trace.prompt_tokens or 0)
            rows.append(
                {"problem": question.id, "length": question.length, "sample": index % decoding.samples}
                | {"seed": item.seed, "expected": question.answer}
                | asdict(grade_trace(model.tokenizer, question, trace, self.job.grader))
                | {"tokens": len(tokens) - prompt_tokens, "truncated": trace.meta["truncated"]}
                | measured
                | {"prompt_tokens": prompt_tokens, "trace": tokens}
                | about
            )
        return rows

    def _prompt(self, question: Question) -> list[int]:
        """The prompt's tokens, encoded once, however many settings the question is asked under."""
        if question.id not in self._prompts:
            self._prompts[question.id] = encode_prompt(self.model.tokenizer, question.prompt)
        return self._prompts[question.id]

    def _generate(self, prompts: Sequence[list[int]], parts: Sequence[Any], decoding: Decoding) -> list[Trace]:
        """Traces, in the order of the prompts."""
        traces: dict[int, Trace] = {}
        requests = make_requests(prompts, decoding.samples)
        for batch in stream(self.model, requests, decoding, parts, **self.job.segmentation.model_dump()):
            traces |= batch
        return [traces[index] for index in range(len(traces))]

    def _warm_up(self, parts: Sequence[Any], prompt: list[int]) -> None:
        """Decode a token or two, once for each kind of parts: what is imported or set up then is not measured."""
        kind = tuple(map(type, parts))
        if kind in self._warm:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._generate([prompt], parts, Decoding(max_new_tokens=2))
        self._warm.add(kind)
