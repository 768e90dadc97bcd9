"""What half precision does to a step map: `python benchmarks/precision.py` (about two minutes on one CPU thread).

The bundled reasoner, solved test problems of 4 and of 10 facts. Of each trace and layer: the sum over heads and pairs of
steps of |mass - float32's mass|, relative to the sum of float32's mass; then the mean over traces, and the worst trace.
Columns:

- bfloat16, float16: `load_model(dtype=...)`, everything as it is used.
- weights alone: float32 arithmetic on weights rounded to bfloat16: what no arithmetic could mend.
- scores rounded too: bfloat16 without float32 attention (`stepsal.saliency.attention`).

The last line counts rows of the float16 maps (layer, query position) that lost all their influence to underflow, with and
without a scale for each row (`stepsal.saliency.influence.row_scales`).
"""

import argparse
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=12, help="problems of each length (default: %(default)s)")
    print(table(parser.parse_args().problems))
