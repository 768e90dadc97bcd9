"""Two logged runs, compared: a planted effect is found, a planted nothing is not, and what does not match is refused."""

import json

import numpy as np
import pytest
from sweep_data import planted, write_results

from stepsal import (
    FileError,
    InputError,
    OddsEqualBridge,
    PairedRuns,
    StepMomentum,
    Trace,
    paired,
    paired_runs,
    write_traces,
)
from stepsal.ablation.runs import read_run
from stepsal.cli import main
from stepsal.sweeps.settings import Setting

USEFUL, USELESS = OddsEqualBridge(layers=(0, 1)), StepMomentum(layers=(6, 7))


def right(count, gained=0, lost=0, seed=0):
    """Outcomes of a baseline, and of a run that gains and loses so many problems."""
    before = np.random.default_rng(seed).random(count) < 0.5
    after = before.copy()
    after[np.flatnonzero(~before)[:gained]] = True
    after[np.flatnonzero(before)[:lost]] = False
    return before.tolist(), after.tolist()


def write_samples(
    path, scores, metric="exact_match", filter="none", date="2026-11-27T10-00-00.000001", task="mini", **also
):
    """A file of samples as lm-evaluation-harness logs them."""
    path.mkdir(parents=True, exist_ok=True)
    file = path / f"samples_{task}_{date}.jsonl"
    with open(file, "a", encoding="utf-8") as out:
        for index, score in enumerate(scores):
            sample = {"doc_id": index, "doc": {"q": index}, "target": "1", "resps": [["1"]], "filter": filter}
            sample |= {"metrics": [metric], metric: score, "doc_hash": f"hash-{task}-{index}"} | also
            out.write(json.dumps(sample) + "\n")
    return file


def write_graded(path, tokenizer, outcomes, samples=1):
    traces = []
    for index, of_problem in enumerate(outcomes):
        for sample, correct in enumerate(np.atleast_1d(of_problem).tolist()):
            name = f"p-{index}" + (f"-{sample}" if samples > 1 else "")
            traces.append(
                Trace.from_text(tokenizer, f"{index}+1?", "So.", id=name, answer=str(index + 1), correct=correct)
            )
    write_traces(path, traces)
    return path


# --- what is found ---------------------------------------------------------------------------------------------------
def test_a_planted_useful_setting_is_found_and_a_useless_one_is_not(tmp_path):
    settings = [Setting((each,)) for each in (USEFUL, USELESS)]
    rows = planted(settings, lambda setting: 0.3 if setting.kind == "oeb" else 0.0, problems=200)
    folder = write_results(tmp_path / "sweep", rows)
    useful = paired_runs(f"{folder}:none", f"{folder}:oeb").table.iloc[0]
    assert useful["p_corrected"] < 0.001
    assert useful["low"] > 0
    useless = paired_runs(f"{folder}:none", f"{folder}:smi").table.iloc[0]
    assert useless["p_corrected"] == 1
    assert useless["low"] < 0 < useless["high"]


def test_a_useless_setting_is_called_significant_in_one_of_twenty_runs_at_most(tmp_path):
    """Two runs with the same chance to be right, many times over."""
    rng, found = np.random.default_rng(0), []
    for run in range(100):
        for name in "ab":
            write_samples(tmp_path / f"{run}{name}", (rng.random(40) < 0.6).astype(float).tolist())
        found.append(paired_runs(tmp_path / f"{run}a", tmp_path / f"{run}b").table["p"].item())
    assert np.mean(np.array(found) < 0.05) <= 0.05


def test_samples_traces_and_sweeps_of_one_outcome_give_one_comparison(tmp_path, reasoner):
    before, after = right(60, gained=9, lost=2)
    for name, outcomes in (("a", before), ("b", after)):
        write_samples(tmp_path / name, [float(each) for each in outcomes])
        write_graded(tmp_path / f"{name}.jsonl", reasoner.tokenizer, outcomes)
    expected = paired(before, after)
    for one, two in (("a", "b"), ("a.jsonl", "b.jsonl")):
        row = paired_runs(tmp_path / one, tmp_path / two).table.iloc[0]
        for name in ("n", "samples", "baseline", "treated", "difference", "low", "high", "gained", "lost", "p"):
            assert row[name] == getattr(expected, name)
        assert row["test"] == "McNemar"
        assert row["baseline_low"] < row["baseline"] < row["baseline_high"]
    setting = Setting((USEFUL,))
    folder = write_results(tmp_path / "sweep", planted([setting], lambda _: 0.2, problems=60))
    row = paired_runs(f"{folder}:none", f"{folder}:{setting.id}").table.iloc[0]
    graded = [read_run(f"{folder}:{name}").tasks["problems"] for name in ("none", "oeb")]
    again = paired(*([bool(each.scores[0]) for each in run.values()] for run in graded))
    assert (row["difference"], row["p"]) == (again.difference, again.p)


