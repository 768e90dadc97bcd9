"""Results are alike: a table, a summary, a file, and something to look at in a notebook."""

import inspect
import json
import re
from itertools import pairwise

import pandas as pd
import pytest
import torch
from helpers import random_map

import stepsal
from stepsal import FileError, Knockout, StepMap, compare, diagnose, faithfulness

SEGMENTS, SIZES = "qttttttts", [3, 3, 4, 2, 3, 5, 3, 2, 4]


def some_map(name: str):
    stepmap = random_map(SEGMENTS, SIZES)
    stepmap.meta["trace"] = name
    return stepmap


def some_knockout(stepmap):
    kl = torch.rand(9, 9).tril(-1)
    kl[torch.ones(9, 9).triu().bool()] = torch.nan
    kl[:, 0] = torch.nan
    answer = torch.rand(9)
    answer[[0, 8]] = torch.nan
    return Knockout(kl, kl.clone(), answer, stepmap.steps, {"mode": "total", "trace": stepmap.meta["trace"]})


def some_runs(folder):
    """A comparison of two logged runs."""
    for name, wrong in (("a", 9), ("b", 3)):
        lines = [{"id": str(i), "prompt": "2+2?", "response": "4", "correct": i >= wrong} for i in range(20)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return stepsal.paired_runs(folder / "a.jsonl", folder / "b.jsonl", names=("a", "b"))


def results(folder):
    torch.manual_seed(0)
    maps = [some_map(f"t{index}") for index in range(6)]
    knockouts = [some_knockout(stepmap) for stepmap in maps]
    comparison = compare(maps[:3], maps[3:], resamples=99)
    with pytest.warns(UserWarning, match="the paper's quarter"):
        bands = stepsal.choose_layers(comparison)
    faithful = faithfulness(maps, knockouts, resamples=99)
    return [maps[0], diagnose(maps[0]), comparison, bands, knockouts[0], faithful, some_runs(folder)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return results(tmp_path_factory.mktemp("runs"))


def test_every_result_has_a_table_a_summary_and_a_picture_or_a_table_in_a_notebook(made):
    for result in made:
        assert isinstance(result.to_dataframe(), pd.DataFrame)
        assert len(result.to_dataframe()) > 0
        assert len(result.summary()) > 40
        assert hasattr(result, "_repr_html_") or result._repr_png_() is not None


def test_what_is_saved_comes_back(made, tmp_path):
    for result in made:
        path = tmp_path / type(result).__name__
        result.save(path)
        again = type(result).load(path)
        pd.testing.assert_frame_equal(again.to_dataframe(), result.to_dataframe(), check_dtype=False)
        assert again.summary() == result.summary()
        assert repr(again) == repr(result)


def test_what_is_another_file_is_refused(made, tmp_path):
    for result in made:
        for content in ("", "{}", "[1]", '{"kind": "stepsal faithfulness", "tables": 3}'):
            path = tmp_path / "wrong"
            path.write_text(content)
            with pytest.raises(FileError):
                type(result).load(path)
        with pytest.raises(FileError):
            type(result).load(tmp_path / "missing")


def test_a_result_that_changed_in_its_file_is_refused(made, tmp_path):
    for result in (each for each in made if not isinstance(each, StepMap | Knockout)):  # those have tests of their own
        result.save(tmp_path / "r.json")
        text = (tmp_path / "r.json").read_text()
        changed = re.sub(r"0\.\d{6,}", "0.5", text, count=1)
        assert changed != text
        (tmp_path / "r.json").write_text(changed)
        with pytest.raises(FileError, match="its checksum differs"):
            type(result).load(tmp_path / "r.json")
        assert type(result).load(tmp_path / "r.json", verify=False).to_dataframe().shape == result.to_dataframe().shape


def test_a_result_that_lacks_a_part_is_refused_with_the_reason(made, tmp_path):
    for result in (each for each in made if not isinstance(each, StepMap | Knockout)):
        result.save(tmp_path / "r.json")
        content = json.loads((tmp_path / "r.json").read_text())
        for name in content.keys() - {"sha256"}:
            for other in (None, 3, "x"):
                wrong = {key: each for key, each in content.items() if key not in (name, "sha256")}
                (tmp_path / "w.json").write_text(json.dumps(wrong if other is None else wrong | {name: other}))
                with pytest.raises(FileError, match="this version can read"):
                    type(result).load(tmp_path / "w.json")


def test_a_printed_diagnosis_is_a_table_with_its_verdicts(made):
    lines = str(made[1]).splitlines()
    assert sum("shallow lock-in:" in line or "deep decay:" in line for line in lines) == 2
    for layer in made[1].layers:
        assert any(line.split()[:1] == [str(layer)] for line in lines)


def test_the_summary_of_a_map_has_the_shares_of_its_dataframe(made):
    frame = made[0].to_dataframe()
    rows = frame[(frame.query_segment == "summary") & (frame.layer == made[0].layers[0])]
    by_source = rows.groupby("key_segment", observed=True)["share"].sum() / rows["head"].nunique()
    shown = [cell.strip() for cell in made[0].summary().splitlines()[4].split("|")[1:-1]]
    assert [float(cell) for cell in shown[-3:]] == pytest.approx(
        [by_source[name] for name in ("question", "thinking", "summary")], abs=2e-3
    )


def test_the_summary_of_a_knockout_begins_with_the_step_that_matters_most(made):
    knockout = made[4]
    lines = knockout.summary().splitlines()
    first = next(after for line, after in pairwise(lines) if line.startswith("|---"))
    assert first.split("|")[1].strip() == str(int(knockout.kl.nanmean(0).nan_to_num(nan=-1).argmax()))


def test_stepflow_names_the_parameters_of_both_interventions():
    named = set(inspect.signature(stepsal.stepflow).parameters) - {"unknown"}
    both = {"oeb": stepsal.OddsEqualBridge, "smi": stepsal.StepMomentum}
    expected = {f"{name}_{field}" for name in both for field in ("layers", "heads")}
    assert named == expected.union(*(kind.options() for kind in both.values()))
    assert stepsal.stepflow() == (stepsal.OddsEqualBridge(), stepsal.StepMomentum())


def test_a_report_has_the_columns_of_what_is_installed(reasoner):
    trace = stepsal.Trace.from_text(reasoner.tokenizer, "2+2?<think>", "Add them.\n\nIt is 4.</think>4")
    with stepsal.intervene(reasoner, stepsal.StepMomentum()) as live:
        reasoner(trace.tokens[None])
        columns = live.report().columns.tolist()
    assert columns == ["layer", "head", "part", "opportunities", "activations", "mean_injected_norm"]
