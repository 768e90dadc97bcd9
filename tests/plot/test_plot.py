import itertools

import matplotlib as mpl
import numpy as np
import pytest
import torch
from helpers import make_map, make_steps, random_map, unchecked
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from stepsal import Diagnosis, InputError, compare, plot
from stepsal.diagnosis.metrics import METRICS
from stepsal.plot import map_values

SEGMENTS, SIZES = "qttts", [5, 3, 2, 4, 3]


def drawn(ax) -> np.ma.MaskedArray:
    (image,) = ax.images
    return image.get_array()


def segment_labels(ax) -> list[str]:
    (names,) = ax.child_axes
    return [label.get_text() for label in names.get_xticklabels()]


def rendered(figure: Figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


# --- step map --------------------------------------------------------------------------------------------------------
def test_the_map_is_drawn_as_it_is_with_the_upper_triangle_empty():
    stepmap = random_map(SEGMENTS, SIZES)
    array = drawn(plot.step_map(stepmap))
    assert np.array_equal(np.ma.getmaskarray(array), np.triu(np.ones((5, 5), dtype=bool), 1))
    expected = stepmap.density().mean((0, 1)).numpy()
    np.testing.assert_array_equal(array.compressed(), expected[np.tril_indices(5)])


def test_rows_without_a_query_are_left_empty():
    array = drawn(plot.step_map(make_map("qts", [3, 2, 1], torch.ones(3, 3))))
    assert np.ma.getmaskarray(array)[2].all()
    assert not np.ma.getmaskarray(array)[1, :2].any()


def test_a_pair_of_steps_without_influence_is_dark_and_not_empty():
    stepmap = make_map("qtt", [2, 3, 3], [[1.0, 0, 0], [0, 1, 0], [1, 1, 1]])
    ax = plot.step_map(stepmap)
    (image,) = ax.images
    rgba = image.to_rgba(drawn(ax))
    assert rgba[1, 0].tolist() == list(image.cmap(0.0))
    assert rgba[0, 1, 3] == 0  # transparent above the diagonal


@pytest.mark.parametrize(
    ("segments", "labels"),
    [("qttts", ["Q", "thinking", "summary"]), ("qt", ["Q", "thinking"]), ("qss", ["Q", "summary"]), ("q", ["Q"])],
)
def test_segments_are_named_in_order(segments, labels):
    assert segment_labels(plot.step_map(random_map(segments, [3] * len(segments)))) == labels


def test_segments_have_a_bar_and_a_line_at_each_boundary():
    ax = plot.step_map(random_map("qttss", [3] * 5))
    lines = [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in ax.lines]
    boundaries = [line for line in lines if line[1] != (1.02, 1.02)]
    assert boundaries == [
        ((-0.5, 0.5), (0.5, 0.5)),
        ((0.5, 0.5), (0.5, 4.5)),
        ((-0.5, 2.5), (2.5, 2.5)),
        ((2.5, 2.5), (2.5, 4.5)),
    ]
    assert [line[0] for line in lines if line not in boundaries] == [(-0.5, 0.5), (0.5, 2.5), (2.5, 4.5)]


def test_lines_and_bars_leave_the_limits_to_the_map():
    ax = plot.step_map(random_map(SEGMENTS, SIZES))
    assert ax.get_xlim() == (-0.5, 4.5)
    assert ax.get_ylim() == (4.5, -0.5)


def test_a_given_scale_is_used():
    norm = LogNorm(0.003, 7)
    (image,) = plot.step_map(random_map(SEGMENTS, SIZES), norm=norm).images
    assert image.norm is norm
    assert (norm.vmin, norm.vmax) == (0.003, 7)


def test_the_colour_bar_can_be_left_out():
    stepmap = random_map(SEGMENTS, SIZES)
    assert len(plot.step_map(stepmap).figure.axes) == 2
    assert len(plot.step_map(stepmap, colorbar=False).figure.axes) == 1
    labels = {
        measure: plot.step_map(stepmap, measure=measure).figure.axes[1].get_ylabel() for measure in ("density", "share")
    }
    assert labels == {"density": "influence per token pair", "share": "share of the row's influence"}


def test_it_draws_on_the_axes_it_is_given():
    ax = Figure().subplots()
    assert plot.step_map(random_map(SEGMENTS, SIZES), ax=ax) is ax


def test_one_scale_spans_several_maps_three_decades_at_most():
    low, high = torch.tensor([[[0.5, torch.nan], [0.0, 2.0]]])[0], torch.tensor([[4.0, torch.nan], [8.0, 1.0]])
    norm = plot.log_scale(low, high)
    assert norm.vmax == 8
    assert norm.vmin == pytest.approx(0.5, rel=2e-3)
    assert norm.vmin < 0.5
    assert plot.log_scale(torch.tensor([[1e-9, 100.0]])).vmin == pytest.approx(0.1, rel=2e-3)


def test_the_colours_are_scaled_by_the_answers_rows_and_not_by_the_question():
    stepmap = make_map("qtts", [3, 3, 3, 3], torch.ones(4, 4).tril())
    stepmap.mass[0, 0, 0, 0] *= 1e6  # the question's own row
    stepmap.mass[0, 0, 2, 1] *= 7
    (image,) = plot.step_map(stepmap).images
    assert image.norm.vmax == pytest.approx(7)
    alone = make_map("q", [3], torch.ones(1, 1))  # nothing but a question: its own scale
    assert plot.step_map(alone).images[0].norm.vmax == pytest.approx(1)


def test_layers_heads_and_measures_are_chosen_and_averaged():
    stepmap = random_map(SEGMENTS, SIZES, layers=3, heads=2)
    density, share = stepmap.density(), stepmap.share()
    chosen = {
        ("all", None, "density"): sum(density[i, j] for i in range(3) for j in range(2)) / 6,
        ("all", 1, "share"): sum(share[i, 1] for i in range(3)) / 3,
        (2, 0, "density"): density[2, 0],
        ((0, 2), 1, "density"): (density[0, 1] + density[2, 1]) / 2,
        ("shallow", 0, "share"): share[0, 0],
        ("deep", 0, "share"): share[2, 0],
        (1, 0, "mass"): stepmap.mass[1, 0].masked_fill(stepmap.pairs == 0, torch.nan),
    }
    for arguments, expected in chosen.items():
        torch.testing.assert_close(map_values(stepmap, *arguments), expected, equal_nan=True, msg=str(arguments))


def test_layers_are_those_of_the_model_also_where_the_map_holds_some_only():
    stepmap = make_map("qt", [3, 3], torch.rand(2, 3, 2, 2), layers=(6, 7), model_layers=8)
    density = stepmap.density()
    torch.testing.assert_close(map_values(stepmap, 7, 0, "density"), density[1, 0], equal_nan=True)
    torch.testing.assert_close(map_values(stepmap, "deep", 0, "density"), density[:, 0].mean(0), equal_nan=True)
    torch.testing.assert_close(map_values(stepmap, "all", 0, "density"), density[:, 0].mean(0), equal_nan=True)
    with pytest.raises(InputError, match=r"layer 0 is not in this map, which holds layers \[6, 7\]"):
        map_values(stepmap, "shallow", 0, "density")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2}, r"layer 2 is not in this map, which holds layers \[0, 1\]"),
        ({"layer": [0, 5]}, "layer 5 is not in this map"),
        ({"layer": []}, "no layer is named"),
        ({"layer": "top"}, "unknown layers 'top'"),
        ({"head": 3}, "head 3 is not in this map, which holds heads 0 to 2"),
        ({"head": -1}, "head -1 is not in this map"),
        ({"measure": "weight"}, "unknown measure 'weight': expected one of share, density, mass"),
    ],
)
def test_what_the_map_does_not_hold_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        unchecked(plot.step_map)(random_map(SEGMENTS, SIZES), **options)


