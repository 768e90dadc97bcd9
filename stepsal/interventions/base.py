"""What an intervention is: frozen parameters, a name, and what it does to attention patterns or head outputs.

An intervention is one frozen dataclass that derives from `Intervention`. Defining it registers it: `intervene`, `generate`,
sweeps, the command line, ablation tables and figures know it from then on by its `name`.

    @dataclass(frozen=True)
    class Recall(stepsal.Intervention):
        name: ClassVar[str] = "recall"          # in configurations and on the command line
        label: ClassVar[str] = "recall"         # in tables and figures
        strength: ClassVar[str] = "factor"      # the field that says how strong it is ...
        neutral: ClassVar[float] = 1.0          # ... and the value at which it does nothing
        layers: LayerSpec = "all"
        heads: HeadSpec = None
        factor: float = 2.0

        def edit_pattern(self, pattern, at):    # batch head query key
            raised = torch.where(at.queries_in("thinking") & at.keys_in("question"), pattern * self.factor, pattern)
            return raised * pattern.sum(-1, keepdim=True) / raised.sum(-1, keepdim=True)

Parameters never change. What an intervention must remember while a model reads on lives in an object that `at.memory` keeps.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from stepsal.checks import kind_of, shown
from stepsal.errors import InputError
from stepsal.interventions.heads import HeadsByLayer, HeadSpec, freeze_heads, freeze_layers, resolve_heads
from stepsal.interventions.layer_pass import LayerPass
from stepsal.models.layer_choice import LayerSpec

INTERVENTIONS: dict[str, "type[Intervention]"] = {}
"""Every intervention that is defined, by its name, in the order of definition."""

RESERVED_NAMES = (
    *("none", "both", "both-controls", "layers", "heads", "help", "seed", "out", "model", "problems", "max-new-tokens"),
    *("batch-size", "temperature", "top-p", "samples", "format", "steps", "device", "device-map", "dtype", "plugin"),
    *(
        "chat",
        "grader",
        "load-in-4bit",
        "load-in-8bit",
        "host",
        "task",
        "size",
        "task-seed",
        "task-option",
        "instruction",
        "threads",
        "quiet",
        "engine",
        "workers",
        "address",
    ),
)
"""What configurations and the command line call something else."""
RESERVED_OPTIONS = (
    *("name", "part", "parts", "shape", "centre", "k", "comparison", "maps", "options", "id", "setting", "label"),
    *("control", "n", "accuracy", "accuracy_low", "accuracy_high", "difference", "low", "high", "gained", "lost"),
    *("p", "p_corrected", "tokens", "seconds"),
)
"""What the keys of configurations and the columns of tables are called."""


class PatternEdit(NamedTuple):
    """An edited attention pattern and what was done, for the report.

    pattern: the new pattern, in the precision of the old one.
    opportunity: the rows that could have been edited. active: the rows that were.
    measures: for each of the class's `measures` a number per row; the report shows its mean over the opportunities.
    counts: for each of the class's `counts` the rows that count; the report shows how many of the opportunities do.
    """

    pattern: Float[Tensor, "batch head query key"]
    opportunity: Bool[Tensor, "batch _ query"]
    active: Bool[Tensor, "batch head query"]
    measures: Mapping[str, Float[Tensor, "batch head query"]]
    counts: Mapping[str, Bool[Tensor, "batch head query"]] = MappingProxyType({})


class HeadOutputEdit(NamedTuple):
    """Edited head outputs and what was done, for the report.

    outputs: the new head outputs, or None where this pass leaves them as they are.
    opportunities, activations: at how many tokens something could have been done, and was.
    measures: for each of the class's `measures` a number per edited token and head; the report shows its mean over them.
    """

    outputs: Float[Tensor, "batch pos head d_head"] | None
    opportunities: int
    activations: int
    measures: Mapping[str, Float[Tensor, "event head"]]


def option(default: Any = MISSING, *, symbol: str = "", key: str = "", none: str = "") -> Any:
    """A dataclass field with what configurations, tables and figures call it.

    Args:
        default: the field's default.
        symbol: what tables and figures call the field, where that is not its name (`τ_max`).
        key: what a sweep's configuration calls the field, where that is not its name (`control_seed`).
        none: what the value None is called, in words (`the step`) and by its last word in a configuration (`step`).
    """
    return field(default=default, metadata={"symbol": symbol, "key": key, "none": none})


@dataclass(frozen=True)
class Option:
    """One of the parameters of an intervention besides its layers and heads, as configurations, tables and figures need it."""

    field: str
    key: str
    symbol: str
    none: str
    default: Any

    @classmethod
    def of(cls, field: Field[Any]) -> "Option":
        about = field.metadata
        return cls(
            field.name,
            about.get("key") or field.name,
            about.get("symbol") or field.name,
            about.get("none", ""),
            field.default,
        )

    @property
    def required(self) -> bool:
        """Whether the parameter has no default."""
        return self.default is MISSING

    def read(self, value: Any) -> Any:
        """The parameter's value for a value in a configuration: a list is a tuple, and None may have a name."""
        if self.none and isinstance(value, str) and value == self.none.split()[-1]:
            return None
        return tuple(value) if isinstance(value, list) else value

    def shown(self, value: Any) -> str:
        """The value in words.

        >>> Option("window", "window", "window", "the step", None).shown(None)
        'the step'
        """
        if value is None and self.none:
            return self.none
        return short_number(value) if isinstance(value, float) else str(value)


