"""What pytest leaves out where an optional package is missing: its modules cannot be imported for their docstrings."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("lm_eval") else ["stepsal/harness/lm_eval_model.py"]
