"""A worker that makes what a folder holds of each trace, a step map or a knockout, and writes it.

In: a `TraceJob` (the model and a recipe), then `TraceItem`s: a trace and the path of its file, or several that share a pass.
Out: the files, and what was warned of. An item without a trace asks what the model is; the answer is what a folder's settings
say.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property, partial
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import BeforeValidator, ConfigDict, PlainSerializer

from stepsal._version import __version__
from stepsal.engines.messages import Item, Job, Message, ModelToLoad, named
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
    """How results are made of traces: a dataclass whose fields are plain data."""

    def settings(self, model: Model) -> dict[str, Any]:
        """What a folder says that its results were made with, besides the model."""

    def shares_passes(self, model: Model) -> bool:
        """Whether several short traces are quicker together (`stepsal.saliency.recipe.passes`)."""

    def compute(self, model: Model, traces: Sequence[Trace]) -> list[Any]:
        """A result for each trace; it has `meta` and `save`."""


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


class Piece(Message):
    """A trace, where its result is written, and what that says it was made of."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    trace: Annotated[Trace, BeforeValidator(_from_record), PlainSerializer(_record)]
    path: str
    made_of: dict[str, Any]


class TraceItem(Item):
    """A trace, or several that share a pass; without any: what is the model?"""

    smaller = "a smaller chunk"
    pieces: tuple[Piece, ...] = ()

    @property
    def name(self) -> str:
        ids = ", ".join(repr(piece.trace.id) for piece in self.pieces)
        return f"trace{'s' * (len(self.pieces) > 1)} {ids}" if ids else "check of the model"


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
    """Write the results of the item's traces, or say what the model is. An error names the trace.

    A result that is there already stays as it is: a run may have been killed between two of them.
    """
    settings = recipe.settings(model) | model_settings(model)
    if not item.pieces:
        check_supported(model)
        size = host_of(model).shape
        about = {"context": size.context, "vocabulary": size.vocabulary}
        return {"settings": settings, "shares_passes": recipe.shares_passes(model)} | about
    try:
        if different := [name for name, value in settings.items() if item.pieces[0].made_of[name] != value]:
            raise InputError(
                f"a worker's model differs from that of the others ({', '.join(different)}): give every machine the same files"
            )
        results = recipe.compute(model, [piece.trace for piece in item.pieces])
        for piece, result in zip(item.pieces, results, strict=True):
            if not os.path.exists(piece.path):
                replace(result, meta=result.meta | {"made_of": piece.made_of}).save(piece.path)
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
