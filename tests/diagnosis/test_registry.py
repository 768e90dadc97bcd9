"""A metric of a user's own: one decorator makes it known everywhere; what is no metric is refused."""

import pytest
import torch
from helpers import random_map, unchecked

from stepsal import Comparison, InputError, compare, diagnose, lock_in, metric, plot
from stepsal.diagnosis.diagnosis import summarise, write_diagnoses
from stepsal.diagnosis.metrics import METRICS
from stepsal.files import write_settings
from stepsal.markdown import significant
from stepsal.sweeps.config import GridConfig
from stepsal.sweeps.layers_and_heads import Size, head_choices

BUILT_IN = [
    "lock_in",
    "context_share",
    "question_share",
    "thinking_to_summary",
    "summary_self",
    "last_steps",
    "final_block_intensity",
    "analysis_block_intensity",
    "final_heat_anomaly",
]


def some_map(seed: int = 0, **meta):
    return random_map("qtttss", [6, 3, 4, 5, 3, 4], layers=8, heads=3, seed=seed, **meta)


def largest_share(stepmap):
    return stepmap.share()[:, :, -2].amax(-1)


@pytest.fixture
def no_more_metrics():
    """Whatever a test registers is forgotten after it."""
    known = dict(METRICS)
    yield
    METRICS.clear()
    METRICS.update(known)


# --- known everywhere ------------------------------------------------------------------------------------------------
def test_the_built_in_metrics_are_the_same_functions_under_their_names():
    assert list(METRICS) == BUILT_IN
    assert METRICS["lock_in"].function is lock_in
    assert [name for name, each in METRICS.items() if each.reference is not None] == ["lock_in"]
    assert all(each.built_in and each.name == name for name, each in METRICS.items())


def test_the_labels_are_those_of_the_metrics_and_of_the_decays():
    assert list(plot.LABELS) == [*BUILT_IN, "decay_slope", "decay_ratio"]
    assert plot.LABELS["lock_in"] == METRICS["lock_in"].label == "lock-in"
    assert plot.LABELS.get("nothing", "no label") == "no label"
    assert len(plot.LABELS) == len(dict(plot.LABELS)) == 11


def test_the_decorator_leaves_the_function_as_it_is(no_more_metrics):
    assert metric(label="largest share")(largest_share) is largest_share


def test_a_diagnosis_has_ones_own_metric_after_the_built_in_ones(own_metric, tmp_path):
    stepmap = some_map()
    diagnosis = diagnose(stepmap)
    assert list(diagnosis.table.columns) == list(diagnosis.heads.columns) == [*BUILT_IN, own_metric]
    torch.testing.assert_close(diagnosis.values[own_metric], largest_share(stepmap))
    assert "largest share" in diagnosis._repr_html_()
    write_diagnoses(tmp_path / "d.jsonl", [diagnosis])
    assert f'"{own_metric}": ' in (tmp_path / "d.jsonl").read_text()


def test_the_summary_shows_ones_own_metric_in_a_last_column(own_metric):
    diagnosis = diagnose(some_map())
    header, _, first, *_ = summarise([diagnosis]).split("\n\n")[2].splitlines()
    assert header.endswith("| last 3 steps' part | largest share |")
    assert first.endswith(f"| {significant(float(diagnosis.table[own_metric][0]))} |")


def test_a_summary_of_diagnoses_made_before_the_metric_leaves_it_out(request):
    before = diagnose(some_map())
    text = summarise([before])
    request.getfixturevalue("own_metric")
    assert summarise([before]) == text


def test_a_comparison_has_ones_own_metric_and_keeps_it_in_its_file(own_metric, tmp_path):
    result = compare([some_map(i) for i in range(4)], [some_map(i) for i in range(4, 8)], resamples=99)
    for table in (result.table, result.position_only):
        assert (table["metric"] == own_metric).sum() == 8
    assert "| largest share |" in result.summary()
    assert "largest share" in result._repr_html_()
    result.save(tmp_path / "comparison.json")
    METRICS[own_metric], known = (
        None,
        METRICS[own_metric],
    )  # where the plug-in is not loaded, the name stands for the label
    del METRICS[own_metric]
    try:
        loaded = Comparison.load(tmp_path / "comparison.json")
        assert f"| {own_metric} |" in loaded.summary()
        assert plot.comparison(loaded, metric=own_metric).get_ylabel() == "layer"
    finally:
        METRICS[own_metric] = known


def test_pictures_draw_ones_own_metric_with_its_label_and_its_reference_line(own_metric):
    diagnosis = diagnose(some_map())
    ax = plot.depth_profile(diagnosis, metric=own_metric)
    assert ax.get_ylabel() == "largest share"
    assert [set(line.get_ydata()) for line in ax.lines if line.get_linestyle() == "--"] == [{0.25}]
    (image,) = plot.heads(diagnosis, metric=own_metric).images
    torch.testing.assert_close(torch.tensor(image.get_array().data), diagnosis.values[own_metric])


