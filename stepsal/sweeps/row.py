"""One row of a sweep: an answer and everything that it stands under. Its fields are the columns of every shard."""

from dataclasses import dataclass
from types import NoneType
from typing import Any, NewType, get_args, get_origin, get_type_hints

TokenId = NewType("TokenId", int)
"""Kept in 32 bits."""

OPTION_COLUMNS = ("tau_max", "alpha", "window", "scope", "control_seed")
"""The options of interventions that have a column of their own. The column `parts` has all options of all interventions."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An answer of a sweep. `unit` names it: no other row of the sweep has the same one.

    The columns from `setting_id` to `parts` describe the setting and are None where they do not apply to it. `layers`: those of
    all parts. `heads`: pairs of layer and head; None where each part acts on all heads of its layers. `parts`: JSON.
    The columns from `max_new_tokens` to `samples` say how the answer was decoded.
    A worker fills in the others. `error`: the kind of error, known for problems of the bundled task. `trace`: the tokens of
    prompt and answer. `seconds`, `cpu_seconds`: the answer's share of its batch. `grader`, `answer_from`: who graded the
    answer, and where it stood (`stepsal.generation.grading`). `score`: from 0 to 1, where the grader gives one. Rows of older
    versions lack these three and `cpu_seconds`. `expected`: None where the task has no one answer.
    `notes`: warnings. `model`, `versions`: JSON.
    """

    unit: str
    setting_id: str
    setting: str
    part: str
    layers: list[int] | None
    heads: list[list[int]] | None
    tau_max: float | None
    alpha: float | None
    window: int | None
    scope: str | None
    control_seed: int | None
    parts: str
    problem: str
    length: int | None
    sample: int
    seed: int
    max_new_tokens: int
    batch_size: int
    temperature: float
    top_p: float
    samples: int
    correct: bool
    error: str | None
    answer: str
    expected: str | None
    tokens: int
    truncated: bool
    seconds: float
    prompt_tokens: int
    trace: list[TokenId]
    notes: str | None
    model: str
    versions: str
    cpu_seconds: float | None = None
    grader: str | None = None
    answer_from: str | None = None
    score: float | None = None


def schema() -> Any:
    """The Parquet schema of rows: of every shard and of the results.

    >>> schema().names[:3], str(schema().field("trace").type)
    (['unit', 'setting_id', 'setting'], 'list<item: int32>')
    """
    import pyarrow as pa

    return pa.schema([(name, _arrow_type(kind)) for name, kind in get_type_hints(Row).items()])


def _arrow_type(kind: Any) -> Any:
    """Of a field's type. That a value may be None changes nothing: every column may hold none."""
    import pyarrow as pa

    if get_origin(kind) is list:
        return pa.list_(_arrow_type(*get_args(kind)))
    if NoneType in get_args(kind):
        return _arrow_type(*(each for each in get_args(kind) if each is not NoneType))
    return {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), TokenId: pa.int32()}[kind]
