"""The figures of a folder of step maps: what `stepsal figure` and the scripts in `figures/` draw from it.

In: a folder that `stepsal demo` or `stepsal saliency` wrote; the forest plot also needs the `comparison.json` of
`stepsal compare`. Out: a matplotlib figure and its caption. No model is loaded. Every figure is one column wide, with type of 7
to 8 points. `stepsal.figures.sweeps` has the figures of a sweep's folder, and `stepsal.figures.save` writes them all.
"""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from stepsal import plot
from stepsal.checks import nearest
from stepsal.diagnosis.comparison import Comparison
from stepsal.diagnosis.diagnosis import model_layers
from stepsal.diagnosis.folder import diagnose_files
from stepsal.diagnosis.metrics import METRICS
from stepsal.diagnosis.registry import shown_metrics
from stepsal.errors import FileError, InputError
from stepsal.files import atomic_path, sha256_of
from stepsal.models.layer_choice import band
from stepsal.plot.canvas import COLUMN_WIDTH, legend_below, literal, new_figure, significance_entries
from stepsal.plot.maps import MEASURES, colour_bar
from stepsal.saliency.folder import choose_traces, find_map, folder_traces, open_step_maps
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile
from stepsal.sweeps.settings import ranges
from stepsal.traces.files import read_grades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # matplotlib takes a while to import, so it is imported where it is used
    Axes = Figure = Any

Layers = str | int | Sequence[int]
"""The layers of one picture: a band, a layer, or several layers, whose mean is shown."""
ROW_OF_MAPS = 1.88  # the height of a row of two step maps, in inches, one column wide
_SHOWN = ("lock_in", "question_share", "thinking_to_summary", "summary_self")


def tokens(folder: Path) -> tuple[Figure, str]:
    """A token-level map beside the step map that pools it, both as shares of their rows."""
    influence, stepmap = load_example(folder)
    figure = new_figure(2.7)
    left, right = figure.subplots(1, 2)
    share = influence / reduce(influence, "query key -> query 1", "sum")  # NaN for a token without influence
    plot.token_map(share, stepmap.steps, colorbar=False, ax=left)
    plot.step_map(stepmap, measure="share", colorbar=False, ax=right)
    shown = (share, plot.map_values(stepmap, "all", None, "share"))
    for ax, values, unit in zip((left, right), shown, ("token", "step"), strict=True):
        ax.set_title(f"{unit} map", loc="left")
        _colour_bar(figure, [ax], [_causal(values)], f"share of the {unit}'s\ninfluence", aspect=18)
    return figure, (
        "Token-level influence of one trace (left; a line at each step's end) and the step map that pools it (right), as parts "
        "of what each token and each step takes in all. Question (Q), thinking (T), summary (S); mean over layers and heads, "
        "logarithmic colour, each on a scale of three decades at most."
    )


def maps(
    folder: Path,
    *,
    trace: Sequence[str] = (),
    grades: str | Path | None = None,
    layers: Sequence[Layers] = (),
    head: int | None = None,
    measure: str = "share",
) -> tuple[Figure, str]:
    """Step maps of chosen traces, or of the first right and the first wrong trace: a row each, on one colour scale.

    `layers` has an entry for each column. By default they are the shallow and the deep layers. `grades` is a file of traces
    that says which are right, in the place of what the maps say.
    """
    files, known = open_step_maps(folder), None if grades is None else read_grades(grades)
    if trace:
        chosen = choose_traces(files, trace, folder)
        graded = [grade_of(file, known) for file in chosen]
        pairs = list(zip(chosen, graded, strict=True))
        names, lines = graded, [short(trace_name(file)) for file in chosen]
        told = "Step maps of " + ("traces " if len(chosen) > 1 else "trace ")
        told += ", ".join(trace_name(file) + (f" ({grade})" if grade else "") for file, grade in pairs)
    else:
        groups = _graded(files, folder, known)
        chosen, names = [group[0] for group in groups.values()], list(groups)
        lines = [""] * len(names)
        told = f"Step maps of {' and '.join(f'one {name} trace' if name else 'one trace' for name in groups)}"
    loaded = [file.load() for file in chosen]
    columns = list(layers) or _bands(loaded)
    width = max(COLUMN_WIDTH, 1.65 * len(columns)) if len(columns) != 1 else COLUMN_WIDTH
    row = ROW_OF_MAPS + 0.14 * bool(trace) + (1.0 if len(columns) == 1 else 0)
    figure = new_figure(row * len(loaded) + 0.75, width)
    rows = [
        [Panel(stepmap, layer, name, line) for layer in columns]
        for stepmap, name, line in zip(loaded, names, lines, strict=True)
    ]
    draw_panels(figure, rows, head=head, measure=measure)
    return figure, (
        f"{told}: {measure_phrase(measure)}, {heads_phrase(head)} {layers_phrase(columns, loaded)}, on one logarithmic "
        "colour scale (the question's own row may exceed it)."
        + (
            ""
            if trace
            else " The trace is the first."
            if len(names) < 2
            else " The traces are the first of their group."
        )
    )