def test_a_map_that_a_logarithm_cannot_show_is_refused():
    with pytest.raises(InputError, match="there is no positive value to colour"):
        plot.step_map(make_map("qt", [2, 3], torch.zeros(2, 2)))
    with pytest.raises(InputError, match="negative influence"):
        plot.step_map(make_map("qt", [2, 3], [[1.0, 0], [-1, 1]]))


def overlapping(boxes) -> list[tuple]:
    return [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


@pytest.mark.parametrize("counts", [(1, 2, 2), (1, 8, 1), (1, 15, 1), (1, 147, 2), (1, 1, 148), (148, 1, 1)])
@pytest.mark.parametrize("size", [(4.2, 3.6), (2.6, 2.4)])
def test_no_two_labels_overlap_at_any_number_of_steps(counts, size):
    segments = "".join(letter * count for letter, count in zip("qts", counts, strict=True))
    figure = Figure(figsize=size, layout="constrained")
    with plot.style():
        ax = plot.step_map(random_map(segments, [2] * len(segments), 1, 1), ax=figure.subplots(), colorbar=size[0] > 3)
        ax.set_title("a title")
        renderer = rendered(figure)
    (names,) = ax.child_axes
    in_view = [
        [
            label
            for at, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
            if -0.5 <= at <= len(segments)
        ]
        for axis in (ax.xaxis, ax.yaxis)
    ]
    assert all(3 <= len(labels) <= 20 for labels in in_view)
    texts = [*itertools.chain(*in_view), *names.get_xticklabels(), ax.title, ax.xaxis.label, ax.yaxis.label]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert overlapping(boxes) == []
    assert overlapping([ax.get_window_extent(renderer), *boxes]) == []  # nor do they cover the map
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1


# --- depth profile ---------------------------------------------------------------------------------------------------
def line_of(ax, index=0):
    return [line for line in ax.lines if line.get_marker() != "None"][index]


def band_of(ax, index=0) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of the band at each layer."""
    vertices = ax.collections[index].get_paths()[0].vertices
    layers = np.unique(vertices[:, 0])
    low, high = ([edge(vertices[vertices[:, 0] == layer, 1]) for layer in layers] for edge in (np.min, np.max))
    return np.array(low), np.array(high)


def diagnosed(*profiles) -> list[Diagnosis]:
    """Diagnoses whose lock-in, by layer, is as given; two heads, a little above and below."""
    found = []
    for profile in (torch.as_tensor(each, dtype=torch.float32) for each in profiles):
        values = {name: torch.stack([profile - 0.125, profile + 0.125], 1) for name in METRICS}
        found.append(Diagnosis(values, {}, {}, tuple(range(2, 2 + len(profile))), (), {}))
    return found


def test_the_line_is_the_mean_over_heads_and_traces_and_nan_is_left_out():
    ax = plot.depth_profile({"right": diagnosed([1.0, 2, 3], [3, 2, 7], [torch.nan] * 3)})
    assert line_of(ax).get_xdata().tolist() == [2, 3, 4]  # the model's layers
    assert line_of(ax).get_ydata().tolist() == [2, 2, 5]
    assert ax.get_ylabel() == "lock-in"
    assert ax.get_xlabel() == "layer"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["right (n = 2)"]


def test_the_band_is_the_normal_interval_of_the_mean():
    nan = torch.nan
    low, high = band_of(plot.depth_profile({"a": diagnosed([1.0, 4], [3, 4], [8, nan], [nan, nan])}))
    deviation = np.std([1, 3, 8], ddof=1)
    np.testing.assert_allclose(low, [4 - 1.96 * deviation / 3**0.5, 4], rtol=1e-5)
    np.testing.assert_allclose(high, [4 + 1.96 * deviation / 3**0.5, 4], rtol=1e-5)


def test_one_trace_gives_a_band_without_width():
    (one,) = diagnosed([0.25, 0.5, 0.375])
    ax = plot.depth_profile(one)
    low, high = band_of(ax)
    np.testing.assert_array_equal(low, high)
    np.testing.assert_array_equal(low, line_of(ax).get_ydata())
    assert ax.get_legend() is None
    assert [set(line.get_ydata()) for line in ax.lines if line.get_linestyle() == "--"] == [{0.5}]


def test_groups_differ_in_colour_and_marker_and_have_their_own_n():
    ax = plot.depth_profile({"right": diagnosed(*torch.rand(5, 4)), "wrong": diagnosed(*torch.rand(3, 4))})
    first, second = line_of(ax, 0), line_of(ax, 1)
    assert first.get_color() != second.get_color()
    assert first.get_marker() != second.get_marker()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["right (n = 5)", "wrong (n = 3)"]


def test_a_group_without_any_value_draws_nothing_and_says_so():
    ax = plot.depth_profile({"none": diagnosed([torch.nan] * 4), "some": diagnosed(*torch.rand(2, 4))})
    assert np.isnan(line_of(ax, 0).get_ydata()).all()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["none (n = 0)", "some (n = 2)"]


def test_layers_are_whole_numbers():
    ax = plot.depth_profile(diagnosed(*torch.rand(3, 4)))
    rendered(ax.figure)
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: {"diagnosis": {str(i): diagnosed([1.0]) for i in range(7)}}, "7 groups; there are colours for 6"),
        (
            lambda: {"diagnosis": diagnosed([1.0]), "metric": "lockin"},
            "unknown metric 'lockin': expected one of lock_in,",
        ),
        (lambda: {"diagnosis": {"wrong": []}}, "there is no diagnosis in group 'wrong' to draw"),
        (lambda: {"diagnosis": [*diagnosed([1.0]), *diagnosed([1.0, 2.0])]}, "differ in layers"),
    ],
)
def test_what_cannot_be_drawn_as_a_profile_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        plot.depth_profile(**arguments())


# --- heads and comparisons -------------------------------------------------------------------------------------------
def test_heads_are_columns_and_layers_rows_from_the_bottom():
    ax = plot.heads(diagnosed([1.0, 2, 3], [3, 2, 7]), limits=(0, 8))
    np.testing.assert_allclose(drawn(ax), [[1.875, 2.125], [1.875, 2.125], [4.875, 5.125]])
    assert ax.get_ylim()[0] < ax.get_ylim()[1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "3", "4"]
    assert ax.images[0].get_clim() == (0, 8)


def test_the_forest_plot_shows_each_control_and_fills_what_is_significant():
    maps = [random_map("qtttss", [6, 3, 4, 5, 3, 4], layers=4, heads=2, seed=seed) for seed in range(24)]
    for stepmap in maps[12:]:
        stepmap.mass[1, :, 2, 2] *= 50  # lock-in of layer 1
        stepmap.mass[1, :, 3, 3] *= 50
    result = compare(maps[:12], maps[12:], resamples=199)
    ax = plot.comparison(result)
    assert ax.get_legend_handles_labels()[1] == ["all traces", "matched pairs", "distance alone"]
    for points, table in zip(ax.collections[1::2], (result.table, result.matched), strict=False):
        rows = table[table["metric"] == "lock_in"]
        np.testing.assert_allclose(points.get_offsets()[:, 0], rows["auc"])
        filled = [tuple(colour) != (1, 1, 1, 1) for colour in points.get_facecolors()]
        assert filled == (rows["p_corrected"] < 0.05).tolist() == [False, True, False, False]


def test_the_token_map_is_drawn_as_it_is_with_a_line_at_each_steps_end():
    steps = make_steps("qtts", [2, 3, 2, 3])
    influence = torch.rand(10, 10).tril() + 0.1
    ax = plot.token_map(influence, steps)
    np.testing.assert_array_equal(drawn(ax).compressed(), influence[tuple(np.tril_indices(10))])
    assert segment_labels(ax) == ["Q", "thinking", "summary"]
    assert [line.get_xdata()[1] for line in ax.lines[:3]] == [1.5, 4.5, 6.5]
    with pytest.raises(InputError, match=r"the map is \(7, 7\) but the steps have 10 tokens"):
        plot.token_map(torch.rand(7, 7), steps)


def test_narrow_maps_name_their_segments_by_a_letter():
    figure = Figure(figsize=(3.4, 2), layout="constrained")
    left, _ = figure.subplots(1, 2)
    assert segment_labels(plot.step_map(random_map(SEGMENTS, SIZES), ax=left)) == ["Q", "T", "S"]


# --- the rest of matplotlib ------------------------------------------------------------------------------------------
def test_plotting_leaves_settings_and_pyplot_as_they_were():
    import matplotlib.pyplot as plt

    before, figures = dict(mpl.rcParams), plt.get_fignums()
    with plot.style():
        assert mpl.rcParams["font.size"] == 8
        plot.step_map(random_map(SEGMENTS, SIZES))
        plot.depth_profile({"a": diagnosed(*torch.rand(3, 4))})
    plot.step_map(random_map(SEGMENTS, SIZES))
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == figures
    assert mpl.colormaps["viridis"] == type(mpl.colormaps["viridis"])(mpl.colormaps["viridis"].colors, "viridis")


def test_the_style_is_undone_after_an_error():
    before = dict(mpl.rcParams)
    with pytest.raises(RuntimeError), plot.style():
        raise RuntimeError
    assert dict(mpl.rcParams) == before


# --- faithfulness ----------------------------------------------------------------------------------------------------
def check_table():
    import pandas as pd

    rows = [
        ("per reader", "all", "abs", 0.8, 0.7, 0.9, 20),
        ("per reader", "all", "recency", 0.5, 0.4, 0.6, 20),
        ("per reader", "all", "abs, shuffled", 0.3, 0.2, 0.4, 20),
        ("deletion", "answer", "abs", 0.2, 0.1, 0.3, 20),
        ("deletion", "answer", "recency", float("nan"), float("nan"), float("nan"), 0),
        ("LDS", "answer", "abs", float("nan"), float("nan"), float("nan"), 0),
    ]
    return pd.DataFrame(rows, columns=["score", "pairs", "map", "mean", "low", "high", "n"])


def test_a_faithfulness_picture_has_a_row_for_each_map_with_its_interval():
    ax = plot.faithfulness(check_table())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["abs", "recency"]
    points = {each.get_label(): each.get_offsets()[0] for each in ax.collections if len(each.get_offsets())}
    shown = ax.get_legend_handles_labels()[1]
    assert shown == ["map", "map, shuffled within each distance", "baseline"]
    assert [points[name][0] for name in shown] == [0.8, 0.3, 0.5]
    intervals = [each.get_segments()[0][:, 0].tolist() for each in ax.collections if hasattr(each, "get_segments")]
    assert intervals == [[0.7, 0.9], [0.2, 0.4], [0.4, 0.6]]


def test_a_faithfulness_picture_leaves_out_what_is_not_defined_and_says_which_way_is_better():
    ax = plot.faithfulness(check_table(), score="deletion", pairs="answer")
    assert ax.get_xlabel() == "deletion (lower is better)"
    assert ax.get_legend_handles_labels()[1] == ["map"]
    with pytest.raises(InputError, match=r"no value of score='LDS' for pairs='answer': it has \('per reader', 'all'\)"):
        plot.faithfulness(check_table(), score="LDS", pairs="answer")
