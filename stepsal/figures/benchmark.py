"""The figure of a benchmark: every comparison that a folder holds, as accuracies with intervals.

In: a folder of comparisons (`stepsal paired A B --out FOLDER/NAME.json`). Out: a figure with its caption. Comparisons with a
baseline of the same name share a panel, and there the baseline must have the same numbers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepsal import plot
from stepsal.ablation.labels import in_full
from stepsal.ablation.paired_runs import PairedRuns, read_comparisons
from stepsal.ablation.results import as_table
from stepsal.errors import InputError
from stepsal.plot.canvas import legend_below, new_figure, significance_entries
from stepsal.statistics.paired import holm

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
else:  # matplotlib and pandas take a while to import, so they are imported where they are used
    DataFrame = Figure = Any

_LONGEST_OF_TWO = 18  # characters of a setting's name, for two names to have room beside each other in one column


def benchmark(folder: Path) -> tuple[Figure, str]:
    """The figure and its caption."""
    panels = benchmark_tables(folder)
    heights = [table["task"].nunique() * (0.12 + 0.13 * table["setting"].nunique()) for table in panels.values()]
    settings = {setting for table in panels.values() for setting in table["setting"]}
    columns = 2 if max(map(len, settings)) <= _LONGEST_OF_TWO else 1
    lines = max(-(-table["setting"].nunique() // columns) for table in panels.values())
    figure = new_figure(sum(heights) + (0.22 + 0.16 * lines) * len(panels) + 0.6)
    axes = list(figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights).flat)
    for ax, table in zip(axes, panels.values(), strict=True):
        plot.benchmark(table, ax=ax)
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, handlelength=1.6, borderaxespad=0.1
        )
        if ax is not axes[-1]:
            ax.set_xlabel("")
    legend_below(figure, significance_entries(), 2)
    every = list(panels.values())
    tests = sum(int(table["p_corrected"].notna().sum()) for table in every)
    sizes = {row["task"]: _size(row) for table in every for row in table.to_dict("records")}
    caption = (
        "Accuracy of each setting, with 95 % intervals over problems (each setting by itself; the tests are paired, so "
        "intervals that overlap may still differ). Filled: differs from the baseline (star) with p < 0.05, corrected by Holm "
        f"over the {tests} comparison{'s' * (tests != 1)} of the figure. "
        f"Problems: {'; '.join(f'{task} {size}' for task, size in sizes.items())}. {in_full(*settings)}"
    )
    return figure, caption.strip()


def benchmark_tables(folder: Path) -> dict[str, DataFrame]:
    """For each baseline a table as `plot.benchmark` draws it. The p-values are corrected over all comparisons in the folder.

    Raises `InputError` where two comparisons disagree about their baseline, or name two settings alike.
    """
    comparisons = read_comparisons(folder)
    ps = np.concatenate([each.table["p"].to_numpy(float) for each in comparisons.values()])
    adjusted = np.full(len(ps), np.nan)
    adjusted[~np.isnan(ps)] = holm(ps[~np.isnan(ps)])
    rows: dict[str, list[dict[str, Any]]] = {}
    start = 0
    for file, comparison in comparisons.items():
        _check(file, comparison)
        baseline, setting = comparison.names
        panel = rows.setdefault(baseline, [])
        if any(row["setting"] == setting for row in panel):
            raise InputError(f"{folder}/{file}.json: {setting!r} is there twice: name the runs with --names")
        for index, row in enumerate(comparison.table.to_dict("records")):
            about = {name: row[name] for name in ("task", "n", "samples")}
            own = about | {"setting": baseline, "accuracy": row["baseline"], "p_corrected": np.nan}
            own |= {"low": row["baseline_low"], "high": row["baseline_high"]}
            before = next((each for each in panel if (each["setting"], each["task"]) == (baseline, row["task"])), None)
            if before is None:
                panel.append(own)
            elif any(before[name] != own[name] for name in ("accuracy", "n", "samples")):
                raise InputError(
                    f"{folder}/{file}.json: {baseline!r} has other answers to {row['task']} than in another comparison of the "
                    "folder. Compare with one baseline, or give the baselines different --names"
                )
            treated = {"setting": setting, "accuracy": row["treated"], "p_corrected": float(adjusted[start + index])}
            panel.append(about | treated | {"low": row["treated_low"], "high": row["treated_high"]})
        start += len(comparison.table)
    for baseline, panel in rows.items():
        panel.sort(key=lambda row: bool(row["setting"] != baseline))
    return {baseline: as_table(panel) for baseline, panel in rows.items()}


def _check(file: str, comparison: PairedRuns) -> None:
    if (comparison.table["unit"] != "share").any():
        raise InputError(f"{file}.json: its scores are not from 0 to 1, so they are no accuracies")
    if comparison.names[0] == comparison.names[1]:
        raise InputError(f"{file}.json: both runs are called {comparison.names[0]!r}: name them with --names")


def _size(row: Mapping[Any, Any]) -> str:
    return f"{row['n']}" + (f" × {row['samples']} answers" if row["samples"] > 1 else "")
