"""Tables and figures of sweeps: numbers against loops, figures by their artists, what is missing by its message."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import random_map
from matplotlib.figure import Figure
from sweep_data import planted, write_results

from stepsal import FileError, InputError, OddsEqualBridge, RandomBridge, RandomMomentum, StepMomentum, plot
from stepsal.ablation.effects import against_controls, by_error, by_length, costs, head_panels, strength_lines
from stepsal.ablation.results import Results, accuracy_interval
from stepsal.ablation.tables import ablation, latex
from stepsal.ablation.votes import majority_chance, self_consistency
from stepsal.cli import main
from stepsal.figures.maps import MAP_FIGURES
from stepsal.figures.save import FIGURES, save_figure
from stepsal.figures.sweeps import SWEEP_FIGURES, ablation_tables, before_after, compute, draw_before_after, effects
from stepsal.interventions import NoiseMomentum
from stepsal.saliency.folder import map_path
from stepsal.statistics.paired import holm, paired
from stepsal.sweeps.settings import Setting

USEFUL = Setting((OddsEqualBridge(layers=(0, 1)),))
USELESS = Setting((StepMomentum(layers=(6, 7)),))
BOTH = Setting((*USEFUL.interventions, *USELESS.interventions))
CONTROL = Setting((RandomBridge(layers=(0, 1)),))
STRONGER = Setting((OddsEqualBridge(layers=(0, 1), tau_max=0.3),))
PLANTED = {USEFUL: 0.5, USELESS: 0.0, BOTH: 0.5, CONTROL: 0.01, STRONGER: -0.5}


def results_of(settings, effect=None, **options) -> Results:
    effect = effect or (lambda setting: PLANTED[setting])
    return Results(pd.DataFrame(planted(settings, effect, **options)))


def single(kind, layer, head=None, **options) -> Setting:
    return Setting((kind(layers=(layer,), heads=None if head is None else {layer: (head,)}, **options),))


@pytest.fixture(scope="module")
def results():
    return results_of(list(PLANTED))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep that has what every figure needs."""
    heads = [
        single(kind, layer, head) for kind in (OddsEqualBridge, StepMomentum) for layer in range(3) for head in (0, 1)
    ]
    settings = [*PLANTED, *heads, single(OddsEqualBridge, 1)]
    rows = planted(settings, lambda setting: PLANTED.get(setting, 0.02), problems=60, samples=4)
    return write_results(tmp_path_factory.mktemp("sweep"), rows)


# --- the tables ------------------------------------------------------------------------------------------------------
def test_a_planted_useful_setting_is_significant_and_a_useless_one_is_not(results):
    table = results.effects.set_index("setting")
    assert table["p_corrected"][USEFUL.name] < 0.001
    assert table["low"][USEFUL.name] > 0
    assert table["p_corrected"][STRONGER.name] < 0.001
    assert table["high"][STRONGER.name] < 0
    assert table["p_corrected"][USELESS.name] == 1
    assert (table["low"] <= 0)[USELESS.name]
    lines = {line.split(" | ")[0].strip("| "): line for line in ablation(results)[0].markdown().splitlines()}
    assert "*" in lines["OEB, layers 0–1, τ_max 0.15"]
    assert "*" not in lines["SMI, layers 6–7, α 0.06"]


def test_settings_that_do_nothing_are_significant_as_rarely_as_the_correction_says():
    settings = [single(OddsEqualBridge, layer, tau_max=0.1 * each) for layer in range(4) for each in range(1, 4)]
    false = 0
    for seed in range(40):
        rows = planted([*settings, USELESS], lambda setting: 0.0, problems=30, lengths=(), seed=seed)
        draw = np.random.default_rng(seed)
        for row in rows:
            row["correct"] = bool(draw.random() < 0.6)
        false += (Results(pd.DataFrame(rows)).effects["p_corrected"] < 0.05).any()
    assert false <= 5  # 2 expected at most; the exact test is conservative


