"""What `stepsal figure` can be asked for: which traces, layers, head, measure and metrics, in which format."""

import json
from dataclasses import replace

import pytest
from helpers import random_map

from stepsal import InputError, plot
from stepsal.cli import main
from stepsal.figures.save import FIGURES, OPTIONS, figures_with, save_figure
from stepsal.files import write_settings
from stepsal.saliency.folder import map_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Maps of four traces that nobody graded; one has a comma in its id."""
    folder = tmp_path_factory.mktemp("maps")
    for i, name in enumerate(["t-0", "t-1", "a,b", "$x$"]):
        stepmap = random_map("qttts", [5, 3, 4, 3, 4], layers=8, heads=2, seed=i, model_layers=8)
        meta = stepmap.meta | {"trace": name, "correct": None, "model": "m", "rule": "abs", "objective": "token"}
        replace(stepmap, meta=meta).save(map_path(folder, name))
    write_settings(folder / "saliency.json", {"model": "m", "rule": "abs", "objective": "token"})
    return folder


@pytest.fixture
def grades(tmp_path):
    path = tmp_path / "grades.jsonl"
    lines = [{"id": name, "correct": name != "a,b"} for name in ("t-1", "t-0", "a,b")]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def titles(figure) -> list[str]:
    return [title for ax in figure.axes if (title := ax.get_title(loc="left"))]


def drawn(name, folder, **options):
    with plot.style():
        return FIGURES[name](folder, None, **options)


def test_a_trace_is_chosen_by_its_id_once_and_in_the_order_given(folder):
    made = drawn("maps", folder, trace=["t-1,t-0", "t-1"], layers=["all"])
    assert titles(made.figure) == ["t-1\nall layers", "t-0\nall layers"]
    assert made.caption.startswith("Step maps of traces t-1, t-0: ")


def test_an_id_with_a_comma_is_an_id(folder):
    assert "Step maps of trace a,b: " in drawn("maps", folder, trace=["a,b"]).caption


def test_a_dollar_in_an_id_begins_no_formula(folder):
    assert titles(drawn("maps", folder, trace=["$x$"], layers=["all"]).figure) == ["\\$x\\$\nall layers"]


def test_layers_heads_and_measures_are_those_of_the_step_map_that_is_drawn(folder):
    figure = drawn("maps", folder, trace=["t-1"], layers=["deep", 4, [1, 2, 3]], head=1, measure="mass").figure
    assert titles(figure) == ["t-1\ndeep layers", "t-1\nlayer 4", "t-1\nlayers 1–3"]
    stepmap = random_map("qttts", [5, 3, 4, 3, 4], layers=8, heads=2, seed=1)
    for ax, layers in zip(figure.axes, ([6, 7], [4], [1, 2, 3]), strict=False):
        expected = stepmap.mass[layers, 1].mean(0)
        assert ax.images[0].get_array()[3, 1] == pytest.approx(float(expected[3, 1]))
    assert (
        "head 1 of the deep layers (top quarter), layer 4 and layers 1–3"
        in drawn("maps", folder, trace=["t-1"], layers=["deep", 4, [1, 2, 3]], head=1).caption
    )


def test_maps_without_grades_are_drawn_as_one_group(folder):
    assert titles(drawn("maps", folder).figure) == ["shallow layers", "deep layers"]
    made = drawn("profiles", folder)
    assert not made.figure.legends
    assert "over all traces" in made.caption
    assert drawn("heads", folder).caption.endswith(
        "mean over 4 traces. Each scale reaches from the smallest to the largest value."
    )


def test_grades_of_a_file_divide_the_traces_and_who_has_none_is_shown_apart(folder, grades, tmp_path):
    assert titles(drawn("maps", folder, grades=grades).figure) == [
        f"{name}: {band} layers" for name in ("right", "wrong", "ungraded") for band in ("shallow", "deep")
    ]
    (legend,) = drawn("profiles", folder, grades=grades).figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["right (n = 2)", "wrong (n = 1)", "ungraded (n = 1)"]
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "other", "correct": true}')
    with pytest.raises(InputError, match="the grades are of 1 traces, none of which is in"):
        drawn("profiles", folder, grades=other)


def test_of_a_band_the_layers_are_shown_that_the_map_holds_and_the_caption_says_which(tmp_path):
    stepmap = random_map("qtts", [5, 3, 4, 3], layers=3, heads=2, model_layers=12)
    replace(stepmap, layers=(2, 6, 10), meta=stepmap.meta | {"trace": "t"}).save(map_path(tmp_path, "t"))
    write_settings(tmp_path / "saliency.json", {"rule": "abs"})
    caption = drawn("maps", tmp_path).caption
    assert "of the shallow ones the map holds 2; of the deep ones the map holds 10" in caption
    replace(stepmap, layers=(5, 6, 7), meta=stepmap.meta | {"trace": "t"}).save(map_path(tmp_path, "t"))
    assert titles(drawn("maps", tmp_path).figure) == ["all layers"]


def test_metrics_are_chosen_by_name(folder):
    assert titles(drawn("profiles", folder, metric=["summary_self"]).figure) == ["summary's share from\nitself"]
    assert titles(drawn("heads", folder, metric=["lock_in", "lock_in", "context_share"]).figure) == [
        "lock-in",
        "share from earlier\nsteps",
    ]
    with pytest.raises(InputError, match=r"unknown metric 'lockin' \(did you mean 'lock_in'\?\): expected one of"):
        drawn("heads", folder, metric=["lockin"])


# --- from the command line ---------------------------------------------------------------------------------------------
def run(capsys, *arguments) -> tuple[int, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.err if status else captured.out


def test_the_command_takes_what_the_function_takes_and_the_caption_has_the_whole_command(folder, tmp_path, capsys):
    options = ["--trace", "t-1", "--trace", "a,b", "--layers", "shallow,4,5-7", "--head", 0, "--measure", "density"]
    status, out = run(capsys, "figure", "maps", folder, *options, "--format", "svg", "--out", tmp_path / "x")
    assert (status, out.split()) == (0, [str(tmp_path / "x.svg"), str(tmp_path / "x.md")])
    said = (tmp_path / "x.md").read_text()
    assert (
        f"Made by `stepsal figure maps {folder} --trace t-1,a,b --layers shallow,4,5-7 --head 0 --measure density "
        f"--format svg --out {tmp_path / 'x.svg'}`."
    ).replace("--trace t-1,a,b", "--trace t-1 --trace a,b") in said


@pytest.mark.parametrize(
    ("out", "options", "suffixes"),
    [
        ("x.svg", [], ["svg"]),
        ("x", [], ["png", "pdf"]),
        ("x", ["--format", "pdf"], ["pdf"]),
        ("x.pdf", ["--format", "svg,pdf"], ["svg", "pdf"]),
    ],
)
def test_a_picture_is_written_in_the_formats_asked_for(folder, tmp_path, capsys, out, options, suffixes):
    status, said = run(capsys, "figure", "heads", folder, "--out", tmp_path / out, *options)
    assert (status, said.split()) == (0, [str(tmp_path / f"x.{suffix}") for suffix in (*suffixes, "md")])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == sorted(f".{suffix}" for suffix in (*suffixes, "md"))


def test_the_same_results_give_the_same_svg(folder, tmp_path):
    first, second = (save_figure("heads", folder, tmp_path / n / "x.svg")[0].read_bytes() for n in "ab")
    assert first == second
    assert first.startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["heads", "--out", "x.jpg"],
            "the picture 'heads' is written as .png and .pdf, not as '.jpg'; let --out end in .png",
        ),
        (
            ["heads", "--out", "x.png", "--format", "svg"],
            "is written as .svg, not as '.png'; give --format png, or let",
        ),
        (["heads", "--out", "x", "--format", "eps"], "cannot write the format 'eps': expected one of png, pdf, svg"),
        (
            ["ablation", "--out", "x.png"],
            "the table 'ablation' is written as .md and .tex, not as '.png'; let --out end in .md",
        ),
        (
            ["ablation", "--out", "x", "--format", "png"],
            "'ablation' is a table, written as .md and .tex: it takes no --format",
        ),
        (["heads", "--out", "x", "--head", "1"], "figure 'heads' takes no --head: maps, before_after take it"),
        (["grid", "--out", "x", "--trace", "1"], "takes no --trace: maps, profiles, heads, before_after take it"),
        (["maps", "--out", "x", "--metric", "lock_in"], "takes no --metric: profiles, heads, forest take it"),
        (["maps", "--out", "x", "--trace", "t1"], "there is no trace 't1' (did you mean 't-1'?) in"),
        (["maps", "--out", "x", "--trace", "zzz"], "it holds $x$, a,b, t-0, t-1"),
        (
            ["maps", "--out", "x", "--layers", "9"],
            "layer 9 is not in this map, which holds layers [0, 1, 2, 3, 4, 5, 6, 7]",
        ),
        (["maps", "--out", "x", "--layers", "top"], "unknown layers 'top'"),
        (["maps", "--out", "x", "--head", "2"], "head 2 is not in this map, which holds heads 0 to 1"),
        (
            ["maps", "--out", "x", "--measure", "weight"],
            "unknown measure 'weight': expected one of share, density, mass",
        ),
        (["map", "--out", "x"], "unknown figure 'map' (did you mean 'maps'?)"),
    ],
)
def test_what_cannot_be_drawn_or_written_is_refused_with_the_fix(folder, tmp_path, capsys, arguments, message):
    name, _, out, *options = arguments
    status, error = run(capsys, "figure", name, folder, "--out", tmp_path / out, *options)
    assert status == 2
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_range_that_is_none_is_refused(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["figure", "maps", str(folder), "--out", str(tmp_path / "x"), "--layers", "7-4"])
    assert "'7-4' is neither a band, nor a layer, nor a range such as 4-7" in capsys.readouterr().err


def test_the_help_of_an_option_names_the_figures_that_take_it(capsys):
    with pytest.raises(SystemExit):
        main(["figure", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for option, flag in OPTIONS.items():
        assert figures_with(option)
        assert f"{flag} " in shown
        assert f"({', '.join(figures_with(option))}; default: " in shown


def test_the_advice_to_give_traces_holds_for_every_command_that_gives_it(folder, grades, tmp_path, capsys):
    status, error = run(capsys, "compare", folder)
    assert (status, "with --traces." in error) == (2, True)
    assert run(capsys, "figure", "profiles", folder, "--traces", grades, "--out", tmp_path / "x")[0] == 0
    assert f"--traces {grades}" in (tmp_path / "x.md").read_text()
