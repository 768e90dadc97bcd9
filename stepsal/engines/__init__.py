"""Engines: workers, each with a model of its own, that do the items of a job in this process, beside it or on a Ray cluster."""
