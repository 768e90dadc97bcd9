"""Traces: a model's text as tokens, split into question, thinking and summary, and each of these into steps."""
