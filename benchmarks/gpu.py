"""A 7B model on one GPU: `python benchmarks/gpu.py` (`--quick`: a tiny shape on the CPU, to see that it runs).

The model has the shape of R1-Distill-Qwen-7B (or of `--size` 1.5B or 32B) and random weights, made in bfloat16 on the device
itself: no download, no copy in the machine's memory. Time and memory do not depend on what the weights are. Each case has a
process of its own:

- saliency: `step_saliency` of all layers and heads, `chunk="auto"`, of random tokens in steps of 32.
- floor: one forward and backward pass through the activations of the same tokens with fused (SDPA) attention. The loss is
  taken in slices of 1,024 tokens. Above 8,192 tokens its activations do not fit: each layer is then computed again in the
  backward pass (gradient checkpointing), which adds a forward pass.
- decoding: the loop of benchmarks/decoding.py, with and without StepFlow.

`--estimate` needs no GPU: it runs the first and the last chunk of each length on PyTorch's meta device, where every operation
has its shape but no numbers, and counts what is allocated, moved and multiplied. Its seconds are a roofline: each operation
takes as long as the H200's memory or its arithmetic needs at their peak, whichever is longer. Real kernels take longer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

SEVEN = {  # of deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False,
}  # fmt: skip
SIZES = {  # of the R1-Distill-Qwen models
    "1.5B": SEVEN | {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "7B": SEVEN,
    "32B": SEVEN | {
        "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "quick": SEVEN | {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}  # fmt: skip
SLICE, STEP = 1024, 32
BANDWIDTH, PEAK = 4.8e12, {"torch.bfloat16": 989e12, "torch.float32": 67e12}  # an H200's data sheet, without sparsity


@dataclass(frozen=True)
class Plan:
    """What is run, where."""

    sizes: dict[str, Any]
    device: str
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    checkpoint_above: int  # tokens
    timed: int  # tokens decoded
    repetitions: int


def plan(size: str, device: str) -> Plan:
    if size == "quick":
        return Plan(SIZES[size], device, (192,), (2,), 100, 8, 1)
    return Plan(SIZES[size], device, (4096, 8192, 16384, 32768), (1, 16), 8192, 128, 3)


# --- what is measured --------------------------------------------------------------------------------------------------
def hf_model(sizes: dict[str, Any], device: str, attention: str) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen2ForCausalLM(Qwen2Config(**sizes, attn_implementation=attention))
    finally:
        torch.set_default_dtype(default)
    return model.eval().requires_grad_(False)


def bridge(sizes: dict[str, Any], device: str) -> Any:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    import stepsal

    tokenizer = stepsal.load_tokenizer()
    model = TransformerBridge.boot_transformers(
        "random", hf_model=hf_model(sizes, device, "eager"), tokenizer=tokenizer, device=device, dtype=torch.bfloat16
    )
    model._tokenizer = tokenizer
    return model.eval().requires_grad_(False)


def saliency(given: Plan, length: int) -> dict[str, float]:
    import torch

    import stepsal
    from stepsal import Step, Trace

    model = bridge(given.sizes, given.device)
    torch.manual_seed(length)
    bounds = [0, *range(8 * STEP, length, STEP), length] if length > 8 * STEP else [0, STEP, length]
    steps = tuple(Step(i, "thinking" if i else "question", a, b, "") for i, (a, b) in enumerate(pairwise(bounds)))
    trace = Trace(torch.randint(2, given.sizes["vocab_size"], (length,)), steps, "")
    chunks = []

    def run() -> None:
        chunks.append(stepsal.step_saliency(model, trace).meta["chunk"])

    return measure(given, run) | {"chunk": chunks[-1], "steps": len(steps)}


def floor(given: Plan, length: int) -> dict[str, float]:
    import torch
    from torch.nn import functional as F
    from torch.utils.checkpoint import checkpoint

    model = hf_model(given.sizes, given.device, "sdpa")
    if checkpointed := length > given.checkpoint_above:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # without dropout: the same numbers
    torch.manual_seed(length)
    tokens = torch.randint(2, given.sizes["vocab_size"], (1, length)).to(given.device)

    def loss_of(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model.lm_head(hidden).float(), targets, reduction="sum")

    def run() -> None:
        leaf = model.get_input_embeddings()(tokens).detach().requires_grad_(True)
        hidden = model.model(inputs_embeds=leaf, use_cache=False).last_hidden_state[0]
        loss = torch.zeros((), device=given.device)
        for start in range(0, length - 1, SLICE):
            stop = min(start + SLICE, length - 1)
            loss = loss + checkpoint(loss_of, hidden[start:stop], tokens[0, start + 1 : stop + 1], use_reentrant=False)
        torch.autograd.grad(loss, leaf)

    return measure(given, run) | {"checkpointed": checkpointed}


def decoding(given: Plan, batch: int) -> dict[str, float]:
    import torch
    from decoding import texts

    import stepsal
    from stepsal.models import host_of

    model = bridge(given.sizes, given.device)
    tokens, mask = (each.to(given.device) for each in texts(batch, None))
    start = tokens.shape[1] - given.timed

    @torch.no_grad()
    def rate(with_stepflow: bool) -> float:
        with stepsal.intervene(model, stepsal.stepflow()) if with_stepflow else nullcontext():
            options = {"return_type": "logits_and_cache", "past_key_values": host_of(model).new_cache()}
            logits, _ = model(tokens[:, :start], attention_mask=mask[:, :start], **options)
            logits[:, -1].argmax(-1).tolist()
            begin = time.perf_counter()
            for at in range(start, tokens.shape[1]):
                logits, _ = model(tokens[:, at : at + 1], attention_mask=mask[:, : at + 1], **options)
                logits[:, -1].argmax(-1).tolist()
            return batch * given.timed / (time.perf_counter() - begin)

    rate(False), rate(True)  # warm-up
    pairs = [(rate(False), rate(True)) for _ in range(given.repetitions)]
    without, with_stepflow = (statistics.median(each) for each in zip(*pairs, strict=True))
    return {
        "tokens_per_second": without,
        "with_stepflow": with_stepflow,
        "overhead": statistics.median(off / on for off, on in pairs) - 1,
    }


def measure(given: Plan, run: Any) -> dict[str, float]:
    """Median seconds after a warm-up, and the most memory held: the device's, or on a CPU the process's."""
    import torch

    from stepsal.models.memory import peak_bytes

    cuda = given.device.startswith("cuda")
    seconds = []
    for _ in range(1 + given.repetitions):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    reserved = {"reserved_bytes": torch.cuda.max_memory_reserved()} if cuda else {}
    peak = peak_bytes([torch.device(given.device)])
    return {"seconds": statistics.median(seconds[1:]), "peak_bytes": peak} | reserved


CASES = {"saliency": saliency, "floor": floor, "decoding": decoding}


# --- the estimate --------------------------------------------------------------------------------------------------------
def estimate(given: Plan, length: int) -> dict[str, float]:
    import torch

    from stepsal.models import host_of
    from stepsal.saliency import influence
    from stepsal.saliency.attention import in_float32

    model = bridge(given.sizes, "meta")
    host = host_of(model)
    chunk = max(16, min(influence.MAX_CHUNK["cuda"], influence.ENOUGH_PAIRS // length, length - 1))
    tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
    layers = tuple(range(host.shape.layers))

    def pool(index: int, start: int, block: torch.Tensor) -> torch.Tensor:
        for rows in block.split(STEP, 1):
            rows.sum(1).cumsum(-1, dtype=torch.float64)
        return torch.zeros(())

    found = []
    for start in (0, length - 1 - chunk):
        cache = host.new_cache()
        counter = meter([*model.parameters(), *model.buffers()])
        blind = (
            mock.patch.object(influence, "check_logits", return_value=None),
            mock.patch.object(torch, "equal", return_value=True),
        )
        with counter, blind[0], blind[1]:  # there are no numbers to look at
            if start:
                with torch.no_grad():
                    host.forward(tokens[:, :start], in_float32(host, []), cache)
            counter.reset()
            influence._run_chunk(host, tokens, "abs", "loss", layers, start, start + chunk, cache, [pool])
        found.append(counter.count())
    count = (length - 1) / chunk  # of chunks; what they take grows linearly
    mean = {name: (found[0][name] + found[1][name]) / 2 * count for name in ("moved", "multiplied", "seconds")}
    return mean | {"peak_bytes": found[1]["peak_bytes"], "chunk": chunk, "kernels": found[1]["kernels"] * count}


def meter(held: list[Any]) -> Any:
    """Counts, inside, what operations allocate beside what is held, the bytes they read and write, and their products."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import flop_registry

    class Meter(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.live: dict[int, int] = {}
            self.now = self.peak = 0
            for tensor in held:
                self.track(tensor)
            self.reset()

        def reset(self) -> None:
            self.peak, self.moved, self.multiplied, self.seconds, self.kernels = self.now, 0, 0, 0.0, 0

        def count(self) -> dict[str, float]:
            names = {"moved": self.moved, "multiplied": self.multiplied, "seconds": self.seconds}
            return names | {"peak_bytes": self.peak, "kernels": self.kernels}

        def track(self, tensor: torch.Tensor) -> None:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self.live:
                self.live[key] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.release, key)

        def release(self, key: int) -> None:
            self.now -= self.live.pop(key, 0)

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
            for tensor in made:
                self.track(tensor)
            if func.is_view or func is torch.ops.aten._unsafe_view.default:
                return result
            read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
            if func is torch.ops.aten.embedding.default:
                read = made
            moved = sum(map(size_in_memory, read + made))
            flops = flop_registry.get(func.overloadpacket, lambda *_, **__: 0)
            products = flops(*args, **(kwargs or {}), out_val=result)
            self.moved, self.multiplied, self.kernels = self.moved + moved, self.multiplied + products, self.kernels + 1
            self.seconds += max(moved / BANDWIDTH, products / PEAK.get(str(made[0].dtype), 67e12) if made else 0)
            return result

    return Meter()


