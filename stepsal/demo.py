"""`stepsal demo`: from nothing to step maps and a diagnosis of a trained reasoner's right and wrong traces.

1. The bundled reasoner answers test problems, greedily.
2. A rule grades each answer and names the kind of error.
3. Every trace gets its step map (exact, all layers and heads).
4. A table and a figure compare the right answers with the wrong ones, layer by layer; one trace keeps its token-level map, for
   a figure.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einops import reduce

from stepsal import plot
from stepsal.diagnosis.diagnosis import Diagnosis, diagnose
from stepsal.figures.maps import draw_maps, save_example
from stepsal.files import atomic_path
from stepsal.generation.task import answer_problems
from stepsal.markdown import markdown_table
from stepsal.models.loading import load_model
from stepsal.saliency.folder import save_step_maps
from stepsal.saliency.influence import token_influence
from stepsal.saliency.stepmap import StepMap
from stepsal.traces.files import write_traces
from stepsal.traces.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

Groups = dict[str, list[tuple[Trace, StepMap]]]
METRICS = ("lock_in", "thinking_to_summary")


def run_demo(out: Path, problems: int = 128, *, progress: bool = True) -> str:
    """Run these steps, write the results to `out`, and return the text to print."""
    model = load_model()
    traces = answer_problems(model, problems, progress=progress)
    write_traces(out / "traces.jsonl", traces)
    paths = save_step_maps(model, traces, out, progress=progress)
    groups: Groups = {"correct": [], "wrong": []}
    for trace, path in zip(traces, paths, strict=True):
        groups["correct" if trace.correct else "wrong"].append((trace, StepMap.load(path)))
    shown = {name: group for name, group in groups.items() if group}
    example = _example("correct" if groups["correct"] else "wrong", shown)[0]
    influence = reduce(token_influence(model, example), "layer head query key -> query key", "mean")
    save_example(out, influence, example.id)
    diagnoses = {name: [diagnose(stepmap) for _, stepmap in group] for name, group in shown.items()}
    table = layer_table(diagnoses)
    with atomic_path(out / "layers.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    with plot.style():
        figure = draw(shown, diagnoses)
        for suffix in ("png", "pdf"):
            with atomic_path(out / f"demo.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix)
    errors = Counter(str(trace.meta["error"]) for trace, _ in groups["wrong"])
    kinds = ", ".join(f"{count} {kind}" for kind, count in errors.most_common())
    return (
        f"{len(groups['correct'])} of {len(traces)} problems right"
        + (f"; {len(groups['wrong'])} wrong: {kinds}" if kinds else "")
        + f"\n\n{table}\n\n"
        f"{out}/demo.png, demo.pdf   the picture\n"
        f"{out}/layers.md            this table\n"
        f"{out}/traces.jsonl         the traces, graded\n"
        f"{out}/maps/                a step map a trace (stepsal.StepMap.load)\n"
        f"{out}/tokens.safetensors   one trace's token-level map\n\n"
        f"Next: stepsal compare {out}; stepsal report {out}"
    )


def layer_table(groups: Mapping[str, Sequence[Diagnosis]]) -> str:
    """A Markdown table: for each layer and metric, the mean over the correct and over the wrong traces."""
    from pandas import concat

    header = ["layer", *(f"{plot.LABELS[metric]}, {name}" for metric in METRICS for name in groups)]
    means = {
        name: concat([diagnosis.table for diagnosis in group]).groupby("layer").mean() for name, group in groups.items()
    }
    columns = [mean[metric] for metric in METRICS for mean in means.values()]
    rows = [[str(layer), *(f"{column[layer]:.3f}" for column in columns)] for layer in columns[0].index]
    return markdown_table(header, rows)


def draw(groups: Groups, diagnoses: Mapping[str, Sequence[Diagnosis]]) -> Figure:
    """Step maps of one correct and one wrong trace, in shallow and deep layers, on one scale; beside them the profiles."""
    from matplotlib.figure import Figure as MatplotlibFigure

    examples = {name: _example(name, groups) for name in groups}
    notes = {name: "" if trace.correct else f" ({trace.meta['error']})" for name, (trace, _) in examples.items()}
    figure = MatplotlibFigure(figsize=(9.2, max(4.4, 2.8 * len(examples) + 0.6)), layout="constrained")
    columns: Any = figure.subfigures(1, 2, width_ratios=[2, 1.15])
    left, right = columns
    draw_maps(left, {name: stepmap for name, (_, stepmap) in examples.items()}, notes)
    for ax, metric in zip(right.subplots(2, 1, sharex=True), METRICS, strict=True):
        plot.depth_profile(diagnoses, metric=metric, ax=ax)
        ax.label_outer()
    return figure


def _example(name: str, groups: Groups) -> tuple[Trace, StepMap]:
    """The group's first trace and its map; of correct traces the first without an error on the way, if there is one."""
    group = groups[name]
    return next((pair for pair in group if name == "wrong" or not pair[0].meta["error"]), group[0])
