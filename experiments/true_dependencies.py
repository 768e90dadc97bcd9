"""Do maps find what a step really depends on? `python -m experiments.true_dependencies --out DIR`.

In: the bundled reasoner's own answers, those whose every line is right. Out: `dependencies.csv` (a row for each trace, map and
score), `dependencies.md` (the table), `dependencies.png` and `.pdf`; `faithfulness.md`, the same maps held against knockouts.

1. Steps are finer than usual: each premise of the question is a step, and so is the question's end (`with_premises`).
2. What a line needs is known by rule (`true_sources`). The first line needs its premise and the question's end, which says
   where to start. Every other line needs its premise, the line before, and the line that computed its second operand, where
   that is a variable. "From the steps" needs the last line, the line of the variable that is asked for, and the question's end.
   A value is stated again wherever it is put in, and any line that states it will do, so these count as one (`Needs`). The last
   line of all could take its numbers from several places, so it is left out.
3. Every map ranks, for each of these lines, all earlier steps but the very first ("Facts:"). A map's entry is its influence for
   each query, as in `stepsal.faithfulness`. A score is averaged over the lines of a trace, and then over traces (`SCORES`).
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from stepsal import Knockout, StepMap, Trace, faithfulness, load_model, plot, step_knockout, step_saliency
from stepsal.causality.scores import entries_of
from stepsal.errors import InputError
from stepsal.files import atomic_path
from stepsal.generation.task import answer_problems
from stepsal.markdown import markdown_table
from stepsal.models.host import Model
from stepsal.plot.canvas import COLOURS, new_axes
from stepsal.reasoner import Problem, make_problem
from stepsal.reasoner.problems import Premise
from stepsal.statistics.same_traces import means_with_intervals, sign_flip_p
from stepsal.traces.trace import Step

MAPS = {
    "loss, the paper's": {},
    "logit": {"score": "logit"},
    "margin": {"score": "margin"},
    "attention alone": {"rule": "attention"},
    "attention · value": {"rule": "value_attention"},
}
KNOCKOUTS = {"knockout, total": "total", "knockout, direct": "direct"}
RANDOM, RECENCY, DRAWS = "random", "recency", 64
RESAMPLES = 2000

Entries = Float[np.ndarray, " key_step"]


# --- what is known ---------------------------------------------------------------------------------------------------
def premises_of(problem: Problem) -> list[str]:
    """The premises as the question has them, decoys included.

    >>> len(premises_of(make_problem("test", 0))) >= 6
    True
    """
    return problem.question.partition(".\n")[0].removeprefix("Facts: ").split(". ")


def with_premises(trace: Trace, problem: Problem, pieces: Sequence[str]) -> Trace:
    """The trace with the question split: what is before the premises, each premise, and the question's end.

    `pieces` are the texts of the tokens.
    """
    edges = [0, *accumulate(map(len, pieces))]
    if "".join(pieces) != trace.text:
        raise InputError(f"trace {trace.id!r}: the tokens' texts, joined, are not the trace's text")
    at, begins = trace.text.index("Facts: "), []
    for text in [*premises_of(problem), "Start at"]:
        at = trace.text.index(text, at)
        begins.append(max(token for token, edge in enumerate(edges) if edge <= at))
        at += len(text)
    starts = [("question", token) for token in (0, *begins)]
    starts += [(step.segment, step.start) for step in trace.steps if step.segment != "question"]
    stops = [*(token for _, token in starts[1:]), len(trace.tokens)]
    steps = tuple(
        Step(index, segment, start, stop, "".join(pieces[start:stop]))
        for index, ((segment, start), stop) in enumerate(zip(starts, stops, strict=True))
    )
    return replace(trace, steps=steps)


@dataclass(frozen=True)
class Needs:
    """What a line needs.

    Attributes:
        given: the steps that nothing else can stand in for.
        stated: the steps that state the value of a variable which was computed further back; any of them will do.
        ignored: steps that would do as well as one of `given`, so that they are neither right nor wrong.
    """

    given: frozenset[int]
    stated: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()


def true_sources(problem: Problem, premises: Sequence[str]) -> dict[int, Needs]:
    """By line that is scored, what it needs; steps are numbered as in `with_premises`.

    >>> problem = make_problem("test", 0)
    >>> len(true_sources(problem, premises_of(problem)))
    5
    """
    step_of = {premise: 1 + index for index, premise in enumerate(premises)}
    end = 1 + len(premises)
    lines = {end + 1 + index: premise for index, premise in enumerate(problem.chain)}
    needs: dict[int, Needs] = {}
    for line, premise in lines.items():
        given = {
            step_of[str(premise)],
            line - 1,
        }  # the first line follows the question's end, which says where to start
        needs[line] = _with_variable(given, premise.right, lines, line)
    last = end + len(lines)
    needs[last + 1] = _with_variable({end, last}, problem.asked, lines, last + 1)
    return needs


def _with_variable(given: set[int], variable: str, lines: Mapping[int, Premise], reader: int) -> Needs:
    """The steps given, and those earlier lines that state the variable's value: as its own, or put in for an operand."""
    stated = {
        line
        for line, premise in lines.items()
        if line < reader and variable and variable in (premise.name, premise.left, premise.right)
    }
    if stated & given:
        return Needs(frozenset(given), ignored=frozenset(stated - given))
    return Needs(frozenset(given), frozenset(stated))


