"""SIGKILL at random moments, and two runs at once: each command ends as an undisturbed run does, or is refused."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from hooked import TL3

from stepsal import Knockout, StepMap
from stepsal.cli import main
from stepsal.models.host import BUNDLED

pytestmark = [pytest.mark.slow, pytest.mark.skipif(TL3, reason="the command loads bridges")]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["stepsal.demo", "stepsal.cli", "transformer_lens.model_bridge"])
MEASURED = ("seconds", "peak_memory_bytes")
KILLS = 10


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Traces, the log that they are converted from, and problems."""
    folder = tmp_path_factory.mktemp("inputs")
    assert main(["generate", "4", "--out", str(folder / "traces.jsonl"), "--max-new-tokens", "60"]) == 0
    lines = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()]
    record = {key: lines[0][key] for key in ("prompt", "response")}
    with open(folder / "log.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record | {"id": f"r{index}"}) + "\n" for index in range(400))
    return folder


def commands(inputs):
    return {
        "saliency": ["saliency", f"{inputs}/traces.jsonl", "--model", str(BUNDLED), "--chunk", "16", "--out"],
        "knockout": ["knockout", f"{inputs}/traces.jsonl", "--model", str(BUNDLED), "--subsets", "4", "--out"],
        "generate": ["generate", "6", "--batch-size", "2", "--max-new-tokens", "60", "--out"],
        "generate, workers": [
            "generate",
            "6",
            "--batch-size",
            "1",
            "--max-new-tokens",
            "60",
            "--workers",
            "2",
            "--out",
        ],
        "traces convert": ["traces", "convert", f"{inputs}/log.jsonl", "--model", str(BUNDLED), "--out"],
        "demo": ["demo", "--problems", "4", "--out"],
    }


def run(arguments, errors):
    """The command in a process of its own; what it says goes to a file."""
    with (
        open(errors, "w", encoding="utf-8") as file,
        contextlib.redirect_stderr(file),
        contextlib.redirect_stdout(file),
    ):
        status = main(arguments)
    os._exit(status)


def start(arguments, errors):
    process = CONTEXT.Process(target=run, args=(arguments, errors))
    process.start()
    return process


def result(out: Path):
    """All that the files say, but what was measured; pictures by name alone, since they hold no numbers."""
    if out.is_file():
        return out.read_bytes()
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.parent.name == "maps":
            stepmap = StepMap.load(path)
            meta = {key: value for key, value in stepmap.meta.items() if key not in MEASURED}
            found[name] = (stepmap.mass.tolist(), stepmap.pairs.tolist(), stepmap.steps, stepmap.layers, meta)
        elif path.parent.name == "knockouts":
            knockout = Knockout.load(path)
            meta = {key: value for key, value in knockout.meta.items() if key not in MEASURED}
            numbers = [each.nan_to_num(-1).tolist() for each in (knockout.kl, knockout.loss, knockout.answer)]
            found[name] = (numbers, knockout.steps, meta)
        else:
            found[name] = path.read_bytes() if path.suffix in (".json", ".jsonl", ".md") else path.suffix
    return found


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """What each command gives, and how long it takes."""
    found = {}
    for name, arguments in commands(inputs).items():
        out = tmp_path_factory.mktemp("undisturbed") / "out"
        for where in (out.with_name("warm"), out):
            begun = time.monotonic()
            process = start([*arguments, str(where)], out.with_name("said"))
            process.join()
            assert process.exitcode == 0, out.with_name("said").read_text()
        found[name] = result(out), time.monotonic() - begun
    return found


NAMES = ("saliency", "knockout", "generate", "generate, workers", "traces convert", "demo")


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_ten_random_moments_a_command_ends_as_an_undisturbed_one(name, inputs, undisturbed, tmp_path):
    expected, seconds = undisturbed[name]
    rng = random.Random(name)
    arguments, out = commands(inputs)[name], tmp_path / "out"
    killed = 0
    while killed < KILLS:
        process = start([*arguments, str(out)], tmp_path / "said")
        process.join(seconds * rng.random() * 0.9)
        killed += process.is_alive()
        process.kill()
        process.join()
        if out.is_file() or process.exitcode == 0:  # it is finished: begin anew
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    process = start([*arguments, str(out)], tmp_path / "said")
    process.join()
    assert process.exitcode == 0, (tmp_path / "said").read_text()
    assert result(out) == expected
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("name", NAMES)
def test_of_two_at_once_each_ends_as_an_undisturbed_one_or_is_refused(name, inputs, undisturbed, tmp_path):
    expected, seconds = undisturbed[name]
    arguments, out = commands(inputs)[name], tmp_path / "out"
    for apart in (0.0, 0.3 * seconds, 0.6 * seconds):
        if out.is_file():
            out.unlink()
        said = [tmp_path / "said-0", tmp_path / "said-1"]
        first = start([*arguments, str(out)], said[0])
        time.sleep(apart)
        second = start([*arguments, str(out)], said[1])
        first.join()
        second.join()
        statuses = first.exitcode, second.exitcode
        assert 0 in statuses, [each.read_text() for each in said]
        for status, text in zip(statuses, said, strict=True):
            refused = ("wait for it" in text.read_text()) or ("is there already" in text.read_text())
            assert status == 0 or (status == 2 and refused), text.read_text()
        assert result(out) == expected
