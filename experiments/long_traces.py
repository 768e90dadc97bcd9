"""Time and memory of the maps of long real traces: `python -m experiments.long_traces MODEL`.

In: a model, and the traces of `experiments/r1_traces`. Out: a Markdown table, with a row for each of the traces that are asked
for, by default the one of about 4,096 tokens and the longest. Each map is made in a process of its own, whose peak is its own.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

from stepsal.markdown import markdown_table

TRACES = Path(__file__).parent / "r1_traces" / "r1_distill_qwen_14b.jsonl"
GIB = 2**30


def measure(name: str, tokens: int) -> list[str]:
    """The row of the trace whose length is nearest to so many tokens."""
    import stepsal

    model = stepsal.load_model(name)
    traces = stepsal.read_traces(TRACES, model.tokenizer)
    trace = min(traces, key=lambda each: abs(len(each.tokens) - tokens))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / GIB
    start = time.perf_counter()
    stepsal.step_saliency(model, trace)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    counts = [str(len(trace.tokens)), str(len(trace.steps))]
    return [trace.id, *counts, f"{seconds:.0f}", f"{before:.2f}", f"{peak - before:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what stepsal.load_model takes")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[4096, 10**6], help="of the traces (default: %(default)s)"
    )
    parser.add_argument("--here", action="store_true", help="measure in this process, and print cells")
    given = parser.parse_args()
    if given.here:
        print("|".join(measure(given.model, given.tokens[0])))
        return
    rows = []
    for tokens in given.tokens:
        command = [sys.executable, "-m", "experiments.long_traces", given.model, "--tokens", str(tokens), "--here"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(done.stdout.strip().splitlines()[-1].split("|"))
    header = ["trace", "tokens", "steps", "seconds", "with the model loaded (GiB)", "above that (GiB)"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