def short_number(value: float) -> str:
    """The number in as few digits as give it back exactly.

    >>> short_number(0.15), short_number(3.0), short_number(0.12345678)
    ('0.15', '3', '0.12345678')
    """
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


class Intervention:
    """What all interventions have in common. Derive a frozen dataclass from it, with the fields `layers` and `heads`.

    Class attributes:
        name: what configurations and the command line call the intervention. It must be unique.
        label: what tables and figures call it.
        strength: the field that says how strong it is; None where no field does.
        neutral: the strength at which it does nothing at all.
        control_of: for a negative control, the intervention that it controls for.
        measures: the columns of `live.report()` in which it reports, beside opportunities and activations.
        counts: more such columns, for numbers of rows.

    A class overrides `edit_pattern`, `edit_head_outputs` or both. Both must return new tensors and leave what they are given
    alone. Heads that are not chosen stay as they are whatever an edit returns as a plain tensor.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    strength: ClassVar[str | None] = None
    neutral: ClassVar[float] = 0.0
    control_of: ClassVar["type[Intervention] | None"] = None
    measures: ClassVar[tuple[str, ...]] = ()
    counts: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # fields of the dataclasses, whose order and defaults are theirs
        layers: LayerSpec
        heads: HeadSpec

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name, label = cls.__dict__.get("name"), cls.__dict__.get("label")
        if (
            not isinstance(name, str)
            or not name
            or not set(name.lower()) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")
        ):
            raise InputError(
                f"the intervention {cls.__name__} has name={name!r}: give it a name of its own, of letters, digits, - and _, "
                "such as name: ClassVar[str] = 'recall'"
            )
        if not isinstance(label, str) or not label:
            raise InputError(
                f"the intervention {cls.__name__} has label={label!r}: say what tables and figures are to call it"
            )
        if name in RESERVED_NAMES:
            raise InputError(
                f"the intervention {cls.__name__} cannot be called {name!r}, which means something else: rename it"
            )
        for known, other in INTERVENTIONS.items():  # records know a class by its own name, so that is unique, too
            if other.__name__ == cls.__name__ and known != name and not _same_definition(other, cls):
                raise InputError(
                    f"there is a class {cls.__name__} already, in {other.__module__}: choose another name for the class"
                )
        there = INTERVENTIONS.get(name)
        if there is not None and not _same_definition(there, cls):
            raise InputError(
                f"{there.__qualname__} of {there.__module__} is already called {name!r}: choose another name for {cls.__name__}"
            )
        INTERVENTIONS[name] = cls

    def __post_init__(self) -> None:
        """Make layers and heads tuples of Python's integers. Override it to check other fields, and call
        `super().__post_init__()`.
        """
        own: Any = self
        known = {each.name for each in fields(own)} if is_dataclass(own) else set[str]()
        if not {"layers", "heads"} <= known:
            raise InputError(
                f"{type(self).__name__} has the fields {sorted(known)}: an intervention is a frozen dataclass with the fields "
                "`layers` and `heads`, such as layers: LayerSpec = 'all' and heads: HeadSpec = None"
            )
        if reserved := [option.key for option in self.options().values() if option.key in RESERVED_OPTIONS]:
            raise InputError(
                f"{type(self).__name__} has an option {reserved[0]!r}, a name that tables and configurations use: rename it"
            )
        object.__setattr__(self, "layers", freeze_layers(self.layers))
        object.__setattr__(self, "heads", freeze_heads(self.heads))

    # --- what it does ------------------------------------------------------------------------------------------------
    def edit_pattern(
        self, pattern: Float[Tensor, "batch head query key"], at: LayerPass
    ) -> PatternEdit | Tensor | None:
        """The attention pattern as it is to be; None leaves it alone. `at` says what is known of the pass and its text."""
        raise NotImplementedError

    def edit_head_outputs(
        self, outputs: Float[Tensor, "batch pos head d_head"], at: LayerPass
    ) -> HeadOutputEdit | Tensor | None:
        """The head outputs, before the output projection, as they are to be; None leaves them alone. `at.values` are the
        values.
        """
        raise NotImplementedError

    def idle_reason(self) -> str:
        """The reason that a warning gives when this intervention changed nothing although the model answered."""
        return "it changed nothing"

    # --- what it says of itself --------------------------------------------------------------------------------------
    @classmethod
    def options(cls) -> dict[str, Option]:
        """The parameters besides layers and heads, by field, in order."""
        every: Any = cls
        return {each.name: Option.of(each) for each in fields(every) if each.name not in ("layers", "heads")}

    @classmethod
    def built_in(cls) -> bool:
        """Whether stepsal itself defines the class."""
        return cls.__module__.partition(".")[0] == "stepsal"

    @property
    def does_nothing(self) -> bool:
        """Whether its strength is the neutral one."""
        return self.strength is not None and bool(getattr(self, self.strength) == self.neutral)

    @property
    def record(self) -> dict[str, Any]:
        """The intervention as plain data, for results and files; `from_record` is the inverse.

        >>> from stepsal import StepMomentum
        >>> StepMomentum(alpha=0.1).record["part"]
        'StepMomentum'
        """
        own: Any = self
        return {"part": type(self).__name__, **asdict(own)}

    def heads_by_layer(self, n_layers: int, n_heads: int, attention: Collection[int] | None = None) -> HeadsByLayer:
        """The chosen layers of a model, ascending, each with its chosen heads. Raises `InputError` for what the model lacks.

        `attention` names the layers that have attention, where not all of them have.
        """
        return resolve_heads(self.layers, self.heads, n_layers, n_heads, attention)


def _same_definition(one: type[Intervention], other: type[Intervention]) -> bool:
    """Whether two classes are the same definition, run twice, as a notebook's cell may be."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def overrides(intervention: Intervention, method: Callable[..., Any]) -> bool:
    """Whether the intervention's class has its own `edit_pattern` or `edit_head_outputs`."""
    return getattr(type(intervention), method.__name__) is not method