def test_the_effects_are_those_of_paired_corrected_over_the_settings(results):
    table = results.effects.iloc[1:]
    expected = [paired(results.right(results.baseline), results.right(arm)) for arm in results.treated]
    for name in ("difference", "low", "high", "gained", "lost", "p"):
        np.testing.assert_array_equal(table[name], [getattr(each, name) for each in expected])
    np.testing.assert_array_equal(table["p_corrected"], holm([each.p for each in expected]))
    assert results.effects.iloc[0][["difference", "p", "p_corrected"]].isna().all()


def test_the_order_of_rows_does_not_matter(results):
    rows = pd.DataFrame(planted(list(PLANTED), lambda setting: PLANTED[setting]))
    baseline = rows[rows["part"] == "none"]
    shuffled = pd.concat([rows[rows["part"] != "none"].sample(frac=1, random_state=0), baseline])
    columns = ["setting", "accuracy", "difference", "p"]
    found = Results(shuffled).effects[columns].sort_values("setting", ignore_index=True)
    pd.testing.assert_frame_equal(found, results.effects[columns].sort_values("setting", ignore_index=True))


def test_the_baseline_comes_first_and_controls_last_and_marked(results):
    assert [setting.kind for setting in results.settings] == ["none", "oeb", "smi", "both", "oeb", "random-bridge"]
    table = ablation(results)[0]
    assert [row[0] for row in table.rows][-1] == "random bridge (control), layers 0–1, τ_max 0.15"
    assert table.rules == (1, 5)
    assert "An effect that a control has too is no effect of the setting." in table.markdown()
    assert "control" not in ablation(results_of([USEFUL]))[0].markdown()


def test_a_setting_is_compared_with_the_controls_of_its_place_and_strength():
    weak = Setting((RandomBridge(layers=(0, 1), tau_max=0.05),))
    noise, moved = Setting((NoiseMomentum(layers=(6, 7)),)), Setting((RandomMomentum(layers=(6, 7), seed=3),))
    results = results_of([USEFUL, USELESS, CONTROL, weak, noise, moved], lambda setting: PLANTED.get(setting, 0.3))
    found = against_controls(results)
    assert found[["setting", "control"]].values.tolist() == [
        ["OEB, layers 0–1, τ_max 0.15", "random bridge (control), layers 0–1, τ_max 0.15"],
        ["SMI, layers 6–7, α 0.06", "noise momentum (control), layers 6–7, α 0.06"],
        ["SMI, layers 6–7, α 0.06", "random momentum (control), layers 6–7, α 0.06, seed 3"],
    ]
    arms = {setting.name: results.right(setting) for setting in results.settings}
    assert found["p"][0] == paired(arms[CONTROL.name], arms[USEFUL.name]).p
    assert found["difference"][1] < 0


def test_cells_by_length_are_paired_within_the_length_and_corrected_over_all(results):
    table = by_length(results)
    assert list(dict.fromkeys(table["column"])) == ["length 2", "length 3", "length 5"]
    (useful,) = [setting for setting in results.settings if setting.name == USEFUL.name]
    chosen = results.of_length(3)
    expected = paired(results.right(results.baseline)[chosen], results.right(useful)[chosen])
    row = table[(table["id"] == USEFUL.id) & (table["column"] == "length 3")].iloc[0]
    assert (row["n"], row["difference"], row["p"]) == (expected.n, expected.difference, expected.p)
    tested = table["p"].notna()
    np.testing.assert_array_equal(table["p_corrected"][tested], holm(table["p"][tested].to_numpy()))


def test_kinds_of_error_are_parts_of_all_answers(results):
    table = by_error(results).set_index(["id", "column"])["accuracy"]
    for arm in results.settings:
        assert table[arm.id].sum() == pytest.approx(1 - results.right(arm).mean())


def test_problems_without_length_or_kind_of_error_have_the_main_table_only():
    assert [table.title for table in ablation(results_of([USEFUL], lengths=()))] == ["Ablation"]


