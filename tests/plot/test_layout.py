"""Every figure one column wide, of few and of many layers and steps: no two texts touch, nothing is cut off or covered."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import random_map, random_trace
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.text import Text
from sweep_data import planted, write_results

from stepsal import Diagnosis, OddsEqualBridge, RandomBridge, RandomMomentum, StepMomentum, compare, diagnose, plot
from stepsal.demo import draw
from stepsal.figures.maps import MAP_FIGURES, draw_panels, save_example
from stepsal.figures.save import FIGURES
from stepsal.figures.sweeps import SWEEP_FIGURES, draw_before_after
from stepsal.files import write_settings
from stepsal.plot.canvas import COLUMN_WIDTH, new_figure
from stepsal.plot.ticks import RoomyLocator
from stepsal.saliency.folder import load_step_maps, map_path
from stepsal.sweeps.settings import Setting

SIZES = {"8 layers, 7 steps": (8, 4, 7), "28 layers, 150 steps": (28, 2, 150)}


def shown_texts(figure) -> list[Text]:
    """The texts that are drawn: of tick labels, those that are in view."""
    hidden = set()
    for ax in figure.findobj(Axes):
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                margin = 1e-9 * (high - low)
                if not (low - margin <= tick.get_loc() <= high + margin and ax.get_visible() and ax.axison):
                    hidden |= {tick.label1, tick.label2}
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in hidden]


def check_layout(figure: Figure) -> None:
    """No two texts touch, all are within the figure, and no legend is over an axes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = {text: text.get_window_extent(renderer) for text in shown_texts(figure)}
    for (one, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
        assert not box.padded(-0.3).overlaps(other_box.padded(-0.3)), (one, other)
    width, height = figure.bbox.size
    for text, box in boxes.items():
        inside = box.x0 >= -0.5 and box.y0 >= -0.5 and box.x1 <= width + 0.5 and box.y1 <= height + 0.5
        assert inside, f"{text} is cut off: {box} in {figure.bbox}"
    legends = [legend for each in (figure, *figure.subfigs) for legend in each.legends]
    legends += [ax.get_legend() for ax in figure.findobj(Axes) if ax.get_legend() is not None]
    for legend in legends:
        for ax in figure.findobj(Axes):
            assert not legend.get_window_extent(renderer).overlaps(ax.get_window_extent(renderer)), legend


@pytest.fixture(scope="module", params=SIZES)
def folder(request, tmp_path_factory):
    """Maps of right and wrong traces."""
    layers, heads, steps = SIZES[request.param]
    folder = tmp_path_factory.mktemp("maps")
    sizes = [20, *[4] * (steps - 3), 3, 4]
    segments = "q" + "t" * (steps - 3) + "ss"
    for i in range(4):
        stepmap = random_map(segments, sizes, layers=layers, heads=heads, seed=i)
        name = f"problem_{i}-of-a-long-name"
        meta = {"trace": name, "correct": i % 2 > 0, "model": "m", "rule": "abs", "objective": "token"}
        replace(stepmap, mass=stepmap.mass**4, meta=meta).save(map_path(folder, name))
    write_settings(folder / "saliency.json", {"model": "m", "rule": "abs", "objective": "token"})
    maps = load_step_maps(folder)
    compare([each for each in maps if each.meta["correct"]], maps[::2], resamples=99).save(folder / "comparison.json")
    save_example(folder, torch.rand(sum(sizes), sum(sizes)).tril() ** 4, "problem_1-of-a-long-name")
    return folder


@pytest.mark.parametrize("name", MAP_FIGURES)
def test_figures_of_maps_have_no_texts_that_touch(folder, name):
    with plot.style():
        figure = FIGURES[name](folder, None).figure
        assert figure.get_size_inches()[0] == COLUMN_WIDTH == 3.3
        check_layout(figure)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maps", {"trace": ["problem_1-of-a-long-name,problem_2-of-a-long-name"], "layers": ["all", 4, [5, 6, 7]]}),
        ("maps", {"layers": [0], "measure": "mass"}),
        ("profiles", {"metric": ["lock_in", "final_block_intensity", "last_steps"]}),
        ("forest", {"metric": ["analysis_block_intensity"]}),
    ],
)
def test_neither_have_figures_with_options(folder, name, options):
    with plot.style():
        check_layout(FIGURES[name](folder, None, **options).figure)


def test_the_demos_picture_and_before_and_after_have_no_texts_that_touch(folder):
    maps = load_step_maps(folder)[:2]
    trace = replace(random_trace(10, [4]), correct=False, meta={"error": "wrong premise"})
    groups = {"right": [(replace(trace, correct=True, meta={}), maps[1])], "wrong": [(trace, maps[0])]}
    with plot.style():
        figure = draw(groups, {name: [diagnose(stepmap) for _, stepmap in group] for name, group in groups.items()})
        check_layout(figure)
        figure = new_figure(4.5)
        draw_before_after(figure, *maps)
        check_layout(figure)


def test_neither_has_a_picture_of_28_heads():
    values = {"lock_in": torch.rand(28, 28)}
    figure = new_figure(2.0)
    with plot.style():
        for ax in figure.subplots(1, 2):
            plot.heads(Diagnosis(values, {}, {}, tuple(range(28)), (), {}), ax=ax)
        check_layout(figure)


