"""The paper's figures from a folder of results: what `stepsal figure` and the scripts in `figures/` draw.

In: a folder that `stepsal demo` or `stepsal saliency` wrote, with `comparison.json` of `stepsal compare` for the forest plot.
Out: a matplotlib figure. No model is loaded. Every figure is one column wide (3.4 inches) with type of 7 to 8 points.
`stepsal.figures.sweeps` has those of a sweep's folder.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stepsal import plot
from stepsal.diagnosis.comparison import Comparison
from stepsal.diagnosis.diagnosis import Diagnosis, diagnose
from stepsal.errors import FileError, InputError
from stepsal.files import atomic_path
from stepsal.saliency.folder import group_maps, load_step_maps
from stepsal.saliency.stepmap import StepMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:  # imported where used: it takes a while
    Figure = Any

_WIDTH = 3.4
_SHOWN = ("lock_in", "question_share", "thinking_to_summary", "summary_self")


def tokens(folder: Path) -> Figure:
    """A token-level map beside the step map it is pooled to."""
    influence, stepmap = load_example(folder)
    figure = new_figure(1.95)
    left, right = figure.subplots(1, 2)
    plot.token_map(influence, stepmap.steps, colorbar=False, ax=left)
    plot.step_map(stepmap, colorbar=False, ax=right)
    return figure


def maps(folder: Path) -> Figure:
    """Shallow and deep layers of a correct and a wrong trace, on one colour scale."""
    figure = new_figure(3.7)
    draw_maps(figure, {name: group[0] for name, group in group_maps(load_step_maps(folder)).items() if group})
    return figure


def draw_maps(figure: Any, examples: dict[str, StepMap], notes: dict[str, str] | None = None) -> None:
    """Draw step maps into a figure, a row each: shallow and deep layers, on one colour scale."""
    bands = ("shallow", "deep")
    axes = figure.subplots(len(examples), 2, squeeze=False)
    norm = plot.log_scale(
        *(
            plot.answer_rows(plot.map_values(each, band, None, "density").tril(), [step.segment for step in each.steps])
            for each in examples.values()
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


def profiles(folder: Path) -> Figure:
    """Four metrics by depth, correct against wrong: means and 95 % intervals over traces."""
    groups = _diagnosed(folder)
    figure = new_figure(3.3)
    for index, (ax, metric) in enumerate(zip(figure.subplots(2, 2, sharex=True).flat, _SHOWN, strict=True)):
        plot.depth_profile(groups, metric=metric, ax=ax)
        if index:
            ax.get_legend().remove()
        if index < 2:
            ax.set_xlabel("")
    return figure


def heads(folder: Path) -> Figure:
    """Lock-in and thinking → summary share of every head, mean over all traces."""
    every = [each for group in _diagnosed(folder).values() for each in group]
    figure = new_figure(1.9)
    left, right = figure.subplots(1, 2, sharey=True)
    plot.heads(every, metric="lock_in", limits=(0, 1), ax=left)
    plot.heads(every, metric="thinking_to_summary", limits=(0, 1), ax=right)
    right.set_ylabel("")
    return figure


def forest(folder: Path) -> Figure:
    """How well each metric tells wrong from correct, by layer, with the controls."""
    path = folder / "comparison.json"
    if not path.exists():
        raise FileError(f"there is no {path}: make it with `stepsal compare {folder}`")
    comparison = Comparison.load(path)
    height = 0.2 * len(comparison.meta["layers"]) + 1.0
    figure = new_figure(min(8.0, 2 * height + 0.3))
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for index, (ax, metric) in enumerate(zip(axes.flat, _SHOWN, strict=True)):
        plot.comparison(comparison, metric=metric, ax=ax)
        ax.set_title(plot.LABELS[metric], loc="left")
        ax.label_outer()
        if index > 1:
            ax.set_xlabel("AUC")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    return figure


@dataclass(frozen=True)
class Kind:
    """A kind of figure: how it is drawn, and what its caption says."""

    draw: Callable[[Path], Figure]
    caption: str


FIGURES = {
    "tokens": Kind(
        tokens,
        "Token-level influence of one trace (left; a line at each step's end) and the step map that pools it (right), question "
        "(Q), thinking (T), summary (S): mean over layers and heads, logarithmic colour, each on a scale of three decades at "
        "most.",
    ),
    "maps": Kind(
        maps,
        "Step maps of one correct and one wrong trace, mean over the heads of the shallow (bottom quarter) and the deep (top "
        "quarter) layers, on one logarithmic colour scale (the question's own row may exceed it). "
        "The traces are the first of their group.",
    ),
    "profiles": Kind(
        profiles,
        "Four metrics by depth, over correct and over wrong traces: mean over heads and traces, and its 95 % interval over "
        "traces (normal). Dashed: lock-in of 1/2, where a pair of tokens in the current step weighs what an earlier pair does.",
    ),
    "heads": Kind(
        heads,
        "Lock-in (left) and thinking → summary share (right) of every head, mean over all traces. One scale from 0 to 1.",
    ),
    "forest": Kind(
        forest,
        "How well a metric tells wrong traces from correct ones, by layer: area under the ROC curve (above 1/2: higher in "
        "wrong traces) with 95 % bootstrap intervals over traces; for all traces, for pairs matched on number of steps and "
        "length, and for what the metric would be if influence depended on distance alone. Filled markers: p < 0.05, corrected "
        "over layers.",
    ),
}


def save_figure(
    name: str, folder: str | Path, out: str | Path, *, second: str | Path | None = None, command: str = ""
) -> list[Path]:
    """Draw a figure of `FIGURES`, or of `stepsal.figures.sweeps.SWEEP_FIGURES`, from a folder of results.

    Writes `out` as PNG and PDF, and its caption as Markdown beside them; tables as Markdown and LaTeX. `second`: another
    folder, for the figures that compare two.

    Returns the paths. Raises `InputError` for an unknown name and `FileError` for a folder that lacks what it needs.
    """
    from stepsal.figures.sweeps import SWEEP_FIGURES

    if name not in FIGURES and name not in SWEEP_FIGURES:
        raise InputError(f"unknown figure {name!r}: expected one of {', '.join([*FIGURES, *SWEEP_FIGURES])}")
    out = Path(out).with_suffix("")
    figure: Any
    with plot.style():
        if name in SWEEP_FIGURES:
            made = SWEEP_FIGURES[name](Path(folder), None if second is None else Path(second))
            figure, texts = made.figure, made.texts
        else:
            if second is not None:
                raise InputError(f"figure {name!r} takes one folder; given a second one, {second}")
            kind = FIGURES[name]
            figure, texts = kind.draw(Path(folder)), {"md": f"{kind.caption}\n"}
        paths = []
        for path in () if figure is None else (out.with_suffix(".png"), out.with_suffix(".pdf")):
            paths.append(path)
            with atomic_path(path) as part:
                # no date inside, so that the same results give the same file
                figure.savefig(
                    part, format=path.suffix[1:], metadata={"CreationDate": None} if path.suffix == ".pdf" else None
                )
    folders = f"{folder} {second}" if second else f"{folder}"
    command = command or f"stepsal figure {name} {folders} --out {out}.{'png' if paths else 'md'}"
    for suffix, text in texts.items():
        paths.append(out.with_suffix(f".{suffix}"))
        with atomic_path(paths[-1]) as part:
            how = f"Made by `{command}`."
            part.write_text(f"% {how}\n{text}" if suffix == "tex" else f"{text}\n{how}\n", encoding="utf-8")
    return paths


def save_example(folder: Path, influence: torch.Tensor, trace_id: str) -> None:
    """Keep a token-level map (mean over layers and heads) of one of a folder's traces, for the figure that shows one."""
    from safetensors.torch import save_file

    with atomic_path(folder / "tokens.safetensors") as part:
        save_file({"influence": influence.contiguous()}, part, {"trace": json.dumps(trace_id)})


def load_example(folder: Path) -> tuple[torch.Tensor, StepMap]:
    """The token-level map that `save_example` kept, and its trace's step map."""
    from safetensors import SafetensorError, safe_open

    from stepsal.saliency.folder import map_path

    path = folder / "tokens.safetensors"
    try:
        with safe_open(path, "pt") as file:
            influence, trace_id = file.get_tensor("influence"), json.loads(file.metadata()["trace"])
    except FileNotFoundError as error:
        raise FileError(f"there is no token-level map {path}: `stepsal demo` writes one") from error
    except (SafetensorError, KeyError, ValueError) as error:
        raise FileError(f"{path} is cut short or damaged ({error}). Delete it and run `stepsal demo` again.") from error
    return influence, StepMap.load(map_path(folder, trace_id))


def _diagnosed(folder: Path) -> dict[str, Sequence[Diagnosis]]:
    groups = group_maps(load_step_maps(folder))
    return {name: [diagnose(each) for each in group] for name, group in groups.items() if group}


def new_figure(height: float) -> Figure:
    """One column wide, so many inches high."""
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(_WIDTH, height), layout="constrained")
