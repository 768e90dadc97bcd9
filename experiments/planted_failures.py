"""Plant a failure in the bundled reasoner, and see who mends it: `python -m experiments.planted_failures --out build/mend`.

The positive control of StepFlow (about 12 minutes on 2 CPU cores), and whether the loop closes from map to intervention to map.

1. A `Starvation` is put into the model. Its layers and heads are those where reading that segment turned out to matter.
2. The strength of the part that is to mend it is the one with the most right answers on validation problems.
3. On test problems: the intact model, the planted failure, the failure with the part, and with the part's controls. What is won
   back is the part's difference to the planted failure, over what the failure lost.
4. Step maps of right answers of the intact model, read again under each setting: does the diagnosis name the failure (against
   maps of other right answers of the intact model), and does the part move the metric back?
   The first such answer's maps, planted and mended, are kept: OUT/planted.safetensors and OUT/mended.safetensors.
5. The loop: lock-in of the shallow layers with and without the bridge, thinking -> summary share of the deep layers with and
   without the momentum, of the same answers, nothing planted.

Answers are kept in OUT, a file for each setting, so an interrupted run goes on.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepsal.diagnosis.diagnosis import Diagnosis, diagnose
from stepsal.diagnosis.metrics import LABELS
from stepsal.files import atomic_path
from stepsal.generation.files import generate_file
from stepsal.generation.generate import Decoding
from stepsal.generation.questions import task_questions, tokens_needed
from stepsal.interventions.intervene import intervene
from stepsal.interventions.stepflow import (
    NoiseMomentum,
    OddsEqualBridge,
    Part,
    RandomBridge,
    RandomMomentum,
    Starvation,
    StepMomentum,
)
from stepsal.models.host import Model
from stepsal.models.layers import band
from stepsal.models.loading import load_model
from stepsal.reasoner.problems import DEFAULT_LENGTH
from stepsal.saliency.influence import step_saliency
from stepsal.saliency.stepmap import StepMap
from stepsal.statistics.paired import paired
from stepsal.traces.files import read_traces
from stepsal.traces.trace import Trace


@dataclass(frozen=True)
class Plant:
    """A failure, what is to mend it (in several strengths), and what the diagnosis should call it, if anything."""

    name: str
    starvation: Starvation
    candidates: tuple[OddsEqualBridge | StepMomentum, ...]
    verdict: str | None
    metric: str
    layers: tuple[int, ...]

    def controls(self, part: OddsEqualBridge | StepMomentum) -> dict[str, Part]:
        """As strong, in the same places, on the wrong target."""
        same = {name: getattr(part, name) for name in part.__dataclass_fields__}
        if isinstance(part, OddsEqualBridge):
            return {"random bridge": RandomBridge(**same)}
        return {"random momentum": RandomMomentum(**same), "noise": NoiseMomentum(**same)}


PLANTS = (
    Plant(
        "shallow layer locked in its step",
        Starvation("steps", [1], [0, 1], odds=0.001),
        tuple(OddsEqualBridge([1], [0, 1], tau, scope="step") for tau in (0.2, 0.3, 0.4, 0.5)),
        "shallow lock-in",
        "lock_in",
        (1,),
    ),
    Plant(
        "shallow attention starved of the question",
        Starvation("thinking", [1], [0, 1], odds=0.001),
        tuple(OddsEqualBridge([1], [0, 1], tau) for tau in (0.2, 0.3, 0.4, 0.5)),
        "shallow lock-in",
        "question_share",
        (1,),
    ),
    Plant(
        "steps begun without sight of the thinking",
        Starvation("openings", [0, 1]),
        tuple(StepMomentum([0, 1], alpha=alpha, window=window) for alpha in (0.5, 1.0) for window in (2, 4)),
        None,
        "context_share",
        (0, 1),
    ),
    Plant(
        "deep summary starved of the thinking",
        Starvation("summary", [6, 7], odds=0.001),
        tuple(StepMomentum([6, 7], alpha=alpha, window=window) for alpha in (0.06, 1.0) for window in (None, 4)),
        "deep decay",
        "thinking_to_summary",
        (6, 7),
    ),
    Plant(
        "deep summary starved of the thinking, bridged",
        Starvation("summary", [6, 7], odds=0.001),
        tuple(OddsEqualBridge([6, 7], None, tau) for tau in (0.15, 0.3, 0.5)),
        "deep decay",
        "thinking_to_summary",
        (6, 7),
    ),
)


def answers(model: Model, out: Path, split: str, n: int, parts: Sequence[Part]) -> list[Trace]:
    """Greedy answers to `n` problems of a split, graded; from the file where it is there."""
    path = out / f"{split}-{n}-{hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()[:12]}.jsonl"
    if path.exists():
        return read_traces(path, model.tokenizer)
    decoding = Decoding(tokens_needed([DEFAULT_LENGTH]), batch_size=64)
    questions = task_questions(split, [DEFAULT_LENGTH], n)
    return generate_file(model, questions, path, decoding, parts, progress=sys.stderr.isatty())


def right(traces: Sequence[Trace]) -> list[bool]:
    return [bool(trace.correct) for trace in traces]


def read(model: Model, trace: Trace, parts: Sequence[Part]) -> StepMap:
    """The step map of a trace as the model reads it with the parts at work."""
    with intervene(model, parts) as live:
        live.question_tokens = [trace.steps[0].stop]
        return step_saliency(model, trace)


def maps(
    model: Model, traces: Sequence[Trace], parts: Sequence[Part], reference: Sequence[Diagnosis] | None = None
) -> list[Diagnosis]:
    """The diagnosis of each of these maps."""
    return [diagnose(read(model, trace, parts), reference=reference) for trace in traces]


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % bootstrap interval over traces."""
    from scipy.stats import bootstrap

    values = np.asarray(differences)
    if np.ptp(values) == 0:
        return f"{values.mean():+.3f}"
    found = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    return f"{values.mean():+.3f} ({found.confidence_interval.low:+.3f} to {found.confidence_interval.high:+.3f})"


