"""Where a sweep's work is done: in this process or in worker processes; on a Ray cluster, `stepsal.sweeps.ray`.

In: a job and work items, plain data. Out: each item with its rows, in the order in which they are done. Every engine gives the
same rows: an item's rows depend on nothing but the job and the item (`stepsal.sweeps.worker`), the number of torch threads is
the job's, and the numbers of workers and machines are no part of it.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stepsal import errors
from stepsal.errors import StepsalError
from stepsal.sweeps.worker import Row, Worker

Item = Mapping[str, Any]
Say = Callable[[str], None]
ATTEMPTS = 3
"""How often an item is given to a new worker after its worker died."""


@dataclass(frozen=True)
class Resources:
    """What there is to work with: `device` is what `auto` means here; `slots`, the CPU cores or accelerators.

    `here`: all on this machine, whose memory they share.
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
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return Resources(device, min(cores, _cpu_quota(cores)))
    return Resources(device, 1)


def _cpu_quota(cores: int, path: str = "/sys/fs/cgroup/cpu.max") -> int:
    """How many whole cores a container may use, at least 1; all where nothing limits it."""
    try:
        quota, period = Path(path).read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return cores


class InProcess:
    """One worker, in this process."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._worker = Worker(job)

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, list[Row]]]:
        for item in items:
            yield item, self._worker.run(item)

    def close(self) -> None:
        """Nothing to end."""


class Processes:
    """Workers in processes of their own. One that dies is replaced, and its item done again."""

    def __init__(self, job: Mapping[str, Any], workers: int, say: Say) -> None:
        self._job, self._workers, self._say = job, workers, say
        self._running: dict[int, _Process] = {}
        self._closed = False

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, list[Row]]]:
        todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Item, list[Row]] | BaseException] = queue.SimpleQueue()
        for item in items:
            todo.put(item)

        def drive(slot: int) -> None:
            try:
                while True:
                    item = todo.get_nowait()
                    done.put((item, self._ask(slot, item)))
            except queue.Empty:
                return
            except BaseException as error:
                done.put(error)

        threads = [
            threading.Thread(target=drive, args=(slot,), daemon=True) for slot in range(min(self._workers, len(items)))
        ]
        for thread in threads:
            thread.start()
        finished = False
        try:
            for _ in items:
                result = done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
            finished = True
        finally:
            if not finished:  # interrupted, or an error here or in whoever reads this
                self.close()
            for thread in threads:
                thread.join()

    def _ask(self, slot: int, item: Item) -> list[Row]:
        for attempt in range(ATTEMPTS + 1):
            process = self._running.get(slot) or _Process(self._job, slot)
            self._running[slot] = process
            if self._closed:
                process.kill()
            answer = process.ask(item)
            if answer is not None:
                return rows_of(answer)
            said = process.last_words()
            del self._running[slot]
            process.kill()
            if self._closed:
                break
            if attempt < ATTEMPTS:
                self._say(f"worker {slot} (process {process.pid}) died ({said}); its batch is done again by a new one")
        raise StepsalError(
            f"worker {slot} died {ATTEMPTS + 1} times on the same batch, seed {item['seed']}, problems {item['start']} to "
            f"{item['stop']} ({said}). If memory ran out, use fewer workers or a smaller batch_size. What is finished is kept."
        )

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self._closed = True
        for process in list(self._running.values()):
            process.kill()


class _Process:
    """A worker process and its two pipes."""

    def __init__(self, job: Mapping[str, Any], slot: int) -> None:
        import stepsal

        environment = dict(os.environ)
        found = [str(Path(stepsal.__file__).parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
        threads = str(job["model"]["threads"])
        environment |= {"PYTHONPATH": os.pathsep.join(found), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if job["model"]["device"] == "cuda":
            import torch

            environment["CUDA_VISIBLE_DEVICES"] = gpu_of(
                slot, torch.cuda.device_count(), environment.get("CUDA_VISIBLE_DEVICES")
            )
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from stepsal.sweeps.worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self.pid = self._process.pid
        self._first: Mapping[str, Any] | None = job

    def ask(self, item: Item) -> dict[str, Any] | None:
        """The answer, or None from a dead worker."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            if self._first is not None:
                self._process.stdin.write(json.dumps(self._first) + "\n")
                self._first = None
            self._process.stdin.write(json.dumps(item) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            return json.loads(line) if line.endswith("\n") else None
        except (OSError, ValueError):  # a broken or closed pipe
            return None

    def last_words(self) -> str:
        """How it ended, and the last line that it wrote."""
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
            except OSError:  # what was not sent yet
                pass


def gpu_of(slot: int, count: int, visible: str | None) -> str:
    """The name of the one GPU that a worker is to see: in turn, of those that this process sees.

    `count`: how many those are. `visible`: this process's `CUDA_VISIBLE_DEVICES`, whose names (indices, UUIDs) are kept.

    >>> [gpu_of(slot, 2, None) for slot in range(3)], gpu_of(1, 2, "5,GPU-8932f937")
    (['0', '1', '0'], 'GPU-8932f937')
    """
    names = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(max(1, count))]
    return names[slot % max(1, count)]


def rows_of(answer: Mapping[str, Any]) -> list[Row]:
    """The rows of a worker's reply, or its error, raised.

    >>> rows_of({"rows": [{"problem": "a"}]})
    [{'problem': 'a'}]
    """
    if "error" in answer:
        kind: type[StepsalError] = getattr(errors, str(answer["kind"]), StepsalError)
        raise kind(answer["error"])
    rows: list[Row] = answer["rows"]
    return rows
