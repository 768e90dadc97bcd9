"""Where work is done: in this process or in worker processes. `stepsal.engines.ray` does it on a Ray cluster.

In: a `Job` and `Item`s, which are handed out in order. Out: each item with its answer, as soon as it is done. Every engine
gives the same answers: that to an item depends on nothing but the job and the item (`stepsal.engines.worker`). The job sets
the number of torch threads, but not the numbers of workers and machines.
"""

import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, runtime_checkable

from stepsal.engines.messages import Item, Job, Reply, named
from stepsal.errors import StepsalError
from stepsal.models.cores import usable_cores

logger = logging.getLogger("stepsal")
Work = TypeVar("Work", bound=Item)
ATTEMPTS = 3
"""How often an item is given to a new worker after its worker died."""


@runtime_checkable
class Engine(Protocol):
    """A set of workers, and the way in which work gets to them."""

    def run(self, items: Sequence[Work]) -> Generator[tuple[Work, Any], None, None]:
        """Do the items, each of which is taken when its turn comes: a sequence that makes them then holds one for each worker.

        It may be called again, since workers and their models are kept until `close`.
        """

    def close(self) -> None:
        """End the workers, whatever they are doing."""


@dataclass(frozen=True)
class Resources:
    """The resources for the workers.

    device: the device that `auto` stands for. slots: the number of CPU cores or accelerators. here: whether all of them are on
    this machine and share its memory.
    """

    device: str
    slots: int
    here: bool = True


def local_resources(device: str = "auto") -> Resources:
    """The cores or accelerators of this machine.

    >>> local_resources("cpu").device
    'cpu'
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda":
        return Resources(device, max(1, torch.cuda.device_count()))
    if device == "cpu":
        return Resources(device, usable_cores())
    return Resources(device, 1)


class InProcess:
    """One worker, in this process. `model`: the job's model, where it is loaded already."""

    def __init__(self, job: Job, model: Any = None) -> None:
        self._worker = named(job.worker)(job, model)

    def run(self, items: Sequence[Work]) -> Generator[tuple[Work, Any], None, None]:
        for item in items:
            yield item, self._worker.run(item)

    def close(self) -> None:
        """Nothing has to be ended."""


class Processes:
    """Workers in processes of their own. A worker that dies is replaced, and its item is done again."""

    def __init__(self, job: Job, workers: int) -> None:
        self._job, self._workers = job, workers
        self._running: dict[int, WorkerProcess] = {}
        self._closed = False

    def run(self, items: Sequence[Work]) -> Generator[tuple[Work, Any], None, None]:
        todo, turn = iter(items), threading.Lock()
        done: queue.SimpleQueue[tuple[Work, Any] | BaseException] = queue.SimpleQueue()

        def take() -> Work | None:
            with turn:
                return next(todo, None)

        def drive(slot: int) -> None:
            try:
                while (item := take()) is not None:
                    done.put((item, self._ask(slot, item)))
            except BaseException as error:
                done.put(error)

        threads = [
            threading.Thread(target=drive, args=(slot,), daemon=True) for slot in range(min(self._workers, len(items)))
        ]
        for thread in threads:
            thread.start()
        finished = False
        try:
            for _ in range(len(items)):
                result = done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
            finished = True
        finally:
            if not finished:  # it was interrupted, or there was an error here or in the code that reads the answers
                self.close()
            for thread in threads:
                thread.join()

    def _ask(self, slot: int, item: Item) -> Any:
        """The answer to an item from the worker in this slot, or from a new one where it dies."""
        for attempt in range(ATTEMPTS + 1):
            process = self._running.get(slot) or WorkerProcess(self._job, slot)
            self._running[slot] = process
            if self._closed:
                process.kill()
            reply = process.ask(item)
            if reply is not None:
                return reply.result()
            cause = process.cause_of_death()
            del self._running[slot]
            process.kill()
            if self._closed:
                break
            if attempt < ATTEMPTS:
                logger.info(
                    f"worker {slot} (process {process.pid}) died ({cause}); its {item.name} is done again by a new one"
                )
        raise StepsalError(
            f"worker {slot} died {ATTEMPTS + 1} times on the same {item.name} ({cause}). If memory ran out, use fewer workers "
            f"or {item.smaller}. What is finished is kept."
        )

    def close(self) -> None:
        self._closed = True
        for process in list(self._running.values()):
            process.kill()


class WorkerProcess:
    """A worker in a process of its own, with the pipes to it and from it."""

    def __init__(self, job: Job, slot: int) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from stepsal.engines.worker import main; main({job.worker!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=_environment(job, slot),
        )
        self.pid = self._process.pid
        self._unsent_job: Job | None = job

    def ask(self, item: Item) -> Reply | None:
        """The reply of the worker, or None where the worker is dead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._unsent_job is not None:
                self._process.stdin.write(self._unsent_job.line())
                self._unsent_job = None
            self._process.stdin.write(item.line())
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            return Reply.from_line(line) if line.endswith("\n") else None
        except (OSError, ValueError):  # a broken or closed pipe
            return None

    def cause_of_death(self) -> str:
        """How the process ended, and the last line that it wrote."""
        try:
            status = self._process.wait(timeout=10)
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
        except (subprocess.TimeoutExpired, ValueError):
            return "it does not answer"
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return f"{how}: {lines[-1]}" if lines and status >= 0 else how

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # the pipe still held data that was not sent
                pass


def _environment(job: Job, slot: int) -> dict[str, str]:
    """The environment variables of a worker process: where stepsal is, how many threads it may start, and which GPU it sees."""
    environment = dict(os.environ)
    folders = [str(Path(__file__).parents[2]), *filter(None, sys.path)]  # a worker finds what this process finds
    if job.plugins:  # a worker must find the plugins where this process finds them
        folders += map(os.path.abspath, sys.path)
    threads = str(job.model.threads)
    environment |= {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if job.model.device == "cuda":
        import torch

        visible = environment.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = gpu_of(slot, torch.cuda.device_count(), visible)
    return environment


def gpu_of(slot: int, count: int, visible: str | None) -> str:
    """The name of the one GPU that a worker is to see. The workers take the GPUs that this process sees in turn.

    `count` is the number of GPUs that this process sees, and `visible` its `CUDA_VISIBLE_DEVICES`, whose names (indices or
    UUIDs) are kept.

    >>> [gpu_of(slot, 2, None) for slot in range(3)], gpu_of(1, 2, "5,GPU-8932f937")
    (['0', '1', '0'], 'GPU-8932f937')
    """
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(max(1, count))]
    return names[slot % max(1, count)]
