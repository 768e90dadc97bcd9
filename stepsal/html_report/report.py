"""Step maps -> one HTML page to explore them in: opens from disk, asks nothing of any network.

In: step maps. Out: a file that holds `report.html`, its style sheet and script, and the numbers as JSON.

1. Of each map the mean over heads is kept, and the single heads asked for: the lower triangle of `mass`, and `pairs`. The
   page computes densities and shares from them, the depth profiles come from `stepsal.diagnose`.
2. Mass is stored on a logarithmic scale of 16 bits (`quantise`), off by 0.1 % at most. The page says so.
3. The text of a trace is data, never markup: JSON without any `<`, which the script puts in as text alone. A content
   security policy lets no other script run and no request out.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt16
from torch import Tensor

from stepsal.checks import checked, path, several
from stepsal.diagnosis.diagnosis import diagnose, model_layers
from stepsal.diagnosis.folder import diagnose_loaded
from stepsal.diagnosis.metrics import METRICS
from stepsal.diagnosis.registry import shown_metrics
from stepsal.errors import InputError
from stepsal.files import exclusive_path
from stepsal.models.layer_choice import band
from stepsal.saliency.checks import maps
from stepsal.saliency.stepmap import StepMap
from stepsal.saliency.stepmapfile import StepMapFile, heads_of, loaded

_PROFILES = ("lock_in", "thinking_to_summary")
_MISSING = 2**16 - 1
_SMALLEST = 1e-50  # of the largest mass; what is below counts as zero


@checked(
    path=path, stepmaps=maps, heads=several(int, "a list of heads", "Of one head make a list, [0].", optional=True)
)
def report(
    path: str | Path,
    stepmaps: Sequence[StepMap | StepMapFile],
    *,
    heads: Sequence[int] | None = None,
    title: str = "Step maps",
) -> Path:
    """Write step maps as one self-contained HTML page, and return its path.

    The page shows a trace's text beside its map, for each layer, band, measure and embedded head; what a step reads and
    who reads it; the depth profiles and verdicts of `stepsal.diagnose`. It is written map by map, whole or not at all.

    Args:
        path: the file to write, usually `*.html`.
        stepmaps: the maps (`layer head query_step key_step`), one per trace, of a rule without signs.
        heads: heads to embed beside the mean of all; each adds as much to the file as the mean does (0.8 MB for 150 steps
            and 28 layers).
        title: the page's heading.

    Raises:
        InputError: no maps, a head that a map does not hold, a map with signed influence.
        FileError: the file cannot be written.

    >>> import tempfile
    >>> from stepsal import Trace, load_model, step_saliency
    >>> from stepsal.html_report.report import report
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> report(tempfile.mkdtemp() + "/report.html", [step_saliency(model, trace)], heads=[0, 3]).name
    'report.html'
    """
    if not stepmaps:
        raise InputError("there is no step map to report on: give one at least, for example from `stepsal saliency`")
    chosen = list(heads or ())
    for index, stepmap in enumerate(stepmaps):
        _check(stepmap, chosen, _name(stepmap, index))
    with exclusive_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_page(title, (_trace(each, chosen, _name(each, index)) for index, each in enumerate(stepmaps))))
    return Path(path)


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


def _name(stepmap: StepMap | StepMapFile, index: int) -> str:
    return str(stepmap.meta.get("trace") or f"trace {index}")


def _check(stepmap: StepMap | StepMapFile, heads: list[int], name: str) -> None:
    """Raise `InputError` for what can be seen to be wrong before any map is read from its file."""
    n_heads = heads_of(stepmap)
    for head in heads:
        if isinstance(head, bool) or not 0 <= head < n_heads:
            raise InputError(
                f"head {head!r} is not in the map of {name!r}, which holds heads 0 to {n_heads - 1}. Name some of those, "
                "or none for the mean of all."
            )
    if len(set(heads)) < len(heads):
        raise InputError(f"heads={heads} names a head twice: give each once")


def _trace(given: StepMap | StepMapFile, heads: list[int], trace: str) -> dict[str, Any]:
    """What the page needs of one map."""
    stepmap = loaded(given)
    if (stepmap.mass < 0).any():
        raise InputError(
            f"the map of {trace!r} holds negative influence (rule {stepmap.meta.get('rule', 'unknown')!r}), which a "
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
    return {
        "name": trace,
        "correct": stepmap.meta.get("correct"),
        "about": {
            key: stepmap.meta[key] for key in ("model", "objective", "rule", "score", "tokens") if key in stepmap.meta
        },
        "steps": [[step.segment, step.text] for step in stepmap.steps],
        "layers": list(stepmap.layers),
        "bands": {key: list(held) for key, held in bands.items() if set(held) <= set(stepmap.layers)},
        "heads": ["mean of heads" if only_mean else f"mean of {mass.shape[1]}", *map(str, heads)],
        "mass": _base64(codes, "<u2"),
        "scale": [low, step],
        "pairs": _base64(stepmap.pairs[row, column].cpu().numpy(), "<u4"),
        "profiles": [
            {
                "name": name,
                "label": METRICS[name].label,
                "line": METRICS[name].reference,
                "values": _list(diagnosis.profile[name]),
                "control": _list(diagnosis.position_only[name]),
            }
            for name in shown_metrics(*_PROFILES)
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
    }


def _list(values: Float[Tensor, " layer"]) -> list[float | None]:
    """JSON has no NaN: missing is null."""
    return [value if math.isfinite(value) else None for value in values.double().tolist()]


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode("ascii")


def _page(title: str, traces: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The template with style sheet, script and data put in, and the hashes that allow these two and no others.

    The page comes in parts, each trace in one of its own.
    """
    folder = Path(__file__).parent
    parts = {name: (folder / f"report.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    for name in ("css", "js"):
        digest = hashlib.sha256(parts[name].encode()).digest()
        parts[f"{name}-hash"] = "sha256-" + base64.b64encode(digest).decode("ascii")
    for index, part in enumerate(re.split(r"\{\{([a-z-]+)\}\}", parts["html"])):  # one pass: data stays data
        if index % 2 == 0:  # between two places to fill
            yield part
        elif part != "data":
            yield parts[part]
        else:
            yield f'{{"title":{_json(title)},"traces":['
            for number, trace in enumerate(traces):
                yield ("," if number else "") + _json(trace)
            yield "]}"


def _json(data: Any) -> str:
    """JSON that no browser takes for markup."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
