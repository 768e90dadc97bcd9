"""Train the bundled reasoner: `python -m stepsal.reasoner.train --out DIR` (hours on 2 CPU cores, minutes on a GPU).

1. Problems of every length from 2 to 8, mixed from the first step on, made on the fly: step `s` of a run always sees the
   same problems, so a resumed run goes on as if it had never stopped.
2. Next-token loss on the response only (what follows the prompt's `<think>` and line break).
3. AdamW; the learning rate warms up, stays, and falls linearly to zero over the last fifth.
4. Every `--evaluate-every` steps: loss, token accuracy and whole-response accuracy on validation problems, appended to
   `log.jsonl`; then a checkpoint (weights and optimizer in safetensors, written atomically). An interrupted run goes on
   from the last checkpoint.

The result is a plain Hugging Face directory.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from stepsal.files import atomic_path
from stepsal.reasoner.problems import Problem, make_problem
from stepsal.reasoner.tokenizer import build_tokenizer

LENGTHS = range(2, 9)


@dataclass(frozen=True)
class Settings:
    steps: int = 4000
    batch: int = 16
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01  # of matrices; embeddings are not decayed
    warmup: int = 100
    decay: float = 0.2  # the last part of the run, in which the learning rate falls to zero
    clip: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        start = round(self.steps * (1 - self.decay))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, (self.steps - step) / max(1, self.steps - start))


def model_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2Config:
    """R1-Distill-Qwen's architecture in small: 8 layers, 4 query heads, 2 key-value heads, 1.6 M parameters."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.08,  # about 1 / sqrt(hidden_size); with the default 0.02 copying a name was never learned
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


Batch = tuple[torch.Tensor, torch.Tensor]  # tokens and targets (-100 where there is no loss), both batch x pos


def encode(tokenizer: PreTrainedTokenizerFast, problems: list[Problem], parts: int = 2) -> list[Batch]:
    """Problems -> `parts` right-padded batches, shorter texts first (less padding; the pads carry no loss)."""
    prompts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in problems]
    starts = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    texts = [a + p.response + tokenizer.eos_token for a, p in zip(prompts, problems, strict=True)]
    rows = sorted(
        zip(tokenizer(texts, add_special_tokens=False)["input_ids"], starts, strict=True), key=lambda r: len(r[0])
    )
    size = -(-len(rows) // parts)
    batches = []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        width = len(part[-1][0])
        tokens = torch.full((len(part), width), tokenizer.pad_token_id)
        targets = torch.full((len(part), width), -100)
        for row, (ids, start) in enumerate(part):
            tokens[row, : len(ids)] = torch.tensor(ids)
            targets[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
        batches.append((tokens, targets))
    return batches


@torch.no_grad()
def evaluate(model: Qwen2ForCausalLM, batches: list[Batch]) -> dict[str, float]:
    """Teacher-forced loss, token accuracy, and the part of responses right to the last token (= right when greedy)."""
    model.eval()
    loss = right = tokens = whole = rows = 0.0
    for ids, targets in batches:
        logits = model(input_ids=ids, use_cache=False).logits
        loss += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        hit = (logits.argmax(-1) == targets) | (targets == -100)
        tokens += (targets != -100).sum().item()
        right += (hit & (targets != -100)).sum().item()
        whole += hit.all(-1).sum().item()
        rows += len(ids)
    model.train()
    return {"loss": loss / tokens, "token_accuracy": right / tokens, "response_accuracy": whole / rows}


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def _checkpoint(
    out: Path, step: int, seconds: float, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer
) -> None:
    from safetensors.torch import save_file

    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value for key, value in state.items()}
    with atomic_path(out / "checkpoint.safetensors") as part:
        save_file(tensors, part, metadata={"step": str(step), "seconds": str(seconds)})


def _restore(out: Path, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    from safetensors import safe_open

    with safe_open(out / "checkpoint.safetensors", "pt") as file:
        metadata: Mapping[str, str] = file.metadata()
        state: dict[int, dict[str, torch.Tensor]] = {}
        parameters = dict(model.named_parameters())
        for key in file.keys():  # noqa: SIM118 (a file, not a dictionary)
            kind, rest = key.split(".", 1)
            if kind == "model":
                parameters[rest].data.copy_(file.get_tensor(key))
            else:
                index, name = rest.split(".")
                state.setdefault(int(index), {})[name] = file.get_tensor(key)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"]), float(metadata["seconds"])


def train(settings: Settings, out: Path, *, evaluate_every: int = 250, device: str = "cpu") -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    torch.manual_seed(settings.seed)
    model = Qwen2ForCausalLM(model_config(tokenizer)).to(device)
    embedding = model.get_input_embeddings().weight
    decayed = [p for p in model.parameters() if p.ndim > 1 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim < 2 or p is embedding]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        fused=True,
    )
    step, seconds = 0, 0.0
    if (out / "checkpoint.safetensors").exists():
        step, seconds = _restore(out, model, optimizer)
        rows = (out / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        _write(out / "log.jsonl", "".join(line for line in rows if json.loads(line)["step"] <= step))
        print(f"going on from step {step} in {out}", file=sys.stderr)

    def on_device(batches: list[Batch]) -> list[Batch]:
        return [(tokens.to(device), targets.to(device)) for tokens, targets in batches]

    validation = on_device(
        encode(tokenizer, [make_problem("validation", i, LENGTHS[i % len(LENGTHS)]) for i in range(140)], parts=7)
    )
    start = time.monotonic() - seconds
    model.train()
    bar = tqdm(total=settings.steps, initial=step, desc="training", dynamic_ncols=True)
    while step < settings.steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        first = settings.seed * 10**9 + step * settings.batch
        problems = [
            make_problem("train", first + i, LENGTHS[(first + i) % len(LENGTHS)]) for i in range(settings.batch)
        ]
        batches = on_device(encode(tokenizer, problems))
        count = sum(int((targets != -100).sum()) for _, targets in batches)
        total = 0.0
        for tokens, targets in batches:
            logits = model(input_ids=tokens, use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum") / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{total:.3f}")
        if step % evaluate_every == 0 or step == settings.steps:
            row: dict[str, Any] = {"step": step, "train_loss": total, **evaluate(model, validation)}
            row["seconds"] = round(time.monotonic() - start, 1)
            with open(out / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            _checkpoint(out, step, time.monotonic() - start, model, optimizer)
            bar.write(json.dumps(row))
    bar.close()
    model.to("cpu").save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    _write(
        out / "model" / "training.json", json.dumps(asdict(settings) | {"torch": torch.__version__}, indent=2) + "\n"
    )
    _write(out / "model" / "training.jsonl", (out / "log.jsonl").read_text(encoding="utf-8"))
    print(f"wrote {out / 'model'}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m stepsal.reasoner.train", description="Train the bundled reasoner.")
    parser.add_argument("--out", type=Path, default=Path("reasoner"), help="folder for checkpoints and the result")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    if given.device == "cpu":
        torch.set_num_threads(min(2, os.cpu_count() or 1))
    train(
        Settings(steps=given.steps, seed=given.seed),
        given.out,
        evaluate_every=given.evaluate_every,
        device=given.device,
    )


if __name__ == "__main__":
    main()
