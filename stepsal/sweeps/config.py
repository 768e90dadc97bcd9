"""What a sweep is to do, read from a TOML file or a dictionary and checked: `docs/sweeps.md` explains every key.

In: `[model]`, `[problems]`, `[decoding]`, `[grid]` and `[[settings]]`, each with defaults. Out: frozen objects. All that is
wrong is said at once: a key that is not known with the nearest one, a value of the wrong type or out of range with what was
expected.

Which keys `[grid]` knows depends on which interventions are defined: each of their options is one.
"""

import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stepsal.errors import FileError, InputError
from stepsal.generation.grading import DEFAULT, GRADERS, TASK
from stepsal.generation.gym import INSTRUCTION, SIZE
from stepsal.interventions.base import Intervention
from stepsal.models.hosts import HOSTS
from stepsal.reasoner.problems import DEFAULT_LENGTH, SPLITS
from stepsal.sweeps.settings import kind_classes, options_by_key
from stepsal.traces.formats import FORMATS, STEP_RULES

OF_A_TASK = ("task", "size", "seed", "options", "instruction")
"""The keys of `[problems]` for a task of reasoning-gym."""
SHAPES = ("product", "one-at-a-time", "forward-selection")


# --- types of values --------------------------------------------------------------------------------------------------
def _one_of(known: Callable[[], Sequence[str]]) -> AfterValidator:
    """One of the names that are known when the configuration is read."""

    def check(value: str) -> str:
        names = known()
        if value not in names:
            near = difflib.get_close_matches(value, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"is unknown: expected one of {', '.join(map(repr, names))}.{hint}")
        return value

    return AfterValidator(check)


