"""stepsal: step-to-step saliency maps of reasoning models. The names below are in the order of the data flow."""

from logging import NullHandler as _NullHandler
from logging import getLogger as _get_logger

from stepsal import formats as formats
from stepsal import plot
from stepsal import reasoner as reasoner
from stepsal._version import __version__ as __version__
from stepsal.causality.faithfulness import Faithfulness, faithfulness
from stepsal.causality.folder import save_knockouts
from stepsal.causality.knockout import Knockout, step_knockout
from stepsal.causality.thought_anchors import read_thought_anchors
from stepsal.diagnosis.bands import Bands, choose_layers
from stepsal.diagnosis.comparison import Comparison, compare
from stepsal.diagnosis.diagnosis import Diagnosis, Verdict, diagnose
from stepsal.diagnosis.metrics import lock_in, metric, thinking_to_summary
from stepsal.errors import FileError, InputError, NumericalError, StepsalError, UnsupportedModelError
from stepsal.generation.generate import generate
from stepsal.generation.grading import grader
from stepsal.html_report.report import report
from stepsal.interventions import (
    NoiseMomentum,
    OddsEqualBridge,
    RandomBridge,
    RandomMomentum,
    Starvation,
    StepMomentum,
)
from stepsal.interventions.base import Intervention
from stepsal.interventions.intervene import intervene
from stepsal.interventions.stepflow import stepflow
from stepsal.models.loading import load_model
from stepsal.models.tokenizers import load_tokenizer
from stepsal.saliency.export import export_step_maps
from stepsal.saliency.folder import save_step_maps
from stepsal.saliency.influence import step_saliency, token_influence
from stepsal.saliency.stepmap import StepMap
from stepsal.statistics.paired import Paired, paired
from stepsal.sweeps.run import sweep
from stepsal.traces.files import read_traces, write_traces
from stepsal.traces.trace import Step, Trace

_get_logger("stepsal").addHandler(_NullHandler())  # what is logged is heard by those who ask for it

__all__ = [
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
    "RandomBridge",
    "RandomMomentum",
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
