"""One worker of a sweep: a model, loaded once, that turns work items into rows.

In: a `Job` (model, problems, decoding), then `WorkItem`s: the parts of a setting, a seed, and a slice of the problems.
Out: for each item its answers, in order. What an answer holds depends on the job and the item alone, but for what was measured:
`seconds` and `cpu_seconds`, an answer's share of its batch by the clock and of the processor, without loading, tokenising and
warming up; and `notes`, which may say how much memory was free.

`main` is a worker in a process of its own: lines of JSON, the job and then items on standard input, replies on standard output.
It ends when its input does, so it never outlives the sweep that started it.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

from stepsal.errors import InputError, StepsalError, UnsupportedModelError
from stepsal.generation.generate import Decoding, stream
from stepsal.generation.grading import grade_trace
from stepsal.generation.questions import Question
from stepsal.interventions.base import from_record
from stepsal.models import host_of
from stepsal.models.loading import load_model
from stepsal.models.versions import versions
from stepsal.plugins import load_plugins
from stepsal.sweeps.messages import Answer, Job, Reply, WorkItem
from stepsal.traces.prompt import encode_prompt
from stepsal.traces.trace import Trace


class Worker:
    """Generates and grades. Sets torch's number of threads for as long as it runs an item."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._prompts: dict[str, list[int]] = {}
        self._warm: set[tuple[type, ...]] = set()
        self._has_plugins = False

    @cached_property
    def _model(self) -> Any:
        expected = self._job.model
        model = load_model(expected.path, device=expected.device, dtype=expected.dtype, host=expected.host)
        size = host_of(model).shape
        if (size.layers, size.heads) != expected.size:
            raise UnsupportedModelError(
                f"the model has {size.layers} layers of {size.heads} heads, its configuration says {list(expected.size)}"
            )
        return model

    def run(self, item: WorkItem) -> list[Answer]:
        """The answers of an item. Plugins are loaded before anything else, the model with the first item."""
        import torch

        if not self._has_plugins:
            load_plugins(self._job.plugins)
            self._has_plugins = True
        before = torch.get_num_threads()
        torch.set_num_threads(self._job.model.threads)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                answers = self._answers(item)
        finally:
            torch.set_num_threads(before)
        notes = "; ".join(dict.fromkeys(str(each.message) for each in caught if each.category is UserWarning)) or None
        return [answer | {"notes": notes} for answer in answers]

    def reply(self, item: WorkItem) -> Reply:
        """As `run`; an error becomes part of the reply, whatever it is: the sweep must hear of it."""
        try:
            return Reply(rows=self.run(item))
        except Exception as error:
            import traceback

            text = str(error) if isinstance(error, StepsalError) else traceback.format_exc()
            kinds = [known.__name__ for known in (InputError, UnsupportedModelError) if isinstance(error, known)]
            return Reply(error=text, kind=next(iter(kinds), ""))

    def _answers(self, item: WorkItem) -> list[Answer]:
        model, decoding = self._model, replace(self._job.decoding, seed=item.seed)
        host = host_of(model)
        questions = self._job.questions[item.start : item.stop]
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
                | asdict(grade_trace(model.tokenizer, question, trace, self._job.grader))
                | {"tokens": len(tokens) - prompt_tokens, "truncated": trace.meta["truncated"]}
                | measured
                | {"prompt_tokens": prompt_tokens, "trace": tokens}
                | about
            )
        return rows

    def _prompt(self, question: Question) -> list[int]:
        """The prompt's tokens, encoded once, however many settings the question is asked under."""
        if question.id not in self._prompts:
            self._prompts[question.id] = encode_prompt(self._model.tokenizer, question.prompt)
        return self._prompts[question.id]

    def _generate(self, prompts: Sequence[list[int]], parts: Sequence[Any], decoding: Decoding) -> list[Trace]:
        """Traces, in the order of the prompts."""
        traces: dict[int, Trace] = {}
        for batch in stream(self._model, prompts, decoding, parts, **self._job.segmentation.model_dump()):
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


def main() -> None:
    """Serve the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the sweep itself ends its workers
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints gets between the replies
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # the sweep is gone

    threading.Thread(target=read, daemon=True).start()
    worker = Worker(Job.from_line(lines.get()))
    while True:
        replies.write(worker.reply(WorkItem.from_line(lines.get())).line())
        replies.flush()
