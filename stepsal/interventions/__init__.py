"""Interventions: what changes a model's attention patterns and head outputs while it reads and writes."""
