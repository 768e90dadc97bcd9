"""A sweep: many settings of StepFlow on the same problems, each answer computed exactly once, whatever happens on the way.

In: a configuration (`stepsal.sweeps.config`). Out: a table, a row per setting, problem, sample and seed, and the folder it is
kept in (`stepsal.sweeps.store`).

1. The configuration becomes settings, problems and a model; the folder must be of the same ones, or new.
2. A setting's problems are cut into items, each a batch. Those whose shard is there are done.
3. An engine (`stepsal.sweeps.engines`) computes the others; each is put in its shard as it is done.
4. Forward selection goes on with its next round, until there is none. Then all shards make one file.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal.errors import InputError
from stepsal.sweeps.config import SweepConfig, read_config
from stepsal.sweeps.engines import InProcess, Processes, Resources, Say, local_resources
from stepsal.sweeps.grid import next_round
from stepsal.sweeps.plan import Plan, make_plan
from stepsal.sweeps.progress import COLUMNS, Progress, Scores
from stepsal.sweeps.ray import Ray
from stepsal.sweeps.settings import Setting
from stepsal.sweeps.store import SweepFolder

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any

ENGINES = ("local", "ray")
Engine = InProcess | Processes | Ray
"""`run` may be called again: workers and their models are kept until `close`."""
Config = str | Path | Mapping[str, Any] | SweepConfig


def sweep(
    config: Config,
    *,
    out: str | Path,
    engine: str = "local",
    resume: bool = True,
    workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> DataFrame:
    """Run a sweep, or go on with one, and return its rows.

    Args:
        config: a TOML file, or a dictionary of the same tables: `model`, `problems`, `decoding`, `grid`.
        out: the folder of this sweep. Whatever it was interrupted by, the same call goes on from there.
        engine: `local`, processes on this machine; `ray`, a Ray cluster (`stepsal[ray]`). Both give the same rows.
        resume: False refuses a folder that holds rows.
        workers: how many models work at a time. By default one per GPU, or per so many CPU cores as `[model] threads` says, as
            far as memory allows; never more than there is work for. One local worker works in this process.
        address: of an existing Ray cluster.
        progress: show a bar, and a line for each finished setting.

    Raises:
        InputError: a configuration that cannot be used.
        FileError: the folder is of another sweep (the message shows the difference) or cannot be written, or the disk is full.
        StepsalError: a batch whose worker died again and again.

    >>> import tempfile
    >>> from stepsal.sweeps.run import sweep
    >>> config = {"problems": {"count": 2}, "decoding": {"max_new_tokens": 2}, "grid": {"parts": "none"}}
    >>> rows = sweep(config, out=tempfile.mkdtemp(), workers=1, progress=False)
    >>> rows[["setting", "problem", "tokens"]].values.tolist()
    [['baseline', 'test-3-0', 2], ['baseline', 'test-3-1', 2]]
    """
    import pandas as pd

    run_sweep(config, out, engine, resume, workers, address, progress)
    return pd.read_parquet(Path(out) / "results.parquet")


def run_sweep(
    config: Config,
    out: str | Path,
    engine: str = "local",
    resume: bool = True,
    workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> str:
    """`sweep`, without reading the rows back: returns a table of the settings, in Markdown."""
    given = read_config(config)
    folder, scores = SweepFolder(out), Scores()
    with ExitStack() as stack:
        stack.enter_context(folder.lock())
        shown = Progress(scores, progress)
        stack.callback(shown.close)
        crew = _Crew(given, engine, workers, address, shown.say)
        stack.callback(crew.close)
        plan, rounds = crew.plan, list[list[Setting]]()
        keys: dict[Setting, list[str]] = {}
        while settings := next_round(given.grid, plan.size, given.folder, scores.right, rounds, given.settings):
            if not rounds:
                folder.begin(plan.record(settings), resume)
            _run_round(plan, settings, crew, folder, scores, shown)
            keys |= {setting: [item["key"] for item in plan.items(setting)] for setting in settings}
            rounds.append(settings)
        folder.consolidate(list(keys.values()))
    return scores.table(list(keys))


def _run_round(
    plan: Plan, settings: list[Setting], crew: "_Crew", folder: SweepFolder, scores: Scores, shown: Progress
) -> None:
    items: list[dict[str, Any]] = [
        item | {"index": index} for index, setting in enumerate(settings) for item in plan.items(setting)
    ]
    todo = [item for item in items if not folder.shard(item["key"]).exists()]
    left = [sum(item["index"] == index for item in todo) for index in range(len(settings))]
    names = {item["key"] for item in todo}
    for item in items:
        if item["key"] not in names:
            scores.add(settings[item["index"]], folder.read(item["key"], COLUMNS).to_pylist())
    shown.expect(plan.units(items), plan.units(items) - plan.units(todo))
    if not todo:
        return
    for done, rows in crew.engine().run(todo):
        item = dict(done)
        setting = settings[item["index"]]
        folder.write(item["key"], [plan.row(setting, row) for row in rows])
        scores.add(setting, rows)
        shown.add(len(rows))
        left[item["index"]] -= 1
        if not left[item["index"]]:
            shown.say(scores.line(setting))


def estimate(config: Config, engine: str = "local", workers: int | None = None, address: str | None = None) -> str:
    """What a sweep would do: its settings, the number of answers, and the time, from one batch that is timed. Writes nothing.

    Raises as `sweep` does.
    """
    given = read_config(config)
    crew = _Crew(given, engine, 1 if engine == "local" else workers, address, lambda text: None)
    try:
        plan = crew.plan
        settings = next_round(given.grid, plan.size, given.folder, lambda setting: 0, [], given.settings)
        items = [item for setting in settings for item in plan.items(setting)]
        batches = [item for item in plan.items(settings[-1]) if item["seed"] == given.decoding.seeds[0]]
        ((_, rows),) = crew.engine().run([batches[len(batches) // 2]])  # the problems are sorted by length
    finally:
        crew.close()
    number, seconds = plan.units(items), sum(row["seconds"] for row in rows) / len(rows)
    at_once = min(workers or default_workers(crew.resources, plan), len(items))
    lines = [f"{setting.id}  {setting.name}" for setting in settings]
    if (bands := plan.bands) is not None:
        lines.append(f"\nChosen layers:\n{bands.summary()}")
    n_seeds = len(given.decoding.seeds)
    lines.append(
        f"\n{len(settings)} settings x {len(plan.questions)} problems x {plan.decoding.samples} samples x {n_seeds} seeds = "
        f"{number} answers in {len(items)} batches"
    )
    if given.grid.shape == "forward-selection":
        lines.append(
            f"That is the first of up to {given.grid.k} rounds; each has one setting fewer than the one before."
        )
    time = _duration(seconds * number / at_once)
    lines.append(
        f"about {time} with {at_once} worker{'s' * (at_once > 1)}, at {seconds:.3g} s for an answer ({settings[-1].name})"
    )
    return "\n".join(lines)


class _Crew:
    """The plan and its engine, which starts when there is work."""

    def __init__(self, config: SweepConfig, engine: str, workers: int | None, address: str | None, say: Say) -> None:
        if engine not in ENGINES:
            raise InputError(f"unknown engine {engine!r}: expected 'local' or 'ray'")
        if workers is not None and workers < 1:
            raise InputError(f"workers={workers} must be at least 1")
        if address is not None and engine != "ray":
            raise InputError(f"address={address!r} is of a Ray cluster: give engine='ray' with it")
        self._ray = Ray(address) if engine == "ray" else None
        self._workers, self._say = workers, say
        self._engine: Engine | None = self._ray
        self._ready = False
        device = config.model.device
        self.resources = local_resources(device) if self._ray is None else self._ray.resources(device)
        self.plan = make_plan(config, self.resources.device)

    def engine(self) -> Engine:
        """Ready to work; it starts as many workers as a round has items for, and keeps those of the rounds before."""
        if not self._ready:
            workers = self._workers or default_workers(self.resources, self.plan)
            if self._ray is not None:
                self._ray.begin(self.plan.job, workers)
            elif workers == 1:
                self._engine = InProcess(self.plan.job)
            else:
                self._engine = Processes(self.plan.job, workers, self._say)
            self._ready = True
        assert self._engine is not None
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def default_workers(resources: Resources, plan: Plan) -> int:
    """One per accelerator; on the CPU one per `threads` cores, on this machine as many as 80 % of the free memory holds.

    On 2 cores, 2 processes of one thread are faster than one of two (`benchmarks/sweep.py`).
    """
    if resources.device != "cpu":
        return resources.slots
    each = plan.config.model.threads
    if not resources.here:  # whoever places them sees to memory
        return max(1, resources.slots // each)
    import torch

    from stepsal.models.memory import free_bytes

    fit = int(
        0.8 * free_bytes(torch.device("cpu")) / (plan.bytes + 2**29)
    )  # half a GiB for Python, torch and what is decoded
    return max(1, min(resources.slots // each, fit))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
