"""Does a map say what causes what? Step maps held against knockouts of the same traces, beside baselines.

In: step maps and knockouts. Out: a `Faithfulness`. The trace is the unit of sampling.

1. Maps and knockouts are matched by the trace's id and its steps. Several maps of one trace are different kinds of maps, told
   apart by rule, objective and score.
2. For each trace, every kind and every baseline (`stepsal.causality.baselines`) has its scores (`stepsal.causality.scores`) on
   the same pairs of steps: those for which the knockout and all kinds have a value. What is not defined is missing, never zero.
   Where sets of steps were removed together, there are scores on the answer, too (`stepsal.causality.answers`).
3. A score's mean over traces has an interval from a bootstrap over traces, and so has its difference to each baseline, and to
   each other kind, over the traces where both are defined; its p-value is that of a sign-flip test
   (`stepsal.statistics.same_traces`). P-values are not corrected for their number.

Source: causal.md section 2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stepsal._version import __version__
from stepsal.causality.answers import ANSWER_SCORES, MeasuredSets, answer_entries
from stepsal.causality.baselines import SHUFFLED, Draws, baselines, generator, shuffled
from stepsal.causality.knockout import Knockout
from stepsal.causality.matching import has_question, match, match_reference
from stepsal.causality.scores import PAIRS, SCORES, PairsOfTrace, pairs_of_trace
from stepsal.checks import checked, several, whole
from stepsal.checks import path as check_path
from stepsal.errors import InputError
from stepsal.markdown import markdown_table
from stepsal.resultfile import check_frame, frame_of_record, frame_to_record, read_result, write_result
from stepsal.saliency.checks import maps
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile
from stepsal.statistics.same_traces import means_with_intervals, sign_flip_p

if TYPE_CHECKING:
    from pandas import DataFrame
else:  # pandas takes a while to import, so it is imported where it is used
    DataFrame = Any

_FORMAT = "stepsal faithfulness 1"
_KEYS = ["score", "pairs", "map"]
_COLUMNS = {"table": [*_KEYS, "mean", "low", "high", "n"], "per_trace": ["trace", *_KEYS, "value"]}
_TITLES = {"answer": "Several steps removed, and the answer (of deletion and insertion, lower is better)"}
_READING_AID = (
    "A rank correlation is 1 where a map ranks steps as their knockouts do, and 0 where it knows nothing of them. Near steps "
    "matter more than far ones: what a map is worth is what it has over recency and over its own shuffled entries."
)


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How well maps rank what knockouts measure.

    Attributes:
        table: a row for each score, selection of pairs and map; the baselines are rows, too. `mean` is over traces, with its
            95 % interval from `low` to `high`, and `n` counts the traces where the score is defined. For each baseline and
            each kind of map NAME, `over NAME` is the mean difference to it, with its interval from `over NAME low` to
            `over NAME high` and the p-value `over NAME p`, over the traces where both are defined. `over shuffled` compares a
            map with its own entries, permuted within each distance.
            The scores `deletion` and `insertion` are better the lower they are; all others, the higher.
        per_trace: a row for each trace, score, selection of pairs and map: `value`, NaN where it is not defined.
        kinds: the names of the kinds of maps. All other maps of the tables are baselines, or the reference.
        meta: the number of traces and of resamples, the seed, the version of stepsal, and how the knockouts were made.
    """

    table: DataFrame
    per_trace: DataFrame
    kinds: tuple[str, ...]
    meta: dict[str, Any]

    def __repr__(self) -> str:
        return f"Faithfulness(kinds {', '.join(self.kinds)}; traces {self.meta['traces']})"

    def summary(self) -> str:
        """Markdown tables: the scores of every map and baseline, for each selection of pairs; and differences per reader. Below
        them there are sentences on how they are read.
        """
        rows = {tuple(row[key] for key in _KEYS): row for _, row in self.table.iterrows()}
        names = [name for name in (*dict.fromkeys(self.table["map"]), SHUFFLED) if f"over {name}" in self.table]
        differences = [
            [kind, name, _interval(row, f"over {name}", sign="+"), _p(row[f"over {name} p"])]
            for kind in self.kinds
            for name in names
            if name != kind and (row := rows.get(("per reader", "all", kind))) is not None
        ]
        traces = f"{self.meta['traces']} trace{'s' * (self.meta['traces'] != 1)}"
        parts = [f"{traces}; rank correlation with step knockout ({self.meta['mode']}), mean (95 % interval)"]
        for pairs, of_pairs in self.table.groupby("pairs", sort=False):
            scores = list(dict.fromkeys(of_pairs["score"]))
            lines = [
                [name, *(_interval(rows.get((score, pairs, name))) for score in scores)]
                for name in dict.fromkeys(of_pairs["map"])
            ]
            parts += [_TITLES.get(str(pairs), f"Pairs: {pairs}"), markdown_table(["map", *scores], lines)]
        parts += [
            _READING_AID,
            "Per reader, all pairs: differences",
            markdown_table(["map", "over", "difference (95 %)", "p"], differences),
            "A map knows more than a baseline where the interval of its difference lies above 0.",
        ]
        return "\n\n".join(parts)

    def to_dataframe(self) -> DataFrame:
        """The table: a row for each score, selection of pairs and map."""
        return self.table.copy()

    @checked(path=check_path)
    def save(self, path: str | Path) -> None:
        """Write it as JSON with a checksum, atomically."""
        tables = {name: frame_to_record(getattr(self, name)) for name in _COLUMNS}
        write_result(path, _FORMAT, tables | {"kinds": list(self.kinds), "meta": self.meta})

    @classmethod
    @checked(path=check_path)
    def load(cls, path: str | Path, *, verify: bool = True) -> "Faithfulness":
        """Read what `save` wrote, and check it whole; `verify=False` does not compare its checksum. Raises `FileError`."""
        content = read_result(path, _FORMAT, "faithfulness", "`Faithfulness.save(path)`", _check_content, verify=verify)
        tables = {name: frame_of_record(content[name]) for name in _COLUMNS}
        return cls(**tables, kinds=tuple(content["kinds"]), meta=content["meta"])

    def _repr_html_(self) -> str:
        shown = self.table[[*_KEYS, "mean", "low", "high", "n"]]
        table = shown.to_html(float_format="{:.3f}".format, na_rep="", index=False, max_rows=60)
        return f"<b>{escape(repr(self))}</b>{table}"


