"""Does work on a Ray cluster, with one actor for each worker. Otherwise it is like `stepsal.engines.local`.

Ray places the actors. It does not restart them: on a cluster that lost a machine there may be no room for as many as before,
and the item of one that waits for room would wait with it. So an actor that dies is replaced by a new one, which comes when
there is room, and its item is done by whichever actor is free first.
"""

import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from stepsal.engines.local import ATTEMPTS, Resources, Work
from stepsal.engines.messages import Item, Job, Reply, named
from stepsal.engines.worker import Worker
from stepsal.errors import InputError, StepsalError

logger = logging.getLogger("stepsal")
PATIENCE = 60.0
"""The number of seconds without a placed worker after which the user is warned."""
DEATHS = ("RayActorError", "NodeDiedError", "WorkerCrashedError", "OutOfMemoryError", "ObjectLostError")
"""Ray's errors that mean that a worker, its machine or its answer is lost."""


class RayCluster:
    """A Ray cluster: the one at `address`, the one that this process is connected to, or a new one on this machine.

    The machines of the cluster need stepsal, the plugins, and the model under the same name. The attribute `ray` is the module.
    """

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("engine='ray' needs Ray: pip install 'stepsal[ray]'") from error
        self.ray: Any = ray
        self._started = not ray.is_initialized()
        if not self._started:
            connected = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", connected):
                raise InputError(
                    f"this process is connected to the Ray cluster at {connected!r} already, not {address!r}: leave the "
                    "address out to use that cluster, or call ray.shutdown() first"
                )
            return
        quiet: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            ray.init(address=address or "local", **quiet, **({} if address else {"include_dashboard": False}))
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                f"there is no Ray cluster at {address!r} ({error}): start the cluster, or leave --address out"
            ) from error

    def resources(self, device: str) -> Resources:
        """The GPUs or CPU cores of the cluster."""
        of_cluster = self.ray.cluster_resources()
        gpus = int(of_cluster.get("GPU", 0))
        device = ("cuda" if gpus else "cpu") if device == "auto" else device
        return Resources(device, max(1, gpus if _is_gpu(device) else int(of_cluster.get("CPU", 1))), here=False)

    def close(self) -> None:
        if self._started:
            self.ray.shutdown()


class RayWorkers:
    """At most `workers` workers, each an actor."""

    def __init__(self, ray: Any, job: Job, workers: int) -> None:
        gpu = _is_gpu(job.model.device)
        if gpu:  # Ray chooses the GPU of a worker, and the worker sees no other
            job = job.model_copy(update={"model": job.model.model_copy(update={"device": "cuda"})})
        self._ray, self._workers = ray, workers
        self._needs = {"num_cpus": job.model.threads, "num_gpus": int(gpu)}
        self._actor_class = ray.remote(max_restarts=0, max_task_retries=0, **self._needs)(_RayWorker)
        self._job = ray.put(job)
        self._failed_starts = 0
        self._actors: list[Any] = []
        self._free: list[Any] = []
        self._coming: dict[Any, Any] = {}

    def run(self, items: Sequence[Work]) -> Generator[tuple[Work, Any], None, None]:
        finished = False
        try:
            yield from self._run(items)
            finished = True
        finally:
            if not finished:  # it was interrupted, or there was an error here or in the code that reads the answers
                self.close()

    def _run(self, items: Sequence[Work]) -> Generator[tuple[Work, Any], None, None]:
        todo, again, done = ((item, 0) for item in items), list[tuple[Work, int]](), 0
        running: dict[Any, tuple[Any, Work, int]] = {}  # the item, and how many workers have died on it
        while len(self._actors) < min(self._workers, len(items)):
            self._begin()
        warned = False
        while done < len(items):
            while self._free and (taken := again.pop() if again else next(todo, None)) is not None:
                actor, (item, deaths) = self._free.pop(), taken
                running[actor.run.remote(self._job, item)] = actor, item, deaths
            idle = not running and not warned
            ready, _ = self._ray.wait([*running, *self._coming], num_returns=1, timeout=PATIENCE if idle else None)
            if not ready:
                self._warn_of_waiting()
                warned = True
                continue
            (call,) = ready
            if call in self._coming:
                actor = self._coming.pop(call)
                _, death = self._get(call, "starting a worker")
                self._failed_starts = 0 if death is None else self._failed_starts + 1
                if self._failed_starts > ATTEMPTS:
                    raise StepsalError(f"{self._failed_starts} workers in a row died as they started: {death}")
                if death is None:
                    self._free.append(actor)
                else:
                    self._replace(actor)
                continue
            actor, item, deaths = running.pop(call)
            reply, death = self._get(call, item.name)
            if death is None:
                self._free.append(actor)
                done += 1
                yield item, reply.result()
                continue
            if deaths == ATTEMPTS:
                raise StepsalError(
                    f"{deaths + 1} workers died on the same {item.name} (the last: {death}). If memory ran out, use "
                    f"fewer workers or {item.smaller}. What is finished is kept."
                )
            logger.info(f"a worker died ({_first_line(death)}); its {item.name} is done again by another one")
            again.append((item, deaths + 1))
            self._replace(actor)

    def _begin(self) -> None:
        self._actors.append(self._actor_class.remote())
        self._coming[self._actors[-1].ready.remote()] = self._actors[-1]

    def _replace(self, actor: Any) -> None:
        self._actors.remove(actor)
        self._ray.kill(actor)  # where it only could not be reached
        self._begin()

    def _get(self, call: Any, what: str) -> tuple[Any, Exception | None]:
        """What the call of an actor gave, or the death of the actor."""
        try:
            return self._ray.get(call), None
        except tuple(getattr(self._ray.exceptions, name) for name in DEATHS) as death:
            return None, death
        except self._ray.exceptions.RayError as error:
            raise StepsalError(f"Ray gave up on {what}: {error}") from error

    def _warn_of_waiting(self) -> None:
        warnings.warn(
            f"Ray has placed no worker for {PATIENCE:.0f} s: each worker needs {_cpus_and_gpus(self._needs)}, and the cluster "
            f"has {_cpus_and_gpus(self._ray.available_resources())} free. This run goes on waiting; Ctrl-C ends it.",
            stacklevel=3,
        )

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._free, self._coming = [], [], {}


class _RayWorker:
    """An actor. Its worker is made when the first item comes."""

    _worker: Worker | None = None

    def ready(self) -> None:
        """Return as soon as Ray has placed the actor."""

    def run(self, job: Job, item: Item) -> Reply:
        self._worker = self._worker or named(job.worker)(job)
        return self._worker.reply(item)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_gpu(device: str) -> bool:
    return device.partition(":")[0] == "cuda"


def _cpus_and_gpus(resources: Mapping[str, int | float]) -> str:
    """The CPUs and GPUs that an actor needs or a cluster has, in words. Ray has different names for what is needed and had."""
    cpus, gpus = (
        resources.get(needed, resources.get(had, 0)) for needed, had in (("num_cpus", "CPU"), ("num_gpus", "GPU"))
    )
    return f"{cpus:g} CPU and {gpus:g} GPU"
