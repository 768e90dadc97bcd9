"""Step map -> diagnosis: every metric per layer and head, and a verdict on the paper's two failures with its evidence.

1. Every metric of `METRICS` per layer and head; per layer, its mean over heads; the decays, one number per trace.
2. The same metrics of the map as it would be if influence depended on distance alone (`metrics.position_only`), as a control.
3. Two verdicts. Each compares a band's mean with a quantile of a reference distribution, which the verdict names:

       shallow lock-in: mean lock_in of the shallow band             > its 95 % quantile, and > 1/2
       deep decay:      mean thinking_to_summary of the deep band    < its 5 % quantile, and < the middle half's mean

   By default the reference is the trace's own middle half of the layers, a value per head: the verdict then says that the
   band's layers differ from their neighbours, on this trace. With `reference=` (other traces of the same model, best traces
   known to be right) the reference is the same band's mean in each of those traces.

Source: Xu et al. (arXiv 2604.06695), whose diagnosis is by eye; method.md section 4.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepsal.checks import checked, several
from stepsal.checks import path as check_path
from stepsal.diagnosis.diagnosisfile import PARTS, read_diagnosis, write_diagnosis
from stepsal.diagnosis.metrics import LABELS, METRICS, decay_ratio, decay_slope, middle_half, position_only
from stepsal.diagnosis.registry import Metric, shown_metrics
from stepsal.errors import InputError
from stepsal.files import exclusive_path
from stepsal.markdown import markdown_table, plain_text, significant
from stepsal.models.layer_choice import band
from stepsal.saliency.checks import a_map
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any

QUANTILE = 0.95
SMALLEST_REFERENCE = 10
"""With fewer values a 5 % quantile is little more than the smallest: no verdict."""
_SUMMARISED = ("lock_in", "context_share", "question_share", "thinking_to_summary", "summary_self", "last_steps")
_READING_AID = (
    "Each number is a mean over all traces that have one. A share is the part of what a step reads that comes from there; "
    "docs/method.md defines every metric."
)


@dataclass(frozen=True)
class Verdict:
    """Whether a trace shows one of the paper's two failures, with the evidence.

    Attributes:
        failure: `shallow lock-in` or `deep decay`.
        found: whether the failure shows; None where that cannot be judged, and `reference` says why.
        layers: the layers of the band that lie beyond the threshold.
        metric: the name of the metric that was judged.
        value: that metric, averaged over the band and its heads.
        threshold: the quantile of the reference distribution with which `value` was compared.
        reference: what the reference distribution is of, how many values it has, and where they come from.
    """

    failure: str
    found: bool | None
    layers: tuple[int, ...]
    metric: str
    value: float
    threshold: float
    reference: str

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.failure}: cannot be judged ({self.reference})"
        where = f" in layers {', '.join(map(str, self.layers))}" if self.layers else ""
        sign = ">" if (self.value > self.threshold) else "<="
        return (
            f"{self.failure}: {'yes' + where if self.found else 'no'} "
            f"({LABELS[self.metric]} {self.value:.3f} {sign} {self.threshold:.3f}, {self.reference})"
        )


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The statistics of one trace's step map, and the verdicts.

    Attributes:
        values: the metrics by name, `layer head`; NaN where the trace cannot have a value.
        position_only: what the metrics' means over heads would be if influence depended on distance alone, by name, `layer`.
        decay: `decay_slope` and `decay_ratio` of the mean over heads.
        layers: the model layer of each index of the `layer` axis.
        verdicts: on Shallow Lock-in and Deep Decay.
        meta: the step map's `meta`, with the numbers of layers of the model, of steps, and of tokens.
    """

    values: dict[str, Float[Tensor, "layer head"]]
    position_only: dict[str, Float[Tensor, " layer"]]
    decay: dict[str, float]
    layers: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    meta: dict[str, Any]

    def __repr__(self) -> str:
        return f"Diagnosis({self.meta.get('trace', '')!r}; " + "; ".join(map(str, self.verdicts)) + ")"

    @cached_property
    def profile(self) -> dict[str, Float[Tensor, " layer"]]:
        """The depth profile: every metric's mean over heads, by layer."""
        return {name: values.nanmean(1) for name, values in self.values.items()}

    @property
    def table(self) -> DataFrame:
        """A row per layer, a column per metric: the mean over heads."""
        import pandas as pd

        columns = {name: values.numpy() for name, values in self.profile.items()}
        return pd.DataFrame(columns, index=pd.Index(self.layers, name="layer"))

    @property
    def heads(self) -> DataFrame:
        """A row per layer and head, a column per metric."""
        import pandas as pd

        n = next(iter(self.values.values())).shape[1]
        index = pd.MultiIndex.from_product([self.layers, range(n)], names=["layer", "head"])
        return pd.DataFrame({name: values.flatten().numpy() for name, values in self.values.items()}, index=index)

    def __str__(self) -> str:
        return plain_text(self.summary(), width=120)

    def to_dataframe(self) -> DataFrame:
        """A row per layer and head: the layer, the head, and a column per metric."""
        return self.heads.reset_index()

    def summary(self) -> str:
        """The verdicts, and a Markdown table of the metrics by layer: means over heads."""
        table = self.table
        shown = [name for name in shown_metrics(*_SUMMARISED) if name in table]
        rows = [
            [str(layer), *("" if math.isnan(value) else significant(value) for value in values)]
            for layer, values in zip(table.index, table[shown].to_numpy().tolist(), strict=True)
        ]
        verdicts = "\n".join(f"- {verdict}" for verdict in self.verdicts)
        by_layer = markdown_table(["layer", *(LABELS[name] for name in shown)], rows)
        return f"Diagnosis of {self.meta.get('trace') or 'a trace'}\n\n{verdicts}\n\n{by_layer}"

    @checked(path=check_path)
    def save(self, path: str | Path) -> None:
        """Write the diagnosis as JSON with a checksum, atomically. A metric that has no value is null there."""
        write_diagnosis(path, {name: getattr(self, name) for name in PARTS})

    @classmethod
    @checked(path=check_path)
    def load(cls, path: str | Path, *, verify: bool = True) -> "Diagnosis":
        """Read what `save` wrote, and check it whole; `verify=False` does not compare its checksum. Raises `FileError`."""
        parts = read_diagnosis(path, verify)
        return cls(**parts | {"verdicts": tuple(Verdict(**each) for each in parts["verdicts"])})

    def _repr_html_(self) -> str:
        from html import escape

        verdicts = "".join(f"<li>{escape(str(verdict))}</li>" for verdict in self.verdicts)
        table = self.table.rename(columns=LABELS).to_html(float_format="{:.3f}".format, na_rep="missing")
        return f"<b>Diagnosis of {escape(str(self.meta.get('trace') or 'a trace'))}</b><ul>{verdicts}</ul>{table}"


