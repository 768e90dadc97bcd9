"""Which layers StepFlow should act on: read off a comparison of correct and wrong traces, not a fixed quarter of the depth.

In: a `Comparison`. Out: `Bands`, the layers for the bridge (`shallow`) and for the momentum (`deep`), with the evidence.

1. The bridge is to mend lock-in, the momentum decay. So a layer counts where `lock_in` is higher in wrong traces (the bridge;
   lower half of the layers), or `thinking_to_summary` is lower in them (the momentum; upper half).
2. It differs if the 95 % interval of the AUC lies beyond 1/2 on that side, and p, corrected over layers, is below 0.05: in the
   matched pairs, or in all traces where fewer than 20 pairs have the metric; length may then explain it.
3. It is beyond distance if, in all traces, the difference's 95 % limit nearer to none is beyond the difference that the same
   traces would show if influence depended on distance alone (`metrics.position_only`). That is asked only where there are too
   few pairs: among traces matched in length, reading nearer things is what the two failures are.
4. Chosen are the layers of that half to which 2 and, where it is asked, 3 apply, and no others: gaps are not filled, neighbours
   not added.
5. Where there is none, the part falls back to the paper's quarter (`layers.band`), and a warning says so.

p is two-sided and over all layers, one direction in half of them is asked for: with healthy traces a part chooses some layer
once in forty times or less. Being chosen says where correct and wrong traces differ, not that mending it would help.
"""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepsal.diagnosis.comparison import Comparison
from stepsal.diagnosis.metrics import LABELS
from stepsal.errors import InputError
from stepsal.models.layers import band

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # imported where used: it takes a while
    DataFrame = Any

ENOUGH_PAIRS = 20
LEVEL = 0.05
_PARTS = {"shallow": ("lock_in", 1), "deep": ("thinking_to_summary", -1)}
_KEPT = ["correct", "wrong", "n_correct", "n_wrong", "difference", "low", "high", "auc", "auc_low", "auc_high"]


@dataclass(frozen=True, eq=False)
class Bands:
    """Layers for StepFlow: `stepflow(oeb_layers=bands.shallow, smi_layers=bands.deep)`.

    Attributes:
        shallow, deep: the layers for the bridge, for the momentum.
        fell_back: of these two the names that are the paper's quarter, because no layer qualified.
        reasons: for each of the two, why these layers.
        evidence: a row per part and layer. `correct` to `p_corrected` as in `Comparison.table`, of the traces that `traces`
            names (`matched pairs` or `all`). Of all traces: `all_low`, `all_high` (the difference's limits), and
            `distance_difference`, `distance_auc` (had distance alone counted). `in_half`, `differs`, `beyond_distance`: steps
            1 to 3 of the rule; `chosen`: step 4.
    """

    shallow: tuple[int, ...]
    deep: tuple[int, ...]
    fell_back: tuple[str, ...]
    reasons: dict[str, str]
    evidence: DataFrame

    def __repr__(self) -> str:
        said = f", fell_back={self.fell_back}" if self.fell_back else ""
        return f"Bands(shallow={self.shallow}, deep={self.deep}{said})"

    def summary(self) -> str:
        """Markdown: the layers of each part, and why."""
        return "\n".join(
            f"- {use}: layers {_names(getattr(self, name))}. {self.reasons[name]}"
            for name, use in (("shallow", "odds-equal bridge"), ("deep", "step momentum"))
        )


