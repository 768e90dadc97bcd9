"""Which map ranks causes best? Chosen on one half of the traces, reported on the other: `python -m experiments.which_map`.

In: a folder for each model, `NAME=DIR`, with the step maps of the same traces in DIR/loss, DIR/logit, DIR/attention, ... (any
names), and their knockouts in DIR/knockout. Out: Markdown tables.

1. A *variant* of a kind of map says how layers and heads are put together: the sum over all layers and heads (`sum`), over
   layers of the largest head (`largest head`) or of the root mean square over heads (`rms of heads`), or the sum over the
   bottom quarter of the layers (`shallow`), the top quarter (`deep`) or those between (`middle`).
2. The traces of each model are halved by the SHA-256 of their ids. The map chosen is the variant and kind with the highest mean
   score on the first halves, the models counting alike. The score is `per reader` of `stepsal.faithfulness`, all pairs.
3. On the second halves, the chosen map stands beside the paper's (`loss`, `sum`), attention alone and recency, with intervals
   over traces, its differences to them and their p-values (sign flips). Nothing of the second halves went into the choice.
4. Heads: for each kind, the eight heads that score best alone on the first half, and what their sum scores on the second.
5. Shares in the place of mass change no order within a reader, so they are compared by the score `overall`, on all traces.
"""

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float

from stepsal import Knockout, StepMap
from stepsal.causality.folder import load_knockouts
from stepsal.causality.matching import has_question
from stepsal.causality.scores import PairsOfTrace, overall, per_reader, queries_of
from stepsal.errors import InputError
from stepsal.markdown import markdown_table
from stepsal.models.layer_choice import band
from stepsal.saliency.folder import load_step_maps
from stepsal.statistics.same_traces import means_with_intervals, sign_flip_p

HEADS_KEPT, RESAMPLES, SEED = 8, 2000, 0
PerQuery = Float[torch.Tensor, "layer head query_step key_step"]
Entries = Float[torch.Tensor, "query_step key_step"]


def _layers(per_query: PerQuery, name: str) -> Entries:
    count = len(per_query)
    outer = {*band("shallow", count), *band("deep", count)}
    chosen = [layer for layer in range(count) if layer not in outer] if name == "middle" else list(band(name, count))
    return reduce(per_query[chosen], "layer head query_step key_step -> query_step key_step", "sum")


def _heads(per_query: PerQuery, how: str) -> Entries:
    if how == "rms":
        return (
            reduce(per_query.square(), "layer head query_step key_step -> layer query_step key_step", "mean")
            .sqrt()
            .sum(0)
        )
    return reduce(per_query, "layer head query_step key_step -> layer query_step key_step", how).sum(0)


VARIANTS: dict[str, Callable[[PerQuery], Entries]] = {
    "sum": lambda per_query: _layers(per_query, "all"),
    "largest head": lambda per_query: _heads(per_query, "max"),
    "rms of heads": lambda per_query: _heads(per_query, "rms"),
    "shallow": lambda per_query: _layers(per_query, "shallow"),
    "middle": lambda per_query: _layers(per_query, "middle"),
    "deep": lambda per_query: _layers(per_query, "deep"),
}


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of one model's traces.

    Attributes:
        maps: a value for each trace, by kind and variant; `("recency", "")` is there, too.
        shares: a value of `overall` for each trace, by kind and "mass" or "shares".
        heads: a value for each trace and head, by kind.
        first: which traces are of the first half.
    """

    maps: dict[tuple[str, str], Float[np.ndarray, " trace"]]
    shares: dict[tuple[str, str], Float[np.ndarray, " trace"]]
    heads: dict[str, Float[np.ndarray, "trace head"]]
    best_heads: dict[str, Float[np.ndarray, " trace"]]
    first: np.ndarray


def in_first_half(trace_id: str) -> bool:
    """Whether a trace is of the half that the choice is made on."""
    return hashlib.sha256(trace_id.encode()).digest()[0] % 2 == 0


def per_query(stepmap: StepMap) -> PerQuery:
    """A map's influence for each query of the reader; NaN for a reader without any."""
    counts = queries_of(stepmap.steps)[:, None].float()
    return (stepmap.mass.float() / counts).masked_fill(counts == 0, torch.nan)