_reference = several(
    (StepMap, Diagnosis),
    "a list of step maps or diagnoses",
    "Of one map make a list, [stepmap]; leave it out to judge the map against its own middle half.",
    optional=True,
)


@checked(stepmap=a_map, reference=_reference)
def diagnose(stepmap: StepMap, *, reference: Sequence["StepMap | Diagnosis"] | None = None) -> Diagnosis:
    """Every metric of a step map per layer and head, and the verdicts on Shallow Lock-in and Deep Decay.

    Args:
        stepmap: the map, made by a rule without signs.
        reference: other maps (or diagnoses) of the same model against which this one is judged, best of traces known to be
            right. None judges the map against its own middle half of the layers.

    Raises:
        InputError: a map with signed influence; a reference of other layers or of another model, rule or objective; a metric
            of your own that returns something else than floats, `layer head`.

    >>> from stepsal import Trace, diagnose, load_model, step_saliency
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> diagnose(step_saliency(model, trace)).table["summary_self"].shape
    (8,)
    """
    return judged(unjudged(stepmap, measure(stepmap, METRICS)), reference)


@dataclass(frozen=True, eq=False)
class Measured:
    """Metrics of a map by name: per layer and head; and their means over heads if influence depended on distance alone."""

    values: dict[str, Float[Tensor, "layer head"]]
    position_only: dict[str, Float[Tensor, " layer"]]


def measure(stepmap: StepMap, metrics: Mapping[str, Metric]) -> Measured:
    """These metrics of a map. Raises `InputError` for a map with signed influence."""
    if (stepmap.mass < 0).any():
        raise InputError(
            f"the map holds negative influence (rule {stepmap.meta.get('rule', 'unknown')!r}), of which shares mean nothing. "
            "Make it with rule='abs'."
        )
    control = position_only(stepmap)
    return Measured(
        {name: metric(stepmap) for name, metric in metrics.items()},
        {name: metric(control).nanmean(1) for name, metric in metrics.items()},
    )


