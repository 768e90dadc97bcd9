"""Step maps made by hand, and what several test files need."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import torch

from stepsal import Step, StepMap, Trace


def unchecked(function):
    """The function without the test run's type checks, as a user has it."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def make_steps(segments: str, sizes: list[int]) -> tuple[Step, ...]:
    """Steps of the given numbers of tokens; `segments` has a letter for each: q, t or s."""
    names = {"q": "question", "t": "thinking", "s": "summary"}
    stops = torch.tensor(sizes).cumsum(0).tolist()
    return tuple(
        Step(index, names[letter], stop - size, stop, f"step {index} é→🙂")
        for index, (letter, size, stop) in enumerate(zip(segments, sizes, stops, strict=True))
    )


def make_map(segments: str, sizes: list[int], density, layers: tuple[int, ...] | None = None, **meta) -> StepMap:
    """A map with a given density, `layer head query_step key_step`, and the pairs that such steps have."""
    density = torch.as_tensor(density, dtype=torch.float32)
    density = density[(None,) * (4 - density.ndim)]
    total = sum(sizes)
    step_of = [index for index, size in enumerate(sizes) for _ in range(size)]
    pairs = torch.zeros(len(sizes), len(sizes), dtype=torch.long)
    for query in range(total - 1):
        for key in range(query + 1):
            pairs[step_of[query], step_of[key]] += 1
    layers = layers or tuple(range(len(density)))
    return StepMap(density * pairs, pairs, make_steps(segments, sizes), layers, meta)


def random_map(segments: str, sizes: list[int], layers: int = 2, heads: int = 3, seed: int = 0, **meta) -> StepMap:
    generator = torch.Generator().manual_seed(seed)
    n = len(sizes)
    return make_map(segments, sizes, torch.rand(layers, heads, n, n, generator=generator) + 0.01, **meta)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error in any layer, relative to that layer's largest value."""
    error = (found - expected).abs().flatten(1).amax(1)
    return float((error / expected.abs().flatten(1).amax(1)).max())


def random_trace(length: int, ends: list[int], vocabulary: int = 300) -> Trace:
    """Random tokens, with steps that end at `ends`."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(5, vocabulary, (length,), generator=generator)
    bounds = [0, *sorted(set(ends) - {0, length}), length]
    steps = tuple(
        Step(i, "question" if i == 0 else "thinking", a, b, f"{i}")
        for i, (a, b) in enumerate(itertools.pairwise(bounds))
    )
    return Trace(tokens, steps, "0")


_KILLING = """
import sys, threading, time
from pathlib import Path
import psutil
from stepsal.cli import main
from stepsal.saliency import recipe

recipe.TOKENS_TOGETHER = 1  # as the fixture `alone` does: each trace is a piece of its own

def kill():
    while not any(each.stat().st_size for each in Path(sys.argv[1]).glob(sys.argv[2])):
        time.sleep(0.01)
    found = [p for p in psutil.Process().children(recursive=True) if "_RayWorker" in " ".join(p.cmdline())]
    found[0].kill()
    print("killed", found[0].pid)

threading.Thread(target=kill, daemon=True).start()
sys.exit(main(sys.argv[3:]))
"""


def run_and_kill_a_ray_worker(command: list[str], folder: Path, begun: str) -> None:
    """Run a command that works on Ray, and kill one of its workers once a file of the folder, `begun`, has something in it."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLING, str(folder), begun, *command],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout
