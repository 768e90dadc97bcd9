"""What a sweep is to do, read from a TOML file or a dictionary and checked: `docs/sweeps.md` explains every key.

In: `[model]`, `[problems]`, `[decoding]` and `[grid]`, each with defaults. Out: frozen objects. A key that is not known is an
error that names the nearest one; so is a value of the wrong type or out of range.
"""

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stepsal.errors import FileError, InputError
from stepsal.reasoner.problems import DEFAULT_LENGTH, SPLITS
from stepsal.traces.formats import FORMATS, STEP_RULES

SHAPES = ("product", "one-at-a-time", "forward-selection")
VARIED = ("parts", "layers", "heads", "tau_max", "alpha", "window", "scope", "control_seed")
"""The keys of `[grid]` that may have several values, and of `[grid.centre]`."""


@dataclass(frozen=True)
class ModelConfig:
    """`name`: `bundled`, a hub id or a folder. `threads`: of torch on the CPU, for each worker."""

    name: str = "bundled"
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class ProblemsConfig:
    """Problems of the bundled task, `count` of each length from index `start` on; or those of a JSONL `file`.

    The split is `test` unless given, for forward selection `validation`.
    """

    split: str | None = None
    length: tuple[int, ...] = (DEFAULT_LENGTH,)
    count: int | None = None
    start: int = 0
    file: str | None = None


@dataclass(frozen=True)
class DecodingConfig:
    """As in `stepsal.generate`; `seeds` are several. `max_new_tokens`: by default 512, for the bundled task what it needs."""

    max_new_tokens: int | None = None
    batch_size: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seeds: tuple[int, ...] = (0,)
    format: str = "auto"
    steps: str = "auto"


@dataclass(frozen=True)
class GridConfig:
    """The settings: what is varied, and how (`stepsal.sweeps.settings`)."""

    shape: str = "product"
    parts: tuple[str, ...] = ("oeb", "smi", "both")
    layers: tuple[Any, ...] = ("default",)
    heads: tuple[Any, ...] = ("all",)
    tau_max: tuple[float, ...] = (0.15,)
    alpha: tuple[float, ...] = (0.06,)
    window: tuple[int | None, ...] = (None,)
    scope: tuple[str, ...] = ("segment",)
    control_seed: tuple[int, ...] = (0,)
    centre: dict[str, Any] = field(default_factory=dict)
    k: int = 4
    comparison: str | None = None
    maps: str | None = None
    given: tuple[str, ...] = ()  # which of VARIED were written down: what one-at-a-time varies


@dataclass(frozen=True)
class SweepConfig:
    """A whole configuration. Paths in it are relative to `folder`."""

    model: ModelConfig = ModelConfig()
    problems: ProblemsConfig = ProblemsConfig()
    decoding: DecodingConfig = DecodingConfig()
    grid: GridConfig = field(default_factory=GridConfig)
    folder: Path = Path()

    def record(self) -> dict[str, Any]:
        """The configuration as plain data, without the folder and without which keys were written down."""
        tables = {name: asdict(getattr(self, name)) for name in _TABLES}
        del tables["grid"]["given"]
        return tables


def read_config(given: "str | Path | Mapping[str, Any] | SweepConfig") -> SweepConfig:
    """A configuration from a TOML file, or from a dictionary that says the same.

    Raises:
        FileError: the file cannot be read, or is no TOML.
        InputError: an unknown key, or a value that cannot be used.

    >>> read_config({"problems": {"count": 10}, "grid": {"parts": "oeb", "tau_max": [0.1, 0.2]}}).grid.tau_max
    (0.1, 0.2)
    """
    if isinstance(given, SweepConfig):
        return given
    folder = Path()
    if not isinstance(given, Mapping):
        folder, path = Path(given).parent, Path(given)
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot read {path}: {error}. Give a TOML file that you may read.") from error
        except tomllib.TOMLDecodeError as error:
            raise FileError(f"{path} is no TOML: {error}") from error
    _known("a sweep", given, _TABLES)
    tables = {name: _read(name, given.get(name, {}), *_TABLES[name]) for name in _TABLES}
    config = SweepConfig(**tables, folder=folder)
    _agree(config, given)
    return config


def _read(name: str, given: Any, kind: type, checks: Mapping[str, "Check"]) -> Any:
    if not isinstance(given, Mapping):
        raise InputError(f"{name}={given!r} must be a table, [{name}]")
    _known(f"[{name}]", given, checks)
    values = {key: checks[key](f"[{name}] {key}", value) for key, value in given.items()}
    if kind is GridConfig:
        values["given"] = tuple(key for key in VARIED if key in given)
    return kind(**values)


