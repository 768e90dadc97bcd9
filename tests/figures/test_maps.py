"""The figures and the commands that read a folder of results."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import random_map

from stepsal import Comparison, FileError, InputError
from stepsal.cli import main
from stepsal.figures.maps import MAP_FIGURES, save_example
from stepsal.figures.save import FIGURES, save_figure
from stepsal.files import locked, write_settings
from stepsal.saliency.folder import group_maps, load_step_maps, map_path


def make_folder(folder, graded: bool = True, traces: int = 30):
    for i in range(traces):
        stepmap = random_map("qtttttss", [20, 5, 6, 7, 5, 5, 3, 4], layers=8, heads=4, seed=i)
        meta = {
            "trace": f"t-{i}",
            "correct": i % 3 > 0 if graded else None,
            "model": "m",
            "rule": "abs",
            "objective": "token",
        }
        replace(stepmap, meta=meta).save(map_path(folder, f"t-{i}"))
    write_settings(folder / "saliency.json", {"model": "m", "rule": "abs", "objective": "token"})
    save_example(folder, torch.rand(55, 55).tril() ** 4, "t-1")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("results"))


@pytest.fixture
def run(capsys):
    def run(*arguments) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_compare_writes_what_it_prints(folder, run):
    status, out, _ = run("compare", folder, "--resamples", 199, "--markdown")
    assert status == 0
    found = Comparison.load(folder / "comparison.json")
    assert found.summary() in out
    assert (found.meta["correct"], found.meta["wrong"]) == (20, 10)


def test_diagnose_judges_every_trace(folder, run):
    status, out, _ = run("diagnose", folder, "--markdown")
    assert status == 0
    assert "| shallow lock-in | right (20) |" in out
    assert len((folder / "diagnosis.jsonl").read_text().splitlines()) == 30


def test_diagnose_can_judge_against_another_folders_correct_traces(folder, tmp_path, run):
    assert run("diagnose", folder, "--reference", folder)[0] == 0
    assert "20 reference traces" in (folder / "diagnosis.jsonl").read_text()
    status, _, err = run("diagnose", folder, "--reference", tmp_path)
    assert status == 2
    assert f"there are no step maps in {tmp_path / 'maps'}" in err


@pytest.mark.parametrize("name", MAP_FIGURES)
def test_every_figure_is_drawn_one_column_wide_with_its_caption_and_command(folder, tmp_path, run, name):
    from PIL import Image

    if name == "forest":
        run("compare", folder, "--resamples", 199)
    status, out, _ = run("figure", name, folder, "--out", tmp_path / f"{name}.png")
    assert status == 0
    assert [line.rsplit(".", 1)[1] for line in out.splitlines()] == ["png", "pdf", "md"]
    with Image.open(tmp_path / f"{name}.png") as image:
        assert image.width == 3.3 * 200
    assert FIGURES[name](folder, None).caption in (tmp_path / f"{name}.md").read_text()
    assert f"Made by `stepsal figure {name} {folder}" in (tmp_path / f"{name}.md").read_text()


def test_figures_of_metrics_have_a_panel_more_for_ones_own_metric(tmp_path, run, own_metric):
    folder = make_folder(tmp_path, traces=12)
    run("compare", folder, "--resamples", 99)
    for name in ("profiles", "forest"):
        drawn = FIGURES[name](folder, None)
        *others, last = drawn.figure.axes
        assert len(others) == 4
        assert "largest share" in (last.get_title("left"), last.get_ylabel())
        lowest = [ax.get_xlabel() for ax in drawn.figure.axes]
        assert lowest == ["", "", "", *["layer" if name == "profiles" else "AUC"] * 2]
        # nothing is below the fourth panel, so it has the numbers of its axis
        shown = [ax.xaxis.get_tick_params()["labelbottom"] for ax in drawn.figure.axes]
        assert shown == [False, False, False, True, True]
        assert save_figure(name, folder, tmp_path / name)
    caption = FIGURES["profiles"](folder, None).caption
    assert caption.startswith("5 metrics by depth")
    assert caption.endswith(" Dashed in largest share: 0.25.")


def test_a_forest_plot_of_an_older_comparison_leaves_ones_own_metric_out(tmp_path, run, request):
    folder = make_folder(tmp_path, traces=12)
    run("compare", folder, "--resamples", 99)
    request.getfixturevalue("own_metric")
    assert len(FIGURES["forest"](folder, None).figure.axes) == 4


def test_diagnose_and_report_show_ones_own_metric(folder, tmp_path, run, own_metric):
    status, out, _ = run("diagnose", folder, "--markdown")
    assert status == 0
    assert "| last 3 steps' part | largest share |" in out
    assert f'"{own_metric}": ' in (folder / "diagnosis.jsonl").read_text()
    assert run("report", folder, "--out", tmp_path / "r.html", "--traces", "t-1")[0] == 0
    assert '"label":"largest share","line":0.25' in (tmp_path / "r.html").read_text("utf-8")


def test_a_second_folder_is_refused_for_a_figure_that_takes_one(folder, tmp_path):
    with pytest.raises(InputError, match="figure 'heads' takes one folder; given a second one"):
        save_figure("heads", folder, tmp_path / "x.png", second=folder)


def test_the_same_results_give_the_same_file(folder, tmp_path):
    for suffix in ("png", "pdf"):
        files = [save_figure("heads", folder, tmp_path / f"{i}.png")[0].with_suffix(f".{suffix}") for i in range(2)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_traces_that_nobody_graded_need_a_file_that_does(tmp_path, run):
    folder = make_folder(tmp_path, graded=False, traces=9)
    status, _, err = run("compare", folder, "--resamples", 99)
    assert status == 2
    assert "whether trace 't-0' is correct is not known" in err
    grades = tmp_path / "graded.jsonl"
    grades.write_text("\n".join(f'{{"id": "t-{i}", "correct": {"true" if i % 2 else "false"}}}' for i in range(9)))
    assert run("compare", folder, "--resamples", 99, "--traces", grades)[0] == 0
    grades.write_text('{"id": "t-0", "correct": true}\n{broken')
    status, _, err = run("compare", folder, "--traces", grades)
    assert status == 2
    assert f"line 2 of {grades} is not JSON" in err


def test_maps_are_grouped_by_what_the_trace_said(folder):
    maps = load_step_maps(folder)
    assert len(maps) == 30
    groups = group_maps(maps)
    assert {name: len(group) for name, group in groups.items()} == {"correct": 20, "wrong": 10}
    with pytest.raises(InputError, match='Give "correct": true or false'):
        group_maps(maps, {"t-0": True})


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("forest", FileError, "there is no .*comparison.json: make it with `stepsal compare"),
        ("tokens", FileError, "there is no token-level map .*tokens.safetensors: `stepsal demo` writes one"),
        ("maps", FileError, "there are no step maps in"),
        ("nothing", InputError, "unknown figure 'nothing': expected one of tokens, maps, profiles, heads, forest"),
    ],
)
def test_a_folder_that_lacks_what_a_figure_needs_is_refused(tmp_path, name, error, message):
    with pytest.raises(error, match=message):
        save_figure(name, tmp_path, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("out", "stem"),
    [
        ("fig", "fig"),
        ("fig.png", "fig"),
        ("fig.PDF", "fig"),
        ("fig.v2.png", "fig.v2"),
        ("fig.md", "fig"),
    ],
)
def test_a_figure_is_written_where_the_user_said_and_nowhere_else(folder, tmp_path, out, stem):
    (tmp_path / "other.png").write_text("mine")
    paths = save_figure("tokens", folder, tmp_path / out)
    assert paths == [tmp_path / f"{stem}.{suffix}" for suffix in ("png", "pdf", "md")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["other.png", *(path.name for path in paths)])


def test_a_second_run_that_draws_the_same_figure_is_refused_and_what_a_killed_one_left_is_cleared(folder, tmp_path):
    with (
        locked(tmp_path / "fig", "at work"),
        pytest.raises(FileError, match="another run is drawing .*fig: wait for it"),
    ):
        save_figure("tokens", folder, tmp_path / "fig.png")
    (tmp_path / ".fig.png.7.part").touch()
    save_figure("tokens", folder, tmp_path / "fig.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fig.md", "fig.pdf", "fig.png"]


def test_a_figure_goes_through_a_link(folder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "fig.png").symlink_to("real/picture.png")
    save_figure("tokens", folder, tmp_path / "fig.png")
    assert (tmp_path / "fig.png").is_symlink()
    assert (tmp_path / "real" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_token_map_of_another_length_than_its_traces_map_is_refused(tmp_path):
    folder = make_folder(tmp_path, traces=2)
    save_example(folder, torch.rand(54, 54), "t-1")
    with pytest.raises(FileError, match="is of 54 tokens, and the map of its trace 't-1' of 55"):
        save_figure("tokens", folder, tmp_path / "fig")


def test_a_comparison_of_other_traces_than_the_folders_is_said(tmp_path, run):
    folder = make_folder(tmp_path / "results", traces=8)
    assert run("compare", folder, "--resamples", 99)[0] == 0
    listed = {f"t-{i}": {"file": f"t-{i}.safetensors"} for i in range(8)}
    (folder / "saliency.json").write_text(json.dumps({"traces": listed}))
    save_figure("forest", folder, tmp_path / "fig")
    listed.pop("t-3")
    (folder / "saliency.json").write_text(json.dumps({"traces": listed}))
    with pytest.warns(UserWarning, match=r"compares 8 traces, which are not the 7 that .* run `stepsal compare"):
        save_figure("forest", folder, tmp_path / "fig")
