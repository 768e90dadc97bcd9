"""A set of workers: on which machines they are, how many there are, and the engine that gives them work.

`start_workers` starts those of a function that takes a loaded model, or a `ModelToLoad` with `engine`, `workers` and `address`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from stepsal.engines.local import Engine, InProcess, Processes, Resources, local_resources
from stepsal.engines.messages import Job, ModelToLoad
from stepsal.engines.ray import RayCluster, RayWorkers
from stepsal.errors import InputError
from stepsal.models.checks import a_model
from stepsal.models.host import Model
from stepsal.models.loading import load_tokenizer
from stepsal.models.memory import free_bytes
from stepsal.plugins import loaded_plugins

ENGINES = ("local", "ray")


class Workforce:
    """The workers of one run. They start when there is work, and stay until `close`.

    `engine`: a name of `ENGINES`. `device`: what the user says; `resources` says what it means here. `workers`: how many there
    are to be, where that is said. `address`: of an existing Ray cluster.
    """

    def __init__(self, engine: str, device: str, workers: int | None = None, address: str | None = None) -> None:
        check_engine(engine, workers, address)
        self._workers = workers
        self._engine: Engine | None = None
        self._cluster = RayCluster(address) if engine == "ray" else None
        self.resources = local_resources(device) if self._cluster is None else self._cluster.resources(device)

    def start(self, job: Job, bytes: int | None = None) -> Engine:
        """The engine, ready to work; it starts as many workers as a round has items for, and keeps those of the rounds before.

        `bytes`: the size of the model in memory, where it is known; see `workers_for`.
        """
        if self._engine is None:
            modules = job.plugins
            workers = self._workers or (
                1 if "__main__" in modules else workers_for(self.resources, job.model.threads, bytes)
            )
            if self._cluster is not None:
                self._engine = RayWorkers(self._cluster.ray, job, workers)
            elif workers == 1:
                self._engine = InProcess(job)
            else:
                self._engine = Processes(job, workers)
        return self._engine

    def modules_to_import(self, definitions: Iterable[Any]) -> tuple[str, ...]:
        """The modules that a worker must import: the plug-ins, and those that define what it works with.

        What a notebook or a script itself defines exists in this process only, which must then do all of the work.
        """
        defined = {kind.__module__: kind for kind in definitions if not kind.__module__.startswith("stepsal.")}
        if (kind := defined.get("__main__")) and (self._cluster is not None or (self._workers or 1) > 1):
            name = getattr(kind, "__name__", kind)
            raise InputError(
                f"{name} is defined in this notebook or script, where no other process finds it: put it into a module and "
                "import that, or use engine='local' with workers=1"
            )
        return tuple(dict.fromkeys([*loaded_plugins(), *defined]))

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        if self._cluster is not None:
            self._cluster.close()


@dataclass(frozen=True)
class Workers:
    """Those who do the work: an engine, and the tokenizer of its model. `close` ends them."""

    engine: Engine
    tokenizer: Any
    close: Callable[[], None]


def start_workers(
    job: Callable[..., Job],
    model: Model | ModelToLoad,
    engine: str,
    workers: int | None,
    address: str | None,
    definitions: Iterable[Any] = (),
) -> Workers:
    """The workers of a job, which load the model that is to be loaded, or this process, with the model that is loaded.

    Args:
        job: makes the job, given its `model` and `plugins`.
        definitions: what workers need that a user may have defined: classes and functions.

    Raises `InputError` for an engine that there is not, or that cannot be with this model.
    """
    check_engine(engine, workers, address)
    if not isinstance(model, ModelToLoad):
        if engine != "local" or (workers or 1) > 1:
            raise InputError(
                f"engine={engine!r} with workers={workers}: a model that is loaded cannot be sent to workers, each of which "
                "loads its own. Give stepsal.engines.messages.ModelToLoad(path=name) in its place (on the command line: "
                "`--workers N`), or leave engine and workers out"
            )
        here = InProcess(job(model=ModelToLoad(path=None, threads=torch.get_num_threads()), plugins=()), model)
        return Workers(here, getattr(model, "tokenizer", None), here.close)
    if model.device_map is not None:
        raise InputError(
            f"device_map={model.device_map!r} spreads one model over the GPUs, and that is one worker: leave out engine and "
            "workers"
        )
    tokenizer = load_tokenizer(model.path)
    force = Workforce(engine, model.device, workers, address)
    placed = model.model_copy(update={"device": force.resources.device})
    started = force.start(job(model=placed, plugins=force.modules_to_import(definitions)))
    return Workers(started, tokenizer, force.close)


def a_model_or_one_to_load(name: str, value: Any) -> None:
    """Raise `InputError` unless it is a loaded model, or one that workers can load."""
    if not isinstance(value, ModelToLoad):
        a_model(name, value)


def check_engine(engine: str, workers: int | None, address: str | None) -> None:
    """Raise `InputError` for an engine that is unknown, no workers, or an address of what is no cluster."""
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}: expected 'local' or 'ray'")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} must be at least 1")
    if address is not None and engine != "ray":
        raise InputError(f"address={address!r} is of a Ray cluster: give engine='ray' with it")


def workers_for(resources: Resources, threads: int, bytes: int | None = None) -> int:
    """One per accelerator; on the CPU one per `threads` cores, on this machine as many as 80 % of the free memory holds.

    On 2 cores, 2 processes of one thread are faster than one of two (`benchmarks/sweep.py`).

    >>> workers_for(Resources("cuda", 4), 1), workers_for(Resources("cpu", 16, here=False), 8)
    (4, 2)
    """
    if resources.device != "cpu":
        return resources.slots
    most = max(1, resources.slots // threads)
    if not resources.here or bytes is None:  # whoever places them sees to memory
        return most
    worker_bytes = bytes + 2**29  # half a GiB for Python, torch and what is worked on
    return max(1, min(most, int(0.8 * free_bytes(torch.device("cpu")) / worker_bytes)))