@dataclass(frozen=True)
class Panel:
    """One step map of a figure: the map, its layers, what the title says before these, and the line above that."""

    stepmap: StepMap
    layers: Layers
    name: str = ""
    line: str = ""

    @property
    def title(self) -> str:
        return "\n".join(filter(None, [self.line, ": ".join(filter(None, [self.name, layers_name(self.layers)]))]))


def draw_panels(
    figure: Any, rows: Sequence[Sequence[Panel]], *, head: int | None = None, measure: str = "share"
) -> None:
    """Draw rows of step maps into a figure, all on one colour scale."""
    values = {
        id(panel): plot.map_values(panel.stepmap, panel.layers, head, measure).tril() for row in rows for panel in row
    }
    segments = {id(panel): [step.segment for step in panel.stepmap.steps] for row in rows for panel in row}
    norm = plot.log_scale(*(plot.answer_rows(values[key], segments[key]) for key in values))
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for panels, of_row in zip(rows, axes, strict=True):
        for panel, ax in zip(panels, of_row, strict=True):
            plot.step_map(
                panel.stepmap, layer=panel.layers, head=head, measure=measure, norm=norm, colorbar=False, ax=ax
            )
            ax.set_title(literal(panel.title), loc="left")
            if ax is not of_row[0]:
                ax.set_ylabel("")
            if of_row is not axes[-1]:
                ax.set_xlabel("")
    _colour_bar(figure, axes, [*map(_causal, values.values())], MEASURES[measure], shrink=0.7, aspect=40)


def _causal(values: Float[Tensor, "query key"]) -> Float[Tensor, "query key"]:
    """The values, NaN above the diagonal, where nothing is drawn."""
    return values.masked_fill(torch.ones_like(values, dtype=torch.bool).triu(1), torch.nan)


def _colour_bar(figure: Any, axes: Any, shown: Sequence[Tensor], label: str, **size: Any) -> None:
    """The colour bar of axes that share a scale, below them."""
    image = next(iter(np.ravel(axes))).images[0]
    colour_bar(figure, image, shown, ax=axes, label=label, location="bottom", **size)


def layers_name(layers: Layers) -> str:
    """What a title calls layers.

    >>> layers_name("deep"), layers_name(4), layers_name([8, 9, 10])
    ('deep layers', 'layer 4', 'layers 8–10')
    """
    if isinstance(layers, str):
        return f"{layers} layers"
    numbers = [layers] if isinstance(layers, int) else layers
    return f"layer{'s' * (len(numbers) > 1)} {ranges(numbers).replace('-', '–')}"


def layers_phrase(columns: Sequence[Layers], stepmaps: Sequence[StepMap]) -> str:
    """The layers of a figure's panels, as a caption names them, and which of a band the maps hold where it is not all."""
    quarters = {"shallow": "bottom quarter", "deep": "top quarter"}
    names, held = [], []
    for layers in columns:
        quarter = quarters.get(layers) if isinstance(layers, str) else None
        names.append("the " * isinstance(layers, str) + layers_name(layers) + (f" ({quarter})" if quarter else ""))
        if isinstance(layers, str) and layers != "all":
            every = band(layers, model_layers(stepmaps[0]))
            there = [layer for layer in every if layer in stepmaps[0].layers]
            if len(there) < len(every):
                held.append(f"; of the {layers} ones the map holds {ranges(there)}")
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) + "".join(held)


