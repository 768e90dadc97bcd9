"""What whoever has work and its workers tell each other: plain data that a pipe, a pickle or a call can carry.

A worker is told a `Job` once and then `Item`s; to each item it answers with a `Reply`.
"""

import json
from abc import abstractmethod
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from stepsal import errors
from stepsal.errors import StepsalError

Told = TypeVar("Told", bound=BaseModel)


class Message(BaseModel):
    """Anything that is told. A key that it does not know is an error.

    >>> ModelToLoad.from_line(ModelToLoad(path="org/name").line()).path
    'org/name'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    def line(self) -> str:
        """The message as a line of JSON. Numbers come back as exactly the same ones, NaN and infinities included."""
        return json.dumps(self.model_dump()) + "\n"

    @classmethod
    def from_line(cls: type[Told], line: str) -> Told:
        return cls.model_validate(json.loads(line))


class ModelToLoad(Message):
    """A model that every worker loads itself: what `load_model` is given, where None as a `path` is the bundled model.

    `threads`: how many of torch each worker has on the CPU. `size`: the numbers of layers and of heads that the model must
    have, where they are known already.
    """

    path: str | None
    device: str = "auto"
    dtype: str = "auto"
    device_map: str | None = None
    host: str = "bridge"
    quantization: str | None = None
    threads: int = 1
    size: tuple[int, int] | None = None


class Job(Message):
    """What all items have in common. `plugins`: the modules that a worker imports before anything else.

    A class of jobs names the class of its workers, as `module:Class`.
    """

    worker: ClassVar[str]
    model: ModelToLoad
    plugins: tuple[str, ...] = ()


class Item(Message):
    """A piece of work, which one worker does at a time.

    `smaller`: what makes less memory enough for an item, besides fewer workers; it is said where workers die.
    """

    smaller: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """What a message calls it."""


class Reply(Message):
    """The answer to an item, or the error that came in its place: its text, and the name of its class in `stepsal.errors`."""

    answer: Any = None
    error: str | None = None
    kind: str = ""

    def result(self) -> Any:
        """The answer, or the error, raised.

        >>> Reply(answer=[{"problem": "a"}]).result()
        [{'problem': 'a'}]
        """
        if self.error is not None:
            kind: type[StepsalError] = getattr(errors, self.kind, StepsalError)
            raise kind(self.error)
        return self.answer


def named(name: str) -> Any:
    """The class that `module:Class` names."""
    module, _, kind = name.partition(":")
    return getattr(import_module(module), kind)
