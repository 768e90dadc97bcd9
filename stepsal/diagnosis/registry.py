"""The metrics by name: what each is called in tables and pictures, and how it is computed.

In: functions from a `StepMap` to a value per layer and head, under the decorator `metric`. Out: `METRICS`, in which everything
that shows or takes a metric looks it up: diagnoses, comparisons, pictures, reports, `top-K:METRIC` in sweeps. The built-in
ones are in `stepsal.diagnosis.metrics`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from stepsal.errors import InputError
from stepsal.saliency.stepmap import StepMap

Function = Callable[[StepMap], Float[Tensor, "layer head"]]
_Function = TypeVar("_Function", bound=Function)

DECAYS = {"decay_slope": "decay: slope of log share", "decay_ratio": "decay: deep / middle share"}
"""What a trace has one of, over all layers, with its label."""
_OTHER_COLUMNS = ("layer", "head", "steps", "tokens")  # of the tables that have a metric in each other column


@dataclass(frozen=True)
class Metric:
    """A statistic of a step map that has a value per layer and head. Called with a map, it gives `layer head`.

    Attributes:
        name: what it is known by in code, files and options.
        label: what it is called in tables and pictures.
        function: how it is computed.
        reference: a value worth a dashed line in pictures.
    """

    name: str
    label: str
    function: Function
    reference: float | None = None

    @property
    def built_in(self) -> bool:
        """Whether stepsal itself defines it."""
        return self.function.__module__.partition(".")[0] == "stepsal"

    def __call__(self, stepmap: StepMap) -> Float[Tensor, "layer head"]:
        """The metric of a map. Raises `InputError` where the function returns anything but floats, `layer head`."""
        values: Any = self.function(stepmap)
        expected = tuple(stepmap.mass.shape[:2])
        if not isinstance(values, Tensor):
            returned = f"a {type(values).__name__}"
        elif tuple(values.shape) != expected:
            returned = f"a tensor of shape {tuple(values.shape)}"
        elif not values.is_floating_point():
            returned = f"a tensor of {values.dtype}"
        else:
            return values.detach()
        raise InputError(
            f"metric {self.name!r} returned {returned}: expected a tensor of floats of shape (layer, head), here {expected}. "
            "Return a value for each layer and head, NaN where the trace has none."
        )


METRICS: dict[str, Metric] = {}
"""Every metric by name, the built-in ones first."""


def metric(*, label: str, reference: float | None = None) -> Callable[[_Function], _Function]:
    """Make a function from a step map to a value per layer and head known as a metric, under the function's own name.

    From then on `diagnose` and `compare` compute it, tables and reports show it after the built-in metrics, pictures take its
    name, and a sweep can choose heads by it (`top-4:NAME`). Running the same definition again, as a notebook does, replaces it.

    Args:
        label: what the metric is called in tables and pictures.
        reference: a value of the metric worth a dashed line in pictures.

    Raises:
        InputError: an empty label, or one of several lines; a function without a name of its own (a lambda); a name that is
            taken. A function that returns another shape is refused when it is used.

    >>> import torch
    >>> from stepsal import Step, StepMap, diagnose, metric
    >>> @metric(label="largest share")
    ... def largest_share(stepmap):
    ...     return stepmap.share()[:, :, -1].amax(-1)  # in the last step's row
    >>> steps = (Step(0, "question", 0, 2, "2+2"), Step(1, "summary", 2, 4, "= 4"))
    >>> stepmap = StepMap(torch.ones(8, 3, 2, 2).tril(), torch.tensor([[3, 0], [2, 1]]), steps, tuple(range(8)), {})
    >>> diagnose(stepmap).table["largest_share"].tolist()[:2]
    [0.5, 0.5]
    >>> _ = METRICS.pop("largest_share")  # and it is gone
    """

    def register(function: _Function) -> _Function:
        name = getattr(function, "__name__", None)
        if not callable(function) or name is None or not name.isidentifier():
            raise InputError(
                f"{function!r} cannot be a metric: its name {name!r} must be an identifier. Decorate a function that is "
                "defined with `def`."
            )
        if name in (*DECAYS, *_OTHER_COLUMNS):
            raise InputError(
                f"a metric cannot be named {name!r}: tables have a column of that name already. Rename it."
            )
        known = METRICS.get(name)
        if known is not None and _origin(known.function) != _origin(function):
            raise InputError(
                f"there is a metric {name!r} already ({known.label!r}, of the module {known.function.__module__}): give yours "
                "another name"
            )
        METRICS[name] = Metric(name, label, function, reference)
        return function

    if not isinstance(label, str) or not label.strip() or len(label.splitlines()) > 1:
        raise InputError(f"label={label!r} must be one line of text: what the metric is called in tables and pictures")
    return register


def shown_metrics(*names: str) -> tuple[str, ...]:
    """The names given, of built-in metrics, and then those of all metrics that users have defined: what a display shows."""
    return (*names, *(name for name, each in METRICS.items() if not each.built_in))


class _Labels(Mapping[str, str]):
    """The labels of all metrics and decays by name, as they are at the moment of asking."""

    def __getitem__(self, name: str) -> str:
        return METRICS[name].label if name in METRICS else DECAYS[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*METRICS, *DECAYS))

    def __len__(self) -> int:
        return len(METRICS) + len(DECAYS)


LABELS = _Labels()
"""What metrics are called in tables and pictures, by name."""


def _origin(function: Function) -> tuple[str, str]:
    """Where a function is defined: the same for a definition that is run again."""
    return function.__module__, getattr(function, "__qualname__", "")
