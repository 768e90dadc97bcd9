"""Plant a failure in the bundled reasoner, and see who mends it: `python -m experiments.planted_failures --out build/planted`.

This is the positive control of StepFlow (about 12 minutes on 2 CPU cores). It also shows whether the loop closes from map to
intervention to map.

1. `planted_failures.toml` puts a `Starvation` into the model, with an intervention that should mend it, in several strengths.
   The layers and heads are those where reading the starved segment turned out to matter. A sweep over validation problems
   chooses the strength with the most right answers.
2. A sweep over test problems compares the intact model, the planted failure, the failure with the mending intervention, and the
   failure with the negative controls of that intervention. The share won back is the difference to the planted failure,
   divided by what the failure lost.
3. Right answers of the intact model are read again under each setting, and their step maps are diagnosed. Does the diagnosis
   name the failure (against maps of other right answers of the intact model), and does the intervention move the metric back?
   The maps of the first such answer, planted and mended, are kept: OUT/planted.safetensors and OUT/mended.safetensors.
4. The loop compares, for the same answers and with nothing planted, the lock-in of the shallow layers with and without the
   bridge, and the thinking -> summary share of the deep layers with and without the momentum.

Both sweeps can be interrupted and go on where they stopped.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import stepsal
from stepsal import Diagnosis, Intervention, OddsEqualBridge, StepMap, StepMomentum, Trace, diagnose
from stepsal.ablation.results import Results
from stepsal.diagnosis.metrics import LABELS
from stepsal.files import atomic_path
from stepsal.interventions.base import INTERVENTIONS
from stepsal.markdown import markdown_table
from stepsal.models.host import Model
from stepsal.models.layer_choice import band
from stepsal.statistics.paired import paired
from stepsal.sweeps.config import SettingConfig, read_config
from stepsal.sweeps.settings import Setting, kind_label

CONFIG = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Plant:
    """A planted failure: its name, the verdict that the diagnosis should give, if any, and where its metric is read."""

    name: str
    verdict: str | None
    metric: str
    layers: tuple[int, ...]


PLANTS = (
    Plant("shallow layer locked in its step", "shallow lock-in", "lock_in", (1,)),
    Plant("shallow attention starved of the question", "shallow lock-in", "question_share", (1,)),
    Plant("steps begun without sight of the thinking", None, "context_share", (0, 1)),
    Plant("deep summary starved of the thinking", "deep decay", "thinking_to_summary", (6, 7)),
    Plant("deep summary starved of the thinking, bridged", "deep decay", "thinking_to_summary", (6, 7)),
)
"""The planted failures, in the order of `planted_failures.toml`."""


def candidates(settings: Sequence[Setting]) -> list[list[Setting]]:
    """The settings of each plant: neighbours with the same starvation and the same kind of mending intervention."""
    alike = groupby(settings, lambda setting: (setting.interventions[0], type(setting.interventions[1])))
    return [list(group) for _, group in alike]


def controls(setting: Setting) -> Iterator[Setting]:
    """The same failure with each negative control of the mending intervention, as strong as that and in the same heads."""
    starvation, mending = setting.interventions
    for kind in INTERVENTIONS.values():
        if kind.control_of is type(mending):
            options: Any = {name: getattr(mending, name) for name in asdict(mending)}  # type: ignore[call-overload]
            yield Setting((starvation, kind(**options)))


def read(model: Model, trace: Trace, interventions: Sequence[Intervention]) -> StepMap:
    """The step map of a trace that the model reads while the interventions act."""
    with stepsal.intervene(model, interventions) as live:
        live.question_tokens = [trace.steps[0].stop]
        return stepsal.step_saliency(model, trace)


def right_answers(model: Model, rows: pd.DataFrame, count: int) -> list[Trace]:
    """The first `count` right answers of the intact model, as traces."""
    chosen = rows[(rows["part"] == "none") & rows["correct"]].head(count)
    return [
        Trace.from_tokens(model.tokenizer, row["trace"].tolist(), prompt_tokens=int(row["prompt_tokens"]))
        for _, row in chosen.iterrows()
    ]


def level(diagnosis: Diagnosis, metric: str, layers: Sequence[int]) -> float:
    """The mean of a metric over some layers."""
    return float(diagnosis.profile[metric][list(layers)].mean())


def interval(differences: Sequence[float]) -> str:
    """The mean of the differences and its 95 % bootstrap interval over traces."""
    from scipy.stats import bootstrap

    values = np.asarray(differences)
    if np.ptp(values) == 0:
        return f"{values.mean():+.3f}"
    result = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    return f"{values.mean():+.3f} ({result.confidence_interval.low:+.3f} to {result.confidence_interval.high:+.3f})"


def plant_rows(
    plant: Plant,
    settings: dict[str, Setting],
    results: Results,
    diagnoses: dict[Setting, list[Diagnosis]],
) -> list[list[str]]:
    """The rows of the first table for one planted failure, one row for each setting."""
    right = {name: results.right(setting)[:, 0] for name, setting in settings.items()}
    lost = int(right["intact"].sum() - right["planted"].sum())
    rows = []
    for name, setting in settings.items():
        compared = paired(right["planted"], right[name])
        cells = [plant.name if name == "intact" else "", name, f"{compared.treated:.1%}"]
        if name == "planted":
            cells += ["", "", ""]
        else:
            back = "" if name == "intact" else f"{(right[name].sum() - right['planted'].sum()) / max(1, lost):.0%}"
            low, difference, high = (100 * value for value in (compared.low, compared.difference, compared.high))
            cells += [f"{difference:+.1f} ({low:+.1f} to {high:+.1f})", f"{compared.p:.2g}", back]
        mean = np.mean([level(diagnosis, plant.metric, plant.layers) for diagnosis in diagnoses[setting]])
        cells.append(f"{LABELS[plant.metric]} {mean:.3f}")
        verdicts = [
            verdict
            for diagnosis in diagnoses[setting]
            for verdict in diagnosis.verdicts
            if verdict.failure == plant.verdict
        ]
        cells.append(f"{sum(bool(verdict.found) for verdict in verdicts)} of {len(verdicts)}" if verdicts else "")
        rows.append(cells)
    return rows


def loop(model: Model, traces: Sequence[Trace]) -> list[list[str]]:
    """The rows of the second table: how bridge and momentum change the maps of answers with nothing planted."""
    n_layers = model.cfg.n_layers
    intact = [diagnose(read(model, trace, ())) for trace in traces]
    rows = []
    for mending in (OddsEqualBridge(), OddsEqualBridge(tau_max=0.3), StepMomentum(), StepMomentum(alpha=1.0)):
        bridge = isinstance(mending, OddsEqualBridge)
        metric, layers = (
            ("lock_in", band("shallow", n_layers)) if bridge else ("thinking_to_summary", band("deep", n_layers))
        )
        after = [diagnose(read(model, trace, (mending,))) for trace in traces]
        pairs = [(level(a, metric, layers), level(b, metric, layers)) for a, b in zip(intact, after, strict=True)]
        pairs = [pair for pair in pairs if not np.isnan(pair).any()]
        where = f"{LABELS[metric]}, layers {layers[0]}-{layers[-1]}"
        before, change = np.mean([a for a, _ in pairs]), interval([b - a for a, b in pairs])
        rows.append([f"{short(mending)}, {mending.layers}", where, str(len(pairs)), f"{before:.3f}", change])
    return rows


def short(intervention: Intervention) -> str:
    """The label and the strength of an intervention.

    >>> short(OddsEqualBridge([2]))
    'OEB, τ_max 0.15'
    """
    strength = intervention.strength
    option = intervention.options()[str(strength)]
    return f"{intervention.label}, {option.symbol} {option.shown(getattr(intervention, option.field))}"


def measure(
    model: Model, out: Path, problems: int, validation: int, maps: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Run both sweeps, read the maps, and return the rows of both tables."""
    config = read_config(CONFIG)
    chosen_on = config.problems.model_copy(update={"count": validation})
    first = stepsal.sweep(config.model_copy(update={"problems": chosen_on}), out=out / "validation")
    scores = Results(first)
    groups = candidates(scores.treated)
    best = [max(group, key=lambda setting: int(scores.right(setting).sum())) for group in groups]
    plants: list[dict[str, Setting]] = []
    for setting in best:
        starvation, mending = setting.interventions
        named = {"intact": Setting(), "planted": Setting((starvation,)), f"+ {short(mending)}": setting}
        plants.append(
            named | {f"+ {kind_label(control.interventions[1].name)}": control for control in controls(setting)}
        )
    every = dict.fromkeys(setting for named in plants for setting in named.values() if setting.interventions)
    tested = {
        "problems": {"split": "test", "count": problems},
        "decoding": {"batch_size": 64},
        "settings": [SettingConfig.of(setting.interventions).model_dump() for setting in every],
    }
    second = stepsal.sweep(tested, out=out / "test")
    results = Results(second)
    reference = [diagnose(read(model, trace, ())) for trace in right_answers(model, first, maps)]
    judged = right_answers(model, second, maps)
    read_maps = {
        setting: [read(model, trace, setting.interventions) for trace in judged] for setting in (Setting(), *every)
    }
    for name, setting in zip(("planted", "mended"), list(plants[-1].values())[1:3], strict=True):
        read_maps[setting][0].save(out / f"{name}.safetensors")
    diagnoses = {
        setting: [diagnose(stepmap, reference=reference) for stepmap in stepmaps]
        for setting, stepmaps in read_maps.items()
    }
    rows = [
        row for plant, named in zip(PLANTS, plants, strict=True) for row in plant_rows(plant, named, results, diagnoses)
    ]
    return rows, loop(model, judged)


def main(arguments: list[str] | None = None) -> None:
    """Run both sweeps, read the maps, write and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m experiments.planted_failures", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for sweeps and tables")
    parser.add_argument("--problems", type=int, default=200, help="test problems for each setting")
    parser.add_argument("--validation", type=int, default=48, help="validation problems for each strength")
    parser.add_argument("--maps", type=int, default=24, help="answers whose step maps are read under each setting")
    options = parser.parse_args(arguments)
    planted, moved = measure(stepsal.load_model(), options.out, options.problems, options.validation, options.maps)
    heads = ["planted failure", "setting", "right", "difference to planted (95 %), points", "p", "won back", "metric"]
    heads += ["diagnosis names it"]
    text = markdown_table(heads, planted) + "\n\n"
    text += markdown_table(["intervention, layers", "metric", "answers", "before", "change (95 %)"], moved) + "\n"
    with atomic_path(options.out / "planted_failures.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