def _several(value: Any) -> Any:
    """One value or a list of them, as a tuple."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _none_twice(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("must have at least one value")
    return tuple(dict.fromkeys(values))


def _kind(value: str) -> str:
    try:
        kind_classes(value)
    except InputError as error:
        raise ValueError(f"cannot be used: {error}") from error
    return value


def _choice(value: Any) -> Any:
    """Layers or heads: a name, an index, or several indices; which names there are, `layers_and_heads` knows."""
    if isinstance(value, str) and value:
        return value
    indices = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not indices:
        raise ValueError("has an empty list: name at least one index")
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(f"has {index!r}: expected a name, an index or a list of indices")
    return indices


Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Choice = Annotated[Any, BeforeValidator(_choice)]
_MANY = (BeforeValidator(_several), AfterValidator(_none_twice))


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(_Table):
    """`name`: `bundled`, a hub id, a folder or a GGUF file. `threads`: of torch on the CPU, for each worker. The rest is as in
    `load_model`."""

    name: Text = "bundled"
    device: Text = "auto"
    dtype: Text = "auto"
    host: Annotated[str, _one_of(lambda: HOSTS)] = HOSTS[0]
    quantization: Annotated[str, _one_of(lambda: ("4bit", "8bit"))] | None = None
    threads: Positive = 1

    @property
    def record(self) -> dict[str, Any]:
        """The table as plain data, without `quantization` where there is none: sweeps begun before there was any go on."""
        return self.model_dump(exclude={"quantization"} if self.quantization is None else None)


class ProblemsConfig(_Table):
    """Problems of the bundled task, `count` of each length from index `start` on; or those of a JSONL `file`; or `size` of a
    `task` of reasoning-gym, from a `seed`, with its own `options` and an `instruction` after each.

    The split is `test` unless written down, for forward selection `validation`. `grader`: of a `file`, by default `math`; of a
    `task`, by default its own.
    """

    split: Annotated[str, _one_of(lambda: SPLITS)] | None = None
    length: Annotated[tuple[Annotated[int, Field(ge=2)], ...], *_MANY] = (DEFAULT_LENGTH,)
    count: Positive | None = None
    start: Natural = 0
    file: Text | None = None
    task: Text | None = None
    size: Positive = SIZE
    seed: Natural = 0
    options: dict[str, Any] = Field(default_factory=dict)
    instruction: str = INSTRUCTION
    grader: Annotated[str, _one_of(lambda: (*GRADERS, TASK))] | None = None

    @property
    def graded_by(self) -> str:
        """The name of the grader (`stepsal.generation.grading`)."""
        return self.grader or (TASK if self.file is None else DEFAULT)

    @property
    def graded_before(self) -> str:
        """Who graded where nothing says so: in sweeps of versions without `grader`."""
        return TASK if self.file is None else "exact"

    @property
    def record(self) -> dict[str, Any]:
        """The table as plain data, without the keys of a task of reasoning-gym where there is none."""
        return self.model_dump(exclude=None if self.task else set(OF_A_TASK)) | {"grader": self.graded_by}


class DecodingConfig(_Table):
    """As in `stepsal.generate`; `seeds` are several. `max_new_tokens`: by default 512, for the bundled task what it needs."""

    max_new_tokens: Positive | None = None
    batch_size: Positive = 32
    temperature: float = 0.0
    top_p: float = 1.0
    samples: Positive = 1
    seeds: Annotated[tuple[Natural, ...], *_MANY] = (0,)
    format: Annotated[str, _one_of(lambda: ("auto", *FORMATS))] = "auto"
    steps: Annotated[str, _one_of(lambda: ("auto", *STEP_RULES))] = "auto"


class GridConfig(_Table):
    """The settings: what is varied, and how (`stepsal.sweeps.grid`).

    options: for the options of interventions, by the keys of `options_by_key`, the values that are written down.
    """

    shape: Annotated[str, _one_of(lambda: SHAPES)] = "product"
    parts: Annotated[tuple[Annotated[str, AfterValidator(_kind)], ...], *_MANY] = ("oeb", "smi", "both")
    layers: Annotated[tuple[Choice, ...], *_MANY] = ("default",)
    heads: Annotated[tuple[Choice, ...], *_MANY] = ("all",)
    options: dict[str, Annotated[tuple[Any, ...], *_MANY]] = Field(default_factory=dict)
    centre: dict[str, Any] = Field(default_factory=dict)
    k: Positive = 4
    comparison: Text | None = None
    maps: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        """Options of interventions stand beside the other keys; here they are put together."""
        if not isinstance(given, Mapping):
            return given
        known = options_by_key()
        if "options" in given:
            raise ValueError(_unknown_key("[grid]", "options", ("shape", "parts", "layers", "heads", *known)))
        rest = {key: value for key, value in given.items() if key not in known}
        options = {
            key: tuple(_read_option(key, value) for value in _several(given[key])) for key in known if key in given
        }
        return rest | {"options": options}

    @model_validator(mode="before")
    @classmethod
    def _read_centre(cls, given: Any) -> Any:
        centre = given.get("centre") if isinstance(given, Mapping) else None
        if not isinstance(centre, Mapping):
            return given
        known = ("parts", "layers", "heads", *options_by_key())
        checks: dict[str, Callable[[Any], Any]] = {"parts": _kind, "layers": _choice, "heads": _choice}
        read = {}
        for key, value in centre.items():
            if key not in known:
                raise ValueError(_unknown_key("[grid.centre]", key, known))
            read[key] = checks[key](value) if key in checks else _read_option(key, value)
        return {**given, "centre": read}

    @property
    def written(self) -> tuple[str, ...]:
        """The varied keys that were written down, in order: what one-at-a-time varies."""
        return tuple(key for key in self.values() if key in self.options or key in self.model_fields_set)

    def values(self) -> dict[str, tuple[Any, ...]]:
        """The values of every varied key: interventions, layers, heads, and the options that were written down.

        An option that was not written down has the default of the intervention's class, which classes need not share.
        """
        return {"parts": self.parts, "layers": self.layers, "heads": self.heads, **self.options}

    def record(self) -> dict[str, Any]:
        """The grid as plain data, with the defaults of its own keys and of the options of the built-in interventions."""
        rest = {name: getattr(self, name) for name in ("centre", "k", "comparison", "maps")}
        defaults = {
            key: (option.default,)
            for key, owners in options_by_key().items()
            for kind, option in owners
            if kind.built_in() and not option.required
        }
        return {"shape": self.shape, **defaults, **self.values(), **rest}


class SettingConfig(_Table):
    """A setting that is written out: its interventions, each with its `name`, its `layers` and its options."""

    interventions: tuple[dict[str, Any], ...]

    @model_validator(mode="before")
    @classmethod
    def _as_tuple(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("interventions"), Sequence):
            return {**given, "interventions": tuple(given["interventions"])}
        return given

    @model_validator(mode="after")
    def _can_be_made(self) -> "SettingConfig":
        try:
            self.made()
        except InputError as error:
            raise ValueError(str(error)) from error
        return self

    @classmethod
    def of(cls, interventions: Sequence[Intervention]) -> "SettingConfig":
        """The configuration that makes these interventions.

        >>> from stepsal import StepMomentum
        >>> SettingConfig.of([StepMomentum(layers=(7,))]).interventions[0]["window"]
        'step'
        """
        written = []
        for each in interventions:
            heads: Any = each.heads
            table: dict[str, Any] = {"name": each.name, "layers": each.layers}
            table["heads"] = "all" if heads is None else dict(heads) if heads and isinstance(heads[0], tuple) else heads
            for field, option in each.options().items():
                value = getattr(each, field)
                table[option.key] = option.none.split()[-1] if value is None and option.none else value
            written.append(table)
        return cls(interventions=tuple(written))

    def made(self) -> tuple[Intervention, ...]:
        """The interventions. Raises `InputError` for what cannot be one."""
        return tuple(map(_make, self.interventions))


class SweepConfig(_Table):
    """A whole configuration. Paths in it are relative to `folder`."""

    model: ModelConfig = ModelConfig()
    problems: ProblemsConfig = ProblemsConfig()
    decoding: DecodingConfig = DecodingConfig()
    grid: GridConfig = Field(default_factory=GridConfig)
    settings: tuple[SettingConfig, ...] = ()
    folder: Path = Path()

    @model_validator(mode="before")
    @classmethod
    def _only_settings(cls, given: Any) -> Any:
        """Settings that are written out stand alone where there is no grid."""
        if isinstance(given, Mapping) and given.get("settings"):
            return {"grid": {"parts": "none"}, **given, "settings": tuple(given["settings"])}
        return given

    @model_validator(mode="after")
    def _agree(self) -> "SweepConfig":
        if problems := [reason for reason, holds in _contradictions(self) if holds]:
            raise ValueError("\n".join(problems))
        return self

    def record(self) -> dict[str, Any]:
        """The configuration as plain data, without the folder and without which keys were written down."""
        tables: dict[str, Any] = {"model": self.model.record, "decoding": self.decoding.model_dump()}
        tables["problems"] = self.problems.record
        tables["grid"] = self.grid.record()
        if self.settings:
            tables["settings"] = [each.model_dump() for each in self.settings]
        return tables


def read_config(given: "str | Path | Mapping[str, Any] | SweepConfig") -> SweepConfig:
    """A configuration from a TOML file, or from a dictionary that says the same.

    Raises:
        FileError: the file cannot be read, or is no TOML.
        InputError: an unknown key, or a value that cannot be used; all of them at once.

    >>> read_config({"problems": {"count": 10}, "grid": {"parts": "oeb", "tau_max": [0.1, 0.2]}}).grid.options["tau_max"]
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
    if "folder" in given:
        raise InputError(_unknown_key("a sweep", "folder", _TABLES))
    try:
        return SweepConfig.model_validate({**given, "folder": folder})
    except ValidationError as error:
        raise InputError("\n".join(dict.fromkeys(map(_message, error.errors())))) from error


