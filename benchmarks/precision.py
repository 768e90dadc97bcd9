"""What fewer bits do to a step map: `python benchmarks/precision.py` (about two minutes on one CPU thread).

The bundled reasoner, solved test problems of 4 and of 10 facts. Of each trace and layer: the sum over heads and pairs of
steps of |mass - float32's mass|, relative to the sum of float32's mass; then the mean over traces, and the worst trace.
Columns:

- bfloat16, float16: `load_model(dtype=...)`, everything as it is used.
- weights alone: float32 arithmetic on weights rounded to bfloat16: what no arithmetic could mend.
- scores rounded too: bfloat16 without float32 attention (`stepsal.saliency.attention`).

The last line counts rows of the float16 maps (layer, query position) that lost all their influence to underflow, with and
without a scale for each row (`stepsal.saliency.influence.row_scales`).

`python benchmarks/precision.py --model real/SmolLM2-135M-Instruct.Q4_1.gguf` (`make real`; `pip install bitsandbytes
reasoning-gym`): a trained model that reads GSM-Symbolic problems and their solutions, a line a step, in bfloat16 and with its
weights in 8 and 4 bits. Against float32, for each quarter of the layers:

- error: as above; the mean over traces and layers, and the worst trace.
- shares: half the summed difference of a row's shares (of the head-averaged map): the part of a row that is elsewhere; the mean
  over rows with two keys or more.
- ranks: Spearman's correlation of the density maps' entries (head-averaged), the mean over traces and layers.

A GGUF file is dequantised and written as a folder first, since only a folder is quantised anew.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from scipy.stats import spearmanr

import stepsal
from stepsal import Step, StepMap, Trace, step_saliency
from stepsal.reasoner.problems import make_problems
from stepsal.saliency import influence


def errors(found: Sequence[StepMap], expected: Sequence[StepMap]) -> tuple[list[float], list[float]]:
    """The mean over traces and the worst trace, for each layer."""
    each = torch.stack(
        [(a.mass - b.mass).abs().sum((1, 2, 3)) / b.mass.sum((1, 2, 3)) for a, b in zip(found, expected, strict=True)]
    )
    return each.mean(0).tolist(), each.amax(0).tolist()


def rounded(dtype: torch.dtype) -> Any:
    """The model in float32, on weights that `dtype` can hold."""
    model = stepsal.load_model(dtype="float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).to(torch.float32))
    return model


def maps(model: Any, traces: Sequence[Trace], **without: Any) -> list[StepMap]:
    """Step maps; a part of stepsal that is named does what is given instead."""
    with ExitStack() as stack:
        for name, instead in without.items():
            stack.enter_context(mock.patch.object(influence, name, instead))
        return [step_saliency(model, trace) for trace in traces]


def token_steps(trace: Trace) -> Trace:
    """Every token a step of its own."""
    bounds = itertools.pairwise(range(len(trace.tokens) + 1))
    return Trace(trace.tokens, tuple(Step(i, "thinking", a, b, "") for i, (a, b) in enumerate(bounds)), "")


def lost_rows(found: Sequence[StepMap], expected: Sequence[StepMap]) -> str:
    rows = [(a.mass.sum((1, 3))[:, :-1], b.mass.sum((1, 3))[:, :-1]) for a, b in zip(found, expected, strict=True)]
    return f"{sum(int(((a == 0) & (b > 0)).sum()) for a, b in rows)} of {sum(a.numel() for a, _ in rows):,}"


def table(problems: int) -> str:
    tokenizer = stepsal.load_tokenizer()
    solved = [problem for facts in (4, 10) for problem in make_problems("test", problems, facts)]
    traces = [Trace.from_text(tokenizer, each.messages, each.response + tokenizer.eos_token) for each in solved]
    expected = maps(stepsal.load_model(dtype="float32"), traces)
    half = stepsal.load_model(dtype="bfloat16")
    fine = stepsal.load_model(dtype="float16")
    columns = {
        "bfloat16": errors(maps(half, traces), expected),
        "weights alone": errors(maps(rounded(torch.bfloat16), traces), expected),
        "scores rounded too": errors(maps(half, traces, in_float32=lambda host, hooks: hooks), expected),
        "float16": errors(maps(fine, traces), expected),
    }
    lines = ["| layer | " + " | ".join(f"{name}: mean | worst" for name in columns) + " |"]
    lines.append("|---" * (1 + 2 * len(columns)) + "|")
    for layer in expected[0].layers:
        cells = [f"{100 * value[layer]:.2f} %" for pair in columns.values() for value in pair]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    apart = [token_steps(trace) for trace in traces[:: problems // 2]]
    rows = maps(stepsal.load_model(dtype="float32"), apart)
    without = lost_rows(maps(fine, apart, row_scales=torch.ones_like), rows)
    lines += [
        "",
        f"{len(traces)} traces of {min(len(t.tokens) for t in traces)} to {max(len(t.tokens) for t in traces)} tokens.",
    ]
    lines.append(
        f"float16 rows without any influence: {lost_rows(maps(fine, apart), rows)}; without row scales {without}."
    )
    return "\n".join(lines)


# --- a trained model -------------------------------------------------------------------------------------------------
REAL = {
    "bfloat16": {"dtype": "bfloat16"},
    "8 bit (LLM.int8, no outliers)": {"quantization": "8bit"},
    "4 bit (NF4)": {"quantization": "4bit"},
    "4 bit (FP4)": {
        "quantization": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": "float32"}
    },
}


def solutions(tokenizer: Any, count: int) -> list[Trace]:
    """GSM-Symbolic problems with their reference solutions, a step a line."""
    from reasoning_gym import create_dataset

    data = create_dataset("gsm_symbolic", size=count, seed=0)
    texts = [(each["question"], each["metadata"]["answer_cot"] + tokenizer.eos_token) for each in data]
    return [
        Trace.from_text(tokenizer, [{"role": "user", "content": question}], text, format="plain", steps="line")
        for question, text in texts
    ]


def as_folder(model: str, folder: str) -> str:
    """A GGUF file's model in float32, as a Hugging Face directory; any other name as it is."""
    from stepsal.models.gguf_files import is_gguf, load_gguf

    if not is_gguf(model):
        return model
    load_gguf(model, torch.float32, None).save_pretrained(folder)
    stepsal.load_tokenizer(model).save_pretrained(folder)
    return folder


