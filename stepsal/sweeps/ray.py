"""A sweep's work on a Ray cluster, one actor for each worker; otherwise like `stepsal.sweeps.engines`."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepsal.errors import InputError, StepsalError
from stepsal.sweeps.engines import ATTEMPTS, Item, Resources, rows_of
from stepsal.sweeps.worker import Row, Worker, reply

PATIENCE = 60.0
"""Seconds without a placed worker after which the user is told."""


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
        self._free, self._coming = list[Any](), dict[Any, Any]()
        if not self._started:
            connected = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", connected):
                raise InputError(
                    f"this process is connected to the Ray cluster at {connected!r} already, not {address!r}: leave the "
                    "address out to use it, or call ray.shutdown() first"
                )
        else:
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
        return Resources(device, max(1, gpus if _is_gpu(device) else int(found.get("CPU", 1))), here=False)

    def begin(self, job: Mapping[str, Any], workers: int) -> None:
        """Say what is to be done, by how many workers at most."""
        model = dict(job["model"])
        gpu = _is_gpu(model["device"])
        if gpu:
            model["device"] = "cuda"  # Ray chooses which, and a worker sees no other
        self._needs = {"num_cpus": model["threads"], "num_gpus": int(gpu)}
        restarts = {"max_restarts": -1, "max_task_retries": ATTEMPTS}
        self._actor = self._ray.remote(**restarts, **self._needs)(_RayWorker)
        self._job = self._ray.put(dict(job) | {"model": model})  # kept here: an actor that is restarted reads it again
        self._workers = workers

    def run(self, items: Sequence[Item]) -> Iterator[tuple[Item, list[Row]]]:
        left = list(reversed(items))
        running: dict[Any, tuple[Any, Item]] = {}
        while len(self._actors) < min(self._workers, len(items)):
            self._actors.append(self._actor.remote())
            self._coming[self._actors[-1].ready.remote()] = self._actors[-1]
        told = False
        while left or running:
            while left and self._free:
                actor, given = self._free.pop(), left.pop()
                running[actor.run.remote(self._job, dict(given))] = actor, given
            idle = not running and not told
            done, _ = self._ray.wait([*running, *self._coming], num_returns=1, timeout=PATIENCE if idle else None)
            if not done:
                warnings.warn(
                    f"Ray has placed no worker for {PATIENCE:.0f} s: each needs {_said(self._needs)}, and the cluster has "
                    f"{_said(self._ray.available_resources())} free. Waiting; Ctrl-C ends it.",
                    stacklevel=2,
                )
                told = True
                continue
            (ready,) = done
            item: Item | None = None
            if ready in running:
                actor, item = running.pop(ready)
            else:
                actor = self._coming.pop(ready)
            try:
                answer = self._ray.get(ready)
            except self._ray.exceptions.RayError as error:
                what = "starting a worker" if item is None else f"a batch of {item['stop'] - item['start']} problems"
                raise StepsalError(f"Ray gave up on {what}: {error}") from error
            self._free.append(actor)
            if item is not None:
                yield item, rows_of(answer)

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._free, self._coming = [], [], {}
        if self._started:
            self._ray.shutdown()


class _RayWorker:
    """An actor: a worker that is made with its first item."""

    _worker: Worker | None = None

    def ready(self) -> None:
        """Done as soon as Ray has placed it."""

    def run(self, job: Mapping[str, Any], item: Item) -> dict[str, Any]:
        self._worker = self._worker or Worker(job)
        return reply(self._worker, item)


def _is_gpu(device: str) -> bool:
    return device.partition(":")[0] == "cuda"


def _said(resources: Mapping[str, int | float]) -> str:
    cpus, gpus = (
        resources.get(each, resources.get(other, 0)) for each, other in (("num_cpus", "CPU"), ("num_gpus", "GPU"))
    )
    return f"{cpus:g} CPU and {gpus:g} GPU"