def unjudged(stepmap: StepMap | StepMapFile, measured: Measured) -> Diagnosis:
    """The diagnosis of a map without its verdicts, from its metrics and from what its header says."""
    layers, n_layers = stepmap.layers, model_layers(stepmap)
    share = measured.values["thinking_to_summary"].nanmean(1)
    sizes = {
        segment: sum(step.segment == segment for step in stepmap.steps)
        for segment in ("question", "thinking", "summary")
    }
    counts = {"model_layers": n_layers, "steps": len(stepmap.steps), "steps_of": sizes}
    return Diagnosis(
        values=measured.values,
        position_only=measured.position_only,
        decay={function.__name__: float(function(share, layers, n_layers)) for function in (decay_slope, decay_ratio)},
        layers=layers,
        verdicts=(),
        meta={"tokens": stepmap.steps[-1].stop} | stepmap.meta | counts,
    )


def judged(diagnosis: Diagnosis, reference: Sequence["StepMap | Diagnosis"] | None) -> Diagnosis:
    """The diagnosis with its verdicts; `reference` is that of `diagnose`."""
    others = None
    if reference is not None:
        others = [other if isinstance(other, Diagnosis) else diagnose(other) for other in reference]
        for other in others:
            check_alike(diagnosis, other)
    verdicts = (
        _judge(diagnosis, others, "shallow lock-in", "lock_in", "shallow", high=True),
        _judge(diagnosis, others, "deep decay", "thinking_to_summary", "deep", high=False),
    )
    return replace(diagnosis, verdicts=verdicts)


def model_layers(stepmap: StepMap | StepMapFile) -> int:
    """How many layers the model has (a map may hold some of them only)."""
    return int(stepmap.meta.get("model_layers", max(stepmap.layers) + 1))


def check_alike(one: Diagnosis, other: Diagnosis) -> None:
    """Raise `InputError` unless two diagnoses can be set side by side."""
    names = [repr(diagnosis.meta.get("trace", "")) for diagnosis in (one, other)]
    for key, a, b in (
        ("layers", one.layers, other.layers),
        *((key, one.meta.get(key), other.meta.get(key)) for key in ("model", "rule", "objective")),
        *(("score", *(diagnosis.meta.get("score", "loss") for diagnosis in (one, other))),),
    ):
        if a != b:
            raise InputError(
                f"the maps of traces {names[0]} and {names[1]} differ in {key}: {a!r} and {b!r}. Compare maps that were made "
                "alike."
            )
    if differing := one.values.keys() ^ other.values.keys():
        raise InputError(
            f"of the diagnoses of traces {names[0]} and {names[1]} one lacks the metric {min(differing)!r}: it was made before "
            "that metric was defined. Diagnose both maps again."
        )


def _judge(
    diagnosis: Diagnosis, others: list[Diagnosis] | None, failure: str, metric: str, name: str, *, high: bool
) -> Verdict:
    """The verdict on a failure that shows in the band `name`, as a `metric` that is too high there, or else too low."""

    def verdict(found: bool | None, layers: tuple[int, ...], value: float, threshold: float, source: str) -> Verdict:
        return Verdict(failure, found, layers, metric, value, threshold, source)

    nan = float("nan")
    layers, n_layers = diagnosis.layers, diagnosis.meta["model_layers"]
    inner, outer = middle_half(n_layers), band(name, n_layers)
    if missing := [layer for layer in (*outer, *inner) if layer not in layers]:
        return verdict(None, (), nan, nan, f"the map lacks layer {missing[0]}")
    profile = diagnosis.profile[metric]
    inside, outside = ([layers.index(layer) for layer in part] for part in (inner, outer))
    value = float(profile[outside].mean())
    if torch.isnan(profile[outside]).any():
        return verdict(None, (), nan, nan, f"the trace has no {LABELS[metric]}")
    if others is None:
        values = diagnosis.values[metric][inside].flatten()
        values = values[torch.isfinite(values)]
        by_layer = values.unsqueeze(1).expand(-1, len(outer))  # the same reference for every layer of the band
        source = f"{len(values)} heads of the middle layers of this trace"
    else:
        rows = [row for row in (other.profile[metric][outside] for other in others) if torch.isfinite(row).all()]
        by_layer = torch.stack(rows) if rows else torch.empty(0, len(outer))
        values = by_layer.mean(1)
        source = f"{len(values)} reference traces"
    if len(values) < SMALLEST_REFERENCE:
        return verdict(
            None, (), value, nan, f"the reference has {len(values)} values, of at least {SMALLEST_REFERENCE}"
        )
    threshold, thresholds = float(_quantile(values, high)), _quantile(by_layer, high)
    source = f"{QUANTILE if high else 1 - QUANTILE:.0%} quantile of {source}"
    if high:
        found, is_beyond = value > threshold and value > 0.5, profile[outside] > thresholds
    else:
        middle = float(profile[inside].nanmean()) if inside else math.inf
        found, is_beyond = value < threshold and value < middle, profile[outside] < thresholds
    beyond = tuple(layer for layer, it_is in zip(outer, is_beyond.tolist(), strict=True) if it_is)
    return verdict(found, beyond if found else (), value, threshold, source)