def _known(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{where} has no key {key!r}: {hint}It knows {', '.join(known)}.")


def _agree(config: SweepConfig, given: Mapping[str, Any]) -> None:
    """What only several keys together say."""
    problems, decoding, grid = config.problems, config.decoding, config.grid
    task = [key for key in ("split", "length", "start") if key in given.get("problems", {})]
    if problems.file is not None and task:
        raise InputError(
            f"[problems] has file={problems.file!r} and {task[0]!r}, of the bundled task: drop one of them"
        )
    if decoding.temperature == 0 and len(decoding.seeds) > 1:
        raise InputError(
            f"[decoding] seeds={list(decoding.seeds)} at temperature=0 would all be alike: give a temperature, such as 0.6"
        )
    if grid.centre and grid.shape != "one-at-a-time":
        raise InputError(f"[grid.centre] does nothing with shape={grid.shape!r}: give shape='one-at-a-time'")
    forward = grid.shape == "forward-selection"
    if forward and problems.split == "test":
        raise InputError(
            "[problems] split='test' with forward selection would choose heads on the problems that are to judge them: give "
            "split='validation'"
        )
    if forward and grid.heads != ("all",):
        raise InputError(
            f"[grid] heads={list(grid.heads)}: forward selection chooses among all heads of the layers: leave heads out"
        )
    if "k" in given.get("grid", {}) and not forward:
        raise InputError(f"[grid] k={grid.k} does nothing with shape={grid.shape!r}: it is of 'forward-selection'")
    layers = [*grid.layers, grid.centre.get("layers")]
    if grid.comparison is not None and "chosen" not in layers:
        raise InputError(f"[grid] comparison={grid.comparison!r} does nothing: it is for layers='chosen'")
    heads = [*grid.heads, grid.centre.get("heads")]
    if grid.maps is not None and not any(isinstance(each, str) and ":" in each for each in heads):
        raise InputError(f"[grid] maps={grid.maps!r} does nothing: it is for heads such as 'top-4:lock_in'")


# --- values: (where, value) -> the value, or an InputError --------------------------------------------------------
Check = Callable[[str, Any], Any]


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}={value!r} must be a text in quotes")
    return value


def _one_of(*known: str) -> Check:
    def check(where: str, value: Any) -> str:
        if value not in known:
            near = difflib.get_close_matches(str(value), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{where}={value!r} is unknown: expected one of {', '.join(map(repr, known))}.{hint}")
        return str(value)

    return check


def _whole(least: int) -> Check:
    def check(where: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{where}={value!r} must be a whole number, at least {least}")
        return value

    return check


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}={value!r} must be a number")
    return float(value)


def _window(where: str, value: Any) -> int | None:
    if value is None or value == "step":
        return None
    return _whole(1)(f"{where} (the whole previous step is 'step')", value)


def _place(where: str, value: Any) -> Any:
    """Layers or heads: a name, an index, or several indices; which names there are, `sweep_settings` knows."""
    if isinstance(value, str):
        return _text(where, value)
    if isinstance(value, Sequence):
        if not value:
            raise InputError(f"{where} has an empty list: name at least one index")
        return tuple(_index(where, each) for each in value)
    return (_index(where, value),)


def _index(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where} has {value!r}: expected a name, an index or a list of indices")
    return value


def _many(check: Check) -> Check:
    """One value or a list of them, none twice."""

    def read(where: str, value: Any) -> tuple[Any, ...]:
        given = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if not given:
            raise InputError(f"{where}=[] must have at least one value")
        return tuple(dict.fromkeys(check(where, each) for each in given))

    return read


PARTS = ("none", "oeb", "smi", "both", "random-bridge", "random-momentum", "noise-momentum", "both-controls")
_VALUES: dict[str, Check] = {
    "parts": _one_of(*PARTS),
    "layers": _place,
    "heads": _place,
    "tau_max": _number,
    "alpha": _number,
    "window": _window,
    "scope": _one_of("segment", "step"),
    "control_seed": _whole(0),
}


def _centre(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}={value!r} must be a table, [grid.centre]")
    _known("[grid.centre]", value, _VALUES)
    return {key: _VALUES[key](f"[grid.centre] {key}", each) for key, each in value.items()}


_TABLES: dict[str, tuple[type, dict[str, Check]]] = {
    "model": (ModelConfig, {"name": _text, "device": _text, "dtype": _text, "threads": _whole(1)}),
    "problems": (
        ProblemsConfig,
        {
            "split": _one_of(*SPLITS),
            "length": _many(_whole(2)),
            "count": _whole(1),
            "start": _whole(0),
            "file": _text,
        },
    ),
    "decoding": (
        DecodingConfig,
        {
            "max_new_tokens": _whole(1),
            "batch_size": _whole(1),
            "temperature": _number,
            "top_p": _number,
            "samples": _whole(1),
            "seeds": _many(_whole(0)),
            "format": _one_of("auto", *FORMATS),
            "steps": _one_of("auto", *STEP_RULES),
        },
    ),
    "grid": (
        GridConfig,
        {"shape": _one_of(*SHAPES)}
        | {key: _many(check) for key, check in _VALUES.items()}
        | {"centre": _centre, "k": _whole(1), "comparison": _text, "maps": _text},
    ),
}
