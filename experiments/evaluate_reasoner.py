"""Measure the bundled reasoner: `python -m experiments.evaluate_reasoner` (about 5 minutes on 2 CPU cores).

Greedy answers to test problems of every chain length, graded by rule. Prints the table of `README.md` beside this file,
with 95 % Wilson intervals.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from stepsal.generation.generate import generate
from stepsal.generation.questions import task_room
from stepsal.interventions.base import Intervention
from stepsal.models.host import Model
from stepsal.models.loading import load_model
from stepsal.reasoner.problems import DEFAULT_LENGTH, ERROR_KINDS, grade, make_problems
from stepsal.statistics.paired import wilson
from stepsal.traces.trace import Trace


def solve(
    model: Model,
    n: int,
    length: int = DEFAULT_LENGTH,
    split: str = "test",
    *,
    interventions: Intervention | Sequence[Intervention] = (),
    progress: bool = True,
) -> list[Trace]:
    """The model's greedy answers to the first `n` problems of a split, graded: `correct`, and `meta["error"]` by rule."""
    problems = make_problems(split, n, length)
    traces = generate(
        model,
        [p.messages for p in problems],
        interventions=interventions,
        max_new_tokens=task_room([length]),
        batch_size=64,
        progress=progress,
    )
    graded = []
    for problem, trace in zip(problems, traces, strict=True):
        result = grade(problem, trace.response.removesuffix(model.tokenizer.eos_token))
        meta = trace.meta | {"length": length, "error": result.error}
        graded.append(replace(trace, id=problem.id, answer=str(problem.answer), correct=result.correct, meta=meta))
    return graded


def row(length: int, traces: list[Trace]) -> str:
    """One line of the table."""
    right = sum(bool(trace.correct) for trace in traces)
    low, high = wilson(right, len(traces))
    errors = Counter(trace.meta["error"] for trace in traces if not trace.correct)
    counts = " | ".join(str(errors[kind]) for kind in ERROR_KINDS)
    name = f"**{length}** (default)" if length == DEFAULT_LENGTH else str(length)
    return f"| {name} | {len(traces):,} | {right / len(traces):.1%} | {low:.1%} to {high:.1%} | {counts} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate_reasoner", description="Measure the reasoner."
    )
    parser.add_argument("--model", default=None, help="a directory that `train` wrote (default: the bundled one)")
    parser.add_argument("--default-problems", type=int, default=1000, help="problems of the default length")
    parser.add_argument("--problems", type=int, default=300, help="problems of each other length")
    given = parser.parse_args(arguments)
    model = load_model(given.model)
    print("| chain length | problems | right | 95 % interval | " + " | ".join(ERROR_KINDS) + " |")
    print("|---" * (4 + len(ERROR_KINDS)) + "|")
    for length in range(2, 11):
        n = given.default_problems if length == DEFAULT_LENGTH else given.problems
        print(row(length, solve(model, n, length, progress=sys.stderr.isatty())), flush=True)


if __name__ == "__main__":
    main()
