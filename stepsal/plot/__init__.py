"""Pictures: each function takes data and an `Axes` and returns the `Axes`.

Nothing here writes files, changes a global style, or computes what is not shown.
"""

from stepsal.diagnosis.metrics import LABELS
from stepsal.plot.benchmark import benchmark
from stepsal.plot.canvas import style
from stepsal.plot.circuits import step_heads
from stepsal.plot.faithfulness import faithfulness
from stepsal.plot.maps import answer_rows, log_scale, map_values, step_map, step_map_png, token_map
from stepsal.plot.statistics import comparison, depth_profile, heads
from stepsal.plot.sweeps import head_limit, in_math, sweep, sweep_compute, sweep_heads, sweep_lengths, sweep_strengths
from stepsal.saliency.stepmap import StepMap

__all__ = [
    "LABELS",
    "answer_rows",
    "benchmark",
    "comparison",
    "depth_profile",
    "faithfulness",
    "head_limit",
    "heads",
    "in_math",
    "log_scale",
    "map_values",
    "step_heads",
    "step_map",
    "style",
    "sweep",
    "sweep_compute",
    "sweep_heads",
    "sweep_lengths",
    "sweep_strengths",
    "token_map",
]

StepMap._repr_png_ = step_map_png  # a notebook shows a step map as this picture
