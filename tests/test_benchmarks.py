import os
import subprocess
import sys
from pathlib import Path

DECODING = Path(__file__).parents[1] / "benchmarks" / "decoding.py"
SWEEP = Path(__file__).parents[1] / "benchmarks" / "sweep.py"


def test_the_decoding_benchmark_runs():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, DECODING, "--quick"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 2 + 2  # two headings, two models, two lengths


def test_the_sweep_benchmark_runs():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, SWEEP, "--quick"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4  # a heading, the plain loop, three sweeps