def test_latex_escapes_what_it_must():
    assert latex(r"50 % of a_b & {c} #1 $x ~ ^ \d −0.4 0–1 τ_max <0.001") == (
        r"50 \% of a\_b \& \{c\} \#1 \$x \textasciitilde{} \textasciicircum{} \textbackslash{}d $-$0.4 0--1 $\tau_{\max}$ "
        r"\textless{}0.001"
    )


def test_the_latex_tables_have_as_many_cells_in_each_row_and_nothing_unescaped(results):
    for table in ablation(results):
        source = table.latex("tab:x")
        rows = [line for line in source.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.header) - 1}
        assert len(rows) == 1 + len(table.rows)
        body = re.sub(r"\\tau_|\\[%&#_${}]|\$[^$]*\$", "", source.replace(r"\label{tab:x}", ""))
        assert not re.search(r"[%#_$]", body)
        assert source.isascii() or set(re.findall(r"[^\x00-\x7f]", source)) == set()
        assert all(
            source.count(rule) == 1 for rule in (r"\toprule", r"\bottomrule", r"\begin{tabular}", r"\end{table*}")
        )


def test_bars_in_a_markdown_cell_do_not_split_it(results):
    table = replace(ablation(results)[0], rows=(("a|b", *["1"] * 8),))
    assert table.markdown().splitlines()[-1].startswith(r"| a\|b | 1 |")


# --- self-consistency and compute ------------------------------------------------------------------------------------
def slow_majority(samples: list[str | None], right: str, k: int) -> float:
    """The mean over all ordered choices of k samples; of equally many votes, the first given."""
    wins = []
    for votes in itertools.permutations(samples, k):
        given = [vote for vote in votes if vote is not None]
        best = max((given.count(vote) for vote in given), default=0)
        wins.append(next((vote for vote in given if given.count(vote) == best), None) == right)
    return sum(wins) / len(wins)


@pytest.mark.parametrize("seed", range(12))
def test_the_chance_of_a_majority_is_that_of_all_ordered_choices(seed):
    draw = np.random.default_rng(seed)
    samples = draw.choice(np.array(["r", "r", "a", "b", "c", None], dtype=object), 6).tolist()
    counts = {each: samples.count(each) for each in set(samples)}
    wrong = tuple(sorted(counts.get(each, 0) for each in "abc" if each in counts))
    for k in range(1, 7):
        found = majority_chance(counts.get("r", 0), wrong, counts.get(None, 0), k)
        assert found == pytest.approx(slow_majority(samples, "r", k), abs=1e-12)


def test_self_consistency_of_a_sweep_is_the_slow_votes_mean():
    results = results_of([USEFUL], problems=14, samples=5)
    answers, cut = (results.values(results.baseline, name) for name in ("answer", "truncated"))
    found = self_consistency(results)
    assert found["k"].tolist() == [1, 2, 4]
    for k, accuracy in zip(found["k"], found["accuracy"], strict=True):
        votes = [
            [None if no else text for text, no in zip(*each, strict=True)] for each in zip(answers, cut, strict=True)
        ]
        assert accuracy == pytest.approx(np.mean([slow_majority(each, "7", k) for each in votes]))
    assert found["accuracy"][0] == pytest.approx(results.effects["accuracy"][0])


def test_compute_is_tokens_times_their_relative_cost():
    def slower(setting):
        return 0.15 if setting == USEFUL else 0.1

    old = results_of([USEFUL, USELESS], seconds=slower)  # the clock's seconds of a CPU say nothing
    assert old.cost_column is None
    assert costs(old)["compute"].tolist() == pytest.approx([1, 1, 1])
    rows = pd.DataFrame(planted([USEFUL, USELESS], lambda setting: 0.1, seconds=slower))
    assert costs(Results(rows.assign(model='{"device": "cuda:0"}')))["compute"].tolist() == pytest.approx([1, 1.5, 1])
    results = results_of([USEFUL, USELESS], cpu=slower)
    table = costs(results).set_index("label")
    assert table["compute"].tolist() == pytest.approx([1, 1.5, 1])
    assert (table["tokens"] * table["cost"]).tolist() == pytest.approx(table["compute"].tolist())
    votes = pd.DataFrame({"k": [1, 2], "compute": [1.5, 3.0], "accuracy": 0.6, "low": 0.5, "high": 0.7})
    ax = plot.sweep_compute(costs(results), votes)
    assert [label.get_text() for label in ax.get_yticklabels()] == [*table.index, "one sample", "vote of 2"]
    (right,) = ax.child_axes
    computes = [*table["compute"], 1.5, 3.0]
    assert [label.get_text() for label in right.get_yticklabels()] == [f"{each:.2f}" for each in computes]
    points = [each.get_offsets().tolist()[0] for each in ax.collections if hasattr(each, "get_sizes")]
    np.testing.assert_allclose(points, np.column_stack([[*(100 * table["accuracy"]), 60, 60], range(len(computes))]))