def _quantile(values: Float[Tensor, "value *layer"], high: bool) -> Float[Tensor, "*layer"]:
    return torch.quantile(values.double(), QUANTILE if high else 1 - QUANTILE, dim=0).to(values.dtype)


def write_diagnoses(path: str | Path, diagnoses: Sequence[Diagnosis]) -> None:
    """Write diagnoses as JSONL, a line per trace; missing values are null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    lines = []
    for diagnosis in diagnoses:
        line = {
            "trace": diagnosis.meta.get("trace"),
            "correct": diagnosis.meta.get("correct"),
            "steps": diagnosis.meta["steps"],
            "tokens": diagnosis.meta["tokens"],
            **{name: number(value) for name, value in diagnosis.decay.items()},
            "verdicts": [
                asdict(verdict) | {"value": number(verdict.value), "threshold": number(verdict.threshold)}
                for verdict in diagnosis.verdicts
            ],
            "layers": [
                {"layer": layer} | {name: number(values[i].item()) for name, values in diagnosis.profile.items()}
                for i, layer in enumerate(diagnosis.layers)
            ],
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    with exclusive_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def summarise(diagnoses: Sequence[Diagnosis]) -> str:
    """Two Markdown tables: how many traces show each failure, by group; and the metrics by layer, means over all traces.

    Below each there is a sentence on what it says.
    """
    import pandas as pd

    groups: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        name = {True: "right", False: "wrong", None: "all"}[diagnosis.meta.get("correct")]
        groups.setdefault(name, []).append(diagnosis)
    counts = []
    for index, verdict in enumerate(diagnoses[0].verdicts if diagnoses else ()):
        for name, group in sorted(groups.items()):
            found = [diagnosis.verdicts[index].found for diagnosis in group]
            numbers = (str(found.count(answer)) for answer in (True, False, None))
            counts.append([verdict.failure, f"{name} ({len(group)})", *numbers])
    means = pd.concat([diagnosis.table for diagnosis in diagnoses]).groupby("layer").mean()
    shown = [name for name in shown_metrics(*_SUMMARISED) if name in means]
    rows = [
        [str(layer), *map(significant, values)]
        for layer, values in zip(means.index, means[shown].to_numpy().tolist(), strict=True)
    ]
    verdicts = markdown_table(["failure", "traces", "yes", "no", "cannot be judged"], counts)
    by_layer = markdown_table(["layer", *(LABELS[name] for name in shown)], rows)
    return f"{verdicts}\n\n{_conclusion(diagnoses)}\n\n{by_layer}\n\n{_READING_AID}"


def _conclusion(diagnoses: Sequence[Diagnosis]) -> str:
    """One sentence on the verdicts of all traces."""
    judged = zip(*(diagnosis.verdicts for diagnosis in diagnoses), strict=True)
    counts = [
        f"{sum(verdict.found is True for verdict in verdicts)} of {sum(verdict.found is not None for verdict in verdicts)} "
        f"show {verdicts[0].failure}"
        for verdicts in judged
    ]
    return f"Of the traces that can be judged, {' and '.join(counts)}."