def single(kind, layer, head=None) -> Setting:
    return Setting((kind(layers=(layer,), heads=None if head is None else {layer: (head,)}),))


@pytest.fixture(scope="module", params=[(3, 2), (28, 1)])
def sweep_folder(request, tmp_path_factory):
    """A sweep that has what every figure needs, with few or many settings."""
    layers, heads = request.param
    bridge, momentum = OddsEqualBridge(layers=(0, 1)), StepMomentum(layers=(6, 7))
    settings = [Setting((OddsEqualBridge(layers=(0, 1), tau_max=tau),)) for tau in (0.05, 0.06, 0.15, 0.3)]
    settings += [Setting((momentum,)), Setting((bridge, momentum)), Setting((RandomBridge(layers=(0, 1)),))]
    settings += [Setting((RandomMomentum(layers=(6, 7)),))]
    settings += [
        single(kind, layer, head)
        for kind in (OddsEqualBridge, StepMomentum)
        for layer in range(layers)
        for head in (*range(heads), None)
    ]
    settings = list(dict.fromkeys(settings))
    rows = planted(settings, lambda setting: 0.1 if setting.kind == "oeb" else 0.0, problems=12, samples=2)
    return write_results(tmp_path_factory.mktemp("sweep"), rows)


@pytest.mark.parametrize(
    "name", [name for name in SWEEP_FIGURES if name not in ("ablation", "before_after", "effects")]
)
def test_figures_of_sweeps_have_no_texts_that_touch(sweep_folder, name):
    with plot.style():
        figure = FIGURES[name](sweep_folder, None).figure
        assert figure.get_size_inches()[0] == COLUMN_WIDTH
        check_layout(figure)


def test_neither_has_the_figure_of_effects(tmp_path):
    settings = [Setting((OddsEqualBridge(layers=(layer, layer + 1)),)) for layer in range(20)]
    rows = planted([*settings, Setting((RandomBridge(layers=(0, 1)),))], lambda setting: 0.1, problems=30)
    with plot.style():
        check_layout(FIGURES["effects"](write_results(tmp_path, rows), None).figure)


def test_neither_has_the_figure_of_faithfulness(tmp_path):
    names = ["abs", "value_attention", "margin", "recency", "length", "knockout total"]
    rows = [
        (score, pairs, name + after, 0.1 * at, 0.1 * at - 0.05, 0.1 * at + 0.05, 20)
        for score, pairs in (
            ("per reader", "all"),
            ("partial", "no neighbours"),
            ("LDS", "answer"),
            ("deletion", "answer"),
        )
        for at, name in enumerate(names)
        for after in (("", ", shuffled") if at < 3 and pairs != "answer" else ("",))
    ]
    table = pd.DataFrame(rows, columns=["score", "pairs", "map", "mean", "low", "high", "n"])
    table.to_csv(tmp_path / "faithfulness.csv", index=False)
    with plot.style():
        check_layout(FIGURES["faithfulness"](tmp_path, None).figure)


# --- what ticks, legends and colour bars say ---------------------------------------------------------------------------
@pytest.mark.parametrize("inches", [0.6, 1.2, 3.0])
@pytest.mark.parametrize("number", [1, 7, 28, 150, 12345])
def test_places_are_labelled_as_far_as_there_is_room(inches, number):
    figure = Figure(figsize=(inches, inches))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(-0.5, number - 0.5)
    labels = {float(place): str(place) for place in range(number)}
    ax.xaxis.set_major_locator(RoomyLocator(labels, (number + 0.2, "all")))
    *places, extra = ax.xaxis.get_majorticklocs()
    assert extra == number + 0.2
    assert set(places) <= set(labels)
    assert set(np.diff(places)) <= {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000}
    if number == 7 and inches > 2:
        assert len(places) == 7


def test_legends_show_neither_filled_nor_open_markers_where_these_mean_something(folder):
    with plot.style():
        figure = FIGURES["forest"](folder, None).figure
    (legend,) = figure.legends
    entries = {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    assert list(entries) == ["all traces", "matched pairs", "distance alone", "p < 0.05", "p ≥ 0.05"]
    for name in ("all traces", "matched pairs", "distance alone"):
        assert entries[name].get_fillstyle() == "left"
    assert entries["p < 0.05"].get_markerfacecolor() != "white" == entries["p ≥ 0.05"].get_markerfacecolor()


def test_the_ends_of_a_colour_bar_are_pointed_where_values_are_beyond_them():
    def ends(stepmap) -> str:
        figure = new_figure(3.0)
        draw_panels(figure, [[plot_panel(stepmap)]], measure="mass")
        (bar,) = [ax._colorbar for ax in figure.axes if hasattr(ax, "_colorbar")]
        assert isinstance(bar, Colorbar)
        return bar.extend

    from stepsal.figures.maps import Panel

    def plot_panel(stepmap):
        return Panel(stepmap, "all")

    stepmap = random_map("qttt", [3, 3, 3, 3], layers=1, heads=1)
    stepmap.mass[:] = torch.ones(4, 4).tril()
    assert ends(stepmap) == "neither"
    stepmap.mass[0, 0, 0, 0] = 9.0  # the question's own row
    assert ends(stepmap) == "max"
    stepmap.mass[0, 0, 3, 0] = 1e-6
    assert ends(stepmap) == "both"
