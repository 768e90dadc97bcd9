"""Does a repair move what causes what, or only the map? `python -m experiments.planted_knockouts`.

In: the planted failures of `experiments.planted_failures`, each with the intervention that mends it best there and with the
controls of that intervention. Out: a Markdown table.

1. The traces are worked solutions of test problems of the bundled reasoner.
2. Under each setting (intact, planted, mended, controls) the model reads each trace, and every step is knocked out in turn, the
   question too. For each planted failure the table has the dependence that it takes away, over the pairs of a reader and a
   source that the failure is about: the mean KL, and the mean rise of the loss of the tokens that really follow, in nats.
3. Differences are to the planted failure; their intervals are over traces. The share won back is the difference divided by what
   the failure took; there is none where the failure took nothing for certain.

A failure that is mended in the map alone would leave the knockout where the failure put it.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import bootstrap

import stepsal
from experiments.planted_failures import controls, interval, short
from stepsal import Intervention, Knockout, OddsEqualBridge, Starvation, StepMomentum, Trace
from stepsal.markdown import markdown_table
from stepsal.models.host import Model
from stepsal.reasoner import make_problems
from stepsal.sweeps.settings import Setting, kind_label


@dataclass(frozen=True)
class Plant:
    """A planted failure, what mends it, and the readers and sources whose dependence it takes away."""

    name: str
    failure: Starvation
    mending: Intervention
    readers: str
    sources: Sequence[str]


Measured = Float[np.ndarray, "trace measure"]

PLANTS = (
    Plant(
        "shallow layer locked in its step",
        Starvation(rows="steps", layers=[1], heads=[0, 1], odds=0.001),
        OddsEqualBridge(layers=[1], heads=[0, 1], tau_max=0.4, scope="step"),
        "thinking",
        ("question", "thinking"),
    ),
    Plant(
        "shallow attention starved of the question",
        Starvation(rows="thinking", layers=[1], heads=[0, 1], odds=0.001),
        OddsEqualBridge(layers=[1], heads=[0, 1], tau_max=0.4),
        "thinking",
        ("question",),
    ),
    Plant(
        "steps begun without sight of the thinking",
        Starvation(rows="openings", layers=[0, 1]),
        StepMomentum(layers=[0, 1], alpha=1.0, window=2),
        "thinking",
        ("thinking",),
    ),
    Plant(
        "deep summary starved of the thinking",
        Starvation(rows="summary", layers=[6, 7], odds=0.001),
        OddsEqualBridge(layers=[6, 7], tau_max=0.5),
        "summary",
        ("thinking",),
    ),
)
"""The strengths are those which `experiments.planted_failures` chose on validation problems (docs/results.md)."""


def dependence(plant: Plant, knockout: Knockout) -> list[float]:
    """The mean KL and the mean rise of the loss over the pairs that a failure is about, in nats."""
    readers = [step.index for step in knockout.steps if step.segment == plant.readers]
    sources = [step.index for step in knockout.steps if step.segment in plant.sources]
    return [float(values[readers][:, sources].nanmean()) for values in (knockout.kl, knockout.loss)]


def read(model: Model, trace: Trace, interventions: Sequence[Intervention]) -> Knockout:
    """The knockouts of all steps of a trace that the model reads while the interventions act."""
    with stepsal.intervene(model, interventions) as live:
        live.question_tokens = trace.steps[0].stop
        return stepsal.step_knockout(model, trace, sources=range(len(trace.steps) - 1))


def rows_of(plant: Plant, measured: Callable[[Sequence[Intervention]], Measured]) -> list[list[str]]:
    """The table's rows for one failure."""
    setting = Setting((plant.failure, plant.mending))
    named: dict[str, Sequence[Intervention]] = {"intact": (), f"+ {short(plant.mending)}": setting.interventions}
    named |= {f"+ {kind_label(each.interventions[1].name)}": each.interventions for each in controls(setting)}
    planted = measured((plant.failure,))
    values = {name: measured(interventions) for name, interventions in named.items()}
    took = values["intact"] - planted
    certain = [not crosses_zero(took[:, column]) for column in range(2)]
    rows = [["", "planted", *(cell for mean in planted.mean(0) for cell in (f"{mean:.3f}", "", ""))]]
    for name, of_name in values.items():
        cells = ["", name]
        for column in range(2):
            difference = of_name[:, column] - planted[:, column]
            back = f"{difference.mean() / took[:, column].mean():.0%}" if certain[column] and name != "intact" else ""
            cells += [f"{of_name[:, column].mean():.3f}", interval(list(difference)), back]
        rows.insert(len(rows) - (name == "intact"), cells)
    rows[0][0] = plant.name
    return rows


def crosses_zero(differences: Float[np.ndarray, " trace"]) -> bool:
    """Whether the 95 % bootstrap interval of the mean holds 0."""
    low, high = bootstrap(
        (differences,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return bool(low <= 0 <= high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=24, help="how many worked solutions (default: %(default)s)")
    given = parser.parse_args()
    from tqdm import tqdm

    torch.set_num_threads(1)
    model = stepsal.load_model()
    traces = [
        Trace.from_text(model.tokenizer, problem.messages, problem.response)
        for problem in make_problems("test", given.problems, length=3)
    ]
    rows = []
    for plant in tqdm(PLANTS, desc="failures"):

        def measured(interventions: Sequence[Intervention], plant: Plant = plant) -> Measured:
            return np.array([dependence(plant, read(model, trace, interventions)) for trace in traces])

        rows += rows_of(plant, measured)
    header = [
        "planted failure",
        "setting",
        "KL",
        "difference (95 %)",
        "won back",
        "loss",
        "difference (95 %)",
        "won back",
    ]
    print(f"{len(traces)} worked solutions of length 3\n\n{markdown_table(header, rows)}")


if __name__ == "__main__":
    main()