def _check_content(content: dict[str, Any]) -> None:
    """Raise a `ValueError` that says what keeps a file's content from being a `Faithfulness`."""
    for name, columns in _COLUMNS.items():
        check_frame(content.get(name), name, columns)
    if not isinstance(kinds := content.get("kinds"), list) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"its kinds of maps are {kinds!r}, expected names")
    if not isinstance(meta := content.get("meta"), dict) or not {"traces", "mode"} <= set(meta):
        raise ValueError("its meta does not say how many traces there are, and how the knockouts were made")


_knockouts = several(
    Knockout,
    "a list of knockouts",
    "Make one with `stepsal.step_knockout`, or read a file with `stepsal.Knockout.load(path)`; of one make a list, [knockout].",
)


@checked(stepmaps=maps, knockouts=_knockouts, reference=_knockouts, resamples=whole(1), seed=whole(0))
def faithfulness(
    stepmaps: Sequence[StepMap | StepMapFile],
    knockouts: Sequence[Knockout],
    *,
    reference: Sequence[Knockout] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> Faithfulness:
    """Score step maps by how well they rank what step knockout measures, beside baselines on the same pairs of steps.

    Args:
        stepmaps: one or more maps of every trace. Maps of one trace are told apart by rule, objective and score, and every
            trace needs the same kinds of maps. Maps with `rule="attention"` and
            `rule="value_attention"` are the baselines of attention alone and of attention weighted by values.
        knockouts: the knockout of every trace, all made alike. Their `kl` is what the maps are held against.
        reference: other knockouts of all these traces, such as those of the other mode. They are scored as if they were maps,
            under the name `knockout MODE`: an upper reference, of how well one measurement of causes ranks another.
        resamples: the number of resamples of the bootstrap, and of flips of the test.
        seed: the seed of everything random.

    Raises:
        InputError: a map and a knockout do not match, a trace lacks one or has it twice, the knockouts were made differently,
            or there are too few resamples for a 95 % interval.

    >>> import torch
    >>> from stepsal import Knockout, Step, StepMap, faithfulness
    >>> steps = tuple(Step(i, "thinking" if i else "question", 2 * i, 2 * i + 2, f"step {i}") for i in range(8))
    >>> effect = torch.rand(8, 8).masked_fill(torch.ones(8, 8).triu() > 0, torch.nan)
    >>> knockout = Knockout(effect, effect, effect[-1], steps, {"mode": "total"})
    >>> perfect = StepMap(effect.nan_to_num()[None, None], torch.full((8, 8), 4), steps, (0,), {"rule": "abs"})
    >>> check = faithfulness([perfect], [knockout])
    >>> check.table.query("score == 'per reader' and pairs == 'all' and map == 'abs'")["mean"].item()
    1.0
    """
    import pandas as pd

    if resamples < 99:
        raise InputError(f"resamples={resamples} are too few for 95 % intervals: give at least 99, better 2,000")
    matched = match(stepmaps, knockouts)
    kinds = tuple(next(iter(matched.values()))[1])
    others = match_reference(matched, reference)
    rows = [
        row
        for name, (knockout, of_kind) in matched.items()
        for row in _scores(name, knockout, of_kind, others.get(name, {}), seed)
    ]
    per_trace = pd.DataFrame(rows, columns=["trace", *_KEYS, "value"])
    first = next(iter(matched.values()))[0].meta
    meta = {"traces": len(matched), "resamples": resamples, "seed": seed, "stepsal": __version__}
    meta |= {name: first.get(name) for name in ("model", "mode", "keep_first")}
    return Faithfulness(_table(per_trace, kinds, resamples, seed), per_trace, kinds, meta)


def _scores(
    name: str,
    knockout: Knockout,
    of_kind: Mapping[str, StepMap | StepMapFile],
    reference: Mapping[str, Knockout],
    seed: int,
) -> list[tuple[Any, ...]]:
    """The rows of one trace: its id, the score, the selection of pairs, the map, and the value."""
    whole_trace = pairs_of_trace(knockout, dict(of_kind), reference)
    rows: list[tuple[Any, ...]] = []
    for selection, choose in PAIRS.items():
        if "no question" in selection and not has_question(knockout):
            continue
        pairs = whole_trace.only(choose(whole_trace))
        drawn = _all_maps(pairs, tuple(of_kind), generator(seed, name))
        rows += [
            (name, score, selection, map_, _mean([function(entries, pairs) for entries in draws]))
            for score, function in SCORES.items()
            for map_, draws in drawn.items()
        ]
    if (sets := MeasuredSets.of(knockout)) is None:
        return rows
    of_answer = answer_entries(knockout, of_kind, seed, name)
    of_answer |= {other: each.answer.double().numpy()[None] for other, each in reference.items()}
    row = {map_: draws[:, sets.steps] for map_, draws in of_answer.items()}
    rows += [
        (name, score, "answer", map_, _mean([function(entries, sets) for entries in draws]))
        for score, function in ANSWER_SCORES.items()
        for map_, draws in row.items()
    ]
    return rows


def _all_maps(pairs: PairsOfTrace, kinds: Sequence[str], rng: np.random.Generator) -> dict[str, Draws]:
    """The entries of the maps, the baselines, the reference, and the maps shuffled."""
    given = {kind: pairs.entries[kind][None] for kind in kinds}
    known = baselines(pairs, rng)
    known |= {name: entries[None] for name, entries in pairs.entries.items() if name not in given}
    return given | known | {_shuffled_name(k): shuffled(pairs.entries[k], pairs.distance, rng) for k in kinds}


def _shuffled_name(kind: str) -> str:
    return f"{kind}, {SHUFFLED}"


def _mean(values: list[float]) -> float:
    """The mean of the values that are defined."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _table(per_trace: DataFrame, kinds: tuple[str, ...], resamples: int, seed: int) -> DataFrame:
    import pandas as pd

    own = {_shuffled_name(kind): kind for kind in kinds}
    # The rows of maps are those of `per_trace`: kinds, baselines, kinds shuffled.
    wide = per_trace.pivot(index="trace", columns=_KEYS, values="value")
    columns: list[Any] = list(dict.fromkeys(per_trace[_KEYS].itertuples(index=False, name=None)))
    wide = wide[columns]
    others = [name for name in dict.fromkeys(per_trace["map"]) if name not in own]
    values = wide.to_numpy(dtype=float)
    table = pd.DataFrame(columns, columns=_KEYS)
    table["mean"], table["low"], table["high"] = means_with_intervals(values, resamples, seed)
    table["n"] = np.isfinite(values).sum(0)
    for name in [*others, SHUFFLED]:
        differences = np.full_like(values, np.nan)
        for column, (score, pairs, of) in enumerate(columns):
            baseline = _shuffled_name(of) if name == SHUFFLED else name
            if of != baseline and (score, pairs, baseline) in columns:
                differences[:, column] = values[:, column] - wide[(score, pairs, baseline)].to_numpy(dtype=float)
        ends = means_with_intervals(differences, resamples, seed)
        for suffix, numbers in zip(("", " low", " high"), ends, strict=True):
            table[f"over {name}{suffix}"] = numbers
        table[f"over {name} p"] = sign_flip_p(differences, resamples, seed)
    return table


def _interval(row: Any, name: str = "", sign: str = "") -> str:
    """The mean of a row of the table, or of its difference, with the interval, as far as they are defined."""
    if row is None:
        return ""
    columns = [name, f"{name} low", f"{name} high"] if name else ["mean", "low", "high"]
    mean, low, high = (row[column] for column in columns)
    if math.isnan(mean):
        return ""
    ends = "" if math.isnan(low) else f" ({low:{sign}.2f} to {high:{sign}.2f})"
    return f"{mean:{sign}.2f}{ends}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"
