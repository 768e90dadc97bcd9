"""stepsal: step-to-step saliency maps of reasoning models. The names below are in the order of the data flow."""

__version__ = "0.1.0"

from stepsal import plot
from stepsal.choose import Bands, choose_layers
from stepsal.comparison import Comparison, compare
from stepsal.diagnosis import Diagnosis, Verdict, diagnose
from stepsal.errors import FileError, InputError, NumericalError, StepsalError, UnsupportedModelError
from stepsal.folder import save_step_maps
from stepsal.generation import generate
from stepsal.influence import step_saliency, token_influence
from stepsal.intervene import intervene
from stepsal.loading import load_model, load_tokenizer
from stepsal.metrics import lock_in, thinking_to_summary
from stepsal.paired import Paired, paired
from stepsal.report import report
from stepsal.stepflow import (
    NoiseMomentum,
    OddsEqualBridge,
    RandomBridge,
    RandomMomentum,
    Starvation,
    StepMomentum,
    stepflow,
)
from stepsal.stepmap import StepMap
from stepsal.sweep import sweep
from stepsal.trace import Step, Trace
from stepsal.trace_files import read_traces, write_traces

__all__ = [
    "Bands",
    "Comparison",
    "Diagnosis",
    "FileError",
    "InputError",
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
    "generate",
    "intervene",
    "load_model",
    "load_tokenizer",
    "lock_in",
    "paired",
    "plot",
    "read_traces",
    "report",
    "save_step_maps",
    "step_saliency",
    "stepflow",
    "sweep",
    "thinking_to_summary",
    "token_influence",
    "write_traces",
]