def measure_phrase(measure: str) -> str:
    """What a step map shows, as a caption says it."""
    return {
        "share": "what part of a step's influence comes from which step",
        "density": "influence per token pair",
        "mass": "influence, summed over the token pairs of two steps",
    }.get(measure, measure)


def heads_phrase(head: int | None) -> str:
    return "mean over the heads of" if head is None else f"head {head} of"


def short(name: str) -> str:
    """A trace's name for a title, its middle left out where it is long; the caption has it in full.

    >>> short("problem_6596-correct-and-more")
    'problem_6…and-more'
    """
    return name if len(name) <= 18 else f"{name[:9]}…{name[-8:]}"


def trace_name(stepmap: StepMap | StepMapFile) -> str:
    return str(stepmap.meta.get("trace", "without a name"))


def _bands(stepmaps: Sequence[StepMap]) -> list[Layers]:
    """The shallow and the deep layers, or all where the maps hold none of these."""

    def held(name: str) -> bool:
        return all(set(band(name, model_layers(each))) & set(each.layers) for each in stepmaps)

    return ["shallow", "deep"] if held("shallow") and held("deep") else ["all"]


def grade_of(file: StepMap | StepMapFile, grades: Mapping[str, bool] | None = None) -> str:
    """`right` or `wrong`, or nothing where the trace has no grade."""
    correct = file.meta.get("correct") if grades is None else grades.get(file.meta.get("trace", ""))
    return "" if correct is None else "right" if correct else "wrong"


def _graded(
    files: Sequence[StepMapFile], folder: Path, grades: Mapping[str, bool] | None
) -> dict[str, list[StepMapFile]]:
    """The maps of right, of wrong and of other traces, as far as there are any. Without any grade their name is empty.

    Raises `InputError` where grades were given and none of them is of these traces.
    """
    groups: dict[str, list[StepMapFile]] = {"right": [], "wrong": [], "": []}
    for file in files:
        groups[grade_of(file, grades)].append(file)
    if grades is not None and len(groups[""]) == len(files):
        raise InputError(
            f"the grades are of {len(grades)} traces, none of which is in {folder}: give lines with the 'id' and the 'correct' "
            f"of its traces, such as {trace_name(files[0])!r}"
        )
    there = {name: group for name, group in groups.items() if group}
    return there if len(there) == 1 else {name or "ungraded": group for name, group in there.items()}


def profiles(
    folder: Path,
    *,
    trace: Sequence[str] = (),
    grades: str | Path | None = None,
    metric: Sequence[str] = (),
) -> tuple[Figure, str]:
    """Metrics by depth, for right and wrong traces: means and 95 % intervals. By default four, and those of the user."""
    shown = _metrics(metric) or shown_metrics(*_SHOWN)
    files = open_step_maps(folder)
    known = None if grades is None else read_grades(grades)
    graded = _graded(choose_traces(files, trace, folder) if trace else files, folder, known)
    groups = {name: diagnose_files(group) for name, group in graded.items()}
    figure = new_figure(
        1.5 * _rows(shown) + 0.45 + 0.3 * (len(shown) % 2)
    )  # tick labels above an empty place need room
    panels = _panels(figure, shown)
    for name, ax in panels.items():
        plot.depth_profile(groups, metric=name, ax=ax)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
        ax.set_title(_title(name), loc="left")
        ax.set_ylabel("")
        if name not in shown[-2:]:  # another panel is below this one
            ax.set_xlabel("")
    label_groups(figure, list(panels.values()))
    dashed = [
        f" Dashed in {METRICS[name].label}: {METRICS[name].reference:g}"
        + (
            ", where a pair of tokens in the current step weighs what an earlier pair does."
            if name == "lock_in"
            else "."
        )
        for name in shown
        if METRICS[name].reference is not None
    ]
    over = " and over ".join(f"{name} traces" for name in groups if name) or "all traces"
    return figure, (
        f"{_counted(shown)} by depth, over {over}: mean over heads and traces, and its 95 % interval over traces (normal)."
        f"{''.join(dashed)}"
    )