def test_an_endless_answer_in_a_batch_does_not_make_the_settings_tokens_dear():
    """Its batch took ten times as many passes, so the answers beside it cost ten times as much, for no more tokens."""
    rows = pd.DataFrame(planted([USEFUL], lambda setting: 0.1, problems=12, cpu=lambda setting: 0.2))
    batch = (rows["problem"].str.removeprefix("p-").astype(int) // 3).to_numpy()
    treated = (rows["setting"] != rows["setting"].iloc[0]).to_numpy()
    rows["cpu_seconds"] = 0.2 + 0.001 * batch  # a share for each batch
    rows["tokens"] = 20
    rows.loc[treated, "cpu_seconds"] *= 1.5
    rows.loc[treated & (batch == 0), "cpu_seconds"] *= 10
    endless = treated & (rows["problem"] == "p-0").to_numpy()
    rows.loc[endless, "tokens"] = 200
    assert costs(Results(rows))["cost"].tolist() == pytest.approx([1, 1.5])


def test_the_caption_of_compute_says_how_it_was_measured_and_what_a_token_costs(tmp_path):
    cpu = {Setting(): 0.2, USEFUL: 0.3, USELESS: 0.21}
    rows = planted([USEFUL, USELESS], lambda setting: 0.1, problems=9, samples=2, cpu=cpu.__getitem__)
    said = compute(write_results(tmp_path / "few", rows)).caption
    assert "measured processor time per token" in said
    assert "a token costs, of the baseline's, 1.50 (OEB), 1.05 (SMI);" in said
    many = [single(OddsEqualBridge, layer) for layer in range(8)]
    cpu |= {setting: 0.2 + 0.01 * at for at, setting in enumerate(many)}
    rows = planted(many, lambda setting: 0.1, problems=9, samples=2, cpu=cpu.__getitem__)
    assert "a token costs 1.00 to 1.35 of the baseline's;" in compute(write_results(tmp_path / "many", rows)).caption
    rows = planted([USEFUL], lambda setting: 0.1, problems=9, samples=2)
    said = compute(write_results(tmp_path / "old", rows)).caption
    assert "did not measure processor time" in said
    assert "a token costs" not in said


def test_accuracy_has_an_interval_also_where_nothing_varies():
    for value in (0.0, 0.5, 1.0):
        mean, low, high = accuracy_interval(np.full(20, value), 2)
        assert mean == value
        assert 0 <= low <= value <= high <= 1
        assert high - low > 0.1


# --- the figures -----------------------------------------------------------------------------------------------------
def test_the_forest_shows_each_setting_and_fills_what_is_significant(results):
    ax = plot.sweep(results)
    table = results.effects.iloc[1:]
    points = [each for each in ax.collections if len(each.get_offsets()) and hasattr(each, "get_sizes")]
    np.testing.assert_allclose([each.get_offsets()[0][0] for each in points], 100 * table["difference"])
    filled = [tuple(each.get_facecolors()[0]) != (1, 1, 1, 1) for each in points]
    assert filled == (table["p_corrected"] < 0.05).tolist() == [True, False, True, True, False]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        r"OEB, $\tau_{\mathrm{max}}$ 0.15",
        "SMI",
        "OEB + SMI",
        r"OEB, $\tau_{\mathrm{max}}$ 0.3",
        "random bridge",
    ]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_head_maps_hold_each_head_and_layer_alone_and_outline_what_is_significant():
    good, bad = single(OddsEqualBridge, 2, 1), single(OddsEqualBridge, 4)
    settings = [single(OddsEqualBridge, layer, head) for layer in (2, 4, 5) for head in range(3)]
    settings = [each for each in settings if each != single(OddsEqualBridge, 5, 2)] + [
        bad,
        single(StepMomentum, 2, 0),
        BOTH,
    ]
    results = results_of(settings, lambda setting: {good: 0.5, bad: -0.5}.get(setting, 0.0))
    first, second = head_panels(results)
    assert (first.title, second.title) == ("OEB, τ_max 0.15", "SMI, α 0.06")
    assert first.layers == (2, 4, 5)
    effects = results.effects.set_index("id")
    assert first.difference[0, 1] == effects["difference"][good.id]
    assert first.alone[1] == effects["difference"][bad.id]
    assert np.isnan(first.difference).sum() == 1
    assert np.isnan(first.difference[2, 2])
    mine = [each.id for each in settings if each.kind == "oeb"]
    assert first.p[0, 1] == holm(effects["p"][mine].to_numpy())[mine.index(good.id)]  # over its panel alone
    ax = plot.sweep_heads(first)
    heads, strip = ax.images
    np.testing.assert_allclose(heads.get_array().filled(np.nan), 100 * first.difference)
    np.testing.assert_allclose(strip.get_array().filled(np.nan)[:, 0], 100 * first.alone)
    assert heads.get_clim() == strip.get_clim()
    assert sum(heads.get_clim()) == 0
    outlined = [(round(each.get_x() + 0.45, 1), round(each.get_y() + 0.45)) for each in ax.patches]
    assert outlined == [(1.0, 0), (3.2, 1)]
    assert len(ax.texts) == 8 + 1
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "all"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2", "4", "5"]
    small = plot.sweep_heads(first, ax=Figure(figsize=(1, 0.8)).subplots(), colorbar=False)
    assert not small.texts  # no room


