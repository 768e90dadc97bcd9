"""`python figures/r1_trace.py MAP` draws this figure and its caption: one long trace, shallow beside deep layers."""

import sys
from pathlib import Path

from matplotlib.figure import Figure

import stepsal
from stepsal.plot.maps import answer_rows, log_scale, map_values


def draw(stepmap: stepsal.StepMap) -> Figure:
    """The shares of the shallow and of the deep layers, on one colour scale."""
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    bands, axes = ("shallow", "deep"), figure.subplots(1, 2, sharey=True)
    segments = [step.segment for step in stepmap.steps]
    scale = log_scale(*(answer_rows(map_values(stepmap, band, None, "share").tril(), segments) for band in bands))
    for band, ax in zip(bands, axes, strict=True):
        stepsal.plot.step_map(stepmap, layer=band, measure="share", norm=scale, colorbar=False, ax=ax)
        ax.set_title(f"{band} layers", loc="left", pad=18)
    axes[1].set_ylabel("")
    figure.colorbar(axes[0].images[0], ax=axes, label="share of the row's influence", extend="both")
    return figure


if __name__ == "__main__":
    stepmap = stepsal.StepMap.load(sys.argv[1])
    out = Path(__file__)
    with stepsal.plot.style():
        figure = draw(stepmap)
        figure.savefig(out.with_suffix(".png"))
        figure.savefig(out.with_suffix(".pdf"), metadata={"CreationDate": None})
    out.with_suffix(".md").write_text(
        f"Step map of trace {stepmap.meta['trace']} ({stepmap.meta['tokens']:,} tokens, {len(stepmap.steps)} steps): a real "
        "R1-Distill-Qwen-14B trace, read by SmolLM2-135M-Instruct. Mean over the heads of the shallow (bottom quarter) and the "
        "deep (top quarter) layers: what part of a step's influence comes from which step, on one logarithmic colour scale. "
        "One trace and another model than its writer: an illustration, no evidence.\n\n"
        f"Made by `python figures/r1_trace.py {sys.argv[1]}` after `make real-results`.\n",
        encoding="utf-8",
    )
