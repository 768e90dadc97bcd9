"""Each benchmark runs, at a size at which its numbers mean nothing, and writes the table that it promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepsal.models.host import BUNDLED

FOLDER = Path(__file__).parents[1] / "benchmarks"
REASONER = str(BUNDLED)


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        (
            "saliency",
            ["--quick"],
            2 + 2 + 2 + 1,
        ),  # a heading, two floors, the official way and its least, the definition
        ("decoding", ["--quick"], 2 + 2 + 2 + 2),  # two headings, two models, two lengths
        ("saliency", ["--quick", "--model", REASONER], 2 + 1),  # a heading, one length
        ("knockout", ["--quick", "--model", REASONER], 2 + 3),  # a heading, the ideal, two modes
        ("decoding", ["--quick", "--model", REASONER], 2 + 5),  # a heading, five ways
        ("sweep", ["--quick"], 2 + 4),  # a heading, the plain loop, three sweeps
        ("maps_at_scale", ["--quick", "--maps", "12"], 2 + 7),  # a heading, seven commands
        ("precision", ["--problems", "2"], 2 + 8),  # a heading, the layers
        ("tiny_masses", ["bundled", "--noise", "--traces", "1"], 2 + 2 + 2 + 2),  # two headings, each with two rows
        ("gpu", ["--quick"], 2 + 1 + 2 + 1),  # two headings, one length, one batch
    ],
)
@pytest.mark.slow
def test_a_benchmark_runs(name, options, rows, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, FOLDER / f"{name}.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("|")]) == rows, done.stdout