def size_in_memory(tensor: Any) -> int:
    """Bytes of a tensor; what an expanded one repeats counts once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else 1
    return elements * tensor.element_size()


# --- running and writing -------------------------------------------------------------------------------------------------
def isolated(size: str, device: str, kind: str, number: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", json.dumps([size, device, kind, number])]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # each chunk's patterns are a little larger than the last's
    }
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    if not result and "OutOfMemoryError" not in done.stderr:
        raise SystemExit(f"{kind} {number} failed:\n{done.stderr}")
    print(f"{kind} {number}: {result or 'out of memory'}", file=sys.stderr)
    return result


def hardware(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"CPU, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def table(given: Plan, results: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        "| tokens | stepsal | memory | chunk | floor: SDPA forward + backward | its memory | time ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for length in given.lengths:
        ours, theirs = results["saliency"][str(length)], results["floor"][str(length)]
        note = " (checkpointed)" if theirs.get("checkpointed") else ""
        ratio = f"{ours['seconds'] / theirs['seconds']:.2f}" if ours and theirs else ""
        cells = [f"{length:,}", *spent(ours), f"{ours.get('chunk', '')}"]
        seconds, memory = spent(theirs)
        lines.append(f"| {' | '.join([*cells, seconds + note, memory, ratio])} |")
    lines += ["", "| batch | tokens/s without | tokens/s with StepFlow | overhead |", "|---|---|---|---|"]
    for batch in given.batches:
        case = results["decoding"][str(batch)]
        numbers = (
            [f"{case['tokens_per_second']:,.1f}", f"{case['with_stepflow']:,.1f}", f"{case['overhead']:+.1%}"]
            if case
            else ["out of memory", "", ""]
        )
        lines.append(f"| {batch} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def spent(case: dict[str, float]) -> list[str]:
    return [f"{case['seconds']:.2f} s", f"{case['peak_bytes'] / 1e9:.1f} GB"] if case else ["out of memory", ""]


def estimates(given: Plan) -> str:
    lines = [
        "| tokens | chunk | peak memory | moved | multiplied | kernels | roofline |",
        "|---|---|---|---|---|---|---|",
    ]
    for length in given.lengths:
        case = estimate(given, length)
        lines.append(
            f"| {length:,} | {case['chunk']} | {case['peak_bytes'] / 1e9:.1f} GB | {case['moved'] / 1e12:.2f} TB "
            f"| {case['multiplied'] / 1e15:.3f} PFLOP | {case['kernels'] / 1e3:,.0f} thousand | {case['seconds']:.1f} s |"
        )
    return "\n".join(lines)


def main() -> None:
    if "--case" in sys.argv:
        size, device, kind, number = json.loads(sys.argv[2])
        print(json.dumps(CASES[kind](plan(size, device), number)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny shape on the CPU, to see that it runs")
    parser.add_argument(
        "--size", default="7B", choices=["1.5B", "7B", "32B"], help="the R1-Distill-Qwen model (default: %(default)s)"
    )
    parser.add_argument("--estimate", action="store_true", help="count instead of measure; no GPU needed")
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu"), help="folder of the tables (default: %(default)s)"
    )
    options = parser.parse_args()
    size = "quick" if options.quick else options.size
    given = plan(size, "cpu" if options.quick or options.estimate else "cuda")
    if options.estimate:
        print(estimates(given))
        return
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "there is no CUDA device here: --estimate counts without one, --quick runs a tiny shape on the CPU"
        )
    numbers = {"saliency": given.lengths, "floor": given.lengths, "decoding": given.batches}
    results = {
        kind: {str(number): isolated(size, given.device, kind, number) for number in numbers[kind]} for kind in CASES
    }
    options.out.mkdir(parents=True, exist_ok=True)
    about = hardware(given.device)
    record = {"hardware": about, "shape": given.sizes, "results": results}
    (options.out / "gpu.json").write_text(json.dumps(record, indent=2) + "\n")
    text = f"{about}.\n\n{table(given, results)}\n"
    (options.out / "gpu.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
