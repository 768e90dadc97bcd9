"""What knocking out every step costs, against the least that it can: `python benchmarks/knockout.py --model PATH`, and for a
smoke run `--quick`.

A knockout in the mode `total` must at least run, for each source, the rows behind it. The *ideal* does only that: for each
source a plain Hugging Face model with fused (SDPA) attention reads the tokens after the source in one pass, with all that is
before them in its cache; neither making the cache nor comparing the logits is counted. stepsal also reads the trace up to the
first source, compares the vocabulary's probabilities of every row, and has an untouched row in each batch. A ratio of 1.1 means
ten percent more than the ideal.

The text is random tokens, the steps are equally long, and every step but the question and the last is a source. The modes and
the ideal take turns in one process; what counts is its processor time. `OMP_NUM_THREADS` says how many threads (2).
"""

import argparse
import copy
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


def cases(path: str, length: int, count: int) -> dict[str, Callable[[], float]]:
    """Functions that run a mode, or the ideal, and return its seconds."""
    import torch
    from plain_models import plain_model, vocabulary
    from transformers import DynamicCache

    import stepsal
    from stepsal import Step, Trace

    torch.set_num_threads(THREADS)
    torch.manual_seed(length)
    tokens = torch.randint(vocabulary(path), (length,))
    edges = [index * length // count for index in range(count + 1)]
    steps = tuple(
        Step(index, "question" if index == 0 else "summary" if index == count - 1 else "thinking", start, stop, "")
        for index, (start, stop) in enumerate(itertools.pairwise(edges))
    )
    trace = Trace(tokens, steps, prompt="")
    model, plain = stepsal.load_model(path, dtype="float32"), plain_model(path, "sdpa")

    def of_mode(mode: str) -> float:
        start = time.process_time()
        stepsal.step_knockout(model, trace, mode=mode)
        return time.process_time() - start

    def ideal() -> float:
        seconds, cache, at = 0.0, DynamicCache(), 0
        with torch.no_grad():
            for step in steps[1:-1]:
                plain(tokens[None, at : step.stop], past_key_values=cache, use_cache=True)
                at, own = step.stop, copy.deepcopy(cache)
                start = time.process_time()
                plain(tokens[None, at:-1], past_key_values=own, use_cache=True)
                seconds += time.process_time() - start
        return seconds

    return {"ideal": ideal, "total": lambda: of_mode("total"), "direct": lambda: of_mode("direct")}


def table(path: str, length: int, count: int, turns: int) -> str:
    runs = cases(path, length, count)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        for name in runs if turn % 2 else reversed(runs):
            seconds[name].append(runs[name]())
            print(f"{name:>7} {seconds[name][-1]:8.1f} s", file=sys.stderr)
    lines = ["| | seconds | against the ideal (range of turns) |", "|---|---|---|"]
    for name, each in seconds.items():
        ratios = [own / least for own, least in zip(each, seconds["ideal"], strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if name != "ideal" else ""
        lines.append(f"| {name} | {statistics.median(each):.1f} | {shown} |")
    about = f"{length:,} tokens in {count} steps, float32, {THREADS} CPU thread(s), {turns} turn(s)."
    return "\n".join([*lines, "", about])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or .gguf file")
    parser.add_argument("--tokens", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    given = parser.parse_args()
    size = (60, 6, 1) if given.quick else (given.tokens, given.steps, given.turns)
    print(table(given.model, *size))


if __name__ == "__main__":
    main()