def label_groups(figure: Any, axes: Sequence[Axes]) -> None:
    """One legend for depth profiles, below them; where panels have values of different numbers of traces, it says so."""
    handles: list[Any] = []
    numbers: dict[str, set[int]] = defaultdict(set)
    for ax in axes:
        for handle in ax.get_legend_handles_labels()[0]:
            name, _, number = str(handle.get_label()).rpartition(" (n = ")
            numbers[name].add(int(number.rstrip(")")))
            handle.set_label(name)
            handles.append(handle)
    for handle in handles:
        ends = sorted(numbers[str(handle.get_label())])
        handle.set_label(f"{handle.get_label()} (n = {' to '.join(map(str, dict.fromkeys((ends[0], ends[-1]))))})")
    if handles:
        legend_below(figure, handles, 2 if len(numbers) < 3 else 3)


def heads(folder: Path, *, trace: Sequence[str] = (), metric: Sequence[str] = ()) -> tuple[Figure, str]:
    """Metrics of every head, as means over traces. By default lock-in and the thinking → summary share."""
    shown = _metrics(metric) or ("lock_in", "thinking_to_summary")
    files = open_step_maps(folder)
    diagnoses = diagnose_files(choose_traces(files, trace, folder) if trace else files)
    layers = len(diagnoses[0].layers)
    figure = new_figure(min(3.2, max(1.5, 0.1 * layers + 0.9)) * _rows(shown))
    axes = list(figure.subplots(_rows(shown), min(2, len(shown)), squeeze=False).flat)
    for name, ax in zip(shown, axes, strict=False):
        plot.heads(diagnoses, metric=name, ax=ax)
        ax.set_title(_title(name), loc="left")
        image: Any = ax.images[0]
        image.colorbar.set_label("")
        if name not in shown[::2]:
            ax.set_ylabel("")
    for ax in axes[len(shown) :]:
        ax.remove()
    over = f"{len(diagnoses)} traces" if len(diagnoses) > 1 else f"trace {trace_name(files[0])}"
    return figure, (
        f"{_listed([METRICS[name].label for name in shown])} of every head, mean over {over}. Each scale reaches from the "
        "smallest to the largest value."
    )


def forest(folder: Path, *, metric: Sequence[str] = ()) -> tuple[Figure, str]:
    """How well metrics tell wrong traces from right ones, by layer, with the controls."""
    path = folder / "comparison.json"
    if not path.exists():
        raise FileError(f"there is no {path}: make it with `stepsal compare {folder}`")
    comparison = Comparison.load(path)
    _warn_if_of_other_traces(folder, path, comparison)
    compared = set(comparison.table["metric"])  # the user may have defined a metric after the file was written
    shown = _metrics(metric) or tuple(name for name in shown_metrics(*_SHOWN) if name in compared)
    rows, layers = _rows(shown), len(comparison.meta["layers"])
    figure = new_figure(rows * min(3.8, 0.17 * layers + 0.55) + 0.75)
    panels = _panels(figure, shown, sharey=True)
    for name, ax in panels.items():
        plot.comparison(comparison, metric=name, ax=ax)
        ax.set_title(_title(name), loc="left")
        ax.label_outer()
        if name in shown[-2:]:  # no other panel is below this one
            ax.set_xlabel("AUC")
            ax.tick_params(labelbottom=True)
    handles = panels[shown[0]].get_legend_handles_labels()[0]
    legend_below(figure, [*handles, *significance_entries()], 3)
    return figure, (
        "How well a metric tells wrong traces from right ones, by layer: area under the ROC curve (AUC; above 1/2: higher in "
        "wrong traces) with 95 % bootstrap intervals over traces; for all traces, for pairs matched on number of steps and "
        "length, and for what the metric would be if influence depended on distance alone. Filled markers: p < 0.05, corrected "
        "over layers."
    )


