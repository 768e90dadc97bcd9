"""How little the bridge group holds before it is lifted: `python benchmarks/tiny_masses.py real/MODEL.gguf ...` (`make real`).

In: models, and the first tokens of real reasoning traces (`experiments/r1_traces`: question and thinking); for the model
`bundled`, solved problems of its task. Out: two tables.

1. `OddsEqualBridge` in the shallow layers, the first token in the bridge group or not: of all pairs of head and row of the
   answer how many are lifted, and how many of these from a mass below 1e-6, 1e-4, 1e-3. Then what it matters, as the mean KL
   divergence of the next token at these rows, in nats: of the bridge from the plain model, and of the bridge that leaves
   rows below 1e-4 alone from the bridge.
2. `--noise`: whether a tiny mass is rounding noise. The distribution within the bridge group (without the first token) in
   float32 against float64, and in bfloat16 against float32, as the total variation distance (0: the same, 1: disjoint); the
   mean over rows with a mass below 1e-4, and over other rows below 0.15. In the lowest layer, whose inputs went through no
   other rounding.

One thread: a minute for `bundled --noise`; some minutes for a model of `make real` without `--noise`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

import stepsal
from stepsal import OddsEqualBridge, Trace
from stepsal.interventions.base import PatternEdit
from stepsal.interventions.layer_pass import LayerPass
from stepsal.models import host_of
from stepsal.reasoner.problems import make_problems

TRACES = Path(__file__).parents[1] / "experiments/r1_traces/r1_distill_qwen_14b.jsonl"
LIMITS = (1e-6, 1e-4, 1e-3)
FLOOR = 1e-4


@dataclass(frozen=True)
class FlooredBridge(OddsEqualBridge):
    """The bridge, but rows whose bridge group holds less than `floor` stay as they are. It keeps the masses it lifted."""

    name: ClassVar[str] = "floored-bridge"
    label: ClassVar[str] = "floored bridge"

    floor: float = 0.0
    lifted: list[Tensor] = field(default_factory=list, compare=False)

    def edit_pattern(self, pattern: Float[Tensor, "batch head query key"], at: LayerPass) -> PatternEdit | None:
        edit = super().edit_pattern(pattern, at)
        if edit is None:
            return None
        before = edit.measures["mean_bridge_before"]
        active = edit.active & (before >= self.floor)
        self.lifted.append(before[active])
        return edit._replace(pattern=torch.where(active[..., None], edit.pattern, pattern), active=active)


def traces_for(name: str, count: int) -> list[Trace]:
    """Traces that the model reads."""
    tokenizer = stepsal.load_tokenizer(name)
    if name != "bundled":
        return stepsal.read_traces(TRACES, tokenizer)[:count]
    problems = make_problems("test", count, 6)
    return [Trace.from_text(tokenizer, each.messages, each.response + tokenizer.eos_token) for each in problems]


def answer_logits(model: Any, trace: Trace, tokens: int, parts: Sequence[Any]) -> tuple[Tensor, Any]:
    """Log probabilities of the next token after each of the trace's first tokens but the question's, and the report."""
    question = trace.steps[0].stop
    with torch.no_grad(), stepsal.intervene(model, parts) as live:
        live.question_tokens = [question]
        logits = model(trace.tokens[None, :tokens])[0, question:]
    return logits.double().log_softmax(-1), live.report()


def divergence(one: Tensor, other: Tensor) -> float:
    """The mean KL divergence of `one` from `other` over rows."""
    return float((one.exp() * (one - other)).sum(-1).mean())


def mass_row(model: Any, traces: Sequence[Trace], tokens: int, bos: bool) -> str:
    """A row of the first table."""
    lifted, rows = [], 0
    moved: dict[str, list[float]] = {"bridge": [], "floor": []}
    for trace in traces:
        plain, _ = answer_logits(model, trace, tokens, ())
        bridge = FlooredBridge(bos_in_bridge=bos)
        bridged, report = answer_logits(model, trace, tokens, [bridge])
        rows += int(report.opportunities.sum())
        assert int(report.lifted_from_tiny.sum()) == sum(int((each < FLOOR).sum()) for each in bridge.lifted)
        lifted += bridge.lifted
        floored, _ = answer_logits(model, trace, tokens, [FlooredBridge(bos_in_bridge=bos, floor=FLOOR)])
        moved["bridge"].append(divergence(bridged, plain))
        moved["floor"].append(divergence(floored, bridged))
    masses = torch.cat(lifted)
    below = [f"{100 * float((masses < limit).sum()) / max(1, len(masses)):.2f} %" for limit in LIMITS]
    smallest = f"{float(masses.min()):.0e}" if len(masses) else ""
    changes = [f"{sum(values) / len(values):.2g}" for values in moved.values()]
    cells = [f"{rows:,}", f"{100 * len(masses) / rows:.1f} %", *below, smallest, *changes]
    return " | ".join(["in the bridge" if bos else "outside", *cells])


def noise_row(name: str, traces: Sequence[Trace], tokens: int, pair: tuple[str, str]) -> str:
    """A row of the second table."""

    def patterns(dtype: str) -> list[Tensor]:
        model, found = stepsal.load_model(name, dtype=dtype), []
        host = host_of(model)
        hook = host.at_pattern(0, lambda pattern, hook: found.append(pattern[0].double()))
        with torch.no_grad():
            for trace in traces:
                host.forward(trace.tokens[None, :tokens], [hook])
        return found

    distances: dict[bool, list[Tensor]] = {True: [], False: []}
    for trace, coarse, fine in zip(traces, *map(patterns, pair), strict=True):
        question = trace.steps[0].stop
        coarse, fine = (each[:, question:, 1:question] for each in (coarse, fine))
        mass = fine.sum(-1)
        low = (mass < 0.15) & (mass > 0) & (coarse.sum(-1) > 0)
        distance = (coarse / coarse.sum(-1, keepdim=True) - fine / mass[..., None]).abs().sum(-1) / 2
        for tiny in distances:
            distances[tiny].append(distance[low & ((mass < FLOOR) == tiny)])
    cells = []
    for tiny in (True, False):
        values = torch.cat(distances[tiny])
        cells += [f"{len(values):,}", f"{float(values.mean()):.1e}" if len(values) else ""]
    return " | ".join([f"{pair[0]} against {pair[1]}", *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="as load_model takes them")
    parser.add_argument("--traces", type=int, default=4, help="how many (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=500, help="of each trace (default: %(default)s)")
    parser.add_argument("--noise", action="store_true", help="make the second table, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    masses, noise = [], []
    for name in given.models:
        short = Path(name).stem
        traces = traces_for(name, given.traces)
        model = stepsal.load_model(name, dtype="float32")
        for bos in (True, False):
            masses.append(f"| {short} | {mass_row(model, traces, given.tokens, bos)} |")
            print(masses[-1], file=sys.stderr, flush=True)
        for pair in (("float32", "float64"), ("bfloat16", "float32")) if given.noise else ():
            noise.append(f"| {short} | {noise_row(name, traces, given.tokens, pair)} |")
            print(noise[-1], file=sys.stderr, flush=True)
    limits = " | ".join(f"from below {limit:.0e}" for limit in LIMITS)
    print(f"\n| model | first token | rows x heads | lifted | {limits} | smallest | KL: bridge | KL: floor |")
    print("|---" * 10 + "|", *masses, sep="\n")
    if noise:
        print(
            "\n| model | precision | rows below 1e-4 | distance | rows above | distance |",
            "|---" * 6 + "|",
            *noise,
            sep="\n",
        )


if __name__ == "__main__":
    main()
