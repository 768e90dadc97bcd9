"""One step map -> what the page needs of it, and the entry that lists it.

In: a map, and the heads to show one by one. Out: two dictionaries that JSON can hold.

1. Of each map the mean over heads is kept, and the single heads asked for: the lower triangle of `mass`, and `pairs`. The
   page computes densities and shares from them, the depth profiles come from `stepsal.diagnose`.
2. Mass is stored on a logarithmic scale of 16 bits (`quantise`), off by 0.1 % at most. The page says so.
3. Of a knockout of the trace `kl` is kept, in float32: what each later step loses without an earlier one.
"""

import base64
import json
import math
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt16
from torch import Tensor

from stepsal.causality.folder import KnockoutFile
from stepsal.causality.knockout import Knockout
from stepsal.diagnosis.diagnosis import diagnose, model_layers
from stepsal.diagnosis.folder import diagnose_loaded
from stepsal.diagnosis.metrics import METRICS
from stepsal.diagnosis.registry import shown_metrics
from stepsal.errors import InputError
from stepsal.models.layer_choice import band
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile, loaded

ABOUT = ("model", "objective", "rule", "score")
"""What the page says of how a map was made, of its `meta`."""
_PROFILES = ("lock_in", "thinking_to_summary")
_MISSING = 2**16 - 1
_SMALLEST = 1e-50  # of the largest mass; what is below counts as zero


def quantise(
    mass: Float[np.ndarray, "*axes"],
) -> tuple[UInt16[np.ndarray, "*axes"], float, float]:
    """Numbers as 16 bits: `(codes, low, step)`; code `c` stands for `exp(low + (c - 1) * step)`.

    The relative error is 0.1 % at most. Code 0 is zero (also less than 1e-50 of the largest number), code 65535 is missing
    (not finite).

    >>> codes, low, step = quantise(np.array([0.0, 1e-6, 2.0, np.nan]))
    >>> codes.tolist(), round(float(np.exp(low + (65534 - 1) * step)), 9)
    ([0, 1, 65534, 65535], 2.0)
    """
    missing = ~np.isfinite(mass)
    largest = float(mass[~missing].max(initial=0))
    kept = ~missing & (mass > largest * _SMALLEST)
    codes = np.where(missing, _MISSING, 0).astype(np.uint16)
    if not kept.any():
        return codes, 0.0, 0.0
    logs = np.log(mass[kept].astype(np.float64))
    low, step = float(logs.min()), float(logs.max() - logs.min()) / (_MISSING - 2)
    codes[kept] = 1 + np.round((logs - low) / (step or 1.0)).astype(np.uint16)
    return codes, low, step


def numbers_of(
    given: StepMap | StepMapFile, heads: list[int], name: str, knockout: Knockout | KnockoutFile | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the page needs to show a map under this name, and the entry that lists it. Raises `InputError` for a signed map."""
    stepmap = loaded(given)
    if (stepmap.mass < 0).any():
        raise InputError(
            f"the map of {name!r} holds negative influence (rule {stepmap.meta.get('rule', 'unknown')!r}), which a "
            "logarithmic scale cannot show and of which shares mean nothing. Make it with rule='abs'."
        )
    n = len(stepmap.steps)
    row, column = torch.tril_indices(n, n)
    mass = stepmap.mass.detach().cpu().double()
    planes = torch.cat([mass.mean(1, keepdim=True), mass[:, heads]], 1)[:, :, row, column]
    codes, low, step = quantise(rearrange(planes, "layer head pair -> (layer head pair)").numpy())
    diagnosis = diagnose_loaded(given, stepmap) if isinstance(given, StepMapFile) else diagnose(stepmap)
    bands = {key: band(key, model_layers(stepmap)) for key in ("shallow", "deep")}
    only_mean = stepmap.meta.get("heads") == "mean"
    tokens = stepmap.steps[-1].stop
    shown = {
        "name": name,
        "about": {key: stepmap.meta[key] for key in ABOUT if key in stepmap.meta} | {"tokens": tokens},
        "steps": [[step.segment, step.text] for step in stepmap.steps],
        "layers": list(stepmap.layers),
        "bands": {key: list(held) for key, held in bands.items() if set(held) <= set(stepmap.layers)},
        "heads": ["mean of heads" if only_mean else f"mean of {mass.shape[1]}", *map(str, heads)],
        "mass": as_base64(codes, "<u2"),
        "scale": [low, step],
        "pairs": as_base64(stepmap.pairs[row, column].cpu().numpy(), "<u4"),
        "profiles": [
            {
                "name": metric,
                "label": METRICS[metric].label,
                "line": METRICS[metric].reference,
                "values": _list(diagnosis.profile[metric]),
                "control": _list(diagnosis.position_only[metric]),
            }
            for metric in shown_metrics(*_PROFILES)
        ],
        "verdicts": [
            {
                "failure": verdict.failure,
                "found": verdict.found,
                "layers": list(verdict.layers),
                "evidence": str(verdict).partition("(")[2].removesuffix(")"),
            }
            for verdict in diagnosis.verdicts
        ],
        "knockout": None,
    }
    if knockout is not None:
        held = knockout.load() if isinstance(knockout, KnockoutFile) else knockout
        kl = held.kl.detach().cpu().float()[row, column]
        shown["knockout"] = {"mode": str(held.meta.get("mode", "")), "kl": as_base64(kl.numpy(), "<f4")}
    entry = {
        "name": name,
        "correct": stepmap.meta.get("correct"),
        "steps": n,
        "tokens": tokens,
        "verdicts": [verdict.found for verdict in diagnosis.verdicts],
        "knockout": knockout is not None,
    }
    return shown, entry


def bytes_of(given: StepMap | StepMapFile, heads: int, knockout: bool) -> int:
    """About how many bytes a map takes in the page with this many single heads, told without reading it."""
    n = len(given.steps)
    cells = n * (n + 1) // 2
    numbers = cells * (2 * len(given.layers) * (1 + heads) + 4 + 4 * knockout)
    return numbers * 4 // 3 + sum(len(as_json(step.text)) + 20 for step in given.steps)


def _list(values: Float[Tensor, " layer"]) -> list[float | None]:
    """JSON has no NaN: missing is null."""
    return [value if math.isfinite(value) else None for value in values.double().tolist()]


def as_base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")


def as_json(data: Any) -> str:
    """JSON that no browser takes for markup, and that means the same as JavaScript."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