def test_a_grid_leaves_out_what_is_zero_throughout_and_the_caption_says_so(tmp_path):
    heads = [
        single(kind, layer, head) for kind in (OddsEqualBridge, StepMomentum) for layer in (0, 1) for head in (0, 1)
    ]
    layer, weak = single(StepMomentum, 0), single(OddsEqualBridge, 1, 0)
    folder = write_results(
        tmp_path / "one",
        planted([*heads, layer], lambda setting: 0.5 if setting in (weak, layer) else 0.0, problems=40),
    )
    made = FIGURES["grid"](folder, None)
    assert [ax.get_title(loc="left").split(",")[0] for ax in made.figure.axes[:2]] == ["OEB", "SMI"]
    assert [[image.get_array().shape for image in ax.images] for ax in made.figure.axes[:2]] == [[(2, 2)], [(2, 1)]]
    assert "SMI, α 0.06: no head alone changed the accuracy, so these are not drawn." in made.caption
    folder = write_results(tmp_path / "two", planted(heads, lambda setting: 0.5 * (setting == weak), problems=40))
    made = FIGURES["grid"](folder, None)
    assert len([ax for ax in made.figure.axes if ax.get_title(loc="left")]) == 1
    assert "SMI, α 0.06: no head alone changed the accuracy" in made.caption
    low, high = made.figure.axes[-1].get_xlim()  # the colour bar: nothing was lost, so it has no colours for losses
    assert low == 0 < high


def test_captions_spell_out_what_the_settings_are_called(folder):
    for name in ("effects", "grid", "strength", "difficulty"):
        caption = FIGURES[name](folder, None).caption
        assert caption.endswith("Odds-equal bridge (OEB), step momentum injection (SMI).")


