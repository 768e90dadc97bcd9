"""Experiments on the bundled reasoner, run from a clone: `python -m experiments.evaluate_reasoner`.

`README.md` says which script makes what. They are not in the wheel.
"""