def test_a_sweep_chooses_heads_by_ones_own_metric(own_metric, tmp_path):
    maps = [some_map(i) for i in range(3)]
    for index, stepmap in enumerate(maps):
        stepmap.save(tmp_path / "maps" / f"{index}.safetensors")
    write_settings(tmp_path / "saliency.json", {"objective": "token"})
    grid = GridConfig(maps=str(tmp_path))
    ((chosen,),) = head_choices(f"top-2:{own_metric}", (tuple(range(8)),), Size(8, 3), grid, tmp_path)
    means = torch.stack([largest_share(stepmap) for stepmap in maps]).mean(0)
    best = sorted(divmod(index, 3) for index in means.flatten().topk(2).indices.tolist())
    assert sorted((layer, head) for layer, heads in chosen.items() for head in heads) == best


def test_a_definition_that_is_run_again_replaces_the_one_before(no_more_metrics):
    def define(factor):
        @metric(label=f"{factor} times")
        def multiple(stepmap):
            return stepmap.mass.sum((2, 3)) * factor

    define(1)
    define(2)
    stepmap = some_map()
    torch.testing.assert_close(METRICS["multiple"](stepmap), 2 * stepmap.mass.sum((2, 3)))
    assert plot.LABELS["multiple"] == "2 times"


def test_a_metric_may_be_computed_with_gradients_and_in_double_precision(no_more_metrics):
    @metric(label="weighted")
    def weighted(stepmap):
        return (stepmap.mass.double() * torch.ones(1, dtype=torch.float64, requires_grad=True)).sum((2, 3))

    result = compare([some_map(i) for i in range(2)], [some_map(i) for i in range(2, 4)], resamples=99)
    mean = torch.stack([some_map(i).mass.double().sum((2, 3))[5].mean() for i in range(2)]).mean()
    row = result.table[(result.table["metric"] == "weighted") & (result.table["layer"] == 5)]
    assert row["correct"].item() == pytest.approx(mean.item())


# --- refused ---------------------------------------------------------------------------------------------------------
def another(name: str):
    """A function of that name, as another module might define it."""

    def function(stepmap):
        return stepmap.mass.sum((2, 3))

    function.__name__, function.__module__ = name, "another"
    return function


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda stepmap: stepmap.mass,
            "'<lambda>' must be an identifier. Decorate a function that is defined with `def`",
        ),
        (another("top 4"), "its name 'top 4' must be an identifier"),
        (torch.ones(2), "cannot be a metric: its name None"),
        (
            another("lock_in"),
            "a metric 'lock_in' already \\('lock-in', of the module stepsal.diagnosis.metrics\\): give yours",
        ),
        (another("tokens"), "a metric cannot be named 'tokens': tables have a column of that name already"),
        (another("decay_slope"), "a metric cannot be named 'decay_slope'"),
    ],
)
def test_what_cannot_be_known_by_its_name_is_refused(function, message):
    with pytest.raises(InputError, match=message):
        unchecked(unchecked(metric)(label="x"))(function)
    assert list(METRICS) == BUILT_IN


@pytest.mark.parametrize("label", ["", " ", "two\nlines", None, lock_in])
def test_a_label_is_one_line_of_text(label):
    with pytest.raises(InputError, match="must be one line of text"):
        unchecked(metric)(label=label)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda stepmap: 0.5,
            "returned a float: expected a tensor of floats of shape \\(layer, head\\), here \\(8, 3\\)",
        ),
        (lambda stepmap: stepmap.mass.sum((1, 2, 3)), "returned a tensor of shape \\(8,\\)"),
        (lambda stepmap: stepmap.mass.sum((2, 3)).T, "returned a tensor of shape \\(3, 8\\)"),
        (lambda stepmap: stepmap.mass.sum((2, 3)) > 0, "returned a tensor of torch.bool"),
    ],
)
def test_a_metric_that_returns_something_else_is_refused_by_its_name(no_more_metrics, returned, message):
    @metric(label="mine")
    def mine(stepmap):
        return returned(stepmap)

    with pytest.raises(InputError, match=f"metric 'mine' {message}"):
        diagnose(some_map())


def test_diagnoses_from_before_and_after_a_metric_was_defined_are_not_mixed(request):
    before = [diagnose(some_map(i)) for i in range(2)]
    name = request.getfixturevalue("own_metric")
    with pytest.raises(InputError, match="one lacks the metric 'largest_share': .* Diagnose both maps again"):
        compare(before, [some_map(i) for i in range(2, 4)], resamples=99)
    with pytest.raises(InputError, match="made before the metric 'largest_share' was defined"):
        plot.depth_profile(before, metric=name)
    result = compare(before, before, resamples=99)
    with pytest.raises(InputError, match="the comparison has no metric 'largest_share' by layer, only lock_in, "):
        plot.comparison(result, metric=name)
    with pytest.raises(InputError, match="unknown metric 'nothing': expected one of lock_in, .*, largest_share"):
        plot.comparison(result, metric="nothing")
    with pytest.raises(InputError, match="the comparison has no metric|unknown metric"):
        plot.comparison(result, metric="steps")  # compared, but a trace has one number of steps, not one by layer
