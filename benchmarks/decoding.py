"""What StepFlow costs while decoding: `python benchmarks/decoding.py` (`--quick` for a smoke run), or on a model of yours
`python benchmarks/decoding.py --model PATH`.

Compared: a cached loop, one token per forward pass, inside `stepsal.intervene(model, stepsal.stepflow())`, and the same loop
over the same `TransformerBridge` and tokens without any hooks. The tokens are right solutions of the bundled reasoner's test
problems, thinking and summary: each pass takes the argmax, then the solution's own token is fed, so that both loops do the
same work and steps begin and segments change as they do in real answers. The rows of a batch are left-padded and begin their
steps at different times. What is timed is decoding; the prompt (and what of the solution is before the timed tokens) is read
beforehand, inside the context.

Models: the bundled reasoner (8 layers, d_model 128) and a Qwen2-style model with random weights and the reasoner's tokenizer
(8 layers, d_model 512, 8 query heads, 2 key-value heads: 20 M parameters), float32. `OMP_NUM_THREADS` says how many threads
(2): beside other busy processes only 1 gives steady times.

Each case has a process of its own, in which the loops take turns of eight tokens, each with its own copy of the model and
its own cache, so that a machine that is busy for a while hurts both alike. A run's overhead is the ratio of the summed times;
the table has the median over runs, and the least and the largest.
The second table has the same at two lengths of context: what the hooks do in a pass must not grow with it, but for sums over
the keys, as in attention itself.

With `--model` (a folder or a `.gguf` file that `load_model` takes), whole answers to the reasoner's problems are decoded,
greedily and in float32, always with the same number of tokens, in five ways:

- Hugging Face's `generate` with SDPA, and with eager attention;
- `hf_generate` of the bridge as TransformerLens has it;
- as `stepsal.generate` decodes, without interventions and with StepFlow. Thinking is open from the first token on, so that
  StepFlow acts.

All are in one process and take turns, so that a machine that is busy for a while hurts all alike, and what counts is the
processor time of the process. `--json PATH` writes a line for each batch size.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
TURN = 8  # tokens a loop decodes before it is the other's turn
STEP = 23  # tokens of a step in the solutions, about


def build(folder: str) -> None:
    """Write the model with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    import stepsal

    torch.manual_seed(0)
    tokenizer = stepsal.load_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1216,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def texts(batch: int, context: int | None) -> tuple[Any, Any]:
    """Left-padded tokens of solved problems and their mask; with `context` as many tokens, of one long thinking."""
    import torch

    from stepsal import Trace, load_tokenizer
    from stepsal.reasoner.problems import make_problems

    tokenizer = load_tokenizer()
    problems = make_problems("test", batch if context is None else 1 + context // 200, 10)
    if context is not None:
        thoughts = "".join(problem.response.partition("\n</think>")[0] + "\n\n" for problem in problems)
        trace = Trace.from_text(tokenizer, problems[0].messages, thoughts)
        return trace.tokens[None, :context], torch.ones(1, context, dtype=torch.long)
    phases = random.Random(0)
    rows = []
    for problem in problems:
        trace = Trace.from_text(tokenizer, problem.messages, problem.response + tokenizer.eos_token)
        rows.append(trace.tokens[: len(trace.tokens) - phases.randrange(STEP)])
    width = max(map(len, rows))
    tokens, mask = torch.full((2, batch, width), 0)
    for index, row in enumerate(rows):
        tokens[index, width - len(row) :], mask[index, width - len(row) :] = row, 1
    return tokens, mask


def measure(name: str, batch: int, context: int | None, timed: int, runs: int) -> dict[str, float]:
    """Seconds per decoding pass of both loops, and the overhead: of the runs the median, the least and the largest."""
    import torch

    import stepsal
    from stepsal.models import host_of

    torch.set_num_threads(THREADS)
    plain, ours = (stepsal.load_model(name or None) for _ in range(2))
    tokens, mask = texts(batch, context)
    width = tokens.shape[1]
    start = width - timed

    @torch.no_grad()
    def run() -> tuple[float, float]:
        """Seconds per pass of both loops."""
        seconds = {plain: 0.0, ours: 0.0}
        with stepsal.intervene(ours, stepsal.stepflow()):
            options = {
                model: {"return_type": "logits_and_cache", "past_key_values": host_of(model).new_cache()}
                for model in seconds
            }
            for model in seconds:
                model(tokens[:, :start], attention_mask=mask[:, :start], **options[model])
            for turn, first in enumerate(range(start, width, TURN)):
                for model in (plain, ours) if turn % 2 else (ours, plain):
                    begin = time.perf_counter()
                    for at in range(first, min(first + TURN, width)):
                        logits, _ = model(tokens[:, at : at + 1], attention_mask=mask[:, : at + 1], **options[model])
                        logits[:, -1].argmax(-1).tolist()
                    seconds[model] += time.perf_counter() - begin
        return seconds[plain] / timed, seconds[ours] / timed

    run()  # warm-up
    results = [run() for _ in range(runs)]
    ratios = [with_stepflow / without for without, with_stepflow in results]
    return {
        "plain": statistics.median(without for without, _ in results),
        "stepflow": statistics.median(with_stepflow for _, with_stepflow in results),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "largest": max(ratios),
        "added": statistics.median(with_stepflow - without for without, with_stepflow in results),
    }


def isolated(name: str, batch: int, context: int | None, timed: int, runs: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", json.dumps([name, batch, context, timed, runs])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{name or 'reasoner'}, batch {batch}, failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    about = f"{'20 M' if name else 'reasoner'}, batch {batch}, context {context or 'of the solutions'}"
    print(f"{about}: {result['ratio'] - 1:+.1%}", file=sys.stderr)
    return result


def table(quick: bool, runs: int) -> str:
    timed, runs, batches, contexts = (8, 1, (2,), (64, 128)) if quick else (240, runs, (1, 16), (256, 2048))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "--build", folder], check=True, capture_output=True)
        names = {"": "bundled reasoner", folder: "20 M parameters"}
        cases = {
            (label, batch): isolated(name, batch, None, timed, runs)
            for (name, label), batch in itertools.product(names.items(), batches)
        }
        lengths = {n: isolated(folder, 1, n, min(timed, 100), runs) for n in contexts}
    lines = [
        "| model | batch | tokens/s without | tokens/s with StepFlow | overhead (range of runs) |",
        "|---|---|---|---|---|",
    ]
    for (label, batch), case in cases.items():
        lines.append(
            f"| {label} | {batch} | {batch / case['plain']:,.0f} | {batch / case['stepflow']:,.0f} "
            f"| {case['ratio'] - 1:+.1%} ({case['least'] - 1:+.1%} to {case['largest'] - 1:+.1%}) |"
        )
    lines += ["", "| context, 20 M parameters, batch 1 | ms per token without | StepFlow adds |", "|---|---|---|"]
    for n, case in lengths.items():
        lines.append(f"| {n:,} tokens | {1e3 * case['plain']:.2f} ms | {1e3 * case['added']:.2f} ms |")
    return "\n".join([*lines, "", f"{THREADS} CPU thread(s); {runs} run(s) of {timed} tokens a row in each case."])


