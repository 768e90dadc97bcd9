"""Which layers StepFlow should act on: chosen from a comparison of correct and wrong traces, not a fixed quarter of the depth.

In: a `Comparison`. Out: `Bands`, the layers for the bridge (`shallow`) and for the momentum (`deep`), with the evidence.

1. The bridge should mend lock-in, and the momentum should mend decay. So the layers for the bridge are sought in the lower
   half, where `lock_in` is higher in wrong traces, and those for the momentum in the upper half, where `thinking_to_summary` is
   lower in wrong traces.
2. A layer differs if the 95 % interval of the AUC lies beyond 1/2 on that side, and the p-value, corrected over layers, is
   below 0.05. This is tested in the matched pairs or, where fewer than 20 pairs have the metric, in all traces; then length may
   explain the difference.
3. A layer is beyond distance if, in all traces, the limit of the difference's 95 % interval that is nearer to zero lies beyond
   the difference that the same traces would show if influence depended on distance alone (`metrics.position_only`). This is
   required only where there are too few pairs: among traces matched in length, reading nearer things is what the two failures
   are.
4. The layers of that half which satisfy rule 2 and, where it is required, rule 3 are chosen, and no others: gaps are not
   filled, and neighbours are not added.
5. Where no layer is chosen, the intervention falls back to the paper's quarter (`layers.band`), and a warning says so.

The p-value is two-sided and corrected over all layers, but only one direction in half of the layers counts. So with healthy
traces an intervention gets some layer once in forty times or less. That a layer is chosen says that correct and wrong traces
differ there, not that mending it would help.
"""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepsal.checks import checked, instance
from stepsal.checks import path as check_path
from stepsal.diagnosis.comparison import Comparison
from stepsal.diagnosis.metrics import LABELS
from stepsal.errors import InputError
from stepsal.models.layer_choice import band
from stepsal.resultfile import check_frame, frame_of_record, frame_to_record, read_result, write_result

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any

_FORMAT = "stepsal bands 1"
ENOUGH_PAIRS = 20
LEVEL = 0.05
# The metric that is sought in each half of the layers, and the sign of its difference in wrong traces.
_SOUGHT = {"shallow": ("lock_in", 1), "deep": ("thinking_to_summary", -1)}
_KEPT = ["correct", "wrong", "n_correct", "n_wrong", "difference", "low", "high", "auc", "auc_low", "auc_high"]


@dataclass(frozen=True, eq=False)
class Bands:
    """Layers for StepFlow: `stepflow(oeb_layers=bands.shallow, smi_layers=bands.deep)`.

    Attributes:
        shallow: the layers for the bridge.
        deep: the layers for the momentum.
        fell_back: which of the names `shallow` and `deep` stand for the paper's quarter, because no layer qualified.
        reasons: for `shallow` and for `deep`, a text that says why these layers were chosen.
        evidence: a row for each band (`shallow` or `deep`, in the column `part`) and layer. The columns `correct` to
            `p_corrected` are those of `Comparison.table`, for the traces that the column `traces` names (`matched pairs` or
            `all`). The columns `all_low` and `all_high` (the limits of the difference), `distance_difference` and
            `distance_auc` (the difference and the AUC if influence depended on distance alone) are always those of all traces.
            `in_half`, `differs` and `beyond_distance` say whether rules 1 to 3 hold, and `chosen` whether rule 4 does.
    """

    shallow: tuple[int, ...]
    deep: tuple[int, ...]
    fell_back: tuple[str, ...]
    reasons: dict[str, str]
    evidence: DataFrame

    def __repr__(self) -> str:
        fell_back = f", fell_back={self.fell_back}" if self.fell_back else ""
        return f"Bands(shallow={self.shallow}, deep={self.deep}{fell_back})"

    def to_dataframe(self) -> DataFrame:
        """The evidence: a row for each band and layer."""
        return self.evidence.copy()

    def _repr_html_(self) -> str:
        return (
            f"<b>{escape(repr(self))}</b>{self.evidence.to_html(float_format='{:.3g}'.format, na_rep='', index=False)}"
        )

    @checked(path=check_path)
    def save(self, path: str | Path) -> None:
        """Write it as JSON with a checksum, atomically."""
        parts = {name: getattr(self, name) for name in ("shallow", "deep", "fell_back", "reasons")}
        write_result(path, _FORMAT, parts | {"evidence": frame_to_record(self.evidence)})

    @classmethod
    @checked(path=check_path)
    def load(cls, path: str | Path, *, verify: bool = True) -> "Bands":
        """Read what `save` wrote, and check it whole; `verify=False` does not compare its checksum. Raises `FileError`."""
        content = read_result(path, _FORMAT, "choice of layers", "`Bands.save(path)`", _check_content, verify=verify)
        parts = {name: tuple(content[name]) for name in ("shallow", "deep", "fell_back")}
        return cls(**parts, reasons=content["reasons"], evidence=frame_of_record(content["evidence"]))

    def summary(self) -> str:
        """A Markdown list of the layers for the bridge and for the momentum, with the reasons for choosing them."""
        return "\n".join(
            f"- {use}: layers {_names(getattr(self, name))}. {self.reasons[name]}"
            for name, use in (("shallow", "odds-equal bridge"), ("deep", "step momentum"))
        )


