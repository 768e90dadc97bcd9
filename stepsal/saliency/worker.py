"""A worker that makes what a folder holds of each trace, a step map or a knockout, and writes it.

In: a `TraceJob` (the model and a recipe), then `TraceItem`s: a trace and the path of its file. Out: the files, and what was
warned of. An item without a trace asks what the model is; the answer is what a folder's settings say.
"""

from dataclasses import asdict, fields, replace
from functools import cached_property, partial
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer

from stepsal._version import __version__
from stepsal.engines.messages import Item, Job, ModelToLoad, named
from stepsal.engines.worker import Worker, heard
from stepsal.engines.workforce import Workers, start_workers
from stepsal.errors import InputError, StepsalError
from stepsal.models import host_of
from stepsal.models.host import Model
from stepsal.models.lookup import model_fingerprint
from stepsal.models.support import check_supported
from stepsal.traces.trace import Step, Trace


@runtime_checkable
class Recipe(Protocol):
    """How a result is made of a trace: a dataclass whose fields are plain data."""

    def settings(self, model: Model) -> dict[str, Any]:
        """What a folder says that its results were made with, besides the model."""

    def compute(self, model: Model, trace: Trace) -> Any:
        """The result, which has `meta` and `save`."""


def _record(trace: Trace) -> dict[str, Any]:
    """A trace as plain data.

    >>> trace = Trace(torch.tensor([3, 1]), (Step(0, "question", 0, 2, "a?"),), "a?", format=("<r>", "</r>"))
    >>> again = _from_record(_record(trace))
    >>> again.tokens.tolist(), again.steps == trace.steps, again.format
    ([3, 1], True, ('<r>', '</r>'))
    """
    record = {each.name: getattr(trace, each.name) for each in fields(trace)}
    return record | {"tokens": trace.tokens.tolist(), "steps": [asdict(step) for step in trace.steps]}


def _from_record(record: Any) -> Trace:
    if isinstance(record, Trace):
        return record
    steps = tuple(Step(**each) for each in record["steps"])
    split = record["format"]
    split = tuple(split) if isinstance(split, list) else split
    return Trace(**(record | {"tokens": torch.tensor(record["tokens"]), "steps": steps, "format": split}))


class TraceJob(Job):
    """`recipe`: the name of its class, as `module:Class`; `options`: its fields."""

    worker = "stepsal.saliency.worker:TraceWorker"
    recipe: str
    options: dict[str, Any]


class TraceItem(Item):
    """A trace, where its result is written, and what that says it was made of; without a trace: what is the model?"""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    smaller = "a smaller chunk"
    trace: Annotated[Trace, BeforeValidator(_from_record), PlainSerializer(_record)] | None = None
    path: str = ""
    made_of: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        return "check of the model" if self.trace is None else f"trace {self.trace.id!r}"


class TraceWorker(Worker):
    """Makes results by the job's recipe."""

    job_class, item_class = TraceJob, TraceItem

    @cached_property
    def _recipe(self) -> Recipe:
        return named(self.job.recipe)(**self.job.options)

    def answer(self, item: TraceItem) -> dict[str, Any]:
        """What `do` says, with the texts of the warnings."""
        said, warned = heard(lambda: do(item, self._recipe, self.model))
        return said | {"warnings": warned}


def start_recipe(
    recipe: Recipe, model: Model | ModelToLoad, engine: str, workers: int | None, address: str | None
) -> Workers:
    """The workers that follow a recipe (`start_workers`)."""
    name = f"{type(recipe).__module__}:{type(recipe).__qualname__}"
    return start_workers(partial(TraceJob, recipe=name, options=vars(recipe)), model, engine, workers, address)


def do(item: TraceItem, recipe: Recipe, model: Model) -> dict[str, Any]:
    """Write the result of the item's trace, or say what the model is. An error names the trace."""
    settings = recipe.settings(model) | model_settings(model)
    if item.trace is None:
        check_supported(model)
        size = host_of(model).shape
        return {"settings": settings, "context": size.context, "vocabulary": size.vocabulary}
    try:
        if different := [name for name, value in settings.items() if item.made_of[name] != value]:
            raise InputError(
                f"a worker's model differs from that of the others ({', '.join(different)}): give every machine the same files"
            )
        result = recipe.compute(model, item.trace)
        replace(result, meta=result.meta | {"made_of": item.made_of}).save(item.path)
    except StepsalError as error:
        raise type(error)(f"{item.name}: {error}") from error
    except Exception as error:
        error.add_note(f"This was {item.name}.")
        raise
    return {}


def model_settings(model: Model) -> dict[str, str]:
    """What a folder's settings say of the model."""
    about = host_of(model).describe()
    return {
        "model": about["model"],
        "dtype": about["dtype"],
        "host": about["host"],
        "stepsal": __version__,
        "model_sha256": model_fingerprint(model),
    }
