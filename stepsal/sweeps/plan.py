"""A configuration, resolved: the model, the problems, how answers are decoded, and which work items a setting has.

In: a `SweepConfig` and the device. Out: a `Plan`: what is written down as the sweep's identity (`record`), what a worker needs
to know (`job`), and the items of a setting: fixed slices of its problems, so that whoever computes one, and whenever, decodes
the same batch.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stepsal.engines.messages import ModelToLoad
from stepsal.generation.generate import Decoding
from stepsal.generation.grading import GRADERS, TASK
from stepsal.generation.gym import gym_questions
from stepsal.generation.questions import Question, read_questions, task_questions, task_record, tokens_needed
from stepsal.interventions.base import Intervention
from stepsal.models.hosts import check_host
from stepsal.models.lookup import look_up
from stepsal.models.quantization import check_quantization
from stepsal.models.versions import versions
from stepsal.sweeps.config import SweepConfig
from stepsal.sweeps.layers_and_heads import Size, chosen_bands
from stepsal.sweeps.messages import Job, Segmentation, WorkItem
from stepsal.sweeps.settings import Setting, kind_classes

if TYPE_CHECKING:
    from stepsal.diagnosis.bands import Bands
else:  # imported where used: it takes a while
    Bands = Any

FORMAT = "stepsal sweep 2"


@dataclass(frozen=True)
class Plan:
    """`model`: where it is, what it is, its size in bytes, its `Size`. `seeds` and `decoding` apply to every setting."""

    config: SweepConfig
    path: str | None
    fingerprint: str
    bytes: int
    size: Size
    device: str
    questions: tuple[Question, ...]
    decoding: Decoding

    def job(self, plugins: Sequence[str] = ()) -> Job:
        """What every worker is told once; `plugins` are the modules that it must import first."""
        written = self.config.model
        model = ModelToLoad(
            path=self.path,
            device=self.device,
            dtype=written.dtype,
            host=written.host,
            quantization=written.quantization,
            threads=written.threads,
            size=(self.size.layers, self.size.heads),
        )
        segmentation = Segmentation(format=self.config.decoding.format, steps=self.config.decoding.steps)
        return Job(
            model=model,
            decoding=self.decoding,
            segmentation=segmentation,
            questions=self.questions,
            grader=self.config.problems.graded_by,
            plugins=tuple(plugins),
        )

    def record(self, settings: Sequence[Setting]) -> dict[str, Any]:
        """The identity of the sweep: two with the same record have the same rows."""
        said = json.dumps([each.record for each in self.questions], sort_keys=True)
        facts = {"fingerprint": self.fingerprint, "device": self.device, "size": asdict(self.size)}
        problems = {"number": len(self.questions), "sha256": hashlib.sha256(said.encode()).hexdigest()}
        problems |= task_record(self.questions)
        record = {
            "format": FORMAT,
            "versions": versions(),
            "config": self.config.record(),
            "model": facts,
            "problems": problems,
            "max_new_tokens": self.decoding.max_new_tokens,
            "settings": [{"id": each.id, "name": each.name, "parts": each.records} for each in settings],
        }
        if (bands := self.bands) is not None:
            judged = bands.evidence[bands.evidence["in_half"]].drop(columns="in_half")
            evidence = json.loads(judged.to_json(orient="records"))
            record["chosen"] = {"fell_back": bands.fell_back, "reasons": bands.reasons, "evidence": evidence}
        return record

    @property
    def intervention_classes(self) -> tuple[type[Intervention], ...]:
        """The classes of the interventions that the configuration names."""
        grid = self.config.grid
        names = [*grid.parts, *([grid.centre["parts"]] if "parts" in grid.centre else [])]
        found = [kind for name in names for kind in kind_classes(name)]
        return tuple(
            dict.fromkeys([*found, *(type(each) for setting in self.config.settings for each in setting.made())])
        )

    @property
    def definitions(self) -> tuple[Any, ...]:
        """What the configuration names and a user may have defined: classes of interventions, and the grader's function."""
        graders = [GRADERS[name] for name in (self.config.problems.graded_by,) if name in GRADERS]
        return (*self.intervention_classes, *graders)

    @property
    def bands(self) -> Bands | None:
        """The layers that `layers = "chosen"` stands for, with the evidence; None where the grid does not say so."""
        grid = self.config.grid
        if "chosen" not in (*grid.layers, grid.centre.get("layers")):
            return None
        return chosen_bands(grid, self.size, self.config.folder)

    def items(self, setting: Setting) -> Iterator[WorkItem]:
        """The work items of a setting, each with a `key` of its own."""
        step = max(1, self.decoding.batch_size // self.decoding.samples)
        for seed in self.config.decoding.seeds:
            for start in range(0, len(self.questions), step):
                stop = min(start + step, len(self.questions))
                key = f"{setting.id}-s{seed}-{start:06d}"
                yield WorkItem(key=key, parts=setting.records, seed=seed, start=start, stop=stop)

    def answers(self, items: Sequence[WorkItem]) -> int:
        """How many answers the items have."""
        return sum(item.problems for item in items) * self.decoding.samples

    def row(self, setting: Setting, row: dict[str, Any]) -> dict[str, Any]:
        """A worker's row with everything that it stands under."""
        unit = f"{setting.id}/{row['problem']}/{row['sample']}/{row['seed']}"
        decoding = {name: value for name, value in asdict(self.decoding).items() if name != "seed"}
        return {"unit": unit} | setting.columns | decoding | row


def make_plan(config: SweepConfig, device: str) -> Plan:
    """Resolve a configuration, without loading any weights.

    Raises `InputError` and `FileError` for what cannot be.

    >>> from stepsal.sweeps.config import read_config
    >>> plan = make_plan(read_config({"problems": {"count": 5}, "decoding": {"batch_size": 2}}), "cpu")
    >>> plan.size, [item.stop for item in plan.items(Setting())]
    (Size(layers=8, heads=4), [2, 4, 5])
    """
    check_host(config.model.host)
    check_quantization(config.model.quantization, config.model.name)
    questions = tuple(load_questions(config))
    given = config.decoding
    room = given.max_new_tokens
    if room is None:
        lengths = [each.length for each in questions if each.length is not None]
        room = tokens_needed(lengths) if lengths else 512
    decoding = Decoding(room, given.batch_size, given.temperature, given.top_p, given.samples)
    model = look_up(config.model.name, config.folder)
    if model.fingerprint == model.path:
        warnings.warn(
            f"nothing says which commit of {config.model.name!r} this is, neither a folder nor the hub: a sweep that goes on "
            "later cannot see whether the weights are still the same. Download the model, and give its folder.",
            stacklevel=3,
        )
    size = Size(model.layers, model.heads)
    return Plan(config, model.path, model.fingerprint, model.bytes, size, device, questions, decoding)


def load_questions(config: SweepConfig) -> list[Question]:
    """The problems; those of like length are neighbours, which makes for little padding."""
    given = config.problems
    if given.file is not None:
        found = read_questions(config.folder / given.file, given.count, graded=True)
    elif given.task is not None:
        own = given.graded_by == TASK
        found = gym_questions(
            given.task, given.size, given.seed, given.options, instruction=given.instruction, own_grader=own
        )
    else:
        split = given.split or ("validation" if config.grid.shape == "forward-selection" else "test")
        found = task_questions(split, given.length, given.count or 100, given.start)
    return sorted(found, key=lambda each: (each.length or 0, len(str(each.prompt))))
