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

__all__ = ["NoiseMomentum", "OddsEqualBridge", "RandomBridge", "RandomMomentum", "Starvation", "StepMomentum"]