_TABLES = ("model", "problems", "decoding", "grid", "settings")


def _contradictions(config: SweepConfig) -> list[tuple[str, bool]]:
    """Contradictions between keys: pairs of the message and whether this configuration has the fault."""
    problems, decoding, grid = config.problems, config.decoding, config.grid
    forward = grid.shape == "forward-selection"
    layers = [*grid.layers, grid.centre.get("layers")]
    heads = [*grid.heads, grid.centre.get("heads")]
    return [
        *_of_problems(problems),
        (
            f"[decoding] seeds={list(decoding.seeds)} at temperature=0 would all be alike: give a temperature, such as 0.6",
            decoding.temperature == 0 and len(decoding.seeds) > 1,
        ),
        (
            f"[grid.centre] does nothing with shape={grid.shape!r}: give shape='one-at-a-time'",
            bool(grid.centre) and grid.shape != "one-at-a-time",
        ),
        (
            "[problems] split='test' with forward selection would choose heads on the problems that are to judge them: give "
            "split='validation'",
            forward and problems.split == "test",
        ),
        (
            f"[grid] heads={list(grid.heads)}: forward selection chooses among all heads of the layers: leave heads out",
            forward and grid.heads != ("all",),
        ),
        (
            f"[grid] k={grid.k} does nothing with shape={grid.shape!r}: it is of 'forward-selection'",
            "k" in grid.model_fields_set and not forward,
        ),
        (
            f"[grid] comparison={grid.comparison!r} does nothing: it is for layers='chosen'",
            grid.comparison is not None and "chosen" not in layers,
        ),
        (
            f"[grid] maps={grid.maps!r} does nothing: it is for heads such as 'top-4:lock_in'",
            grid.maps is not None and not any(isinstance(each, str) and ":" in each for each in heads),
        ),
        (
            "[[settings]] with forward selection: run the settings in a sweep of their own",
            forward and bool(config.settings),
        ),
    ]


