"""The figures of a folder of step maps: what `stepsal figure` and the scripts in `figures/` draw from it.

In: a folder that `stepsal demo` or `stepsal saliency` wrote; the forest plot also needs the `comparison.json` of
`stepsal compare`. Out: a matplotlib figure and its caption. No model is loaded. Every figure is one column wide, with type of 7
to 8 points. `stepsal.figures.sweeps` has the figures of a sweep's folder, and `stepsal.figures.save` writes them all.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepsal import plot
from stepsal.diagnosis.comparison import Comparison
from stepsal.diagnosis.diagnosis import Diagnosis
from stepsal.diagnosis.folder import diagnose_files
from stepsal.diagnosis.metrics import METRICS
from stepsal.diagnosis.registry import shown_metrics
from stepsal.errors import FileError
from stepsal.files import atomic_path, sha256_of
from stepsal.plot.canvas import new_figure
from stepsal.saliency.folder import find_map, folder_traces, group_maps, open_step_maps
from stepsal.saliency.stepmap import StepMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # matplotlib takes a while to import, so it is imported where it is used
    Axes = Figure = Any

_SHOWN = ("lock_in", "question_share", "thinking_to_summary", "summary_self")


def tokens(folder: Path) -> tuple[Figure, str]:
    """A token-level map beside the step map that pools it."""
    influence, stepmap = load_example(folder)
    figure = new_figure(1.95)
    left, right = figure.subplots(1, 2)
    plot.token_map(influence, stepmap.steps, colorbar=False, ax=left)
    plot.step_map(stepmap, colorbar=False, ax=right)
    return figure, (
        "Token-level influence of one trace (left; a line at each step's end) and the step map that pools it (right), "
        "question (Q), thinking (T), summary (S): mean over layers and heads, logarithmic colour, each on a scale of three "
        "decades at most."
    )


def maps(folder: Path) -> tuple[Figure, str]:
    """Step maps of the shallow and deep layers of a correct and a wrong trace, on one colour scale."""
    figure = new_figure(3.7)
    draw_maps(figure, {name: group[0].load() for name, group in group_maps(open_step_maps(folder)).items() if group})
    return figure, (
        "Step maps of one correct and one wrong trace, mean over the heads of the shallow (bottom quarter) and the deep (top "
        "quarter) layers, on one logarithmic colour scale (the question's own row may exceed it). "
        "The traces are the first of their group."
    )


def draw_maps(figure: Any, examples: dict[str, StepMap], notes: dict[str, str] | None = None) -> None:
    """Draw step maps into a figure: a row for each map, columns for shallow and deep layers, one colour scale.

    `notes` are put behind the names in the titles.
    """
    bands = ("shallow", "deep")
    axes = figure.subplots(len(examples), 2, squeeze=False)
    norm = plot.log_scale(
        *(
            plot.answer_rows(
                plot.map_values(stepmap, band, None, "density").tril(), [step.segment for step in stepmap.steps]
            )
            for stepmap in examples.values()
            for band in bands
        )
    )
    for row, (name, stepmap) in zip(axes, examples.items(), strict=True):
        for ax, band in zip(row, bands, strict=True):
            plot.step_map(stepmap, layer=band, norm=norm, colorbar=False, ax=ax)
            ax.set_title(f"{name}{(notes or {}).get(name, '')}: {band} layers", loc="left")
            ax.label_outer()
    image = axes[0][0].images[0]
    figure.colorbar(
        image, ax=axes, label="influence per token pair", location="bottom", shrink=0.7, aspect=40, extend="both"
    )


def profiles(folder: Path) -> tuple[Figure, str]:
    """Four metrics and those that the user defined, by depth, for correct and wrong traces: means and 95 % intervals."""
    groups = _diagnosed(folder)
    shown = shown_metrics(*_SHOWN)
    figure = new_figure(1.65 * _rows(shown) + 0.3 * (len(shown) % 2))  # tick labels above an empty place need room
    panels = _panels(figure, shown)
    for metric, ax in panels.items():
        plot.depth_profile(groups, metric=metric, ax=ax)
        legend = ax.get_legend()
        if legend is not None and metric != shown[0]:
            legend.remove()
        if metric not in shown[-2:]:  # another panel is below this one
            ax.set_xlabel("")
    own = [METRICS[metric] for metric in shown[len(_SHOWN) :]]
    dashed = [f" In {metric.label}: {metric.reference:g}." for metric in own if metric.reference is not None]
    return figure, (
        f"{'Four' if len(shown) == 4 else len(shown)} metrics by depth, over correct and over wrong traces: mean over heads "
        "and traces, and its 95 % interval over traces (normal). Dashed: lock-in of 1/2, where a pair of tokens in the current "
        f"step weighs what an earlier pair does.{''.join(dashed)}"
    )


def heads(folder: Path) -> tuple[Figure, str]:
    """The lock-in and the thinking → summary share of every head, as means over all traces."""
    diagnoses = [diagnosis for group in _diagnosed(folder).values() for diagnosis in group]
    figure = new_figure(1.9)
    left, right = figure.subplots(1, 2, sharey=True)
    plot.heads(diagnoses, metric="lock_in", limits=(0, 1), ax=left)
    plot.heads(diagnoses, metric="thinking_to_summary", limits=(0, 1), ax=right)
    right.set_ylabel("")
    return figure, (
        "Lock-in (left) and thinking → summary share (right) of every head, mean over all traces. One scale from 0 to 1."
    )


def forest(folder: Path) -> tuple[Figure, str]:
    """How well each metric tells wrong traces from correct ones, by layer, with the controls."""
    path = folder / "comparison.json"
    if not path.exists():
        raise FileError(f"there is no {path}: make it with `stepsal compare {folder}`")
    comparison = Comparison.load(path)
    _warn_if_of_other_traces(folder, path, comparison)
    compared = set(comparison.table["metric"])  # the user may have defined a metric after the file was written
    shown = [metric for metric in shown_metrics(*_SHOWN) if metric in compared]
    rows = _rows(shown)
    figure = new_figure(min(4.0 * rows, rows * (0.2 * len(comparison.meta["layers"]) + 1.0) + 0.3))
    panels = _panels(figure, shown, sharey=True)
    for metric, ax in panels.items():
        plot.comparison(comparison, metric=metric, ax=ax)
        ax.set_title(plot.LABELS[metric], loc="left")
        ax.label_outer()
        if metric in shown[-2:]:  # no other panel is below this one
            ax.set_xlabel("AUC")
            ax.tick_params(labelbottom=True)
    handles, names = panels[shown[0]].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figure, (
        "How well a metric tells wrong traces from correct ones, by layer: area under the ROC curve (above 1/2: higher in "
        "wrong traces) with 95 % bootstrap intervals over traces; for all traces, for pairs matched on number of steps and "
        "length, and for what the metric would be if influence depended on distance alone. Filled markers: p < 0.05, corrected "
        "over layers."
    )


def _warn_if_of_other_traces(folder: Path, path: Path, comparison: Comparison) -> None:
    ids = folder_traces(folder)
    compared = {name for group in comparison.meta.get("traces", []) for name in group}
    if ids is not None and compared != ids:
        warnings.warn(
            f"{path} compares {len(compared)} traces, which are not the {len(ids)} that {folder} is of now: run `stepsal "
            f"compare {folder}` again for a figure of these",
            stacklevel=4,
        )


MAP_FIGURES: dict[str, Callable[[Path], tuple[Figure, str]]] = {
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


def _diagnosed(folder: Path) -> dict[str, Sequence[Diagnosis]]:
    return {name: diagnose_files(group) for name, group in group_maps(open_step_maps(folder)).items() if group}


def _rows(shown: Sequence[str]) -> int:
    """The number of rows, of two panels each, that these metrics take."""
    return -(-len(shown) // 2)


def _panels(figure: Figure, shown: Sequence[str], *, sharey: bool = False) -> dict[str, Axes]:
    """A panel for each metric, two in a row."""
    axes = list(figure.subplots(_rows(shown), 2, sharex=True, sharey=sharey).flat)
    if len(axes) > len(shown):
        axes.pop().remove()
        axes[-2].tick_params(labelbottom=True)  # no panel is below this one any more
    return dict(zip(shown, axes, strict=True))