# --- scores ----------------------------------------------------------------------------------------------------------
def average_precision(entries: Entries, true: Sequence[bool]) -> float:
    """The mean, over the true sources, of the share of true ones among the entries that are at least as high.

    >>> average_precision(np.array([5.0, 4.0, 3.0]), [True, False, True])  # (1/1 + 2/3) / 2
    0.8333333333333333
    """
    wanted = np.asarray(true, dtype=bool)
    return float(np.mean([wanted[entries >= each].mean() for each in entries[wanted]]))


def precision_at_k(entries: Entries, true: Sequence[bool]) -> float:
    """The share of true sources among the k largest entries, k being their number.

    >>> precision_at_k(np.array([5.0, 4.0, 3.0]), [True, False, True])
    0.5
    """
    wanted = np.asarray(true, dtype=bool)
    return float(wanted[np.argsort(-entries, kind="stable")[: wanted.sum()]].mean())


def scores_of(
    rows: Float[np.ndarray, "query_step key_step"], sources: Mapping[int, Needs], end: int
) -> dict[str, float]:
    """Each score of one map, as the mean over the lines of a trace where it is defined. `end` is the question's end."""
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    for reader, needs in sources.items():
        earlier = candidates(needs, range(1, reader))
        found["average precision"].append(average_precision(*_ranked(rows[reader], earlier)))
        found["precision at k"].append(precision_at_k(*_ranked(rows[reader], earlier)))
        if needs.given & set(range(1, end)):
            found["premise"].append(precision_at_k(*_ranked(rows[reader], candidates(needs, range(1, end)))))
        lines = candidates(needs, range(end + 1, reader - 1))  # without the line before, which every line needs
        if needs.stated and len(lines) > 1:
            found["earlier line"].append(precision_at_k(*_ranked(rows[reader], lines)))
    return {name: float(np.mean(values)) if values else math.nan for name, values in found.items()}


def candidates(needs: Needs, steps: range) -> list[tuple[frozenset[int], bool]]:
    """What is ranked, and whether it is needed. Steps of which any will do are one candidate.

    >>> candidates(Needs(frozenset({1}), stated=frozenset({3, 4}), ignored=frozenset({5})), range(1, 6))
    [(frozenset({1}), True), (frozenset({2}), False), (frozenset({3, 4}), True)]
    """
    one = [step for step in steps if step not in needs.stated | needs.ignored]
    found = [(frozenset({step}), step in needs.given) for step in one]
    return found + ([(needs.stated, True)] if needs.stated & set(steps) else [])


def _ranked(row: Entries, ranked: Sequence[tuple[frozenset[int], bool]]) -> tuple[Entries, list[bool]]:
    """The entries of candidates, the largest of each, and whether each is needed."""
    return np.array([row[list(steps)].max() for steps, _ in ranked]), [needed for _, needed in ranked]


SCORES = {
    "average precision": "average precision, of all earlier steps",
    "precision at k": "precision of the top k, of all earlier steps",
    "premise": "the line's premise is first among the premises",
    "earlier line": "a line that states the earlier variable is first among all lines but the one before",
}
"""What is measured, by its name in the tables."""


# --- measuring -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Measured:
    """What was measured of one trace: its maps and knockouts by name, and by map its scores."""

    maps: dict[str, StepMap]
    knockouts: dict[str, Knockout]
    scores: dict[str, dict[str, float]]


def measure(model: Model, trace: Trace, problem: Problem, seed: int) -> Measured:
    """The maps and knockouts of a trace whose question is split into its premises, and every score of each and of chance."""
    pieces = [model.tokenizer.decode([token]) for token in trace.tokens.tolist()]
    premises = premises_of(problem)
    fine, sources = with_premises(trace, problem, pieces), true_sources(problem, premises)
    maps = {name: step_saliency(model, fine, **options) for name, options in MAPS.items()}
    knockouts = {name: step_knockout(model, fine, mode=mode) for name, mode in KNOCKOUTS.items()}
    n = len(fine.steps)
    entries = {name: [entries_of(stepmap).numpy()] for name, stepmap in maps.items()}
    entries |= {name: [knockout.kl.double().numpy()] for name, knockout in knockouts.items()}
    entries |= {RECENCY: [np.tile(np.arange(n, dtype=float), (n, 1))]}
    entries |= {RANDOM: list(np.random.default_rng(seed).random((DRAWS, n, n)))}
    scores: dict[str, dict[str, float]] = {}
    for name, draws in entries.items():
        each = [scores_of(draw, sources, 1 + len(premises)) for draw in draws]
        scores[name] = {score: float(np.mean([one[score] for one in each])) for score in SCORES}
    return Measured(maps, knockouts, scores)


