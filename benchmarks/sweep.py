"""Answers per second of a sweep: `python benchmarks/sweep.py` (`--quick` for a smoke run).

Compared, on the bundled reasoner and the same settings (the baseline, the bridge, the momentum, both) and problems:

- a plain loop: for each setting one call of `stepsal.generate`, one torch thread, answers graded;
- sweeps with 1 worker of 1 thread (in this process), 2 workers of 1 thread, 1 worker of 2 threads.

Each case is a process of its own. Loading the model is measured apart, by a sweep of one answer for each worker that is run
first, and left out: a sweep of hours does not see it. The cases take turns, and each ratio is the median of the ratios to the
1 x 1 sweep of the same turn, so that a machine that is busy with other things for a while hurts all of them alike.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {"plain loop": (0, 1), "sweep 1 x 1": (1, 1), "sweep 2 x 1": (2, 1), "sweep 1 x 2": (1, 2)}
"""Name -> workers (0: no sweep), torch threads of each."""


def measure(workers: int, threads: int, count: int, tokens: int | None = None) -> float:
    """Answers per second, loading left out; `count` problems, `tokens` at most in an answer (None: as many as it takes)."""
    import torch

    import stepsal
    from stepsal.generation.grading import grade_answer
    from stepsal.sweeps.config import read_config
    from stepsal.sweeps.grid import next_round
    from stepsal.sweeps.plan import load_questions, make_plan
    from stepsal.sweeps.progress import Progress, Scores
    from stepsal.sweeps.run import run_round
    from stepsal.sweeps.settings import Setting
    from stepsal.sweeps.store import SweepFolder
    from stepsal.sweeps.workforce import Workforce

    torch.set_num_threads(threads)
    given: dict[str, Any] = {
        "problems": {"count": count},
        "decoding": {"batch_size": 16} | ({} if tokens is None else {"max_new_tokens": tokens}),
        "model": {"threads": threads},
    }
    config = read_config(given | {"grid": {"parts": ["oeb", "smi", "both"]}})
    workforce = Workforce("local", config.model.device, max(1, workers))
    plan = make_plan(config, workforce.resources.device)
    settings = next_round(config.grid, plan.size, Path(), lambda setting: 0, [])
    number = len(settings) * count
    if not workers:
        model, questions, decoding = stepsal.load_model(), load_questions(config), plan.decoding
        prompts = [each.prompt for each in questions]
        options: dict[str, Any] = {"batch_size": 16, "progress": False}
        stepsal.generate(model, prompts[:1], max_new_tokens=8, **options)
        begin = time.perf_counter()
        for setting in settings:
            traces = stepsal.generate(
                model, prompts, interventions=setting.interventions, max_new_tokens=decoding.max_new_tokens, **options
            )
            for question, trace in zip(questions, traces, strict=True):
                grade_answer(question, trace.response, "")
        return number / (time.perf_counter() - begin)
    try:
        warm = next(iter(plan.items(Setting())))
        for _ in workforce.engine(plan).run([warm.model_copy(update={"stop": 1})] * workers):
            pass
        with tempfile.TemporaryDirectory() as out:
            scores = Scores()
            begin = time.perf_counter()
            run_round(plan, settings, workforce, SweepFolder(out), scores, Progress(scores, False))
            return number / (time.perf_counter() - begin)
    finally:
        workforce.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run: one problem, two tokens, in this process")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--case", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(measure(*given.case)))
        return
    rates: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(1 if given.quick else given.turns):
        for name, (workers, threads) in CASES.items():
            if given.quick:
                rates[name].append(measure(workers, threads, count=1, tokens=2))
                continue
            command = [sys.executable, __file__, "--case", str(workers), str(threads), "64"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rates[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {rates[name][-1]:.2f} answers/s", file=sys.stderr, flush=True)
    print("| case (workers x threads) | answers/s | against sweep 1 x 1 |")
    print("|---|---|---|")
    for name, found in rates.items():
        ratio = statistics.median(own / base for own, base in zip(found, rates["sweep 1 x 1"], strict=True))
        print(f"| {name} | {statistics.median(found):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
