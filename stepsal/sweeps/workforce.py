"""The workers of a sweep: on which machines they are, how many there are, and the engine that gives them work."""

from stepsal.errors import InputError
from stepsal.plugins import loaded_plugins
from stepsal.sweeps.local import Engine, InProcess, Processes, Resources, local_resources
from stepsal.sweeps.plan import Plan
from stepsal.sweeps.ray import RayCluster, RayWorkers

ENGINES = ("local", "ray")


class Workforce:
    """The workers of one sweep. They start when there is work, and stay until `close`.

    `engine`: a name of `ENGINES`. `device`: what the configuration says; `resources` says what it means here. `workers`: how
    many there are to be; by default as many as `default_workers` says. `address`: of an existing Ray cluster.
    """

    def __init__(self, engine: str, device: str, workers: int | None = None, address: str | None = None) -> None:
        if engine not in ENGINES:
            raise InputError(f"unknown engine {engine!r}: expected 'local' or 'ray'")
        if workers is not None and workers < 1:
            raise InputError(f"workers={workers} must be at least 1")
        if address is not None and engine != "ray":
            raise InputError(f"address={address!r} is of a Ray cluster: give engine='ray' with it")
        self._workers = workers
        self._engine: Engine | None = None
        self._cluster = RayCluster(address) if engine == "ray" else None
        self.resources = local_resources(device) if self._cluster is None else self._cluster.resources(device)

    def engine(self, plan: Plan) -> Engine:
        """Ready to work; it starts as many workers as a round has items for, and keeps those of the rounds before."""
        if self._engine is None:
            modules = self._modules_to_import(plan)
            job = plan.job(modules)
            workers = self._workers or (1 if "__main__" in modules else default_workers(self.resources, plan))
            if self._cluster is not None:
                self._engine = RayWorkers(self._cluster.ray, job, workers)
            elif workers == 1:
                self._engine = InProcess(job)
            else:
                self._engine = Processes(job, workers)
        return self._engine

    def _modules_to_import(self, plan: Plan) -> tuple[str, ...]:
        """The modules that a worker must import: the plug-ins, and those that define the sweep's interventions and grader.

        What a notebook or a script itself defines exists in this process only, which must then do all of the work.
        """
        defined = {kind.__module__: kind for kind in plan.definitions if not kind.__module__.startswith("stepsal.")}
        if (kind := defined.get("__main__")) and (self._cluster is not None or (self._workers or 1) > 1):
            raise InputError(
                f"{kind.__name__} is defined in this notebook or script, where no other process finds it: put it into a "
                "module and import that, or use engine='local' with workers=1"
            )
        return tuple(dict.fromkeys([*loaded_plugins(), *defined]))

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        if self._cluster is not None:
            self._cluster.close()


def default_workers(resources: Resources, plan: Plan) -> int:
    """One per accelerator; on the CPU one per `threads` cores, on this machine as many as 80 % of the free memory holds.

    On 2 cores, 2 processes of one thread are faster than one of two (`benchmarks/sweep.py`).
    """
    if resources.device != "cpu":
        return resources.slots
    threads = plan.config.model.threads
    if not resources.here:  # whoever places them sees to memory
        return max(1, resources.slots // threads)
    import torch

    from stepsal.models.memory import free_bytes

    worker_bytes = plan.bytes + 2**29  # half a GiB for Python, torch and what is decoded
    fit = int(0.8 * free_bytes(torch.device("cpu")) / worker_bytes)
    return max(1, min(resources.slots // threads, fit))
