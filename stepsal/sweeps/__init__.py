"""Sweeps: many settings of interventions on the same problems, every answer computed exactly once."""