def measured_pairs(knockout: Knockout) -> PairsOfTrace:
    """The pairs below the diagonal that were knocked out, of readers with queries."""
    known = torch.isfinite(knockout.kl).tril(-1) & (queries_of(knockout.steps) > 0)[:, None]
    reader, source = torch.where(known)
    length = torch.tensor([step.stop - step.start for step in knockout.steps])[source]
    return PairsOfTrace(reader.numpy(), source.numpy(), length.numpy(), knockout.kl[known].double().numpy(), {})


def score_model(folder: Path) -> Scored:
    """Every kind and variant of a model's maps, scored on each of its traces."""
    kinds = sorted(each.name for each in folder.iterdir() if each.is_dir() and each.name != "knockout")
    knockouts = {knockout.meta["trace"]: knockout for knockout in load_knockouts(folder / "knockout")}
    if any(has_question(each) for each in knockouts.values()):
        raise InputError(f"{folder}: a question was knocked out; the study compares steps of the answer alone")
    maps: dict[tuple[str, str], list[float]] = {}
    shares: dict[tuple[str, str], list[float]] = {}
    heads: dict[str, list[list[float]]] = {}
    pairs = {name: measured_pairs(knockout) for name, knockout in sorted(knockouts.items())}
    kept: dict[str, dict[str, PerQuery]] = {}
    for kind in kinds:
        kept[kind] = {stepmap.meta["trace"]: per_query(stepmap) for stepmap in load_step_maps(folder / kind)}
        for name, of_trace in pairs.items():
            if name not in kept[kind]:
                raise InputError(f"{folder / kind} has no map of trace {name!r}, which was knocked out")
            values, at = kept[kind][name], (of_trace.reader, of_trace.source)
            for variant, combine in VARIANTS.items():
                maps.setdefault((kind, variant), []).append(per_reader(combine(values)[at].numpy(), of_trace))
            total = VARIANTS["sum"](values).nan_to_num()
            of_row = total / total.sum(-1, keepdim=True)
            for label, entries in (("mass", total), ("shares", of_row)):
                shares.setdefault((kind, label), []).append(overall(entries[at].numpy(), of_trace))
            flat = rearrange(values, "layer head query_step key_step -> (layer head) query_step key_step")
            heads.setdefault(kind, []).append([per_reader(head[at].numpy(), of_trace) for head in flat])
    maps[("recency", "")] = [per_reader(1 / of_trace.distance, of_trace) for of_trace in pairs.values()]
    first = np.array([in_first_half(name) for name in pairs])
    by_head = {kind: np.array(values) for kind, values in heads.items()}
    return Scored(
        {key: np.array(values) for key, values in maps.items()},
        {key: np.array(values) for key, values in shares.items()},
        by_head,
        {kind: _best_heads(kept[kind], pairs, by_head[kind][first]) for kind in kinds},
        first,
    )


def _best_heads(
    maps: Mapping[str, PerQuery], pairs: Mapping[str, PairsOfTrace], alone: Float[np.ndarray, "trace head"]
) -> Float[np.ndarray, " trace"]:
    """What the sum over the heads that are best alone scores on each trace."""
    best = np.argsort(-_means(alone))[:HEADS_KEPT].copy()
    values = []
    for name, of_trace in pairs.items():
        flat = rearrange(maps[name], "layer head query_step key_step -> (layer head) query_step key_step")
        values.append(per_reader(flat[best].sum(0)[of_trace.reader, of_trace.source].numpy(), of_trace))
    return np.array(values)