def differences(found: StepMap, expected: StepMap) -> torch.Tensor:
    """`layer measure`: the error, the difference of shares, and the correlation of ranks."""
    error = (found.mass - expected.mass).abs().sum((1, 2, 3)) / expected.mass.sum((1, 2, 3))
    shares = (found.share().mean(1) - expected.share().mean(1)).abs().sum(-1)[:, 1:].nanmean(-1) / 2
    causal = torch.ones_like(expected.pairs).tril().bool() & (expected.pairs > 0)
    pairs = zip(found.density().mean(1), expected.density().mean(1), strict=True)
    ranks = [spearmanr(a[causal], b[causal]).statistic for a, b in pairs]
    return torch.stack([error, shares, torch.tensor(ranks, dtype=error.dtype)], 1)


def real_table(model: str, count: int) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        folder = as_folder(model, temporary)
        traces = solutions(stepsal.load_tokenizer(folder), count)
        expected = maps(stepsal.load_model(folder, dtype="float32"), traces)
        layers = len(expected[0].layers)
        lines = ["| weights | layers | error: mean | worst | shares | ranks |", "|---|---|---|---|---|---|"]
        for name, options in REAL.items():
            found = maps(stepsal.load_model(folder, **{"dtype": "float32"} | options), traces)
            every = torch.stack(
                [differences(*each) for each in zip(found, expected, strict=True)]
            )  # trace layer measure
            for part in torch.arange(layers).chunk(4):
                error, shares, ranks = every[:, part].unbind(-1)
                cells = [
                    f"{100 * error.mean():.1f} %",
                    f"{100 * error.mean(1).max():.1f} %",
                    f"{100 * shares.mean():.2f} %",
                ]
                lines.append(f"| {name} | {part[0]} to {part[-1]} | {' | '.join(cells)} | {ranks.mean():.3f} |")
    lengths = [len(trace.tokens) for trace in traces]
    return "\n".join([*lines, "", f"{len(traces)} traces of {min(lengths)} to {max(lengths)} tokens."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=12, help="problems of each length (default: %(default)s)")
    parser.add_argument(
        "--model", help="a trained model: a GGUF file, a folder or a hub id (default: the bundled reasoner)"
    )
    given = parser.parse_args()
    print(real_table(given.model, given.problems) if given.model else table(given.problems))
