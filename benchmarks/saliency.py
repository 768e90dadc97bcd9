"""What a step map costs, against named baselines: `python benchmarks/saliency.py` (`--quick` for a smoke run), or on a model of
yours `python benchmarks/saliency.py --model PATH`.

Cases, each in a process of its own, on a Qwen2-style model with random weights (8 layers, d_model 512, 8 query heads,
2 key-value heads, vocabulary 8,192), one batch row, float32:

- stepsal: `step_saliency`, all layers and heads, `chunk="auto"`.
- floor: one forward and backward pass through the activations with fused (SDPA) attention, no parameter gradients; what
  any method that uses gradients pays at least.
- official: what the authors' code does to get a step map, in the leanest of its modes that makes one (`--saliency_mode
  data_only`): eager attention with gradient checkpointing, every layer's pattern and its gradient of one whole-sequence loss
  kept (with gradients for the weights), attention times gradient, entropy, first-token and self attention of every such
  matrix (their extractor leaves them out in no mode), head means, block means. It computes another objective
  (`objective="sequence"`).
- bare: the same without checkpointing and without those statistics: the least that this way of working can cost.
- passes: one backward pass per token through one full graph: the definition of the per-token objective.

Time is the median of the repetitions (after one warm-up); memory is the peak resident set over that before the first.

With `--model` (a folder or a `.gguf` file that `load_model` takes), stepsal and the floor are measured on that model, in
float32, with random tokens in steps of 32. Memory is that above the weights, and each of the two has a process of its own for
it. For time they take turns in one process, so that a machine that is busy for a while hurts both alike, and what counts is
the processor time of the process. `OMP_NUM_THREADS` says how many threads (2). `--json PATH` writes a line for each length.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
STEP = 32  # tokens of a step with `--model`


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def build(folder: str) -> None:
    """Write the benchmark's model and a tokenizer with its vocabulary."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(8192)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w1"
    )
    tokenizer.save_pretrained(folder)