# --- what is written -------------------------------------------------------------------------------------------------
def summarise(measured: Sequence[Mapping[str, Mapping[str, float]]]) -> tuple[str, dict[str, dict[str, list[float]]]]:
    """The Markdown tables, and by score and map the mean with its interval."""
    names = list(measured[0])
    ends: dict[str, dict[str, list[float]]] = {}
    for score in SCORES:
        values = np.array([[trace[name][score] for name in names] for trace in measured])
        numbers = np.stack(means_with_intervals(values, RESAMPLES, 0), 1)
        ends[score] = dict(zip(names, numbers.tolist(), strict=True))
    rows = [[name, *(_interval(*ends[score][name]) for score in SCORES)] for name in names]
    table = markdown_table(["map", *SCORES], rows)
    values = np.array([[trace[name]["average precision"] for name in names] for trace in measured])
    lines = []
    for over in ("attention alone", RECENCY):
        differences = values - values[:, [names.index(over)]]
        mean, low, high = means_with_intervals(differences, RESAMPLES, 0)
        p = sign_flip_p(differences, RESAMPLES, 0)
        lines += [
            [name, over, _interval(mean[at], low[at], high[at], "+"), f"{p[at]:.2g}"]
            for at, name in enumerate(names)
            if name not in (over, RANDOM)
        ]
    differences = markdown_table(["map", "over", "average precision, difference (95 %)", "p"], lines)
    return f"{table}\n\n{differences}", ends


def _interval(mean: float, low: float, high: float, sign: str = "") -> str:
    ends = "" if math.isnan(low) else f" ({low:{sign}.2f} to {high:{sign}.2f})"
    return "" if math.isnan(mean) else f"{mean:{sign}.2f}{ends}"


def draw(ends: Mapping[str, Mapping[str, Sequence[float]]], out: Path) -> None:
    """A panel for each score, with a row for each map: the mean and its 95 % interval over traces."""
    names = list(next(iter(ends.values())))
    with plot.style():
        figure = new_axes((6.8, 2.6)).figure
        figure.clear()
        for ax, (score, of_map) in zip(figure.subplots(1, len(ends), sharey=True), ends.items(), strict=True):
            for place, name in enumerate(names):
                mean, low, high = of_map[name]
                colour = COLOURS[0] if name in MAPS else COLOURS[1] if name in KNOCKOUTS else "0.4"
                ax.plot([low, high], [place, place], color=colour, linewidth=1.2)
                ax.plot(mean, place, "o", color=colour, markersize=4)
            ax.axvline(of_map[RANDOM][0], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
            ax.set(xlim=(0, 1.03), title=score)
            ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
            ax.spines[["top", "right"]].set_visible(False)
        ax.set_yticks(range(len(names)), names)
        ax.invert_yaxis()
        for suffix in ("png", "pdf"):
            metadata = {"CreationDate": None} if suffix == "pdf" else None
            with atomic_path(out / f"dependencies.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix, metadata=metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the tables and the figure")
    parser.add_argument("--problems", type=int, default=100, help="how many are answered (default: %(default)s)")
    parser.add_argument("--length", type=int, default=3, help="of their chains (default: %(default)s)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = load_model()
    traces = [each for each in answer_problems(model, given.problems, given.length) if each.meta["error"] is None]
    problems = [make_problem("test", int(trace.id.rpartition("-")[2]), given.length) for trace in traces]
    results = [
        measure(model, trace, problem, seed)
        for seed, (trace, problem) in enumerate(zip(tqdm(traces, unit="trace"), problems, strict=True))
    ]
    measured = [each.scores for each in results]
    rows = [
        f'{trace.id},"{name}",{score},{value}\n'
        for trace, of_map in zip(traces, measured, strict=True)
        for name, scores in of_map.items()
        for score, value in scores.items()
    ]
    with atomic_path(given.out / "dependencies.csv") as temporary:
        temporary.write_text("trace,map,score,value\n" + "".join(rows), encoding="utf-8")
    tables, ends = summarise(measured)
    text = (
        f"{len(traces)} of {given.problems} answers have no wrong line; mean (95 % interval) over traces.\n\n{tables}\n"
    )
    with atomic_path(given.out / "dependencies.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw(ends, given.out)
    check = faithfulness(
        [stepmap for each in results for stepmap in each.maps.values()],
        [each.knockouts["knockout, total"] for each in results],
        resamples=RESAMPLES,
    )
    with atomic_path(given.out / "faithfulness.md") as temporary:
        temporary.write_text(f"{check.summary()}\n", encoding="utf-8")
    print(f"{text}\nWith these steps, how well maps rank knockouts: {given.out / 'faithfulness.md'}")


if __name__ == "__main__":
    main()
