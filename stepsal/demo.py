"""`stepsal demo`: from nothing to step maps of a trained reasoner's right and wrong traces.

1. The bundled reasoner answers test problems, greedily.
2. A rule grades each answer and names the kind of error.
3. Every trace gets its step map (exact, all layers and heads).
4. A table and a figure compare right with wrong, layer by layer.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepsal import plot
from stepsal.files import atomic_path
from stepsal.folder import save_step_maps
from stepsal.host import load_model
from stepsal.metrics import METRICS
from stepsal.reasoner.evaluate import solve
from stepsal.stepmap import StepMap
from stepsal.trace import Trace
from stepsal.trace_files import write_traces

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

Groups = dict[str, list[tuple[Trace, StepMap]]]
LABELS = {"lock_in": "lock-in", "thinking_to_summary": "thinking → summary share"}


def run_demo(out: Path, problems: int = 128, *, progress: bool = True) -> str:
    """Do all of it, write it to `out`, and return what to print."""
    model = load_model()
    traces = solve(model, problems, progress=progress)
    write_traces(out / "traces.jsonl", traces)
    paths = save_step_maps(model, traces, out, progress=progress)
    maps = [StepMap.load(path) for path in paths]
    groups: Groups = {"correct": [], "wrong": []}
    for trace, stepmap in zip(traces, maps, strict=True):
        groups["correct" if trace.correct else "wrong"].append((trace, stepmap))
    table = layer_table(groups)
    with atomic_path(out / "layers.md") as part:
        part.write_text(table + "\n", encoding="utf-8")
    with plot.style():
        figure = draw(groups)
        for suffix in ("png", "pdf"):
            with atomic_path(out / f"demo.{suffix}") as part:
                figure.savefig(part, format=suffix)
    errors = Counter(str(trace.meta["error"]) for trace, _ in groups["wrong"])
    kinds = ", ".join(f"{count} {kind}" for kind, count in errors.most_common())
    return (
        f"{len(groups['correct'])} of {len(traces)} problems right"
        + (f"; {len(groups['wrong'])} wrong: {kinds}" if kinds else "")
        + f"\n\n{table}\n\n"
        f"{out}/demo.png, demo.pdf   the picture\n"
        f"{out}/layers.md            this table\n"
        f"{out}/traces.jsonl         the traces, graded\n"
        f"{out}/maps/                a step map a trace (stepsal.StepMap.load)"
    )


def by_layer(group: list[tuple[Trace, StepMap]], metric: str) -> Float[Tensor, "trace layer"]:
    """A metric's mean over heads, a row per trace."""
    return torch.stack([METRICS[metric](stepmap).nanmean(1) for _, stepmap in group])


def layer_table(groups: Groups) -> str:
    """Markdown: for each layer and metric the mean over correct and over wrong traces, and their difference."""
    shown = {name: group for name, group in groups.items() if group}
    heads = [f"{LABELS[metric]}, {name}" for metric in METRICS for name in shown]
    lines = ["| layer | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    means = [by_layer(group, metric).nanmean(0) for metric in METRICS for group in shown.values()]
    rows = [f"| {layer} | " + " | ".join(f"{column[layer]:.3f}" for column in means) for layer in range(len(means[0]))]
    return "\n".join([*lines, *(row + " |" for row in rows)])


def draw(groups: Groups) -> "Figure":
    """One correct and one wrong trace, shallow and deep layers, on one colour scale; beside them the depth profiles."""
    from matplotlib.figure import Figure

    shown = {name: group for name, group in groups.items() if group}
    examples = {  # of the correct ones the first without a slip on the way, if there is one
        name: next((each for each in group if name == "wrong" or not each[0].meta["error"]), group[0])
        for name, group in shown.items()
    }
    bands = ("shallow", "deep")
    figure = Figure(figsize=(9.2, max(4.4, 2.8 * len(examples) + 0.6)), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=[2, 1.15])
    left, right = parts

    axes = left.subplots(len(examples), 2, squeeze=False)
    values = [plot.map_values(m, band, None, "density") for _, m in examples.values() for band in bands]
    norm = plot.log_scale(*(v[torch.isfinite(v)][None] for v in values))
    for row, (name, (trace, stepmap)) in zip(axes, examples.items(), strict=True):
        kind = "" if trace.correct else f" ({trace.meta['error']})"
        for ax, band in zip(row, bands, strict=True):
            plot.step_map(stepmap, layer=band, norm=norm, colorbar=False, ax=ax)
            ax.set_title(f"{name}{kind}: {band} layers", loc="left")
    left.colorbar(
        axes[0][0].images[0], ax=axes, label="influence per token pair", location="bottom", shrink=0.6, aspect=40
    )

    for ax, metric in zip(right.subplots(2, 1, sharex=True), METRICS, strict=True):
        profiles = {name: by_layer(group, metric) for name, group in shown.items()}
        plot.depth_profile(profiles, label=LABELS[metric], reference=0.5 if metric == "lock_in" else None, ax=ax)
        ax.label_outer()
    return figure
