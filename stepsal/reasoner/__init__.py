"""The bundled reasoner: a small trained model that reasons in steps, its problems, and how to grade what it writes.

`problems` makes and grades the problems. The weights, tokenizer, settings and training log are in `model/`, a plain Hugging
Face directory. In a clone of the repository, `experiments/train_reasoner.py` trained the model and
`experiments/evaluate_reasoner.py` measured it.
"""

from stepsal.reasoner.problems import (
    DEFAULT_LENGTH,
    ERROR_KINDS,
    SPLITS,
    Problem,
    grade,
    make_problem,
    make_problems,
)

__all__ = ["DEFAULT_LENGTH", "ERROR_KINDS", "SPLITS", "Problem", "grade", "make_problem", "make_problems"]