def _metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Metrics that the user named, each once. Raises `InputError` for one that there is not."""
    for name in names:
        if name not in METRICS:
            raise InputError(f"unknown metric {name!r}{nearest(name, METRICS)}: expected one of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(names))


def _title(metric: str) -> str:
    """A metric's label as the title of a panel that is half a column wide."""
    return literal(fill(plot.LABELS[metric], 20))


def _counted(shown: Sequence[str]) -> str:
    if len(shown) == 1:
        return f"{METRICS[shown[0]].label[0].upper()}{METRICS[shown[0]].label[1:]}"
    return f"{'Four' if len(shown) == 4 else len(shown)} metrics"


def _listed(labels: Sequence[str]) -> str:
    text = " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
    return text[0].upper() + text[1:]


def _warn_if_of_other_traces(folder: Path, path: Path, comparison: Comparison) -> None:
    ids = folder_traces(folder)
    compared = {name for group in comparison.meta.get("traces", []) for name in group}
    if ids is not None and compared != ids:
        warnings.warn(
            f"{path} compares {len(compared)} traces, which are not the {len(ids)} that {folder} is of now: run `stepsal "
            f"compare {folder}` again for a figure of these",
            stacklevel=4,
        )


MAP_FIGURES: dict[str, Callable[..., tuple[Figure, str]]] = {
    "tokens": tokens,
    "maps": maps,
    "profiles": profiles,
    "heads": heads,
    "forest": forest,
}
"""The figures of a folder of step maps, by name. Each function returns a figure and its caption."""


def save_example(folder: Path, influence: torch.Tensor, trace_id: str) -> None:
    """Save a token-level map (the mean over layers and heads) of one of the folder's traces, for the figure `tokens`."""
    from safetensors.torch import save

    header = {"trace": json.dumps(trace_id), "sha256": _checksum(influence, trace_id)}
    with atomic_path(folder / "tokens.safetensors") as temporary:
        temporary.write_bytes(save({"influence": influence.contiguous()}, header))


def _checksum(influence: torch.Tensor, trace_id: str) -> str:
    return sha256_of(trace_id, f"{influence.dtype} {list(influence.shape)}", influence.contiguous().numpy().data)


def load_example(folder: Path) -> tuple[torch.Tensor, StepMap]:
    """The token-level map that `save_example` saved, and the step map of its trace."""
    from safetensors import SafetensorError, safe_open

    path = folder / "tokens.safetensors"
    try:
        with path.open("rb"):  # safetensors calls whatever it cannot open missing
            pass
        with safe_open(path, "pt") as file:
            influence, header = file.get_tensor("influence"), file.metadata() or {}
        trace_id = json.loads(header["trace"])
        if influence.dtype != torch.float32 or influence.ndim != 2 or not isinstance(trace_id, str):
            raise ValueError(f"it holds {influence.dtype} of shape {tuple(influence.shape)} of the trace {trace_id!r}")
        if header.get("sha256", expected := _checksum(influence, trace_id)) != expected:
            raise ValueError("its checksum differs")
    except FileNotFoundError as error:
        raise FileError(f"there is no token-level map {path}: `stepsal demo` writes one") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise FileError(
            f"{path} is cut short or damaged ({error}). Run `stepsal demo` again: it makes it anew."
        ) from error
    stepmap = StepMap.load(find_map(folder, trace_id))
    if tuple(influence.shape) != (tokens := stepmap.steps[-1].stop, tokens):
        raise FileError(
            f"{path} is of {len(influence)} tokens, and the map of its trace {trace_id!r} of {tokens}: they are of different "
            "traces. Run `stepsal demo` again: it makes the first anew."
        )
    return influence, stepmap


def _rows(shown: Sequence[str]) -> int:
    """The number of rows, of two panels each, that these metrics take."""
    return -(-len(shown) // 2)


def _panels(figure: Figure, shown: Sequence[str], *, sharey: bool = False) -> dict[str, Axes]:
    """A panel for each metric, two in a row."""
    across = min(2, len(shown))
    axes = list(figure.subplots(_rows(shown), across, squeeze=False, sharex=True, sharey=sharey).flat)
    if len(axes) > len(shown):
        axes.pop().remove()
        axes[-2].tick_params(labelbottom=True)  # no panel is below this one any more
    return dict(zip(shown, axes, strict=True))
