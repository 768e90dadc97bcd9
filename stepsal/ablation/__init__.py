"""Ablation: the effects and tables that are computed from the rows of a finished sweep."""