def _of_problems(problems: ProblemsConfig) -> list[tuple[str, bool]]:
    """Contradictions between the keys of `[problems]` alone."""
    written = problems.model_fields_set
    bundled = [key for key in ("split", "length", "start", "count") if key in written]
    of_bundled = [key for key in bundled if key != "count"]
    of_task = [key for key in OF_A_TASK if key in written]
    return [
        (
            f"[problems] has file={problems.file!r} and {''.join(of_bundled[:1])!r}, of the bundled task: drop one of them",
            problems.file is not None and bool(of_bundled),
        ),
        (
            f"[problems] has file={problems.file!r} and {''.join(of_task[:1])!r}, of a task: drop one of them",
            problems.file is not None and bool(of_task),
        ),
        (
            f"[problems] has task={problems.task!r} and {''.join(bundled[:1])!r}, of the bundled task: drop one of them (a "
            "task's number of problems is its 'size')",
            problems.task is not None and bool(bundled),
        ),
        (
            f"[problems] {''.join(of_task[:1])!r} does nothing without a 'task': name one, such as 'gsm_symbolic'",
            problems.task is None and problems.file is None and bool(of_task),
        ),
        (
            f"[problems] grader={problems.grader!r} is for other problems: the bundled task has its own rule; drop it",
            problems.grader is not None and problems.file is None and problems.task is None,
        ),
        (
            f"[problems] grader={TASK!r} is for problems of a task: drop it",
            problems.grader == TASK and problems.file is not None,
        ),
    ]


def _read_option(key: str, value: Any) -> Any:
    """The value of an option of interventions, of the type of its default."""
    (_, option), *_ = options_by_key()[key]
    read = option.read(value)
    wanted = type(option.default)
    if wanted is float and isinstance(read, int) and not isinstance(read, bool):
        return float(read)
    kinds = {float: "a number", int: "a whole number", str: "a text in quotes", bool: "true or false"}
    if (
        wanted in kinds
        and not option.required
        and (not isinstance(read, wanted) or (wanted is int and isinstance(read, bool)))
    ):
        raise ValueError(f"[grid] {key}={value!r} must be {kinds[wanted]}")
    return read


def _make(given: Mapping[str, Any]) -> Intervention:
    """An intervention that is written out as a table."""
    name = given.get("name")
    if not isinstance(name, str) or len(kind_classes(name)) != 1:
        raise InputError(f"[[settings]] has the intervention {dict(given)!r}: give it a 'name', such as 'oeb'")
    (kind,) = kind_classes(name)
    fields = {option.key: field for field, option in kind.options().items()} | {"layers": "layers", "heads": "heads"}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key == "name":
            continue
        if key not in fields:
            raise InputError(_unknown_key(f"[[settings]] {name}", key, ("name", *fields)))
        values[fields[key]] = value if key in ("layers", "heads") else kind.options()[fields[key]].read(value)
    if values.get("heads") == "all":
        values["heads"] = None
    known: Any = kind
    try:
        made: Intervention = known(**values)
    except TypeError as error:
        raise InputError(f"[[settings]] {name}: {error}") from error
    return made


def _unknown_key(where: str, key: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{where} has no key {key!r}: {hint}It knows {', '.join(known)}."


def _message(error: Any) -> str:
    """One of pydantic's errors in our words: where, which value, what was expected."""
    kind, where = error["type"], [str(each) for each in error["loc"]]
    table = f"[{where[0]}]" if len(where) > 1 else ""
    if kind == "extra_forbidden":
        known: Sequence[str] = _TABLES
        if table:
            model = SweepConfig.model_fields[where[0]].annotation
            fields = getattr(model, "model_fields", SettingConfig.model_fields)
            known = [name for name in fields if name != "options"]
            known = [*known, *options_by_key()] if where[0] == "grid" else known
        return _unknown_key(table or "a sweep", where[-1], known)
    if kind in ("model_type", "model_attributes_type"):
        return f"{where[0]}={error['input']!r} must be a table, [{where[0]}]"
    if kind == "value_error" and (len(where) < 2 or str(error["ctx"]["error"]).startswith("[")):
        return str(error["ctx"]["error"])
    names = [each for each in where[1:] if not each.isdigit() and each not in ("options",)]
    said = f"{table} {names[0] if names else where[-1]}={error['input']!r}"
    least = error.get("ctx", {}).get("ge")
    expected = {
        "int_type": "must be a whole number",
        "float_type": "must be a number",
        "string_type": "must be a text in quotes",
        "string_too_short": "must be a text in quotes",
        "greater_than_equal": f"must be a whole number, at least {least}",
        "value_error": str(error.get("ctx", {}).get("error", "")),
    }.get(kind, f"cannot be used: {error['msg']}")
    return f"{said} {expected}"
