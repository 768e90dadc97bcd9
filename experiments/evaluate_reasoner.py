"""Measure the bundled reasoner: `python -m experiments.evaluate_reasoner` (about 5 minutes on 2 CPU cores).

The model answers test problems of every chain length greedily, and its answers are graded by rule. The script prints the table
of `stepsal/reasoner/README.md`, with 95 % Wilson intervals.
"""

import argparse
import sys
from collections import Counter

from stepsal.generation.task import answer_problems
from stepsal.models.loading import load_model
from stepsal.reasoner.problems import DEFAULT_LENGTH, ERROR_KINDS
from stepsal.statistics.paired import wilson
from stepsal.traces.trace import Trace


def row(length: int, traces: list[Trace]) -> str:
    """The line of the table for one chain length."""
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
    parser.add_argument("--model", help="a directory that `train_reasoner` wrote (default: the bundled one)")
    parser.add_argument("--default-problems", type=int, default=1000, help="problems of the default length")
    parser.add_argument("--problems", type=int, default=300, help="problems of each other length")
    options = parser.parse_args(arguments)
    model = load_model(options.model)
    print("| chain length | problems | right | 95 % interval | " + " | ".join(ERROR_KINDS) + " |")
    print("|---" * (4 + len(ERROR_KINDS)) + "|")
    for length in range(2, 11):
        n = options.default_problems if length == DEFAULT_LENGTH else options.problems
        traces = answer_problems(model, n, length, progress=sys.stderr.isatty())
        print(row(length, traces), flush=True)


if __name__ == "__main__":
    main()