def level(diagnosis: Diagnosis, metric: str, layers: Sequence[int]) -> float:
    """The metric's mean over the layers."""
    return float(diagnosis.profile[metric][list(layers)].mean())


def mend(
    model: Model,
    plant: Plant,
    out: Path,
    problems: tuple[int, int],
    reference: Sequence[Diagnosis],
    judged: Sequence[Trace],
) -> list[str]:
    """Rows of the table of one planted failure; `problems`: how many on test and on validation."""
    test, validation = problems
    scores = {
        part: sum(right(answers(model, out, "validation", validation, (plant.starvation, part))))
        for part in plant.candidates
    }
    part = max(scores, key=lambda each: scores[each])  # the first of the best
    settings: dict[str, tuple[Part, ...]] = {"intact": (), "planted": (plant.starvation,)}
    settings["+ " + short(part)] = (plant.starvation, part)
    settings |= {f"+ {name}": (plant.starvation, control) for name, control in plant.controls(part).items()}
    outcomes = {name: right(answers(model, out, "test", test, parts)) for name, parts in settings.items()}
    lost = sum(outcomes["intact"]) - sum(outcomes["planted"])
    for name, parts in {"planted": settings["planted"], "mended": (plant.starvation, part)}.items():
        read(model, judged[0], parts).save(out / f"{name}.safetensors")  # those of the last failure stay
    rows = []
    for name, parts in settings.items():
        found = paired(outcomes["planted"], outcomes[name])
        cells = [plant.name if name == "intact" else "", name, f"{found.treated:.1%}"]
        if name == "planted":
            cells += ["", "", ""]
        else:
            back = "" if name == "intact" else f"{(sum(outcomes[name]) - sum(outcomes['planted'])) / max(1, lost):.0%}"
            cells += [f"{found.difference:+.1%} ({found.low:+.1%} to {found.high:+.1%})", f"{found.p:.2g}", back]
        diagnoses = maps(model, judged, parts, reference)
        cells.append(
            LABELS[plant.metric]
            + " "
            + f"{np.mean([level(each, plant.metric, plant.layers) for each in diagnoses]):.3f}"
        )
        verdicts = [verdict for each in diagnoses for verdict in each.verdicts if verdict.failure == plant.verdict]
        cells.append(f"{sum(bool(verdict.found) for verdict in verdicts)} of {len(verdicts)}" if verdicts else "")
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def short(part: OddsEqualBridge | StepMomentum) -> str:
    """
    >>> short(OddsEqualBridge([2]))
    'bridge, τ_max 0.15'
    """
    if isinstance(part, OddsEqualBridge):
        return f"bridge, τ_max {part.tau_max:g}"
    return f"momentum, α {part.alpha:g}, window {part.window or 'step'}"


def loop(model: Model, traces: Sequence[Trace]) -> list[str]:
    """Rows of the second table: what each part moves in the maps of unharmed answers."""
    n_layers = model.cfg.n_layers
    shallow, deep = band("shallow", n_layers), band("deep", n_layers)
    intact = maps(model, traces, ())
    rows = []
    for part in (OddsEqualBridge(), OddsEqualBridge(tau_max=0.3), StepMomentum(), StepMomentum(alpha=1.0)):
        bridge = isinstance(part, OddsEqualBridge)
        metric, layers = ("lock_in", shallow) if bridge else ("thinking_to_summary", deep)
        after = maps(model, traces, (part,))
        pairs = [(level(a, metric, layers), level(b, metric, layers)) for a, b in zip(intact, after, strict=True)]
        pairs = [pair for pair in pairs if not np.isnan(pair).any()]
        before = np.mean([a for a, _ in pairs])
        change = interval([b - a for a, b in pairs])
        where = f"{LABELS[metric]}, layers {layers[0]}-{layers[-1]}"
        rows.append(f"| {short(part)}, {part.layers} | {where} | {len(pairs)} | {before:.3f} | {change} |")
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.planted_failures", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for answers and tables")
    parser.add_argument("--problems", type=int, default=200, help="test problems for each setting")
    parser.add_argument("--validation", type=int, default=48, help="validation problems for each strength")
    parser.add_argument("--maps", type=int, default=24, help="answers whose step maps are read under each setting")
    given = parser.parse_args(arguments)
    model = load_model()
    intact = {
        "validation": answers(model, given.out, "validation", given.validation, ()),
        "test": answers(model, given.out, "test", given.problems, ()),
    }
    chosen = {name: [trace for trace in traces if trace.correct][: given.maps] for name, traces in intact.items()}
    reference = maps(model, chosen["validation"], ())
    lines = [
        "| planted failure | setting | right | difference to planted (95 %) | p | won back | metric | diagnosis names it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for plant in PLANTS:
        lines += mend(model, plant, given.out, (given.problems, given.validation), reference, chosen["test"])
        print(plant.name, "done", file=sys.stderr)
    lines += ["", "| part, layers | metric | answers | before | change (95 %) |", "|---|---|---|---|---|"]
    lines += loop(model, intact["test"][: given.maps])
    text = "\n".join(lines) + "\n"
    with atomic_path(given.out / "mend.md") as part:
        part.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
