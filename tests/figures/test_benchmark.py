"""The figure of a benchmark shows what the comparisons say."""

import numpy as np
import pytest

from stepsal import FileError, InputError, PairedRuns
from stepsal.ablation.paired_runs import paired_runs
from stepsal.ablation.runs import Run, ScoredProblem
from stepsal.cli import main
from stepsal.figures.benchmark import benchmark, benchmark_tables
from stepsal.statistics.paired import holm

SIZES = {"aime24": 30, "math500": 500, "gpqa": 198}


def run(name, chance, seed=0):
    """A run in which a problem is right where its own number is below the chance."""
    tasks = {
        task: {
            str(index): ScoredProblem((float(number < chance),), str(index))
            for index, number in enumerate(np.random.default_rng([seed, size]).random(size))
        }
        for task, size in SIZES.items()
    }
    return Run(name, name, "exact_match", tasks)


@pytest.fixture
def folder(tmp_path):
    for model, chance in (("R1 7B", 0.4), ("R1 32B", 0.6)):
        for setting, gain in (("OEB", 0.15), ("SMI", 0.0)):
            made = paired_runs(run(model, chance), run(f"{model} + {setting}", chance + gain))
            made.save(tmp_path / f"{model}-{setting}.json")
    return tmp_path


def test_every_comparison_is_in_the_panel_of_its_baseline(folder):
    panels = benchmark_tables(folder)
    assert list(panels) == ["R1 32B", "R1 7B"]
    table = panels["R1 7B"].set_index(["setting", "task"])
    for file in ("R1 7B-OEB", "R1 7B-SMI"):
        comparison = PairedRuns.load(folder / f"{file}.json")
        for row in comparison.table.to_dict("records"):
            assert table.loc[("R1 7B", row["task"]), "accuracy"] == row["baseline"]
            shown = table.loc[(comparison.names[1], row["task"])]
            assert (shown["accuracy"], shown["low"], shown["high"]) == (
                row["treated"],
                row["treated_low"],
                row["treated_high"],
            )
    every = [PairedRuns.load(path).table["p"] for path in sorted(folder.glob("*.json"))]
    together = np.concatenate([panel["p_corrected"].dropna() for panel in panels.values()])
    assert sorted(together) == pytest.approx(sorted(holm(np.concatenate(every))))


def test_the_picture_has_a_marker_and_an_interval_for_each_number(folder):
    figure, caption = benchmark(folder)
    figure.draw_without_rendering()
    assert [len(ax.get_legend().get_texts()) for ax in figure.axes] == [3, 3]
    tables = benchmark_tables(folder)
    for ax, table in zip(figure.axes, tables.values(), strict=True):
        markers = [kept for kept in ax.collections if type(kept).__name__ == "PathCollection"]
        drawn = sorted(float(x) for kept in markers for x in kept.get_offsets()[:, 0])
        assert drawn == pytest.approx(sorted(100 * table["accuracy"]))
        filled = sum(int((kept.get_facecolor()[:, :3].min(1) < 0.99).sum()) for kept in markers)
        assert filled == int((table["p_corrected"] < 0.05).sum()) + len(SIZES)
        assert [label.get_text() for label in ax.get_yticklabels()] == list(SIZES)
    assert "over the 12 comparisons" in caption
    assert "aime24 30; math500 500; gpqa 198" in caption


def test_comparisons_that_disagree_are_refused(folder, tmp_path):
    paired_runs(run("R1 7B", 0.4, seed=1), run("other", 0.5, seed=1)).save(folder / "z.json")
    with pytest.raises(InputError, match="z.json: 'R1 7B' has other answers to aime24 than in another"):
        benchmark_tables(folder)
    paired_runs(run("R1 7B", 0.4), run("R1 7B + OEB", 0.5)).save(folder / "z.json")
    with pytest.raises(InputError, match="'R1 7B \\+ OEB' is there twice"):
        benchmark_tables(folder)
    (folder / "z.json").write_text("{}")
    with pytest.raises(FileError, match="z.json is not a comparison of runs"):
        benchmark_tables(folder)
    with pytest.raises(FileError, match="holds no comparison: make them with `stepsal paired"):
        benchmark_tables(tmp_path / "nowhere")


def test_the_command_writes_it(folder, tmp_path, capsys):
    assert main(["figure", "benchmark", str(folder), "--out", str(tmp_path / "out" / "table.png")]) == 0
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".md", ".pdf", ".png"]
