"""The tables and figures of a sweep, and step maps before and after: what `stepsal figure NAME DIR` makes of a sweep's folder.

In: the folder of a finished sweep (`results.parquet`). Out: `FigureOrTables`, a figure with its caption or tables with theirs.
No model is loaded. Where a sweep lacks the settings that a figure shows, the error says what its configuration needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepsal import plot
from stepsal.ablation.effects import HeadPanel, by_length, costs, head_panels, strength_fields, strength_lines
from stepsal.ablation.labels import in_full
from stepsal.ablation.results import Results
from stepsal.ablation.tables import ADAPTIVE_LINE, CONTROL_LINE, Table, ablation, interval_kind, percent
from stepsal.ablation.votes import self_consistency
from stepsal.errors import FileError, InputError
from stepsal.figures.maps import (
    ROW_OF_MAPS,
    Layers,
    Panel,
    draw_panels,
    grade_of,
    heads_phrase,
    layers_phrase,
    measure_phrase,
)
from stepsal.plot.canvas import legend_below, neutral, new_figure, significance_entries
from stepsal.saliency.folder import choose_traces
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile
from stepsal.sweeps.settings import Setting, kind_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
else:  # matplotlib and pandas take a while to import, so they are imported where they are used
    DataFrame = Figure = Any

_MOST_LINES = 5
_FLATTERED = (
    "Of each part the most accurate setting on these same problems, of {} in all, which flatters it and its p. "
)
_MOST_EFFECTS = 40
_COST = {
    "cpu_seconds": "Compute: generated tokens × measured processor time per token (of a decoding pass; median over "
    "problems), both relative to the baseline's;",
    "seconds": "Compute: generated tokens × measured seconds per token (of a decoding pass; median over problems), both "
    "relative to the baseline's, on the machine that ran the sweep, with whatever else it did;",
    None: "Compute: generated tokens relative to the baseline's, a token at the same cost everywhere (this sweep did not "
    "measure processor time, so what a setting adds to a token is left out);",
}


@dataclass(frozen=True)
class FigureOrTables:
    """A figure with its caption, or tables, each of which has a caption of its own."""

    caption: str = ""
    figure: Figure | None = None
    tables: tuple[Table, ...] = ()

    @property
    def texts(self) -> dict[str, str]:
        """The contents of the text files beside the figure, by suffix."""
        if not self.tables:
            return {"md": f"{self.caption}\n"}
        sources = [table.latex("tab:" + "-".join(table.title.lower().split())) for table in self.tables]
        return {
            "md": "\n".join(table.markdown() for table in self.tables),
            "tex": "\n".join([r"% \usepackage{booktabs}", *sources]),
        }


def ablation_tables(folder: Path) -> FigureOrTables:
    """The table of all settings, and those against the controls, by chain length and by kind of error."""
    return FigureOrTables(tables=tuple(ablation(_treated(folder))))


def effects(folder: Path) -> FigureOrTables:
    """The paired difference of every setting to the baseline, as a forest plot."""
    results = _treated(folder)
    if len(results.treated) > _MOST_EFFECTS:
        raise InputError(
            f"{len(results.treated)} settings are too many for one column: `stepsal figure ablation` lists them all, `grid` "
            "draws those of one head each"
        )
    figure = new_figure(0.17 * len(results.treated) + 0.6)
    plot.sweep(results, ax=figure.subplots())
    caption = (
        f"Accuracy of each setting less that of the baseline ({_accuracy(results)}), paired: {results.size}; "
        f"{interval_kind(results)}. Filled: p < 0.05, corrected by Holm over the {len(results.treated)} settings. "
        + (f"{ADAPTIVE_LINE} " if results.adaptive else "")
        + _controls_line(results)
        + _common(results)
    )
    return FigureOrTables(_with_names(caption, results), figure)


def grid(folder: Path) -> FigureOrTables:
    """Layer × head heat maps of the difference that each head alone, and each layer alone, makes."""
    results = Results.read(folder)
    panels = head_panels(results)
    drawn, left_out = _with_effects(panels)
    limit = plot.head_limit(drawn)
    layers = len(panels[0].layers)
    across = min(2, len(drawn))
    rows = -(-len(drawn) // across)
    figure = new_figure(rows * min(3.2, max(1.2, 0.17 * layers + 0.35)) + 0.6)
    columns = [[_columns(panel) for panel in drawn[place::across]] for place in range(across)]
    axes = figure.subplots(rows, across, squeeze=False, sharey=True, width_ratios=[max(each) for each in columns])
    layout: Any = figure.get_layout_engine()
    layout.set(wspace=0.08)  # panels are further apart than a panel and its strip
    for ax in axes.flat[len(drawn) :]:
        ax.remove()
    for index, (ax, panel) in enumerate(zip(axes.flat, drawn, strict=False)):
        plot.sweep_heads(panel, limit=limit, colorbar=False, ax=ax)
        ax.set_title(plot.in_math(panel.title), loc="left")
        if index % across:
            ax.set_ylabel("")
        if index + across < len(drawn):
            ax.set_xlabel("")
    bar = figure.colorbar(
        axes[0][0].images[0], ax=axes, label="accuracy difference (points)", location="bottom", shrink=0.7, aspect=40
    )
    shown = 100 * np.concatenate([np.append(panel.difference.ravel(), panel.alone) for panel in drawn])
    bar.ax.set_xlim(min(0.0, float(np.nanmin(shown))), max(0.0, float(np.nanmax(shown))))  # no colour that is not there
    tests = [int((panel.p == panel.p).sum() + (panel.alone_p == panel.alone_p).sum()) for panel in panels]
    sure = sum(int((panel.p < 0.05).sum() + (panel.alone_p < 0.05).sum()) for panel in panels)
    heads = panels[0].difference.shape[1]
    alone = heads and any((panel.alone == panel.alone).any() for panel in panels)
    strip = " All: each layer alone, with all of its heads." if alone else ""
    zeros = "".join(
        f" {name}: no {what} alone changed the accuracy, so these are not drawn." for name, what in left_out
    )
    caption = (
        f"Accuracy difference to the baseline ({_accuracy(results)}) when one {'head' if heads else 'layer'} alone is acted "
        f"on.{strip}{zeros} Paired, in percentage points; {results.size}. Outlined: p < 0.05, exact, corrected by Holm over "
        f"the cells of its panel ({_either(tests)}); {sure or 'none'} of all {sum(tests)} {'is' if sure < 2 else 'are'}. "
        "Grey: not in the sweep."
    )
    return FigureOrTables(_with_names(caption, results), figure)


def _with_effects(panels: Sequence[HeadPanel]) -> tuple[list[HeadPanel], list[tuple[str, str]]]:
    """The panels without what is zero throughout, and what was left out: of which panel, and whether heads or layers.

    Where nothing has an effect, all panels stay.
    """
    drawn: list[HeadPanel] = []
    left_out: list[tuple[str, str]] = []
    for panel in panels:
        heads, layers = (bool(np.nan_to_num(each).any()) for each in (panel.difference, panel.alone))
        if not heads and not layers:
            measured = [panel.difference.shape[1] > 0, bool(np.isfinite(panel.alone).any())]
            left_out.append((panel.title, " and no ".join(compress(("head", "layer"), measured))))
        elif not heads and panel.difference.shape[1]:
            left_out.append((panel.title, "head"))
            none = np.zeros((len(panel.layers), 0))
            drawn.append(replace(panel, difference=none, p=none))
        else:
            drawn.append(panel)
    return (drawn, left_out) if drawn else (list(panels), [])


def _columns(panel: HeadPanel) -> float:
    """The width of a panel, in cells."""
    return max(2.0, panel.difference.shape[1] + (1.2 if np.isfinite(panel.alone).any() else 0.0))


def strength(folder: Path) -> FigureOrTables:
    """The accuracy difference against τ_max and α."""
    results = _treated(folder)
    panels = [lines for name in strength_fields(results) if (lines := strength_lines(results, name))]
    if not panels:
        raise InputError(
            "no two settings differ in their strength alone: the sweep needs tau_max = [0.05, 0.15, 0.3], or alpha = [0.06, "
            "0.3, 1.0], with the parts that have them"
        )
    figure = new_figure(max(2.3, sum(max(1.5, 0.15 * len(lines) + 0.7) for lines in panels) + 0.2))
    axes = list(figure.subplots(len(panels), 1, squeeze=False).flat)
    for ax, lines in zip(axes, panels, strict=True):
        plot.sweep_strengths(lines, ax=ax)
        parts = {line.part for line in lines}
        ax.legend(
            handles=neutral(ax),
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
            handlelength=1.6,
            title=kind_label(parts.pop()) if len(parts) == 1 < len(lines) else None,
            alignment="left",
        )
    if len(axes) > 1:
        figure.supylabel(axes[0].get_ylabel(), fontsize="medium")
        for ax in axes:
            ax.set_ylabel("")
    legend_below(figure, significance_entries(), 2)
    caption = (
        f"Accuracy difference to the baseline ({_accuracy(results)}) against the strength: the target τ_max of the "
        f"bridge, the weight α of momentum. Paired, in percentage points: {results.size}; {interval_kind(results)}. "
        "Filled: p < 0.05, corrected by Holm over the points of a panel. Markers are moved sideways to show all. "
        + _controls_line(results)
    )
    return FigureOrTables(_with_names(caption, results), figure)


def compute(folder: Path, sampled: Path | None = None) -> FigureOrTables:
    """Accuracy against compute, with self-consistency as the alternative.

    Where the baseline in `folder` has no samples, `sampled` is the folder of a second sweep of the same problems that has them.
    """
    results = _treated(folder)
    voting = results if sampled is None else Results.read(sampled)
    every = results.n
    if sampled is not None:
        _same_model(folder, results, sampled, voting)
        if not set(voting.problems) <= set(results.problems):
            raise InputError(
                f"{sampled} is a sweep of other problems ({voting.n}) than {folder} ({results.n}): accuracy is compared on the "
                f"same problems, so those of {sampled} must be among those of {folder}"
            )
        if voting.n < every:
            results = results.of_problems(voting.problems)
    tokens = [float(answers.values(answers.baseline, "tokens").mean()) for answers in (voting, results)]
    sample = tokens[0] / tokens[1] if tokens[1] else 1.0
    some = f", those of {every} that have samples" if results.n < every else ""
    votes = self_consistency(voting, sample=sample)
    table = costs(results)
    chosen, rest = _choose(results)
    shown = table[table["id"].isin([each.id for each in (results.baseline, *chosen)])]
    figure = new_figure(0.17 * (len(shown) + len(votes)) + 0.75)
    plot.sweep_compute(shown, votes, ax=figure.subplots())
    caption = (
        "Accuracy, and on the right compute, of the settings and of self-consistency (a vote of k samples of the baseline, the "
        f"mean over all choices of k of its {voting.samples}; an answer cut off has no vote, of equally many votes the first "
        "given wins). "
        f"{_COST[results.cost_column]}{_token_costs(table) if results.cost_column else ''} k samples cost "
        f"{'k' if sampled is None else f'{sample:.2f} k (by their tokens)'}. "
        f"{results.size}{some}; bars: 95 % intervals over problems "
        f"({'Wilson' if results.samples == 1 else 'normal'}; self-consistency: normal). "
        + (_FLATTERED.format(len(results.treated)) if rest else "")
        + _controls_line(results)
    )
    if sampled is not None:
        caption += f"Samples: another sweep of the same problems, {_decoding(voting)}; settings: {_decoding(results)}. "
    return FigureOrTables(_with_names(caption, results), figure)


def _token_costs(table: DataFrame) -> str:
    """The cost of a token under each setting, relative to the baseline's. Of many settings, only the lowest and the highest."""
    treated = table.iloc[1:]
    low, high = treated["cost"].min(), treated["cost"].max()
    noise = " (no part takes work away: what is below 1 shows how far the measure is off);" if low < 1 else ";"
    if len(treated) > _MOST_LINES + 2:
        return f" a token costs {low:.2f} to {high:.2f} of the baseline's{noise}"
    by_setting = ", ".join(f"{row['cost']:.2f} ({row['label']})" for row in treated.to_dict("records"))
    return f" a token costs, of the baseline's, {by_setting}{noise}"