def prompts(tokenizer: Any, batch: int) -> tuple[Any, Any]:
    """Left-padded questions that open the thinking, and their mask."""
    import torch

    from stepsal.reasoner.problems import make_problems

    texts = [problem.messages[-1]["content"] + "\n<think>\n" for problem in make_problems("test", batch, 6)]
    rows = [tokenizer.encode(text) for text in texts]
    width = max(map(len, rows))
    tokens, mask = torch.zeros(2, batch, width, dtype=torch.long)
    for index, row in enumerate(rows):
        tokens[index, width - len(row) :], mask[index, width - len(row) :] = torch.tensor(row), 1
    return tokens, mask


def measure_own(path: str, batch: int, count: int, turns: int) -> dict[str, Any]:
    """Seconds of processor time that each way of decoding takes in each turn, and how often StepFlow acted."""
    import torch
    from plain_models import plain_model, vocabulary
    from transformers import GenerationConfig

    import stepsal
    from stepsal.models import host_of

    torch.set_num_threads(THREADS)
    model = stepsal.load_model(path, dtype="float32")
    fused, eager = plain_model(path, "sdpa"), plain_model(path, "eager")
    eager.load_state_dict(fused.state_dict(), assign=True)  # one copy of the weights
    host, never = host_of(model), vocabulary(path) - 1
    tokens, mask = prompts(model.tokenizer, batch)
    options = {"max_new_tokens": count, "attention_mask": mask, "eos_token_id": never, "pad_token_id": never}
    for plain in (fused, eager, model.original_model):
        plain.generation_config = GenerationConfig()
    acted = 0.0

    def with_stepflow() -> Any:
        nonlocal acted
        with stepsal.intervene(model, stepsal.stepflow(), format="think") as live:
            output = host.decode(tokens, mask, count, {never})
        acted = float(live.report()["activations"].sum())
        return output

    ways = {
        "sdpa": lambda: fused.generate(tokens, do_sample=False, **options),
        "eager": lambda: eager.generate(tokens, do_sample=False, **options),
        "bridge": lambda: model.hf_generate(tokens, do_sample=False, return_type="tokens", **options),
        "stepsal": lambda: host.decode(tokens, mask, count, {never}),
        "stepflow": with_stepflow,
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad(), host.frozen():
        for turn in range(turns + 1):
            for way in ways if turn % 2 else reversed(ways):
                start = time.process_time()
                output = ways[way]()
                if turn:  # the first is a warm-up
                    seconds[way].append(time.process_time() - start)
                if output.shape[1] != tokens.shape[1] + count:
                    raise SystemExit(f"{way} ended after {output.shape[1] - tokens.shape[1]} of {count} tokens")
    return {"seconds": seconds, "activations": acted, "prompt": tokens.shape[1]}


def own_table(path: str, batches: list[int], count: int, turns: int, out: str | None) -> str:
    names = {
        "sdpa": "Hugging Face, SDPA",
        "eager": "Hugging Face, eager",
        "bridge": "TransformerLens' `hf_generate`",
        "stepsal": "stepsal without interventions",
        "stepflow": "stepsal with StepFlow",
    }
    lines = [
        "| batch | decoded with | tokens/s | time against SDPA (range of turns) | against stepsal without |",
        "|---|---|---|---|---|",
    ]
    rows = []
    for batch in batches:
        command = [sys.executable, __file__, "--own", json.dumps([path, batch, count, turns])]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        if done.returncode:
            raise SystemExit(f"batch {batch} failed:\n{done.stderr}")
        result = json.loads(done.stdout.splitlines()[-1])
        seconds = result["seconds"]
        rows.append({"model": Path(path).name, "batch": batch, "tokens": count, "threads": THREADS, **result})
        for way, name in names.items():
            ratios = [one / other for one, other in zip(seconds[way], seconds["sdpa"], strict=True)]
            added = [one / other for one, other in zip(seconds[way], seconds["stepsal"], strict=True)]
            rate = batch * count * THREADS / statistics.median(seconds[way])
            lines.append(
                f"| {batch} | {name} | {rate:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
                f"| {statistics.median(added) - 1:+.1%} |"
            )
            print(lines[-1], file=sys.stderr)
        if out:
            Path(out).write_text("".join(json.dumps(row) + "\n" for row in rows))
    about = f"{Path(path).name}, float32, {THREADS} CPU thread(s), {count} new tokens, {turns} turn(s) each."
    return "\n".join([*lines, "", f"{about} Tokens per second: of processor time, times the threads."])


def main() -> None:
    if "--own" in sys.argv:
        print(json.dumps(measure_own(*json.loads(sys.argv[2]))))
    elif "--case" in sys.argv:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    elif "--build" in sys.argv:
        build(sys.argv[2])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
        parser.add_argument("--runs", type=int, default=9, help="runs in each case (default: %(default)s)")
        parser.add_argument("--model", help="a folder or .gguf file: five ways of decoding with this model")
        parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="with --model: batch sizes")
        parser.add_argument("--tokens", type=int, default=200, help="with --model: new tokens (default: %(default)s)")
        parser.add_argument("--turns", type=int, default=3, help="with --model: turns of each (default: %(default)s)")
        parser.add_argument("--json", help="with --model: a file for the numbers, one line for each batch size")
        given = parser.parse_args()
        sizes = ([2], 4, 1) if given.quick else (given.batches, given.tokens, given.turns)
        print(own_table(given.model, *sizes, given.json) if given.model else table(given.quick, given.runs))


if __name__ == "__main__":
    main()
