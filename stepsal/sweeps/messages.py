"""What a sweep and its workers tell each other (`stepsal.engines.messages`): a `Job` once, and then `WorkItem`s."""

from typing import Any

from stepsal.engines import messages
from stepsal.engines.messages import Item, Message
from stepsal.generation.generate import Decoding
from stepsal.generation.questions import Question

Answer = dict[str, Any]
"""The columns of a `Row` that a worker fills in."""


class Segmentation(Message):
    """How answers are cut into steps: the names of a trace format and of a rule for steps."""

    format: str
    steps: str


class Job(messages.Job):
    """What all items of a sweep have in common. `grader`: a name of `stepsal.generation.grading`.

    The seed of `decoding` is not used: each item has its own.
    """

    worker = "stepsal.sweeps.worker:Worker"
    decoding: Decoding
    segmentation: Segmentation
    questions: tuple[Question, ...]
    grader: str


class WorkItem(Item):
    """A batch: the problems from `start` to `stop` under one setting, whose parts are given as records, with one seed.

    >>> WorkItem.from_line(WorkItem(key="a", parts=[], seed=0, start=2, stop=5).line()).problems
    3
    """

    smaller = "a smaller batch_size"
    key: str
    parts: list[dict[str, Any]]
    seed: int
    start: int
    stop: int

    @property
    def problems(self) -> int:
        """How many problems the batch has."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        return f"batch of problems {self.start} to {self.stop} with seed {self.seed}"
