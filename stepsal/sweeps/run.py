"""A sweep: many settings of StepFlow on the same problems, each answer computed exactly once, whatever happens on the way.

In: a configuration (`stepsal.sweeps.config`). Out: a table, a row per setting, problem, sample and seed, and the folder it is
kept in (`stepsal.sweeps.store`).

1. The configuration becomes settings, problems and a model; the folder must be of the same ones, or new.
2. A setting's problems are cut into items, each a batch. Those whose shard is there are done.
3. An engine (`stepsal.engines`) computes the others; each is put in its shard as it is done.
4. Forward selection goes on with its next round, until there is none. Then all shards make one file.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal.checks import checked, instance, path, whole
from stepsal.models.hosts import HOSTS
from stepsal.sweeps.config import GridConfig, SweepConfig, read_config
from stepsal.sweeps.grid import next_round
from stepsal.sweeps.plan import Plan, make_plan
from stepsal.sweeps.progress import COLUMNS, Progress, Scores
from stepsal.sweeps.row import Row
from stepsal.sweeps.settings import Setting
from stepsal.sweeps.store import SweepFolder, check_results
from stepsal.sweeps.workforce import Workforce, default_workers

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any

Config = str | Path | Mapping[str, Any] | SweepConfig
logger = logging.getLogger("stepsal")


_config = instance(
    (str, Path, Mapping, SweepConfig), "a TOML file or a dictionary of its tables", "docs/sweeps.md explains every key."
)


@checked(config=_config, out=path, workers=whole(1, optional=True))
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
    results = Path(out) / "results.parquet"
    check_results(results)
    return pd.read_parquet(results)


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
        shown = stack.enter_context(closing(Progress(scores, progress)))
        workforce = stack.enter_context(closing(Workforce(engine, given.model.device, workers, address)))
        plan, rounds = make_plan(given, workforce.resources.device), list[list[Setting]]()
        keys: dict[Setting, list[str]] = {}
        while settings := next_round(given.grid, plan.size, given.folder, scores.right, rounds, given.settings):
            if not rounds:
                before = {
                    "model": {"host": HOSTS[0]},
                    "grid": GridConfig().record(),
                    "problems": {"grader": given.problems.graded_before},
                }
                folder.begin(plan.record(settings), resume, defaults={"config": before})
            keys |= run_round(plan, settings, workforce, folder, scores, shown)
            rounds.append(settings)
        folder.consolidate(list(keys.values()))
    return scores.table(list(keys))


def run_round(
    plan: Plan, settings: list[Setting], workforce: Workforce, folder: SweepFolder, scores: Scores, shown: Progress
) -> dict[Setting, list[str]]:
    """Do what is not done of a round's settings; returns the keys of each setting's items."""
    items = {setting: list(plan.items(setting)) for setting in settings}
    setting_of = {item.key: setting for setting in settings for item in items[setting]}
    every = [item for setting in settings for item in items[setting]]
    todo = [item for item in every if not folder.shard(item.key).exists()]
    left = Counter(setting_of[item.key] for item in todo)
    undone = {item.key for item in todo}
    for item in every:
        if item.key not in undone:
            scores.add(setting_of[item.key], folder.read(item.key, COLUMNS).to_pylist())
    shown.expect(plan.answers(every), plan.answers(every) - plan.answers(todo))
    for item, answers in workforce.engine(plan).run(todo) if todo else ():
        setting = setting_of[item.key]
        folder.write(item.key, [Row(**plan.row(setting, answer)) for answer in answers])
        scores.add(setting, answers)
        shown.add(len(answers))
        left[setting] -= 1
        if not left[setting]:
            logger.info(scores.line(setting))
    return {setting: [item.key for item in items[setting]] for setting in settings}


def estimate(config: Config, engine: str = "local", workers: int | None = None, address: str | None = None) -> str:
    """What a sweep would do: its settings, the number of answers, and the time, from one batch that is timed. Writes nothing.

    Raises as `sweep` does.
    """
    given = read_config(config)
    one_or_given = 1 if engine == "local" else workers  # one is enough for one batch
    with closing(Workforce(engine, given.model.device, one_or_given, address)) as workforce:
        plan = make_plan(given, workforce.resources.device)
        settings = next_round(given.grid, plan.size, given.folder, lambda setting: 0, [], given.settings)
        items = [item for setting in settings for item in plan.items(setting)]
        batches = [item for item in plan.items(settings[-1]) if item.seed == given.decoding.seeds[0]]
        # The problems are sorted by length: the middle batch is a typical one.
        ((_, answers),) = workforce.engine(plan).run([batches[len(batches) // 2]])
    number, seconds = plan.answers(items), sum(answer["seconds"] for answer in answers) / len(answers)
    at_once = min(workers or default_workers(workforce.resources, plan), len(items))
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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
