"""Experiments on the bundled reasoner, run from a clone: `python -m experiments.evaluate_reasoner`.

`README.md` says what each script makes. The experiments are not in the wheel.
"""