def _same_model(folder: Path, results: Results, sampled: Path, voting: Results) -> None:
    """Raise `InputError` where the rows of two sweeps name different models, or their config.json different fingerprints.

    Fingerprints are compared only where both files have the same format, so that they were made in the same way.
    """
    names = [sweep.model.get("model") for sweep in (results, voting)]
    prints = [sweep.config.get("model", {}).get("fingerprint") for sweep in (results, voting)]
    formats = {sweep.config.get("format") for sweep in (results, voting)}
    if names[0] != names[1] or (None not in prints and len(formats) == 1 and prints[0] != prints[1]):
        raise InputError(
            f"{folder} and {sampled} are sweeps of two models ({names[0]} and {names[1]}, or two versions of its weights): run "
            "both with the same model"
        )


def difficulty(folder: Path) -> FigureOrTables:
    """The accuracy difference to the baseline by chain length."""
    results = _treated(folder)
    by_length(results, [results.baseline])  # this raises where the problems have no length
    shown, rest = _choose(results)
    table = by_length(results, [results.baseline, *shown])
    figure = new_figure(2.5 + 0.15 * (len(shown) // 2))
    ax = figure.subplots()
    plot.sweep_lengths(table, by_length(results, rest) if rest else None, ax=ax)
    legend_below(figure, [*neutral(ax), *significance_entries()], 2)
    sizes = sorted(set(table["n"]))
    size = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    caption = (
        "Accuracy difference to the baseline by chain length (below it: the accuracy of the baseline). Paired, in percentage "
        f"points: {size} problems of each length, {results.size.split(', ')[1]}; {interval_kind(results)}. Filled: p < 0.05, "
        f"corrected by Holm over the {table['p'].notna().sum()} points. Markers are moved sideways to show all. "
    )
    if rest:
        caption += _FLATTERED.format(len(results.treated)) + "The others are the thin grey lines. "
    return FigureOrTables(_with_names(caption + _controls_line(results), results), figure)


def before_after(
    before: Path,
    after: Path | None,
    *,
    trace: Sequence[str] = (),
    layers: Sequence[Layers] = (),
    head: int | None = None,
    measure: str = "share",
) -> FigureOrTables:
    """The step maps of a trace before and after, side by side. Both paths are files of one map, or folders of maps.

    `layers` has an entry for each row. By default they are the shallow and the deep layers.
    """
    if after is None:
        raise InputError(
            "before_after needs two folders of step maps, or two files of one map: `stepsal figure before_after BEFORE AFTER`"
        )
    name, *pair = _pair(before, after, trace)
    bands: list[Layers] = list(layers) or ["shallow", "deep"]
    figure = new_figure(ROW_OF_MAPS * len(bands) + 0.75)
    draw_before_after(figure, pair[0], pair[1], bands, head, measure)
    sides = [
        f"{when}{', ' * bool(grade)}{grade}"
        for when, grade in (("before", grade_of(pair[0])), ("after", grade_of(pair[1])))
    ]
    caption = (
        f"Step maps of {name} ({sides[0]}; {sides[1]}): {measure_phrase(measure)}, {heads_phrase(head)} "
        f"{layers_phrase(bands, pair)}, on one logarithmic colour scale. "
        + (
            "(The influence itself follows the gradient, which is small where the model is sure.) "
            * (measure == "share")
        )
        + "One trace: an illustration, no evidence."
    )
    return FigureOrTables(caption, figure)


def draw_before_after(
    figure: Any,
    before: StepMap,
    after: StepMap,
    layers: Sequence[Layers] = ("shallow", "deep"),
    head: int | None = None,
    measure: str = "share",
) -> None:
    """Draw two step maps into a figure: a column for each map, a row for each entry of `layers`, one colour scale."""
    maps = {"before": before, "after": after}
    draw_panels(
        figure,
        [[Panel(stepmap, each, when) for when, stepmap in maps.items()] for each in layers],
        head=head,
        measure=measure,
    )


def _one(make: Callable[[Path], FigureOrTables], name: str) -> Callable[[Path, Path | None], FigureOrTables]:
    """A function of two folders that refuses the second one and calls `make` with the first."""

    def checked(folder: Path, second: Path | None) -> FigureOrTables:
        if second is not None:
            raise InputError(f"figure {name!r} takes one folder; given a second one, {second}: leave it out")
        return make(folder)

    return checked


SWEEP_FIGURES: dict[str, Callable[..., FigureOrTables]] = {
    "ablation": _one(ablation_tables, "ablation"),
    "effects": _one(effects, "effects"),
    "grid": _one(grid, "grid"),
    "strength": _one(strength, "strength"),
    "compute": compute,
    "difficulty": _one(difficulty, "difficulty"),
    "before_after": before_after,
}


def _treated(folder: Path) -> Results:
    results = Results.read(folder)
    if not results.treated:
        raise InputError(
            f'{folder} holds nothing but the baseline: the sweep needs other settings, such as parts = ["oeb", "smi", "both"]'
        )
    return results


def _choose(results: Results) -> tuple[list[Setting], list[Setting]]:
    """The settings to draw in full, and the others.

    Few settings are all drawn in full. Of many settings, only the most accurate one of each kind is.
    """
    if len(results.treated) <= _MOST_LINES:
        return results.treated, []
    accuracy = dict(zip(results.effects["id"], results.effects["accuracy"], strict=True))
    best: dict[str, Setting] = {}
    for setting in results.treated:
        if setting.kind not in best or accuracy[setting.id] > accuracy[best[setting.kind].id]:
            best[setting.kind] = setting
    chosen = list(best.values())[:_MOST_LINES]
    return chosen, [setting for setting in results.treated if setting not in chosen]


def _accuracy(results: Results) -> str:
    return f"{percent(results.effects['accuracy'][0])} %"


def _controls_line(results: Results) -> str:
    """A sentence on how to read the controls, where there are any."""
    return f"Grey: controls. {CONTROL_LINE} " if any(setting.controls_for for setting in results.settings) else ""


def _common(results: Results) -> str:
    """A sentence on what all settings of a kind have in common."""
    common = {setting.kind: results.label(setting).common for setting in results.treated}
    words = [f"{kind_label(kind)}: {fixed}" for kind, fixed in common.items() if fixed]
    return f"In all: {'. '.join(words)}." if words else ""


def _with_names(caption: str, results: Results) -> str:
    """A caption that ends with what the abbreviations in its figure mean."""
    return f"{caption.strip()} {in_full(*(kind_label(setting.kind) for setting in results.treated))}".strip()


def _decoding(results: Results) -> str:
    temperature = float(results.values(results.baseline, "temperature")[0, 0])
    return f"temperature {temperature:g}, {results.size.split(', ')[1]}"


def _either(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, dict.fromkeys(numbers)))


def _pair(before: Path, after: Path, trace: Sequence[str]) -> tuple[str, StepMap, StepMap]:
    """The two maps to compare, and what the caption calls their trace.

    Where both paths lead to one map, these two are taken. Otherwise it is the trace that was asked for, the first trace in both
    folders that was wrong and became right or, where there is none, the first trace in both.
    """
    files = [_map_files(path) for path in (before, after)]
    if all(len(maps) == 1 for maps in files) and not trace:
        first, second = (StepMap.load(next(iter(maps.values()))) for maps in files)
        return f"trace {first.meta.get('trace') or before.stem}", first, second
    if trace:
        chosen = [
            choose_traces([StepMapFile.open(file) for file in maps.values()], trace, path)
            for maps, path in zip(files, (before, after), strict=True)
        ]
        if len(chosen[0]) > 1:
            raise InputError(f"--trace names {len(chosen[0])} traces: before_after shows one")
        return f"trace {trace[0]}", chosen[0][0].load(), chosen[1][0].load()
    common = [name for name in files[0] if name in files[1]]
    if not common:
        raise InputError(f"{before} and {after} have no trace in common: make the maps of both from the same problems")
    shown: tuple[StepMapFile, StepMapFile] | None = None
    why = "the first in both"
    for name in common:
        pair = StepMapFile.open(files[0][name]), StepMapFile.open(files[1][name])
        shown = shown or pair
        if (pair[0].meta.get("correct"), pair[1].meta.get("correct")) == (False, True):
            shown, why = pair, "the first that was wrong before and is right after"
            break
    assert shown is not None
    return f"trace {shown[0].meta.get('trace', common[0])}, {why}", shown[0].load(), shown[1].load()


def _map_files(path: Path) -> dict[str, Path]:
    """The files of step maps by name: the file itself, or those in a folder."""
    if path.is_file():
        return {path.stem: path}
    files = {file.stem: file for file in sorted((path / "maps").glob("*.safetensors"))}
    if not files:
        raise FileError(
            f"there are no step maps in {path / 'maps'}: make them with `stepsal saliency` or `stepsal demo`"
        )
    return files
