"""A configuration, resolved: the model, the problems, how answers are decoded, and which work items a setting has.

In: a `SweepConfig` and the device. Out: a `Plan`: what is written down as the sweep's identity (`record`), what a worker needs
to know (`job`), and the items of a setting: fixed slices of its problems, so that whoever computes one, and whenever, decodes
the same batch.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal.errors import FileError
from stepsal.generation.generate import Decoding
from stepsal.generation.questions import Question, read_questions, task_questions, tokens_needed
from stepsal.models.host import BUNDLED
from stepsal.sweeps.config import SweepConfig
from stepsal.sweeps.places import Size, chosen_bands
from stepsal.sweeps.settings import Setting
from stepsal.sweeps.worker import versions

if TYPE_CHECKING:
    from stepsal.diagnosis.bands import Bands
else:  # imported where used: it takes a while
    Bands = Any

_PEEK = 2**20
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

    @property
    def job(self) -> dict[str, Any]:
        """What every worker is told once, plain data."""
        model: dict[str, Any] = {"path": self.path, "device": self.device, "dtype": self.config.model.dtype}
        model |= {"threads": self.config.model.threads, "size": [self.size.layers, self.size.heads]}
        given = self.config.decoding
        return {
            "model": model,
            "decoding": asdict(self.decoding),
            "segmentation": {"format": given.format, "steps": given.steps},
            "questions": [asdict(each) for each in self.questions],
        }

    def record(self, settings: Sequence[Setting]) -> dict[str, Any]:
        """The identity of the sweep: two with the same record have the same rows."""
        said = json.dumps([asdict(each) for each in self.questions], sort_keys=True)
        facts = {"fingerprint": self.fingerprint, "device": self.device, "size": asdict(self.size)}
        problems = {"number": len(self.questions), "sha256": hashlib.sha256(said.encode()).hexdigest()}
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
    def bands(self) -> Bands | None:
        """The layers that `layers = "chosen"` stands for, with the evidence; None where the grid does not say so."""
        grid = self.config.grid
        if "chosen" not in (*grid.layers, grid.centre.get("layers")):
            return None
        return chosen_bands(grid, self.size, self.config.folder)

    def items(self, setting: Setting) -> Iterator[dict[str, Any]]:
        """The work items of a setting: plain data, each with a `key` of its own."""
        step = max(1, self.decoding.batch_size // self.decoding.samples)
        for seed in self.config.decoding.seeds:
            for start in range(0, len(self.questions), step):
                stop = min(start + step, len(self.questions))
                key = f"{setting.id}-s{seed}-{start:06d}"
                yield {"key": key, "parts": setting.records, "seed": seed, "start": start, "stop": stop}

    def units(self, items: Sequence[dict[str, Any]]) -> int:
        """How many answers the items have."""
        return sum(item["stop"] - item["start"] for item in items) * self.decoding.samples

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
    >>> plan.size, [item["stop"] for item in plan.items(Setting())]
    (Size(layers=8, heads=4), [2, 4, 5])
    """
    questions = tuple(load_questions(config))
    given = config.decoding
    room = given.max_new_tokens
    if room is None:
        lengths = [each.length for each in questions if each.length is not None]
        room = tokens_needed(lengths) if lengths else 512
    decoding = Decoding(room, given.batch_size, given.temperature, given.top_p, given.samples)
    return Plan(config, *_model(config), device, questions, decoding)


def load_questions(config: SweepConfig) -> list[Question]:
    """The problems; those of like length are neighbours, which makes for little padding."""
    given = config.problems
    if given.file is not None:
        found = read_questions(config.folder / given.file, given.count, graded=True)
    else:
        split = given.split or ("validation" if config.grid.shape == "forward-selection" else "test")
        found = task_questions(split, given.length, given.count or 100, given.start)
    return sorted(found, key=lambda each: (each.length or 0, len(str(each.prompt))))


def _model(config: SweepConfig) -> tuple[str | None, str, int, Size]:
    """Where the model is, a hash of what it is, its bytes in float32, its size."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    name = config.model.name
    path = (
        None
        if name == "bundled"
        else str((config.folder / name).resolve())
        if (config.folder / name).is_dir()
        else name
    )
    source = Path(BUNDLED if path is None else path)
    try:
        found: Any = AutoConfig.from_pretrained(str(source) if source.is_dir() else name)
        with torch.device("meta"):
            count = sum(each.numel() for each in AutoModelForCausalLM.from_config(found).parameters())
    except (OSError, ValueError) as error:
        raise FileError(
            f"cannot read the model {name!r}: {error}. Give 'bundled', a Hugging Face model directory or a hub id."
        ) from error
    text = found.get_text_config()
    size = Size(int(text.num_hidden_layers), int(text.num_attention_heads))
    fingerprint = _fingerprint(source) if source.is_dir() else str(getattr(found, "_commit_hash", None) or name)
    return path, fingerprint, 4 * count, size


def _fingerprint(folder: Path) -> str:
    """Names, sizes, and the first and last MiB of each file: enough to notice other weights, quick for large ones."""
    digest = hashlib.sha256()
    kinds = ("*.json", "*.jinja", "tokenizer.model", "*.safetensors", "*.bin")
    for path in [path for kind in kinds for path in sorted(folder.glob(kind))]:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_PEEK))
            if path.stat().st_size > _PEEK:
                file.seek(-_PEEK, 2)
                digest.update(file.read())
    return digest.hexdigest()
