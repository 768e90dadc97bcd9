"""What it costs to read a file of traces before a model is loaded: `python benchmarks/reading.py --traces 200 --tokens 8000`.

It writes a synthetic JSONL file (made-up sentences in paragraphs, about so many tokens each to the bundled tokenizer) and reads
it, each time in a process of its own: all of it into memory (`stepsal.read_traces`), and line by line, keeping of each trace
what a run must know before it begins (`stepsal.traces.tracefile.open_traces`, as `stepsal saliency` and `stepsal knockout` do),
with each of the numbers of `--processes`. The table says how many tokens were read in a second, by the clock and of the
processors' time, and the most memory that the process held, beside what it held before it began to read. Processes that read
have their own memory: the last column is the largest of them.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SAID = "so the sum of x and y is then we have that it must be 3 7 12 = + but wait let me check this again because first second"
LETTERS_OF_A_TOKEN = 1.75  # of these words, to the bundled tokenizer


def write(path: Path, traces: int, tokens: int) -> None:
    rng, vocabulary = random.Random(0), SAID.split()
    with path.open("w", encoding="utf-8") as file:
        for index in range(traces):
            words, length = [], 0
            while length < tokens * LETTERS_OF_A_TOKEN:
                words.append(rng.choice(vocabulary) + (".\n\n" if rng.random() < 0.012 else " "))
                length += len(words[-1])
            response = "".join(words).rstrip() + "\n</think>\n\nSo \\boxed{4}"
            prompt = [{"role": "user", "content": "What is x + y?"}]
            file.write(json.dumps({"id": f"t{index}", "prompt": prompt, "response": response, "correct": True}) + "\n")


def read(path: str, way: str) -> dict[str, float]:
    from stepsal import load_tokenizer, read_traces
    from stepsal.traces.tracefile import open_traces

    tokenizer = load_tokenizer()
    tokenizer.encode("a")
    before, started, cpu = psutil.Process().memory_info().rss / 2**20, time.monotonic(), time.process_time()
    if way == "all":
        tokens = sum(len(trace.tokens) for trace in read_traces(path, tokenizer))
    else:
        tokens = sum(each.tokens for each in open_traces(path, "bundled", processes=int(way)).facts)
    seconds = time.monotonic() - started
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() - cpu + children.ru_utime + children.ru_stime
    memory = {"before": before, "peak": _peak(resource.RUSAGE_SELF), "readers": _peak(resource.RUSAGE_CHILDREN)}
    return {"tokens": tokens, "seconds": seconds, "cpu": spent} | memory


def _peak(whose: int) -> float:
    return resource.getrusage(whose).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--traces", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--read", nargs=2, metavar=("FILE", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(*given.read)))
        return
    print("| traces | read | tokens | a second | a second of CPU | MB before | peak MB | of a reader |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in given.traces:
            path = Path(folder) / f"{count}.jsonl"
            write(path, count, given.tokens)
            for way in ("all", *map(str, given.processes)):
                command = [sys.executable, __file__, "--read", str(path), way]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
                found = json.loads(done.stdout.splitlines()[-1])
                name = {"all": "all at once", "1": "line by line"}.get(way, f"line by line, {way} processes")
                rates = [f"{found['tokens'] / found[key]:,.0f}" for key in ("seconds", "cpu")]
                memory = [f"{found[key]:,.0f}" for key in ("before", "peak")]
                readers = f"{found['readers']:,.0f}" if way not in ("all", "1") else ""
                print(
                    "| " + " | ".join([str(count), name, f"{found['tokens']:,}", *rates, *memory, readers]) + " |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
