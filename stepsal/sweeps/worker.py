"""One worker of a sweep: a model, loaded once, that turns work items into rows.

In: a job (model, problems, decoding; plain data), then items: the parts of a setting, a seed, and a slice of the problems.
Out: for each item its rows, in order. What a row holds depends on the job and the item alone, but for what was measured:
`seconds` and `cpu_seconds`, an answer's share of its batch by the clock and of the processor, without loading, tokenising and
warming up; and `notes`, which may say how much memory was free.

`main` is a worker in a process of its own: JSON lines, the job and then items on standard input, replies on standard output.
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from typing import Any

from stepsal.errors import InputError, StepsalError, UnsupportedModelError
from stepsal.generation.grading import grade_trace
from stepsal.generation.questions import Question

Row = dict[str, Any]
PACKAGES = ("torch", "transformers", "transformer-lens")


def versions() -> dict[str, str]:
    """Of stepsal and of what its numbers depend on.

    >>> list(versions())
    ['stepsal', 'torch', 'transformers', 'transformer-lens']
    """
    from stepsal._version import __version__

    return {"stepsal": __version__} | {name: version(name) for name in PACKAGES}


class Worker:
    """Generates and grades. Sets torch's number of threads for as long as it runs an item."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._job = job
        self._questions = [Question(**each) for each in job["questions"]]
        self._encoded: dict[str, list[int]] = {}
        self._warm: set[tuple[type, ...]] = set()

    @cached_property
    def _model(self) -> Any:
        from stepsal.models import host
        from stepsal.models.loading import load_model

        given = self._job["model"]
        model = load_model(given["path"], device=given["device"], dtype=given["dtype"])
        size = host.shape(model)
        if [size.layers, size.heads] != given["size"]:
            raise UnsupportedModelError(
                f"the model has {size.layers} layers of {size.heads} heads, its configuration says {given['size']}"
            )
        return model

    def run(self, item: Mapping[str, Any]) -> list[Row]:
        """The rows of an item: `parts` (records), `seed`, and the problems from `start` to `stop`."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self._job["model"]["threads"])
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                rows = self._rows(item)
        finally:
            torch.set_num_threads(before)
        notes = "; ".join(dict.fromkeys(str(each.message) for each in caught if each.category is UserWarning)) or None
        return [row | {"notes": notes} for row in rows]

    def _rows(self, item: Mapping[str, Any]) -> list[Row]:
        from stepsal.generation.generate import Decoding
        from stepsal.models import host
        from stepsal.sweeps.settings import parts_from_records

        model, decoding = self._model, Decoding(**self._job["decoding"] | {"seed": item["seed"]})
        questions = self._questions[item["start"] : item["stop"]]
        parts = parts_from_records(item["parts"])
        prompts = [self._tokens(question) for question in questions]
        self._warm_up(parts, prompts[0])
        begin, begin_cpu = time.perf_counter(), time.process_time()
        traces = self._answer(prompts, parts, decoding)
        spent = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - begin_cpu}
        each = {name: value / len(traces) for name, value in spent.items()}
        about = {"model": json.dumps(host.describe(model)), "versions": json.dumps(versions())}
        rows = []
        for index, trace in enumerate(traces):
            question = questions[index // decoding.samples]
            tokens, prompt_tokens = trace.tokens.tolist(), int(trace.prompt_tokens or 0)
            rows.append(
                {"problem": question.id, "length": question.length, "sample": index % decoding.samples}
                | {"seed": item["seed"], "expected": question.answer}
                | asdict(grade_trace(model.tokenizer, question, trace))
                | {"tokens": len(tokens) - prompt_tokens, "truncated": trace.meta["truncated"]}
                | each
                | {"prompt_tokens": prompt_tokens, "trace": tokens}
                | about
            )
        return rows

    def _tokens(self, question: Question) -> list[int]:
        """The prompt's, encoded once, however many settings it is asked under."""
        from stepsal.traces.prompt import encode_prompt

        if question.id not in self._encoded:
            self._encoded[question.id] = encode_prompt(self._model.tokenizer, question.prompt)
        return self._encoded[question.id]

    def _answer(self, prompts: Sequence[list[int]], parts: Sequence[Any], decoding: Any) -> list[Any]:
        """Traces, in the order of the prompts."""
        from stepsal.generation.generate import stream

        traces: dict[int, Any] = {}
        for batch in stream(self._model, prompts, decoding, parts, **self._job["segmentation"]):
            traces |= batch
        return [traces[index] for index in range(len(traces))]

    def _warm_up(self, parts: Sequence[Any], prompt: list[int]) -> None:
        """Decode a token or two, once for each kind of parts: what is imported or set up then is not measured."""
        from stepsal.generation.generate import Decoding

        kind = tuple(map(type, parts))
        if kind in self._warm:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._answer([prompt], parts, Decoding(max_new_tokens=2))
        self._warm.add(kind)


def reply(worker: Worker, item: Mapping[str, Any]) -> dict[str, Any]:
    """`rows`, or the `error` and its kind, as plain data."""
    try:
        return {"rows": worker.run(item)}
    except Exception as error:  # whatever it is, the sweep must hear of it
        import traceback

        expected = isinstance(error, StepsalError)
        kind = next((known.__name__ for known in (InputError, UnsupportedModelError) if isinstance(error, known)), "")
        return {"error": str(error) if expected else traceback.format_exc(), "kind": kind}


def main() -> None:
    """Serve the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the sweep itself ends its workers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints gets between the answers
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # the sweep is gone

    threading.Thread(target=read, daemon=True).start()
    worker = Worker(json.loads(lines.get()))
    while True:
        answers.write(json.dumps(reply(worker, json.loads(lines.get()))) + "\n")
        answers.flush()