def choose_layers(comparison: Comparison) -> Bands:
    """The layers where wrong traces show what StepFlow's two parts mend; the paper's quarter, with a warning, where none does.

    A comparison of some layers only is judged on those; `reasons` names the missing ones.

    Raises:
        InputError: the comparison holds no layer of a half, lacks a metric, or does not say how many layers the model has.

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

    if not isinstance(comparison, Comparison):
        raise InputError(f"choose_layers takes a Comparison, not a {type(comparison).__name__}: make it with `compare`")
    n_layers = comparison.meta.get("model_layers")
    if n_layers is None:
        raise InputError("meta['model_layers'] of the comparison is missing: make it again with `compare`")
    half = max(1, n_layers // 2)
    halves = {"shallow": range(half), "deep": range(n_layers - half, n_layers)}
    chosen, reasons, tables = {}, {}, {}
    for name, (metric, sign) in _PARTS.items():
        tables[name] = _evidence(comparison, metric, sign, halves[name])
        chosen[name] = tuple(int(layer) for layer in tables[name].loc[tables[name]["chosen"], "layer"])
        reasons[name] = _reason(tables[name], metric, sign, halves[name])
    fell_back = tuple(name for name in _PARTS if not chosen[name])
    if fell_back:
        said = " ".join(f"{name} {list(band(name, n_layers))}: {reasons[name]}" for name in fell_back)
        warnings.warn(f"choose_layers falls back to the paper's quarter of the layers. {said}", stacklevel=2)
    layers = {name: chosen[name] or band(name, n_layers) for name in _PARTS}
    evidence = pd.concat([table.assign(part=name) for name, table in tables.items()], ignore_index=True)
    return Bands(layers["shallow"], layers["deep"], fell_back, reasons, evidence)


def _evidence(comparison: Comparison, metric: str, sign: int, half: range) -> DataFrame:
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
    found = tested[[*_KEPT, "p_corrected"]].copy()
    found["all_low"], found["all_high"] = everyone["low"], everyone["high"]
    found["distance_difference"], found["distance_auc"] = alone["difference"], alone["auc"]
    nearer = {1: ("auc_low", "all_low"), -1: ("auc_high", "all_high")}[sign]
    found["in_half"] = found.index.isin(half)
    found["differs"] = (sign * (found[nearer[0]] - 0.5) > 0) & (found["p_corrected"] < LEVEL)
    found["beyond_distance"] = sign * (found[nearer[1]] - found["distance_difference"]) > 0
    found["chosen"] = found["in_half"] & found["differs"] & (found["beyond_distance"] | bool(enough))
    found.insert(0, "metric", metric)
    found.insert(1, "traces", "matched pairs" if enough else "all")
    return found.reset_index()


def _reason(found: DataFrame, metric: str, sign: int, half: range) -> str:
    if found["auc"].isna().all():
        return f"No trace, or too few, have a {LABELS[metric]}."

    def layers(mask: Any) -> str:
        return _names(found.loc[mask, "layer"].tolist())

    said = f"{LABELS[metric]} {'higher' if sign > 0 else 'lower'} in wrong traces"
    where = layers(found["chosen"])
    source = f"all traces: fewer than {ENOUGH_PAIRS} matched pairs, so length may explain it"
    if found["traces"].iloc[0] != "all":
        source = f"{int(found['n_wrong'].min())} matched pairs"
    told = [
        f"{said} in layers {where} of {half[0]} to {half[-1]} ({source})"
        if where
        else f"no layer of {half[0]} to {half[-1]} qualifies by {said} ({source})"
    ]
    opposite = (found["auc_high"] < 0.5) if sign > 0 else (found["auc_low"] > 0.5)
    for mask, text in (
        (
            found["in_half"] & found["differs"] & ~found["beyond_distance"],
            "reading by distance alone would show it too in {}",
        ),
        (~found["in_half"] & found["differs"] & found["beyond_distance"], "the same in {}, in the other half"),
        (found["in_half"] & opposite & (found["p_corrected"] < LEVEL), "the opposite in {}"),
    ):
        told += [text.format(layers(mask))] if mask.any() else []
    if missing := sorted(set(half) - set(found["layer"])):
        told.append(f"not compared: {_names(missing)}")
    text = "; ".join(told) + "."
    return text[0].upper() + text[1:]


def _names(layers: Collection[int]) -> str:
    return ", ".join(map(str, layers))