def test_traces_with_equal_prompts_are_answers_to_one_problem(tmp_path, reasoner):
    before, after = [[True, False]] * 8, [[True, True]] * 6 + [[True, False]] * 2
    for name, outcomes in (("a", before), ("b", after)):
        write_graded(tmp_path / f"{name}.jsonl", reasoner.tokenizer, outcomes, samples=2)
    row = paired_runs(tmp_path / "a.jsonl", tmp_path / "b.jsonl").table.iloc[0]
    expected = paired(before, after)
    assert (row["n"], row["samples"], row["test"]) == (8, 2, "swaps")
    assert (row["low"], row["high"], row["p"]) == (expected.low, expected.high, expected.p)
    assert set(read_run(tmp_path / "a.jsonl").tasks["problems"]) == {f"p-{index}" for index in range(8)}


def test_scores_that_are_not_0_or_1_are_compared_by_sign_flips(tmp_path):
    rng = np.random.default_rng(3)
    before = rng.random(12)
    for name, scores in (("a", before), ("b", before + 0.1), ("c", before + rng.normal(0, 0.1, 12))):
        write_samples(tmp_path / name, np.clip(scores, 0, None).tolist(), metric="f1")
    row = paired_runs(tmp_path / "a", tmp_path / "b").table.iloc[0]
    assert row["test"] == "sign flip"
    assert row["difference"] == pytest.approx(0.1)
    assert row["p"] == pytest.approx(2 / 2**12)  # every difference has one sign: 2 of all ways to flip them
    assert paired_runs(tmp_path / "a", tmp_path / "c").table["p"].item() > 0.05


def test_p_values_are_corrected_over_the_tasks(tmp_path):
    for task, gained in (("one", 12), ("two", 6), ("three", 0)):
        for name, outcomes in zip("ab", right(80, gained=gained), strict=True):
            write_samples(tmp_path / name, [float(each) for each in outcomes], task=task)
    table = paired_runs(tmp_path / "a", tmp_path / "b").table.set_index("task")
    assert table.loc["one", "p_corrected"] == pytest.approx(3 * table.loc["one", "p"])
    assert table.loc["two", "p_corrected"] == pytest.approx(2 * table.loc["two", "p"])
    assert table.loc["three", "p_corrected"] == 1
    few = paired_runs(tmp_path / "a", tmp_path / "b", tasks=["two"]).table
    assert few["p_corrected"].item() == few["p"].item()


# --- what is refused -------------------------------------------------------------------------------------------------
def test_problems_that_one_run_lacks_are_named(tmp_path):
    write_samples(tmp_path / "a", [1.0] * 10)
    write_samples(tmp_path / "b", [1.0] * 8)
    for one, two in (("a", "b"), ("b", "a")):
        with pytest.raises(InputError, match=r"task mini: 2 of 10 problems are in .*/a alone, such as '8', '9'"):
            paired_runs(tmp_path / one, tmp_path / two)


def test_one_id_for_two_problems_is_refused(tmp_path):
    write_samples(tmp_path / "a", [1.0, 0.0])
    write_samples(tmp_path / "b", [1.0, 0.0], doc_hash="another")
    with pytest.raises(InputError, match="the problem '0' is another one in .*/b than in .*/a"):
        paired_runs(tmp_path / "a", tmp_path / "b")


def test_tasks_that_one_run_lacks_are_named_unless_tasks_are_chosen(tmp_path):
    write_samples(tmp_path / "a", [1.0, 0.0])
    for task in ("mini", "other"):
        write_samples(tmp_path / "b", [1.0, 0.0], task=task)
    for one, two in (("a", "b"), ("b", "a")):
        with pytest.raises(InputError, match=r"/a has no task 'other'; it has 'mini'"):
            paired_runs(tmp_path / one, tmp_path / two)
    assert paired_runs(tmp_path / "a", tmp_path / "b", tasks=["mini"]).table["task"].tolist() == ["mini"]
    with pytest.raises(InputError, match="/a has no task 'other'"):
        paired_runs(tmp_path / "a", tmp_path / "b", tasks=["mini", "other"])