def test_a_strength_line_holds_places_and_the_other_options_fixed(results):
    others = [single(OddsEqualBridge, layer, tau_max=tau) for layer in (3, 4) for tau in (0.2, 0.1)]
    found = results_of([*PLANTED, *others], lambda setting: PLANTED.get(setting, 0.0))
    lines = strength_lines(found, "tau_max")
    assert [line.label for line in lines] == ["layers 0–1", "layer 3", "layer 4"]
    assert [line.table["tau_max"].tolist() for line in lines] == [[0.15, 0.3], [0.1, 0.2], [0.1, 0.2]]
    assert strength_lines(found, "alpha") == []
    ax = plot.sweep_strengths(lines)
    drawn = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    np.testing.assert_allclose(drawn["layers 0–1"].get_ydata(), 100 * lines[0].table["difference"])
    assert drawn["layers 0–1"].get_xdata().tolist() == [0.15, 0.3]
    assert any(set(line.get_ydata()) == {0} and line.get_linestyle() == "--" for line in ax.lines)
    ends = sorted(ax.collections[0].get_segments()[0][:, 1])
    np.testing.assert_allclose(ends, 100 * lines[0].table[["low", "high"]].iloc[0])


def test_a_strength_is_varied_with_the_other_part_as_it_is():
    pairs = [
        Setting((OddsEqualBridge(layers=(0,), tau_max=tau), StepMomentum(layers=(7,), alpha=alpha)))
        for tau in (0.1, 0.2)
        for alpha in (0.1, 0.3)
    ]
    lines = strength_lines(results_of(pairs, lambda setting: 0.1), "tau_max")
    assert [line.label for line in lines] == ["α 0.1", "α 0.3"]


def test_the_difference_by_length_is_drawn_at_its_length_with_the_baselines_accuracy_below(results):
    table = by_length(results, results.settings[:3])
    ax = plot.sweep_lengths(table, by_length(results, results.settings[3:]))
    named = [line for line in ax.lines if not line.get_label().startswith("_")]
    (_, baseline), *treated = table.groupby("id", sort=False)
    for line, (_, group) in zip(named, treated, strict=True):
        assert line.get_xdata().tolist() == [2, 3, 5]
        np.testing.assert_allclose(line.get_ydata(), 100 * group["difference"])
    ax.figure.draw_without_rendering()
    expected = [f"{length}\n{100 * each:.0f} %" for length, each in zip((2, 3, 5), baseline["accuracy"], strict=True)]
    assert [label.get_text() for label in ax.get_xticklabels()] == expected


def test_before_and_after_share_their_colours():
    before, after = (random_map("qtttss", [5, 3, 4, 3, 2, 3], layers=4, heads=2, seed=seed) for seed in (0, 1))
    after.mass[:] *= 20
    figure = Figure(layout="constrained")
    draw_before_after(figure, before, after)
    axes = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in axes] == [
        "before: shallow layers",
        "after: shallow layers",
        "before: deep layers",
        "after: deep layers",
    ]
    assert len({id(ax.images[0].norm) for ax in axes}) == 1


def test_of_two_folders_the_trace_that_was_mended_is_shown(tmp_path):
    for when, right in (("before", (True, False, False)), ("after", (True, False, True))):
        for index, correct in enumerate(right):
            stepmap = random_map("qttss", [5, 3, 4, 2, 3], layers=4, heads=2, seed=index)
            meta = {"trace": f"t-{index}", "correct": correct}
            replace(stepmap, meta=meta).save(map_path(tmp_path / when, f"t-{index}"))
    made = before_after(tmp_path / "before", tmp_path / "after")
    assert "trace t-2, the first that was wrong before and is right after (before, wrong; after, right)" in made.caption
    files = [map_path(tmp_path / when, "t-1") for when in ("before", "after")]
    assert "Step maps of trace t-1 (before, wrong; after, wrong)" in before_after(*files).caption
    for name in ("x", "y"):
        random_map("qts", [5, 3, 4], layers=4, heads=2).save(map_path(tmp_path / "others", name))
    with pytest.raises(InputError, match="have no trace in common"):
        before_after(tmp_path / "before", tmp_path / "others")
    with pytest.raises(FileError, match="there are no step maps in"):
        before_after(tmp_path / "before", tmp_path / "nothing")


