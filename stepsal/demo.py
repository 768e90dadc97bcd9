"""`stepsal demo`: from nothing to step maps and a diagnosis of a trained reasoner's right and wrong traces.

1. The bundled reasoner answers test problems, greedily.
2. A rule grades each answer and names the kind of error.
3. Every trace gets its step map (exact, all layers and heads).
4. A table and a figure compare the right answers with the wrong ones, layer by layer; one trace keeps its token-level map, for
   a figure.

`demo.json` says what the folder is of. A run that was interrupted goes on: answers and maps that are there are not made again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einops import reduce

from stepsal import plot
from stepsal._version import __version__
from stepsal.diagnosis.diagnosis import Diagnosis, diagnose
from stepsal.errors import FileError
from stepsal.figures.maps import Panel, draw_panels, label_groups, save_example
from stepsal.files import agree_on_settings, atomic_path, locked
from stepsal.generation.files import generate_file
from stepsal.generation.generate import Decoding
from stepsal.generation.questions import task_questions, tokens_needed
from stepsal.markdown import markdown_table, significant
from stepsal.models.host import Model
from stepsal.models.loading import load_model
from stepsal.models.lookup import model_fingerprint
from stepsal.reasoner.problems import DEFAULT_LENGTH
from stepsal.saliency.folder import save_step_maps
from stepsal.saliency.influence import token_influence
from stepsal.saliency.stepmap import StepMap
from stepsal.traces.files import read_traces
from stepsal.traces.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

Groups = dict[str, list[tuple[Trace, StepMap]]]
METRICS = ("lock_in", "thinking_to_summary")


def run_demo(out: Path, problems: int = 128, *, progress: bool = True) -> str:
    """Run these steps, write the results to `out`, and return the text to print.

    Raises `FileError` where `out` was begun with another number of problems, another version of stepsal or another model, where
    another run is at work in it, and where it cannot be written.
    """
    out, model = Path(out), load_model()
    about = out / "demo.json"
    at_work = f"another run of the demo is at work in {out}: wait for it, or use another --out folder"
    with locked(about, at_work, also=["layers.md", "demo.png", "demo.pdf", "tokens.safetensors"]):
        traces = _answers(model, out, about, problems, progress)
        return _results(model, out, traces, save_step_maps(model, traces, out, progress=progress))


def _answers(model: Model, out: Path, about: Path, problems: int, progress: bool) -> list[Trace]:
    """The graded traces: from the file, or those that are not there made and written."""
    path, partial = out / "traces.jsonl", out / ".traces.jsonl.partial"
    agree_on_settings(
        about,
        {"problems": problems, "stepsal": __version__, "model_sha256": model_fingerprint(model)},
        begun=path.exists() or partial.exists(),
        refusal=f"{out} holds a demo with other settings",
        unknown=f"nothing says what {path} was made with",
        fix="Use another --out folder.",
    )
    questions = task_questions("test", [DEFAULT_LENGTH], problems)
    if not path.exists():
        decoding = Decoding(max_new_tokens=tokens_needed([DEFAULT_LENGTH]), batch_size=64)
        return generate_file(model, questions, path, decoding, progress=progress)
    traces = read_traces(path, model.tokenizer)
    if [trace.id for trace in traces] != [question.id for question in questions]:
        raise FileError(
            f"{path} does not hold the answers to the demo's {problems} problems any more, in order: {len(traces)} traces. "
            "Put it back as it was, or use another --out folder."
        )
    return traces


def _results(model: Model, out: Path, traces: Sequence[Trace], paths: Sequence[Path]) -> str:
    """Write the token-level map, the table and the figure; gives the text to print."""
    groups: Groups = {"right": [], "wrong": []}
    for trace, path in zip(traces, paths, strict=True):
        groups["right" if trace.correct else "wrong"].append((trace, StepMap.load(path)))
    shown = {name: group for name, group in groups.items() if group}
    example = _example("right" if groups["right"] else "wrong", shown)[0]
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
    errors = Counter(str(trace.meta.get("error")) for trace, _ in groups["wrong"])
    kinds = ", ".join(f"{count} {kind}" for kind, count in errors.most_common())
    return (
        f"{len(groups['right'])} of {len(traces)} problems right"
        + (f"; {len(groups['wrong'])} wrong: {kinds}" if kinds else "")
        + f"\n\n{table}\n\n"
        "Each number is a mean over the traces of a group, right or wrong.\n\n"
        f"{out}/demo.png, demo.pdf   the picture\n"
        f"{out}/layers.md            this table\n"
        f"{out}/traces.jsonl         the traces, graded\n"
        f"{out}/maps/                the step map of each trace (stepsal.StepMap.load)\n"
        f"{out}/tokens.safetensors   one trace's token-level map\n\n"
        f"Next: stepsal compare {out}; stepsal report {out}"
    )


def layer_table(groups: Mapping[str, Sequence[Diagnosis]]) -> str:
    """A Markdown table: for each layer and metric, the mean over the right and over the wrong traces."""
    from pandas import concat

    header = ["layer", *(f"{plot.LABELS[metric]}, {name}" for metric in METRICS for name in groups)]
    means = {
        name: concat([diagnosis.table for diagnosis in group]).groupby("layer").mean() for name, group in groups.items()
    }
    columns = [mean[metric] for metric in METRICS for mean in means.values()]
    rows = [[str(layer), *(significant(float(column[layer])) for column in columns)] for layer in columns[0].index]
    return markdown_table(header, rows)


def draw(groups: Groups, diagnoses: Mapping[str, Sequence[Diagnosis]]) -> Figure:
    """Step maps of one right and one wrong trace, in shallow and deep layers, on one scale; beside them the profiles."""
    from matplotlib.figure import Figure as MatplotlibFigure

    examples = {name: _example(name, groups) for name in groups}
    notes = {name: "" if trace.correct else f" ({trace.meta.get('error')})" for name, (trace, _) in examples.items()}
    figure = MatplotlibFigure(figsize=(9.2, max(4.4, 2.8 * len(examples) + 0.6)), layout="constrained")
    columns: Any = figure.subfigures(1, 2, width_ratios=[2, 1.15])
    left, right = columns
    draw_panels(
        left,
        [
            [Panel(stepmap, band, f"{name}{notes[name]}") for band in ("shallow", "deep")]
            for name, (_, stepmap) in examples.items()
        ],
    )
    profiles = list(right.subplots(2, 1, sharex=True))
    for ax, metric in zip(profiles, METRICS, strict=True):
        plot.depth_profile(diagnoses, metric=metric, ax=ax)
        ax.get_legend().remove()
        ax.set_title(plot.LABELS[metric], loc="left")
        ax.set_ylabel("")
        ax.label_outer()
    label_groups(right, profiles)
    return figure


def _example(name: str, groups: Groups) -> tuple[Trace, StepMap]:
    """The group's first trace and its map; of right traces the first without an error on the way, if there is one."""
    group = groups[name]
    return next((pair for pair in group if name == "wrong" or not pair[0].meta.get("error")), group[0])
