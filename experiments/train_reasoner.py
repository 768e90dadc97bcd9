"""Train the bundled reasoner: `python -m experiments.train_reasoner --out DIR` (hours on 2 CPU cores, minutes on a GPU).

1. The problems have every length from 2 to 8, mixed from the first step on, and are made on the fly. Step `s` of a run always
   sees the same problems, so a resumed run goes on as if it had never stopped.
2. The loss is the next-token loss on the response only (what follows the prompt's `<think>` and line break).
3. Muon trains the matrices, AdamW the embeddings and vectors. Both learning rates warm up, stay constant, and fall linearly to
   zero over the last fifth of the run.
4. After every `--evaluate-every` steps, the loss, token accuracy and whole-response accuracy on validation problems are
   appended to `log.jsonl`. Then a checkpoint is written (weights and optimizers in safetensors, atomically). An interrupted
   run goes on from the last checkpoint.

The result, `DIR/model`, is a plain Hugging Face directory. `stepsal/reasoner/model` is the result of one run.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from experiments.reasoner_tokenizer import build_tokenizer
from stepsal.files import atomic_path
from stepsal.reasoner.problems import Problem, make_problem

LENGTHS = range(2, 9)


@dataclass(frozen=True)
class Settings:
    """The settings of a training run."""

    steps: int = 1200
    batch: int = 32
    matrix_rate: float = 4e-3  # Muon's rate for matrices, scaled so that an update is as large as one of AdamW
    matrix_decay: float = 0.1
    vector_rate: float = 3e-3  # AdamW's rate for embeddings, biases and norms, which are not decayed
    warmup: int = 100
    decay: float = 0.2  # the last share of the run, in which the learning rates fall to zero
    clip: float = 1.0
    seed: int = 0

    def schedule(self, step: int) -> float:
        """The factor of both learning rates at a step."""
        start = round(self.steps * (1 - self.decay))
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / max(1, self.steps - start))


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
        # This is Qwen2's own base. With a base of 10,000, few dimensions of a head turn slowly enough to match a name at a
        # distance of 200 tokens.
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


Batch = tuple[torch.Tensor, torch.Tensor]  # tokens and targets (-100 where there is no loss), both batch x pos


def encode(tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem], parts: int = 4) -> list[Batch]:
    """Encode problems as `parts` right-padded batches. Padding carries no loss.

    The texts are sorted by length, so that there is less padding.
    """
    prompts = [tokenizer.apply_chat_template(p.messages, tokenize=False, add_generation_prompt=True) for p in problems]
    starts = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    texts = [a + p.response + tokenizer.eos_token for a, p in zip(prompts, problems, strict=True)]
    rows = sorted(
        zip(tokenizer(texts, add_special_tokens=False)["input_ids"], starts, strict=True), key=lambda r: len(r[0])
    )
    size = -(-len(rows) // parts)
    batches = []
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        width = len(batch[-1][0])
        tokens = torch.full((len(batch), width), tokenizer.pad_token_id)
        targets = torch.full((len(batch), width), -100)
        for row, (ids, start) in enumerate(batch):
            tokens[row, : len(ids)] = torch.tensor(ids)
            targets[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
        batches.append((tokens, targets))
    return batches


@torch.no_grad()
def evaluate(model: Qwen2ForCausalLM, batches: list[Batch]) -> dict[str, float]:
    """The teacher-forced loss and token accuracy, and the share of responses that are right to the last token.

    A response that is right to the last token is also what the model writes when it decodes greedily.
    """
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
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@torch.no_grad()
def _initialise(model: Qwen2ForCausalLM) -> None:
    """Change the initialisation of transformers: larger embeddings, and heads that start near looking names up.

    Every weight is trained from there. From random weights alone, no head learned in thousands of steps to find a name in the
    question. So, after Trockman and Kolter (Mimetic initialization of self-attention layers, 2023), some heads start near what
    they have to do:

    - In layer 0, key-value head 0, biases turn the two query heads to the token before and to the one before that. The values
      are a random projection `name`, which the output projection writes into the random subspaces `before` and `before2`.
    - In layers 1 to 3, key-value head 0, the `name` of a query meets the `before` of the keys (`before2` in layer 3), so that
      the query finds the token after an earlier mention of itself (an induction head). The values are copied.
    """
    config = model.config
    hidden, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    size, group = hidden // heads, heads // kv_heads
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.08)  # about 1 / sqrt(hidden_size)
    name, before, before2, _ = torch.nn.init.orthogonal_(torch.empty(hidden, hidden)).split(size)[:4]
    rates = model.model.rotary_emb.inv_freq.cpu()
    rows = [slice(head * size, (head + 1) * size) for head in range(group)]

    first = model.model.layers[0].self_attn
    first.k_proj.bias[: size // 2] = 5.5
    for back, (place, target) in enumerate(zip(rows, (before, before2), strict=True), start=1):
        first.q_proj.bias[place] = 5.5 * torch.cat([torch.cos(back * rates), -torch.sin(back * rates)])
        first.o_proj.weight[:, place] = 0.3 * target.T
    first.v_proj.weight[:size] = 0.3 * name

    for layer, subspace in ((1, before), (2, before), (3, before2)):
        attention = model.model.layers[layer].self_attn
        attention.k_proj.weight[:size] = 1.4 * subspace
        copied = torch.nn.init.orthogonal_(torch.empty(size, hidden))
        attention.v_proj.weight[:size] = 0.3 * copied
        for place in rows:
            attention.q_proj.weight[place] = 1.4 * name
            attention.o_proj.weight[:, place] = 0.3 * copied.T


def _optimizers(model: Qwen2ForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and AdamW for the rest. Each has the learning rate that it starts from as `initial_lr`."""
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    vectors = [p for p in model.parameters() if p.ndim < 2 or p is embedding]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            matrices, lr=settings.matrix_rate, weight_decay=settings.matrix_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(vectors, lr=settings.vector_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _checkpoint(
    out: Path, step: int, seconds: float, model: Qwen2ForCausalLM, optimizers: list[torch.optim.Optimizer]
) -> None:
    from safetensors.torch import save_file

    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{i}.{key}": value for key, value in state.items()}
    with atomic_path(out / "checkpoint.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"step": str(step), "seconds": str(seconds)})


def _restore(out: Path, model: Qwen2ForCausalLM, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    from safetensors import safe_open

    with safe_open(out / "checkpoint.safetensors", "pt") as file:
        metadata: Mapping[str, str] = file.metadata()
        states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
        parameters = dict(model.named_parameters())
        for key in file.keys():  # noqa: SIM118 (a file, not a dictionary)
            kind, rest = key.split(".", 1)
            if kind == "model":
                parameters[rest].data.copy_(file.get_tensor(key))
            else:
                number, index, name = rest.split(".")
                states[int(number)].setdefault(int(index), {})[name] = file.get_tensor(key)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"]), float(metadata["seconds"])


def training_problems(settings: Settings, step: int) -> list[Problem]:
    """The problems of a step, which depend only on the settings and the step."""
    first = settings.seed * 10**9 + step * settings.batch
    return [
        make_problem("train", index, LENGTHS[index % len(LENGTHS)]) for index in range(first, first + settings.batch)
    ]


def _on_device(batches: list[Batch], device: str) -> list[Batch]:
    return [(tokens.to(device), targets.to(device)) for tokens, targets in batches]


def _update(
    model: Qwen2ForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    batches: list[Batch],
    settings: Settings,
    step: int,
) -> float:
    """Make one step of the optimizers, and return the mean loss over tokens before that step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * settings.schedule(step)
    count = sum(int((targets != -100).sum()) for _, targets in batches)
    total = 0.0
    for tokens, targets in batches:
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum") / count
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def train(settings: Settings, out: Path, *, evaluate_every: int = 250, device: str = "cpu") -> None:
    """Train from the last checkpoint in `out`, or from the start, and write the result to `out/model`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    torch.manual_seed(settings.seed)
    model = Qwen2ForCausalLM(model_config(tokenizer)).to(device)
    _initialise(model)
    optimizers = _optimizers(model, settings)
    step, seconds = 0, 0.0
    if (out / "checkpoint.safetensors").exists():
        step, seconds = _restore(out, model, optimizers)
        rows = (out / "log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        _write(out / "log.jsonl", "".join(line for line in rows if json.loads(line)["step"] <= step))
        print(f"going on from step {step} in {out}", file=sys.stderr)

    validation = [make_problem("validation", index, LENGTHS[index % len(LENGTHS)]) for index in range(140)]
    validation_batches = _on_device(encode(tokenizer, validation, parts=7), device)
    start = time.monotonic() - seconds
    model.train()
    bar = tqdm(total=settings.steps, initial=step, desc="training", dynamic_ncols=True)
    while step < settings.steps:
        batches = _on_device(encode(tokenizer, training_problems(settings, step)), device)
        loss = _update(model, optimizers, batches, settings, step)
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
        if step % evaluate_every == 0 or step == settings.steps:
            row: dict[str, Any] = {"step": step, "train_loss": loss, **evaluate(model, validation_batches)}
            row["seconds"] = round(time.monotonic() - start, 1)
            with open(out / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(row) + "\n")
            _checkpoint(out, step, time.monotonic() - start, model, optimizers)
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
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train_reasoner", description="Train the bundled reasoner."
    )
    parser.add_argument("--out", type=Path, default=Path("reasoner"), help="folder for checkpoints and the result")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--evaluate-every", type=int, default=250)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(min(2, os.cpu_count() or 1))
    train(
        Settings(steps=options.steps, seed=options.seed),
        options.out,
        evaluate_every=options.evaluate_every,
        device=options.device,
    )


if __name__ == "__main__":
    main()
