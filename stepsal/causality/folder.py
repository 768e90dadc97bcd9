"""A folder of knockouts, one file a trace: computed once each, resumable, every file whole.

OUT/knockout.json      what the knockouts were made with, and the traces that they are of
OUT/knockouts/ID.safetensors

It is kept as a folder of step maps is (`stepsal.saliency.folder`), and may be the same folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepsal.causality.knockout import Knockout, check_mode, step_knockout
from stepsal.causality.knockoutfile import KNOCKOUT
from stepsal.causality.removal import Mode
from stepsal.checks import checked, whole
from stepsal.checks import path as a_path
from stepsal.engines.messages import ModelToLoad
from stepsal.engines.workforce import a_model_or_one_to_load
from stepsal.models.host import Model
from stepsal.saliency.folder import ResultKind, load_results, save_results
from stepsal.saliency.tensorfile import damaged, read_header
from stepsal.saliency.worker import start_recipe
from stepsal.traces.checks import traces
from stepsal.traces.trace import Step, Trace

KNOCKOUTS = ResultKind(
    "knockout", "knockout", "knockouts", "knockout.json", "stepsal knockout", "`stepsal knockout`", Knockout.load
)


@dataclass(frozen=True, eq=False)
class KnockoutFile:
    """The file of a knockout, of which the header was read and checked; any number of them takes little memory.

    Attributes:
        path: the file.
        steps, meta: those of the knockout.
    """

    path: Path
    steps: tuple[Step, ...]
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "KnockoutFile":
        """Read the header. Raises `FileError` for a file that is no knockout, or whose header is damaged."""
        try:
            said = read_header(path, KNOCKOUT)[0]
        except (ValueError, RecursionError) as error:
            raise damaged(path, KNOCKOUT, error) from error
        return cls(Path(path), said["steps"], said["meta"])

    def load(self) -> Knockout:
        """The knockout, read and checked whole. Raises `FileError`."""
        return Knockout.load(self.path)


_KNOCKOUT_FILES = replace(KNOCKOUTS, load=lambda path, verify: KnockoutFile.open(path))


@dataclass(frozen=True)
class KnockoutRecipe:
    """The options of `save_knockouts`."""

    mode: Mode = "total"
    subsets: int = 0
    seed: int = 0

    def settings(self, model: Model) -> dict[str, Any]:
        return vars(self).copy()

    def shares_passes(self, model: Model) -> bool:
        return False

    def compute(self, model: Model, traces: Sequence[Trace]) -> list[Knockout]:
        return [step_knockout(model, trace, mode=self.mode, subsets=self.subsets, seed=self.seed) for trace in traces]


@checked(
    model=a_model_or_one_to_load,
    traces=traces,
    out=a_path,
    subsets=whole(0),
    seed=whole(0),
    workers=whole(1, optional=True),
)
def save_knockouts(
    model: Model | ModelToLoad,
    traces: Sequence[Trace],
    out: str | Path,
    *,
    mode: Mode = "total",
    subsets: int = 0,
    seed: int = 0,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Compute the knockout of every trace that has none in `out` yet, and return the paths of all, in order.

    Every step but the question is knocked out, as `step_knockout` does by default; `mode`, `subsets` and `seed` are its own;
    `engine`, `workers` and `address`, and which model goes with them, are those of `save_step_maps`.
    An interrupted run goes on where it stopped. Every trace, and every knockout that is there, is checked before the first one
    is computed. From then on these traces' knockouts are the folder's: those of others stay where they are and are left out,
    with a warning.

    Raises:
        InputError: an unknown option, a trace that this model cannot take, two traces with one id, or several workers for a
            model that is loaded already.
        UnsupportedModelError: a model on which this would not be exact.
        FileError: `out` holds knockouts made with other settings, with other weights, or from other tokens; another run is at
            work in it; or it cannot be written.
        StepsalError: a trace whose worker died again and again.
    """
    check_mode(mode)
    recipe = KnockoutRecipe(mode, subsets, seed)
    return save_results(KNOCKOUTS, start_recipe(recipe, model, engine, workers, address), traces, Path(out), progress)


def load_knockouts(out: str | Path, *, progress: bool = False, verify: bool = True) -> list[Knockout]:
    """Every knockout of a folder that `save_knockouts` wrote, in the order of their file names.

    Warns where knockouts of the folder's traces are not there (yet), and of files that are no knockouts of its traces. Raises
    `FileError` for a folder without knockouts, and for one that is damaged or was not made as the folder says.
    """
    return load_results(KNOCKOUTS, Path(out), progress, verify)


def open_knockouts(out: str | Path, *, progress: bool = False) -> list[KnockoutFile]:
    """What `load_knockouts` reads, as files of which the headers alone were read; the rest is checked when one is loaded."""
    return load_results(_KNOCKOUT_FILES, Path(out), progress, verify=False)
