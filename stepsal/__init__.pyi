"""The public names of stepsal, in the order of the data flow; `stepsal/__init__.py` imports each when it is first used."""

from . import formats as formats
from . import plot
from . import reasoner as reasoner
from ._version import __version__ as __version__
from .ablation.paired_runs import PairedRuns, paired_runs
from .causality.faithfulness import Faithfulness, faithfulness
from .causality.folder import save_knockouts
from .causality.knockout import Knockout, step_knockout
from .causality.thought_anchors import read_thought_anchors
from .diagnosis.bands import Bands, choose_layers
from .diagnosis.comparison import Comparison, compare
from .diagnosis.diagnosis import Diagnosis, Verdict, diagnose
from .diagnosis.metrics import lock_in, metric, thinking_to_summary
from .errors import FileError, InputError, NumericalError, StepsalError, UnsupportedModelError
from .generation.generate import generate
from .generation.grading import grader
from .html_report.report import report
from .interventions import (
    AttentionTemperature,
    NoiseMomentum,
    OddsEqualBridge,
    Pasta,
    RandomBridge,
    RandomMomentum,
    RandomPasta,
    RandomSpotLight,
    RandomTemperature,
    SpotLight,
    Starvation,
    StepMomentum,
)
from .interventions.base import Intervention
from .interventions.intervene import intervene
from .interventions.stepflow import stepflow
from .models.loading import load_model
from .models.tokenizers import load_tokenizer
from .saliency.export import export_step_maps
from .saliency.folder import save_step_maps
from .saliency.influence import step_saliency, token_influence
from .saliency.stepmap import StepMap
from .statistics.paired import Paired, paired
from .sweeps.run import sweep
from .traces.files import read_traces, write_traces
from .traces.trace import Step, Trace

__all__ = [
    "AttentionTemperature",
    "Bands",
    "Comparison",
    "Diagnosis",
    "Faithfulness",
    "FileError",
    "InputError",
    "Intervention",
    "Knockout",
    "NoiseMomentum",
    "NumericalError",
    "OddsEqualBridge",
    "Paired",
    "PairedRuns",
    "Pasta",
    "RandomBridge",
    "RandomMomentum",
    "RandomPasta",
    "RandomSpotLight",
    "RandomTemperature",
    "SpotLight",
    "Starvation",
    "Step",
    "StepMap",
    "StepMomentum",
    "StepsalError",
    "Trace",
    "UnsupportedModelError",
    "Verdict",
    "choose_layers",
    "compare",
    "diagnose",
    "export_step_maps",
    "faithfulness",
    "generate",
    "grader",
    "intervene",
    "load_model",
    "load_tokenizer",
    "lock_in",
    "metric",
    "paired",
    "paired_runs",
    "plot",
    "read_thought_anchors",
    "read_traces",
    "report",
    "save_knockouts",
    "save_step_maps",
    "step_knockout",
    "step_saliency",
    "stepflow",
    "sweep",
    "thinking_to_summary",
    "token_influence",
    "write_traces",
]