def from_record(record: Mapping[str, Any]) -> Intervention:
    """The intervention that `record` describes, also where it was read from JSON.

    Raises `InputError` for a class that is not defined, or options that the class does not have.

    >>> from stepsal import StepMomentum
    >>> from_record(StepMomentum(layers=(7,), heads={7: (1,)}).record).heads
    ((7, (1,)),)
    """
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    kind = values.pop("part", None)
    found = next((each for each in INTERVENTIONS.values() if each.__name__ == kind), None)
    if found is None:
        raise InputError(
            f"the intervention {kind!r} is not defined here: import the module that defines it, or name that module with "
            f"--plugin. Defined are {', '.join(each.__name__ for each in INTERVENTIONS.values())}."
        )
    if (heads := values.get("heads")) and isinstance(heads[0], list | tuple):
        values["heads"] = {layer: tuple(those) for layer, those in heads}
    try:
        return found(**values)
    except TypeError as error:
        raise InputError(f"{kind} does not take these options ({error}): {sorted(values)}") from error


def as_interventions(given: Any) -> tuple[Intervention, ...]:
    """One or several interventions as a tuple. Raises `InputError` for anything that is not an intervention."""
    if isinstance(given, str) or not isinstance(given, Iterable | Intervention):
        raise InputError(
            f"interventions={shown(given)} is {kind_of(given)}: expected an intervention such as stepsal.OddsEqualBridge(), or "
            "several, such as stepsal.stepflow()"
        )
    several = (given,) if isinstance(given, Intervention) else tuple(given)
    for each in several:
        if not isinstance(each, Intervention):
            raise InputError(
                f"{each!r} is no intervention: expected OddsEqualBridge, StepMomentum, one of their controls, or a class of "
                "your own that derives from stepsal.Intervention"
            )
    return several


# --- checks of fields, for __post_init__ -----------------------------------------------------------------------------
def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise `InputError` unless the value is one of those known."""
    if value not in known:
        raise InputError(f"unknown {name} {value!r}: expected {' or '.join(map(repr, known))}")


def check_seed(seed: object) -> None:
    """Raise `InputError` unless the seed is a whole number, at least 0."""
    if not is_whole(seed) or int(seed) < 0:  # type: ignore[call-overload]
        raise InputError(f"seed={seed!r} must be a whole number, at least 0")


def is_whole(value: object) -> bool:
    """Whether the value is a whole number; True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether the value is a number other than NaN; True and False do not count."""
    return not isinstance(value, bool) and isinstance(value, Real) and not math.isnan(value)
