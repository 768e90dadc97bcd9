"""One worker: a model, loaded once, with which it does one item after the other.

In: a `Job`, then `Item`s. Out: for each item an answer, which depends on the job and the item alone. What it is, a class of
workers says: `stepsal.sweeps.worker` answers problems under many settings, `stepsal.saliency.worker` writes step maps.

`main` is a worker in a process of its own: lines of JSON, the job and then items on standard input, replies on standard output.
It ends when its input does, so it never outlives the process that started it.
"""

import os
import queue
import signal
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from stepsal import errors
from stepsal.engines.messages import Item, Job, Reply, named
from stepsal.errors import StepsalError, UnsupportedModelError
from stepsal.models import host_of
from stepsal.models.loading import load_model
from stepsal.plugins import load_plugins

_Answer = TypeVar("_Answer")


class Worker(ABC):
    """Sets torch's number of threads for as long as it does an item. `model`: where it is loaded already.

    A class of workers names the classes of its `job` and `item`, and defines `answer`.
    """

    job_class: ClassVar[type[Job]]
    item_class: ClassVar[type[Item]]

    def __init__(self, job: Any, model: Any = None) -> None:
        self.job = job
        self._has_plugins = model is not None
        if model is not None:
            self.model = model

    @cached_property
    def model(self) -> Any:
        """The job's model, loaded when it is first asked for."""
        expected = self.job.model
        options = expected.model_dump(include={"dtype", "device_map", "host", "quantization"})
        model = load_model(expected.path, device=expected.device, **options)
        size = host_of(model).shape
        if expected.size is not None and (size.layers, size.heads) != expected.size:
            raise UnsupportedModelError(
                f"the model has {size.layers} layers of {size.heads} heads, its configuration says {list(expected.size)}"
            )
        return model

    @abstractmethod
    def answer(self, item: Any) -> Any:
        """The answer to an item, as plain data."""

    def run(self, item: Item) -> Any:
        """The answer to an item. Plugins are loaded before anything else, the model with the first item."""
        import torch

        if not self._has_plugins:
            load_plugins(self.job.plugins)
            self._has_plugins = True
        before = torch.get_num_threads()
        torch.set_num_threads(self.job.model.threads)
        try:
            return self.answer(item)
        finally:
            torch.set_num_threads(before)

    def reply(self, item: Item) -> Reply:
        """As `run`; an error becomes part of the reply, whatever it is: who gave the item must hear of it."""
        try:
            return Reply(answer=self.run(item))
        except Exception as error:
            import traceback

            text = str(error) if isinstance(error, StepsalError) else traceback.format_exc()
            kind = type(error).__name__
            return Reply(error=text, kind=kind if isinstance(error, StepsalError) and hasattr(errors, kind) else "")


def heard(work: Callable[[], _Answer]) -> tuple[_Answer, list[str]]:
    """What `work` returns, and the texts of its warnings, each once: a worker's own warnings nobody sees.

    >>> heard(lambda: warnings.warn("little memory is free"))
    (None, ['little memory is free'])
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer = work()
    return answer, list(dict.fromkeys(str(each.message) for each in caught if each.category is UserWarning))


def main(name: str) -> None:
    """Serve the process that started this one, as the worker that `name` names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started the workers ends them
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints gets between the replies
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # who started this process is gone

    threading.Thread(target=read, daemon=True).start()
    kind: type[Worker] = named(name)
    worker = kind(kind.job_class.from_line(lines.get()))
    while True:
        replies.write(worker.reply(kind.item_class.from_line(lines.get())).line())
        replies.flush()
