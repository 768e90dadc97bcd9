"""What a sweep and its workers tell each other: plain data that a pipe, a pickle or a call can carry.

A worker is told a `Job` once and then `WorkItem`s; to each item it answers with a `Reply`.
"""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from stepsal import errors
from stepsal.errors import StepsalError
from stepsal.generation.generate import Decoding
from stepsal.generation.questions import Question

Told = TypeVar("Told", bound=BaseModel)
Answer = dict[str, Any]
"""The columns of a `Row` that a worker fills in."""


class Message(BaseModel):
    """Anything that is told. A key that it does not know is an error.

    >>> WorkItem.from_line(WorkItem(key="a", parts=[], seed=0, start=2, stop=5).line()).problems
    3
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def line(self) -> str:
        """The message as a line of JSON. Numbers come back as exactly the same ones, NaN and infinities included."""
        return json.dumps(self.model_dump()) + "\n"

    @classmethod
    def from_line(cls: type[Told], line: str) -> Told:
        return cls.model_validate(json.loads(line))


class ModelToLoad(Message):
    """`path`: None is the bundled model. `size`: the numbers of layers and of heads that it must have."""

    path: str | None
    device: str
    dtype: str
    host: str
    threads: int
    size: tuple[int, int]


class Segmentation(Message):
    """How answers are cut into steps: the names of a trace format and of a rule for steps."""

    format: str
    steps: str


class Job(Message):
    """What all items of a sweep have in common. `plugins`: the modules that a worker imports before anything else. `grader`: a
    name of `stepsal.generation.grading`.

    The seed of `decoding` is not used: each item has its own.
    """

    model: ModelToLoad
    decoding: Decoding
    segmentation: Segmentation
    questions: tuple[Question, ...]
    grader: str
    plugins: tuple[str, ...] = ()


class WorkItem(Message):
    """A batch: the problems from `start` to `stop` under one setting, whose parts are given as records, with one seed."""

    key: str
    parts: list[dict[str, Any]]
    seed: int
    start: int
    stop: int

    @property
    def problems(self) -> int:
        """How many problems the batch has."""
        return self.stop - self.start


class Reply(Message):
    """The rows of an item, or the error that came in their place: its text, and the name of its class in `stepsal.errors`."""

    rows: list[Answer] = []
    error: str | None = None
    kind: str = ""

    def answers(self) -> list[Answer]:
        """The rows, or the error, raised.

        >>> Reply(rows=[{"problem": "a"}]).answers()
        [{'problem': 'a'}]
        """
        if self.error is not None:
            kind: type[StepsalError] = getattr(errors, self.kind, StepsalError)
            raise kind(self.error)
        return self.rows