# --- from the command line -------------------------------------------------------------------------------------------
def test_the_command_line_names_every_figure(capsys):
    with pytest.raises(SystemExit):
        main(["figure", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"of step maps: {', '.join(MAP_FIGURES)}; of what `stepsal faithfulness` wrote: " in shown
    assert all(name in shown for name in FIGURES)


@pytest.mark.parametrize("name", [name for name in SWEEP_FIGURES if name not in ("ablation", "before_after")])
def test_every_figure_is_drawn_one_column_wide_with_its_caption_and_command(folder, tmp_path, capsys, name):
    from PIL import Image

    assert main(["figure", name, str(folder), "--out", str(tmp_path / "x.png")]) == 0
    assert [line.rsplit(".", 1)[1] for line in capsys.readouterr().out.splitlines()] == ["png", "pdf", "md"]
    with Image.open(tmp_path / "x.png") as image:
        assert image.width == 3.3 * 200
    caption = (tmp_path / "x.md").read_text()
    assert f"Made by `stepsal figure {name} {folder} --out {tmp_path / 'x.png'}`." in caption
    assert "4 answers each" in caption
    assert "corrected by Holm" in caption or name == "compute"


def test_the_ablation_is_written_as_markdown_and_latex(folder, tmp_path, capsys):
    assert main(["figure", "ablation", str(folder), "--out", str(tmp_path / "a.md")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "a.md"), str(tmp_path / "a.tex")]
    for suffix in ("md", "tex"):
        text = (tmp_path / f"a.{suffix}").read_text()
        assert f"Made by `stepsal figure ablation {folder} --out {tmp_path / 'a.md'}`." in text
        assert all(title in text for title in ("Ablation", "Against the controls", "chain length", "kind of error"))


def test_the_same_rows_give_the_same_file(folder, tmp_path):
    for name in ("grid", "compute"):
        first, second = (
            [path.read_bytes() for path in save_figure(name, folder, tmp_path / n / "x")[:2]] for n in "ab"
        )
        assert first == second


def test_samples_may_come_from_another_sweep_of_the_same_problems(tmp_path):
    greedy = write_results(tmp_path / "greedy", planted([USEFUL], lambda setting: 0.3, problems=30))
    sampled = write_results(tmp_path / "sampled", planted([], lambda setting: 0.0, problems=30, samples=8))
    paths = save_figure("compute", greedy, tmp_path / "x.png", second=sampled)
    caption = paths[-1].read_text()
    assert "temperature 0.8, 8 answers each; settings: temperature 0, one answer each" in caption
    assert f"stepsal figure compute {greedy} {sampled} --out" in caption
    few = planted([], lambda setting: 0.0, problems=7, samples=8, tokens=200)
    caption = save_figure("compute", greedy, tmp_path / "x.png", second=write_results(tmp_path / "few", few))[-1]
    assert "7 problems, one answer each, those of 30 that have samples" in caption.read_text()
    assert "k samples cost 1.97 k" in caption.read_text()
    assert "did not measure processor time" in caption.read_text()
    strange = [row | {"model": '{"model": "another"}'} for row in few]
    with pytest.raises(InputError, match="sweeps of two models"):
        save_figure("compute", greedy, tmp_path / "x.png", second=write_results(tmp_path / "strange", strange))
    for name, print_ in (("greedy", "a"), ("few", "b")):
        config = {"format": "stepsal sweep 2", "model": {"fingerprint": print_}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="sweeps of two models"):
        save_figure("compute", greedy, tmp_path / "x.png", second=tmp_path / "few")
    other = write_results(tmp_path / "other", planted([], lambda setting: 0.0, problems=31, samples=8))
    with pytest.raises(InputError, match=r"is a sweep of other problems \(31\)"):
        save_figure("compute", greedy, tmp_path / "x.png", second=other)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grid", {}, r'the sweep needs layers = \["each"\], heads = \["each", "all"\]'),
        ("strength", {}, r"the sweep needs tau_max = \[0.05, 0.15, 0.3\], or alpha"),
        ("compute", {}, r"samples = 8 and temperature = 0.8 in \[decoding\]. Or give the folder of a second sweep"),
        ("difficulty", {"lengths": ()}, r"such as length = \[2, 3, 4, 6\]"),
    ],
)
def test_a_sweep_that_lacks_the_settings_of_a_figure_is_told_which(tmp_path, name, options, message):
    folder = write_results(tmp_path, planted([USEFUL, USELESS], lambda setting: 0.1, problems=9, **options))
    with pytest.raises(InputError, match=message):
        save_figure(name, folder, tmp_path / "x.png")