def test_other_numbers_of_answers_are_refused(tmp_path, reasoner):
    write_graded(tmp_path / "a.jsonl", reasoner.tokenizer, [[True, False]] * 3, samples=2)
    write_graded(tmp_path / "b.jsonl", reasoner.tokenizer, [True] * 3)
    with pytest.raises(InputError, match=r"'p-0' has 2 answer\(s\) in .*a.jsonl and 1 in"):
        paired_runs(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_what_was_not_chosen_is_asked_for(tmp_path, reasoner):
    write_samples(tmp_path / "two", [1.0, 0.0], filter="strict")
    write_samples(tmp_path / "two", [1.0, 1.0], filter="flexible")
    with pytest.raises(
        InputError, match="several among the filters of .*: flexible, strict. Choose with --filter NAME"
    ):
        read_run(tmp_path / "two")
    assert [each.scores for each in read_run(tmp_path / "two", filter="flexible").tasks["mini"].values()] == [
        (1.0,),
        (1.0,),
    ]
    write_samples(tmp_path / "two", [0.0, 1.0], task="one_filter")  # where there is no choice, none is needed
    assert read_run(tmp_path / "two", filter="strict").tasks["one_filter"]["1"].scores == (1.0,)
    with pytest.raises(InputError, match="no 'stict' among the filters"):
        read_run(tmp_path / "two", filter="stict")
    with pytest.raises(InputError, match="no task of .* has the metric 'f2'; what they have is exact_match"):
        read_run(tmp_path / "two", filter="strict", metric="f2")
    write_samples(tmp_path / "again", [1.0])
    write_samples(tmp_path / "again", [1.0], date="2026-11-28T10-00-00.000001")
    with pytest.raises(InputError, match="two files hold samples of mini"):
        read_run(tmp_path / "again")
    write_samples(tmp_path / "metrics", [1.0], metrics=["exact_match", "f1"], f1=0.5)
    with pytest.raises(InputError, match="several among the metrics of .*: exact_match, f1"):
        read_run(tmp_path / "metrics")
    assert read_run(tmp_path / "metrics", metric="f1").tasks["mini"]["0"].scores == (0.5,)
    write_samples(tmp_path / "none", [[1, 2]])
    with pytest.raises(
        InputError, match=r"'exact_match' of problem '0' in .* is \[1, 2\]: expected true, false or a number"
    ):
        read_run(tmp_path / "none")
    write_traces(tmp_path / "a.jsonl", [Trace.from_text(reasoner.tokenizer, "2+2?", "4", id="a")])
    with pytest.raises(InputError, match="'correct' of trace 'a' in .* is None"):
        read_run(tmp_path / "a.jsonl")
    folder = write_results(tmp_path / "sweep", planted([Setting((USEFUL,))], lambda _: 0.2, problems=3))
    with pytest.raises(
        InputError, match=r"no setting was named. Give FOLDER:SETTING, .* \(baseline\); .*\(oeb layers 0-1"
    ):
        read_run(folder)
    with pytest.raises(InputError, match="0 settings are called 'smi'"):
        read_run(f"{folder}:smi")
    with pytest.raises(FileError, match="there is no"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="has no samples_"):
        read_run(tmp_path / "empty")


def test_a_trace_that_was_changed_is_noticed(tmp_path, reasoner):
    path = write_graded(tmp_path / "a.jsonl", reasoner.tokenizer, [True, False])
    path.write_text(path.read_text().replace('"correct": false', '"correct": true'))
    with pytest.raises(InputError, match="line 2: it does not say what was written to it"):
        read_run(path)


# --- how it is kept and shown ----------------------------------------------------------------------------------------
def test_a_comparison_is_kept_as_it_is(tmp_path):
    for name, outcomes in zip("ab", right(40, gained=9), strict=True):
        write_samples(tmp_path / name, [float(each) for each in outcomes])
    made = paired_runs(tmp_path / "a", tmp_path / "b", names=("plain", "mended"))
    made.save(tmp_path / "c.json")
    back = PairedRuns.load(tmp_path / "c.json")
    assert back.table.equals(made.table)
    assert (back.names, back.meta) == (("plain", "mended"), made.meta)
    (tmp_path / "d.json").write_text('{"kind": "other"}')
    with pytest.raises(FileError, match="is not a comparison of runs this version can read"):
        PairedRuns.load(tmp_path / "d.json")


def test_the_command_prints_markdown_and_latex_and_keeps_the_comparison(tmp_path, capsys):
    for name, outcomes in zip("ab", right(40, gained=9, lost=1), strict=True):
        write_samples(tmp_path / name, [float(each) for each in outcomes], task="a_task")
    given = ["paired", str(tmp_path / "a"), str(tmp_path / "b"), "--names", "R1", "R1 + OEB"]
    assert main([*given, "--markdown", "--out", str(tmp_path / "c.json")]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("| a_task"))
    found = PairedRuns.load(tmp_path / "c.json").table.iloc[0]
    assert f"+{100 * found['difference']:.1f}*" in row
    assert "| 9/1 |" in row
    assert "| Task | R1 | R1 + OEB |" in shown
    assert main([*given, "--latex"]) == 0
    latex = capsys.readouterr().out
    assert r"a\_task & " in latex
    assert r"\label{tab:paired}" in latex
    assert main(["paired", str(tmp_path / "a"), str(tmp_path / "nowhere")]) == 2
    assert "there is no" in capsys.readouterr().err