def _check_content(content: dict[str, Any]) -> None:
    """Raise a `ValueError` that says what keeps a file's content from being `Bands`."""
    check_frame(content.get("evidence"), "evidence", ["part", "layer", *_KEPT])
    for name, kind in (("shallow", int), ("deep", int), ("fell_back", str)):
        held = content.get(name)
        if not isinstance(held, list) or not all(isinstance(each, kind) for each in held):
            raise ValueError(f"{name!r} is {held!r}, expected a list of {'layers' if kind is int else 'names'}")
    reasons = content.get("reasons")
    if not isinstance(reasons, dict) or not set(_SOUGHT) <= set(reasons):
        raise ValueError("it does not say why these layers were chosen")


_comparison = instance(
    Comparison,
    "a Comparison",
    "choose_layers takes what `stepsal.compare` returns; read a file with `stepsal.Comparison.load(path)`.",
)


@checked(comparison=_comparison)
def choose_layers(comparison: Comparison) -> Bands:
    """The layers where wrong traces show the failures that StepFlow's two interventions mend.

    Where no layer shows a failure, the paper's quarter is taken, with a warning. A comparison that holds only some of the
    layers is judged on these; `reasons` names the missing layers.

    Raises:
        InputError: the comparison has no layer of a half, lacks a metric, or does not say how many layers the model has.

    >>> import torch
    >>> from stepsal import Step, StepMap, compare
    >>> steps = tuple(Step(i, s, 2 * i, 2 * i + 2, s) for i, s in enumerate(["question", "thinking", "thinking", "summary"]))
    >>> pairs = torch.tensor([[3, 0, 0, 0], [4, 3, 0, 0], [4, 4, 3, 0], [2, 2, 2, 1]])
    >>> _ = torch.manual_seed(0)
    >>> maps = [StepMap(torch.rand(8, 3, 4, 4).tril(), pairs, steps, tuple(range(8)), {}) for _ in range(40)]
    >>> for wrong in maps[20:]:
    ...     wrong.mass[1, :, 2, 2] *= 9  # the last thinking step reads itself
    ...     wrong.mass[6, :, 3, 1:3] /= 9  # the summary forgets the thinking
    >>> choose_layers(compare(maps[:20], maps[20:], resamples=99))
    Bands(shallow=(1,), deep=(6,))
    """
    import pandas as pd

    n_layers = comparison.meta.get("model_layers")
    if n_layers is None:
        raise InputError("meta['model_layers'] of the comparison is missing: make it again with `compare`")
    half = max(1, n_layers // 2)
    halves = {"shallow": range(half), "deep": range(n_layers - half, n_layers)}
    chosen, reasons, tables = {}, {}, {}
    for name, (metric, sign) in _SOUGHT.items():
        tables[name] = _evidence(comparison, metric, sign, halves[name])
        chosen[name] = tuple(int(layer) for layer in tables[name].loc[tables[name]["chosen"], "layer"])
        reasons[name] = _reason(tables[name], metric, sign, halves[name])
    fell_back = tuple(name for name in _SOUGHT if not chosen[name])
    if fell_back:
        why = " ".join(f"{name} {list(band(name, n_layers))}: {reasons[name]}" for name in fell_back)
        warnings.warn(f"choose_layers falls back to the paper's quarter of the layers. {why}", stacklevel=3)
    layers = {name: chosen[name] or band(name, n_layers) for name in _SOUGHT}
    evidence = pd.concat([table.assign(part=name) for name, table in tables.items()], ignore_index=True)
    return Bands(layers["shallow"], layers["deep"], fell_back, reasons, evidence)


def _evidence(comparison: Comparison, metric: str, sign: int, half: range) -> DataFrame:
    """The rows of `Bands.evidence` for one metric, whose difference should have this sign in one half of the layers."""
    everyone, matched, alone = (
        table[table["metric"] == metric].set_index("layer") if len(table) else table
        for table in (comparison.table, comparison.matched, comparison.position_only)
    )
    if not set(half) & set(everyone.index):
        raise InputError(
            f"the comparison has {metric} in layers {everyone.index.tolist()}, but in none of {half[0]} to {half[-1]}, to "
            "choose from: compare maps made with layers='all'"
        )
    enough = len(matched) and min(matched["n_correct"].min(), matched["n_wrong"].min()) >= ENOUGH_PAIRS
    tested = matched if enough else everyone
    evidence = tested[[*_KEPT, "p_corrected"]].copy()
    evidence["all_low"], evidence["all_high"] = everyone["low"], everyone["high"]
    evidence["distance_difference"], evidence["distance_auc"] = alone["difference"], alone["auc"]
    nearer = {1: ("auc_low", "all_low"), -1: ("auc_high", "all_high")}[sign]
    evidence["in_half"] = evidence.index.isin(half)
    evidence["differs"] = (sign * (evidence[nearer[0]] - 0.5) > 0) & (evidence["p_corrected"] < LEVEL)
    evidence["beyond_distance"] = sign * (evidence[nearer[1]] - evidence["distance_difference"]) > 0
    evidence["chosen"] = evidence["in_half"] & evidence["differs"] & (evidence["beyond_distance"] | bool(enough))
    evidence.insert(0, "metric", metric)
    evidence.insert(1, "traces", "matched pairs" if enough else "all")
    return evidence.reset_index()


def _reason(evidence: DataFrame, metric: str, sign: int, half: range) -> str:
    """A sentence that says why these layers were chosen, or why none was."""
    if evidence["auc"].isna().all():
        return f"No trace, or too few, have a {LABELS[metric]}."

    def layers(mask: Any) -> str:
        return _names(evidence.loc[mask, "layer"].tolist())

    pattern = f"{LABELS[metric]} {'higher' if sign > 0 else 'lower'} in wrong traces"
    where = layers(evidence["chosen"])
    source = f"all traces: fewer than {ENOUGH_PAIRS} matched pairs, so length may explain it"
    if evidence["traces"].iloc[0] != "all":
        source = f"{int(evidence['n_wrong'].min())} matched pairs"
    clauses = [
        f"{pattern} in layers {where} of {half[0]} to {half[-1]} ({source})"
        if where
        else f"no layer of {half[0]} to {half[-1]} qualifies by {pattern} ({source})"
    ]
    opposite = (evidence["auc_high"] < 0.5) if sign > 0 else (evidence["auc_low"] > 0.5)
    for mask, text in (
        (
            evidence["in_half"] & evidence["differs"] & ~evidence["beyond_distance"],
            "reading by distance alone would show it too in {}",
        ),
        (~evidence["in_half"] & evidence["differs"] & evidence["beyond_distance"], "the same in {}, in the other half"),
        (evidence["in_half"] & opposite & (evidence["p_corrected"] < LEVEL), "the opposite in {}"),
    ):
        clauses += [text.format(layers(mask))] if mask.any() else []
    if missing := sorted(set(half) - set(evidence["layer"])):
        clauses.append(f"not compared: {_names(missing)}")
    text = "; ".join(clauses) + "."
    return text[0].upper() + text[1:]


def _names(layers: Collection[int]) -> str:
    return ", ".join(map(str, layers))