@pytest.mark.parametrize("name", ["ablation", "effects", "strength", "compute", "difficulty"])
def test_a_sweep_of_the_baseline_alone_is_refused(tmp_path, name):
    folder = write_results(tmp_path, planted([], lambda setting: 0.1, problems=9, samples=2))
    with pytest.raises(InputError, match="nothing but the baseline: the sweep needs other settings"):
        save_figure(name, folder, tmp_path / "x")


def test_a_folder_without_finished_results_is_refused(tmp_path):
    with pytest.raises(FileError, match="results.parquet: make it with `stepsal sweep`"):
        save_figure("effects", tmp_path, tmp_path / "x.png")
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(FileError, match="it is not finished: run the same command again"):
        save_figure("effects", tmp_path, tmp_path / "x.png")
    (tmp_path / "results.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(FileError, match=r"results.parquet is damaged"):
        save_figure("effects", tmp_path, tmp_path / "x.png")


def test_captions_say_that_forward_selection_chose_its_settings(tmp_path):
    folder = write_results(tmp_path, planted([USEFUL], lambda setting: 0.1, problems=9))
    said = "Forward selection: these same answers chose"
    assert said not in ablation_tables(folder).texts["md"] + effects(folder).caption
    (tmp_path / "config.json").write_text(json.dumps({"config": {"grid": {"shape": "forward-selection"}}}))
    assert said in ablation_tables(folder).texts["md"]
    assert said in effects(folder).caption


def test_results_without_processor_time_are_read(tmp_path):
    folder = write_results(tmp_path, planted([USEFUL], lambda setting: 0.1, problems=9))
    rows = pd.read_parquet(folder / "results.parquet")
    rows.drop(columns="cpu_seconds").to_parquet(folder / "results.parquet")
    (folder / "results.parquet.sha256").unlink()
    assert Results.read(folder).cost_column is None


def test_a_second_folder_is_for_figures_that_compare_two(folder, tmp_path):
    for name in ("effects", "profiles"):
        with pytest.raises(InputError, match=f"figure '{name}' takes one folder"):
            save_figure(name, folder, tmp_path / "x.png", second=folder)
    with pytest.raises(InputError, match="before_after needs two"):
        save_figure("before_after", folder, tmp_path / "x.png")


def test_rows_of_no_one_sweep_are_refused():
    rows = pd.DataFrame(planted([USEFUL], lambda setting: 0.1, problems=5))
    with pytest.raises(InputError, match="the rows have no column 'parts'"):
        plot.sweep(rows.drop(columns="parts"))
    with pytest.raises(InputError, match="0 baselines among 1 settings"):
        plot.sweep(rows[rows["part"] != "none"])
    with pytest.raises(InputError, match="has two rows of"):
        plot.sweep(pd.concat([rows, rows]))
    with pytest.raises(InputError, match="other problems or samples than the baseline"):
        plot.sweep(rows.iloc[:-1])
    uneven = rows[
        rows["problem"] != "p-4"
    ].assign(  # three answers to one, one to another: 4 in all
        sample=rows["problem"].str[2:].astype(int) % 3, problem=rows["problem"].where(rows["problem"] == "p-3", "p-0")
    )
    with pytest.raises(InputError, match="some problems have more answers than others"):
        plot.sweep(uneven)