def case(kind: str, length: int, folder: str) -> Callable[[], Any]:
    import torch
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    torch.manual_seed(length)
    tokens = torch.randint(2, 8192, (length,))
    width = max(1, length // 50)
    starts = list(range(0, length, width))
    if kind == "stepsal":
        import stepsal
        from stepsal import Step, Trace

        model = stepsal.load_model(folder)
        steps = tuple(
            Step(i, "question" if i == 0 else "thinking", a, b, "")
            for i, (a, b) in enumerate(zip(starts, [*starts[1:], length], strict=True))
        )
        trace = Trace(tokens, steps, prompt="")
        return lambda: stepsal.step_saliency(model, trace)
    attention = "sdpa" if kind == "floor" else "eager"
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
    model.eval().requires_grad_(kind in ("official", "bare"))
    if kind == "official":
        model.train()  # without dropout: the same numbers
        model.gradient_checkpointing_enable()

    def floor() -> None:
        leaf = model.get_input_embeddings()(tokens[None]).detach().requires_grad_(True)
        logits = model(inputs_embeds=leaf, use_cache=False).logits
        torch.autograd.grad(F.cross_entropy(logits[0, :-1], tokens[1:]), leaf)

    def official() -> list[torch.Tensor]:
        output = model(tokens[None], output_attentions=True, use_cache=False)
        for pattern in output.attentions:
            pattern.retain_grad()
        F.cross_entropy(output.logits[0, :-1], tokens[1:]).backward()
        maps = [(pattern * pattern.grad).abs().detach() for pattern in output.attentions]
        if kind == "official":
            for matrix in maps:
                floored = matrix.clamp_min(1e-12)
                float(-(floored * floored.log()).sum(-1).mean())
                float(matrix[..., 0].mean())
                float((matrix * torch.eye(length)).sum(-1).mean())
        model.zero_grad(set_to_none=True)
        pooled = torch.zeros(len(maps), len(starts), len(starts))
        for layer, matrix in enumerate(maps):
            mean = matrix[0].mean(0)
            for i, row in enumerate(mean.split(width)):
                for j, block in enumerate(row[:, : starts[i] + width].split(width, dim=1)):
                    pooled[layer, i, j] = block.mean()
        return [pooled]

    def passes() -> list[torch.Tensor]:
        leaf = model.get_input_embeddings()(tokens[None]).detach().requires_grad_(True)
        output = model(inputs_embeds=leaf, output_attentions=True, use_cache=False)
        rows = []
        for position in range(length - 1):
            loss = F.cross_entropy(output.logits[0, position], tokens[position + 1])
            gradients = torch.autograd.grad(loss, output.attentions, retain_graph=True)
            rows.append(
                torch.stack(
                    [
                        (p[0, :, position] * g[0, :, position]).abs()
                        for p, g in zip(output.attentions, gradients, strict=True)
                    ]
                )
            )
        return rows

    return {"floor": floor, "official": official, "bare": official, "passes": passes}[kind]


def measure(kind: str, length: int, folder: str, repetitions: int) -> dict[str, float]:
    run = case(kind, length, folder)
    before = resident()
    seconds = []
    for _ in range(repetitions + (kind != "passes")):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    timed = seconds[1:] if len(seconds) > 1 else seconds
    return {"seconds": statistics.median(timed), "bytes": max(1, peak - before)}


def isolated(kind: str, length: int, folder: str, repetitions: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", kind, str(length), folder, str(repetitions)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{kind} at {length} tokens failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{kind:>9} {length:>6} tokens  {result['seconds']:8.2f} s  {result['bytes'] / 2**20:8.0f} MiB", file=sys.stderr
    )
    return result


def table(quick: bool) -> str:
    import math

    middle, passes, lengths = (256, 32, [128, 512]) if quick else (2048, 256, [1024, 2048, 4096, 8192])
    repetitions = 1 if quick else 3
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "--build", folder], check=True, capture_output=True)
        ours = {n: isolated("stepsal", n, folder, repetitions) for n in sorted({middle, passes, *lengths})}
        floor = {n: isolated("floor", n, folder, repetitions) for n in (middle, 2 * middle)}
        official = {kind: isolated(kind, middle, folder, repetitions) for kind in ("official", "bare")}
        slow = isolated("passes", passes, folder, 1)
    rows = [("floor: SDPA forward + backward", n, result["seconds"], result["bytes"], n) for n, result in floor.items()]
    for name, result in zip(
        ("official code: leanest mode", "bare: patterns and gradients kept"), official.values(), strict=True
    ):
        rows.append((name, middle, result["seconds"], result["bytes"], middle))
    rows.append(("definition: a backward pass per token", passes, slow["seconds"], slow["bytes"], passes))
    lines = [
        "| against | tokens | its time | its memory | stepsal's time | stepsal's memory | time ratio | memory ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, n, seconds, size, own in rows:
        mine = ours[own] if own in ours else isolated("stepsal", own, folder, repetitions)
        lines.append(
            f"| {name} | {n:,} | {seconds:.2f} s | {size / 2**20:,.0f} MiB | {mine['seconds']:.2f} s "
            f"| {mine['bytes'] / 2**20:,.0f} MiB | {mine['seconds'] / seconds:.3f} | {mine['bytes'] / size:.3f} |"
        )
    first, last = lengths[0], lengths[-1]
    exponent = math.log(ours[last]["bytes"] / ours[first]["bytes"]) / math.log(last / first)
    growth = ", ".join(f"{n:,}: {ours[n]['bytes'] / 2**20:,.0f} MiB, {ours[n]['seconds']:.1f} s" for n in lengths)
    lines += ["", f"stepsal by length: {growth}. Memory grows as T^{exponent:.2f} from {first:,} to {last:,} tokens."]
    return "\n".join(lines)


def own_case(kind: str, path: str, length: int) -> Callable[[int], Any]:
    """A function that runs stepsal or the floor on the first tokens of a random text."""
    import torch
    from plain_models import plain_model, vocabulary
    from torch.nn import functional as F

    import stepsal
    from stepsal import Step, Trace

    torch.set_num_threads(THREADS)
    model = stepsal.load_model(path, dtype="float32") if kind == "stepsal" else plain_model(path, "sdpa")
    torch.manual_seed(length)
    tokens = torch.randint(vocabulary(path), (length,))

    def stepsal_map(length: int) -> Any:
        steps = tuple(
            Step(index, "thinking" if index else "question", start, min(start + STEP, length), "")
            for index, start in enumerate(range(0, length, STEP))
        )
        return stepsal.step_saliency(model, Trace(tokens[:length], steps, prompt=""))

    def floor(length: int) -> None:
        leaf = model.get_input_embeddings()(tokens[None, :length]).detach().requires_grad_(True)
        logits = model(inputs_embeds=leaf, use_cache=False).logits
        torch.autograd.grad(F.cross_entropy(logits[0, :-1], tokens[1:length]), leaf)

    return stepsal_map if kind == "stepsal" else floor


def own_memory(kind: str, path: str, length: int) -> dict[str, int]:
    run = own_case(kind, path, length)
    run(STEP)  # all weights are in memory now
    before = resident()
    run(length)
    return {"bytes": max(1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)}


def own_times(path: str, length: int, turns: int) -> dict[str, list[float]]:
    runs = {kind: own_case(kind, path, length) for kind in ("stepsal", "floor")}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    for run in runs.values():
        run(STEP)
    for turn in range(turns):
        for kind in runs if turn % 2 else reversed(runs):
            start = time.process_time()
            runs[kind](length)
            seconds[kind].append(time.process_time() - start)
    return seconds


def own(kind: str, *given: Any) -> Any:
    """What `own_memory` or `own_times` gives, in a process of its own."""
    command = [sys.executable, __file__, "--own", json.dumps([kind, *given])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{kind} {given} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def own_table(path: str, lengths: list[int], turns: int, out: str | None) -> str:
    lines = [
        "| tokens | floor: time | stepsal: time | ratio (range of turns) | floor: memory | stepsal: memory | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = []
    for length in lengths:
        seconds = own("times", path, length, turns)
        size = {kind: own("memory", kind, path, length)["bytes"] for kind in ("floor", "stepsal")}
        ratios = [mine / floor for mine, floor in zip(seconds["stepsal"], seconds["floor"], strict=True)]
        row = {
            "model": Path(path).name,
            "tokens": length,
            "threads": THREADS,
            "floor_seconds": statistics.median(seconds["floor"]),
            "stepsal_seconds": statistics.median(seconds["stepsal"]),
            "time_ratios": ratios,
            "time_ratio": statistics.median(ratios),
            "floor_bytes": size["floor"],
            "stepsal_bytes": size["stepsal"],
            "memory_ratio": size["stepsal"] / size["floor"],
        }
        rows.append(row)
        lines.append(
            f"| {length:,} | {row['floor_seconds']:.2f} s | {row['stepsal_seconds']:.2f} s "
            f"| {row['time_ratio']:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {size['floor'] / 2**20:,.0f} MiB "
            f"| {size['stepsal'] / 2**20:,.0f} MiB | {row['memory_ratio']:.2f} |"
        )
        print(lines[-1], file=sys.stderr)
        if out:
            Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "\n".join([*lines, "", f"{Path(path).name}, float32, {THREADS} CPU thread(s), {turns} turn(s) each."])


def main() -> None:
    if "--own" in sys.argv:
        kind, *given = json.loads(sys.argv[2])
        print(json.dumps((own_memory if kind == "memory" else own_times)(*given)))
    elif "--case" in sys.argv:
        kind, length, folder, repetitions = sys.argv[2:]
        print(json.dumps(measure(kind, int(length), folder, int(repetitions))))
    elif "--build" in sys.argv:
        build(sys.argv[2])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
        parser.add_argument("--model", help="a folder or .gguf file: stepsal and the floor on this model")
        parser.add_argument(
            "--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096], help="with --model: tokens"
        )
        parser.add_argument("--turns", type=int, default=3, help="with --model: turns of each (default: %(default)s)")
        parser.add_argument("--json", help="with --model: a file for the numbers, one line for each length")
        given = parser.parse_args()
        lengths, turns = ([2 * STEP], 1) if given.quick else (given.lengths, given.turns)
        print(own_table(given.model, lengths, turns, given.json) if given.model else table(given.quick))


if __name__ == "__main__":
    main()
