import re
import subprocess
from dataclasses import replace

import pytest
import torch

import stepsal.generation.worker
import stepsal.saliency.recipe
from stepsal import FileError, StepMap, diagnose, lock_in, read_traces, step_saliency, thinking_to_summary
from stepsal.cli import main
from stepsal.demo import draw, layer_table
from stepsal.figures.maps import load_example
from stepsal.files import locked


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--out", str(out), "--problems", "5"]) == 0
    return out


def test_the_demo_writes_what_it_says(demo, reasoner):
    traces = read_traces(demo / "traces.jsonl", reasoner.tokenizer)
    assert len(traces) == 5
    for trace in traces:
        assert trace.correct is not None
        assert StepMap.load(demo / "maps" / f"{trace.id}.safetensors").steps == trace.steps
    assert (demo / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert (demo / "demo.pdf").read_bytes().startswith(b"%PDF")
    assert (demo / "layers.md").read_text().startswith("| layer |")


def test_a_second_run_computes_nothing_again(demo):
    before = {path: path.stat().st_mtime_ns for path in (demo / "maps").iterdir()}
    assert main(["demo", "--out", str(demo), "--problems", "5"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (demo / "maps").iterdir()} == before


def test_the_table_holds_the_groups_means(reasoner_traces, reasoner):
    pairs = [(trace, step_saliency(reasoner, trace)) for trace in reasoner_traces[:3]]
    diagnoses = {"wrong": [diagnose(stepmap) for _, stepmap in pairs]}
    lines = layer_table(diagnoses).splitlines()
    assert "correct" not in lines[0]
    for layer, line in enumerate(lines[2:]):
        found = [float(cell) for cell in re.findall(r"\d\.\d+", line)]
        expected = [
            torch.stack([lock_in(stepmap)[layer].mean() for _, stepmap in pairs]).mean(),
            torch.stack([thinking_to_summary(stepmap)[layer].mean() for _, stepmap in pairs]).nanmean(),
        ]
        torch.testing.assert_close(torch.tensor(found), torch.stack(expected), rtol=0, atol=6e-4)
    pairs = [(replace(trace, correct=False, meta={"error": "malformed"}), stepmap) for trace, stepmap in pairs]
    figure = draw({"wrong": pairs}, diagnoses)
    titles = [ax.get_title(loc="left") for ax in figure.subfigs[0].axes]
    assert any("wrong (malformed): shallow" in title for title in titles)
    assert not any("correct" in title for title in titles)


def test_the_demos_folder_is_what_the_other_commands_read(demo, tmp_path):
    influence, stepmap = load_example(demo)
    assert len(influence) == stepmap.steps[-1].stop
    assert main(["diagnose", str(demo)]) == 0
    assert len((demo / "diagnosis.jsonl").read_text().splitlines()) == 5
    for name in ("tokens", "heads"):
        assert main(["figure", name, str(demo), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert f"Made by `stepsal figure {name} {demo}" in (tmp_path / f"{name}.md").read_text()


def count_answers(monkeypatch):
    decoded, real = [], stepsal.generation.worker.stream

    def counted(*given, **options):
        for batch in real(*given, **options):
            decoded.extend(batch)
            yield batch

    monkeypatch.setattr(stepsal.generation.worker, "stream", counted)
    return decoded


@pytest.mark.usefixtures("alone")
def test_an_interrupted_demo_goes_on_and_makes_nothing_twice(demo, tmp_path, monkeypatch, capsys):
    real, made = stepsal.saliency.recipe.step_saliency, []

    def interrupted(model, trace, **options):
        made.append(trace.id)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(model, trace, **options)

    decoded = count_answers(monkeypatch)
    monkeypatch.setattr(stepsal.saliency.recipe, "step_saliency", interrupted)
    command = ["demo", "--out", str(tmp_path), "--problems", "5"]
    assert main(command) == 1
    assert "interrupted; what is finished is kept, and the same command goes on from there" in capsys.readouterr().err
    assert main(command) == 0
    assert sorted(decoded) == list(range(5))
    assert len(made) == 6
    assert (tmp_path / "traces.jsonl").read_bytes() == (demo / "traces.jsonl").read_bytes()
    assert (tmp_path / "layers.md").read_text() == (demo / "layers.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [
            "demo.json",
            "demo.pdf",
            "demo.png",
            "layers.md",
            "maps",
            "saliency.json",
            "tokens.safetensors",
            "traces.jsonl",
        ]
    )


def test_with_the_disk_full_the_demo_says_so_and_goes_on_once_there_is_room(demo, tmp_path, capsys):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    out = tmp_path / "out"
    try:
        command = ["demo", "--out", str(out), "--problems", "5", "--quiet"]
        for size in ("8k", "60k", "300k"):  # full at the answers, at the maps, at the picture
            subprocess.run(["mount", "-o", f"remount,size={size}", tmp_path], check=True)
            assert main(command) == 2
            assert "No space left on device" in capsys.readouterr().err
            assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
        subprocess.run(["mount", "-o", "remount,size=20m", tmp_path], check=True)
        assert main(command) == 0
        assert (out / "traces.jsonl").read_bytes() == (demo / "traces.jsonl").read_bytes()
        assert (out / "layers.md").read_text() == (demo / "layers.md").read_text()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_another_number_of_problems_in_one_folder_is_refused(demo, capsys):
    assert main(["demo", "--out", str(demo), "--problems", "3"]) == 2
    assert "holds a demo with other settings (problems 5 -> 3). Use another --out folder." in capsys.readouterr().err
    assert len(list((demo / "maps").iterdir())) == 5


def test_traces_that_are_not_the_demos_are_neither_taken_nor_written_over(tmp_path, capsys):
    (tmp_path / "traces.jsonl").write_text("mine\n")
    assert main(["demo", "--out", str(tmp_path), "--problems", "3"]) == 2
    assert "nothing says what" in capsys.readouterr().err
    assert (tmp_path / "traces.jsonl").read_text() == "mine\n"


def test_a_second_demo_in_one_folder_is_refused_while_the_first_is_at_work(tmp_path, capsys):
    with locked(tmp_path / "demo.json", "at work"):
        assert main(["demo", "--out", str(tmp_path), "--problems", "3"]) == 2
    assert "another run of the demo is at work" in capsys.readouterr().err


def test_a_token_map_whose_bits_flipped_is_damaged(demo, tmp_path):
    (tmp_path / "tokens.safetensors").write_bytes(content := (demo / "tokens.safetensors").read_bytes())
    changed = bytearray(content)
    changed[-9] ^= 4
    (tmp_path / "tokens.safetensors").write_bytes(changed)
    with pytest.raises(FileError, match=r"damaged \(its checksum differs\)"):
        load_example(tmp_path)