def _means(values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, " column"]:
    """The mean over the traces that have a value; -1 where none has."""
    known = np.isfinite(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), -1)


def choose(models: Mapping[str, Scored]) -> tuple[str, str]:
    """The kind and variant with the highest mean score on the first halves, the models counting alike."""
    keys = [key for key in next(iter(models.values())).maps if key[0] != "recency"]
    score = {key: float(np.mean([np.nanmean(each.maps[key][each.first]) for each in models.values()])) for key in keys}
    return max(score, key=lambda key: score[key])


def _cell(values: Float[np.ndarray, " trace"], *, sign: str = "", p: bool = False) -> str:
    mean, low, high = (float(each[0]) for each in means_with_intervals(values[:, None], RESAMPLES, SEED))
    said = f", p {float(sign_flip_p(values[:, None], RESAMPLES, SEED)[0]):.2g}" if p else ""
    return f"{mean:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f}{said})"


def first_half_table(models: Mapping[str, Scored]) -> str:
    keys = list(next(iter(models.values())).maps)
    rows = [
        [" ".join(key).strip(), *(f"{np.nanmean(each.maps[key][each.first]):.3f}" for each in models.values())]
        for key in keys
    ]
    return markdown_table(["map", *models], rows, align_numbers=True)


def second_half_table(models: Mapping[str, Scored], chosen: tuple[str, str]) -> str:
    shown = {
        "chosen: " + " ".join(chosen): chosen,
        "the paper's: loss sum": ("loss", "sum"),
        "logit sum": ("logit", "sum"),
    }
    shown |= {"attention sum": ("attention", "sum"), "recency": ("recency", "")}
    rows = [[label, *(_cell(each.maps[key][~each.first]) for each in models.values())] for label, key in shown.items()]
    for label, key in list(shown.items())[1:]:
        cells = [
            _cell((each.maps[chosen] - each.maps[key])[~each.first], sign="+", p=True)
            if key != chosen
            else "the chosen map"
            for each in models.values()
        ]
        rows.append([f"chosen less {label}", *cells])
    return markdown_table(["second halves", *models], rows)


def heads_table(models: Mapping[str, Scored]) -> str:
    def cell(scored: Scored, kind: str) -> str:
        every = np.nanmean(scored.maps[(kind, "sum")][~scored.first])
        return f"{_cell(scored.best_heads[kind][~scored.first])}; all heads {every:.2f}"

    kinds = list(next(iter(models.values())).heads)
    rows = [[kind, *(cell(each, kind) for each in models.values())] for kind in kinds]
    return markdown_table([f"second halves, the {HEADS_KEPT} heads best alone in the first", *models], rows)


def shares_table(models: Mapping[str, Scored]) -> str:
    keys = list(next(iter(models.values())).shares)
    rows = [[" ".join(key), *(_cell(each.shares[key]) for each in models.values())] for key in keys]
    return markdown_table(["overall, all traces", *models], rows)


def tables(models: Mapping[str, Scored]) -> str:
    chosen = choose(models)
    sizes = "; ".join(
        f"{name}: {int(np.isfinite(each.maps[('recency', '')][each.first]).sum())} and "
        f"{int(np.isfinite(each.maps[('recency', '')][~each.first]).sum())} of {len(each.first)} traces"
        for name, each in models.items()
    )
    return "\n\n".join(
        [
            f"Traces with a score in the first and second half: {sizes}.",
            "First halves: mean score `per reader`",
            first_half_table(models),
            f"Chosen: `{' '.join(chosen)}`. Second halves:",
            second_half_table(models, chosen),
            heads_table(models),
            shares_table(models),
        ]
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=DIR", help="a model's folder of maps and knockouts")
    chosen = parser.parse_args(given)
    folders = dict(each.split("=", 1) for each in chosen.models)
    print(tables({name: score_model(Path(folder)) for name, folder in folders.items()}))


if __name__ == "__main__":
    main()
