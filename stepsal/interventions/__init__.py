"""Interventions: what changes a model's attention patterns and head outputs while it reads and writes.

Importing this package defines the built-in ones, in the order in which tables and figures show them.
"""

# isort: off
from stepsal.interventions.bridge import OddsEqualBridge
from stepsal.interventions.momentum import StepMomentum
from stepsal.interventions.random_bridge import RandomBridge
from stepsal.interventions.random_momentum import RandomMomentum
from stepsal.interventions.noise_momentum import NoiseMomentum
from stepsal.interventions.starvation import Starvation
from stepsal.interventions.pasta import Pasta
from stepsal.interventions.spotlight import SpotLight
from stepsal.interventions.attention_temperature import AttentionTemperature
from stepsal.interventions.random_pasta import RandomPasta
from stepsal.interventions.random_spotlight import RandomSpotLight
from stepsal.interventions.random_temperature import RandomTemperature

__all__ = [
    "AttentionTemperature",
    "NoiseMomentum",
    "OddsEqualBridge",
    "Pasta",
    "RandomBridge",
    "RandomMomentum",
    "RandomPasta",
    "RandomSpotLight",
    "RandomTemperature",
    "SpotLight",
    "Starvation",
    "StepMomentum",
]
