"""A sweep's work on a Ray cluster, one actor for each worker; otherwise like `stepsal.engines`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepsal.engines import ATTEMPTS, Item, Resources, rows_of
from stepsal.errors import InputError, StepsalError
from stepsal.sweep_worker import Row, Worker, reply


class Ray:
    """Actors on a Ray cluster: one at `address`, the one this process is connected to, or a new one on this machine.

    Ray places, restarts and retries. The cluster's machines need stepsal, and the model under the same name.
    """

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("engine='ray' needs Ray: pip install 'stepsal[ray]'") from error
        self._ray, self._started, self._actors = ray, not ray.is_initialized(), list[Any]()
        if self._started:
            import logging

            quiet: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
            try:
                ray.init(address=address or "local", **quiet, **({} if address else {"include_dashboard": False}))
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"there is no Ray cluster at {address!r} ({error}): start it, or leave --address out"
                ) from error

    def resources(self, device: str) -> Resources:
        found = self._ray.cluster_resources()
        gpus = int(found.get("GPU", 0))
        device = ("cuda" if gpus else "cpu") if device == "auto" else device
        return Resources(device, max(1, gpus if device == "cuda" else int(found.get("CPU", 1))))

    def begin(self, job: Mapping[str, Any], workers: int) -> None:
        """Say what is to be done, by how many workers."""
        needs = {"num_cpus": job["model"]["threads"], "num_gpus": int(job["model"]["device"] == "cuda")}
        actor = self._ray.remote(max_restarts=ATTEMPTS, max_task_retries=ATTEMPTS, **needs)(_RayWorker)
        self._job = self._ray.put(dict(job))  # kept here: an actor that is restarted reads it again
        self._actors = [actor.remote() for _ in range(workers)]

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, list[Row]]]:
        left = list(reversed(items))
        running: dict[Any, tuple[Any, Item]] = {}
        free = list(self._actors)
        while left or running:
            while left and free:
                actor, item = free.pop(), left.pop()
                running[actor.run.remote(self._job, dict(item))] = actor, item
            (ready,), _ = self._ray.wait(list(running), num_returns=1)
            actor, item = running.pop(ready)
            free.append(actor)
            try:
                answer = self._ray.get(ready)
            except self._ray.exceptions.RayError as error:
                raise StepsalError(
                    f"Ray gave up on a batch of {item['stop'] - item['start']} problems: {error}"
                ) from error
            yield item, rows_of(answer)

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._started:
            self._ray.shutdown()


class _RayWorker:
    """An actor: a worker that is made with its first item."""

    _worker: Worker | None = None

    def run(self, job: Mapping[str, Any], item: Item) -> dict[str, Any]:
        self._worker = self._worker or Worker(job)
        return reply(self._worker, item)
