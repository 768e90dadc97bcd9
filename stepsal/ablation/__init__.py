"""Ablation: what is read off the rows of a finished sweep, as effects and tables."""
