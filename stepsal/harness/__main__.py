"""lm-evaluation-harness's own command, with the model `stepsal`: `python -m stepsal.harness run --model stepsal ...`.

In lm-eval up to 0.4.13 a model is known once its module is imported, and its command imports none but its own. Later versions
look into the entry-point group `lm_eval.models`, where stepsal is, too: there `lm_eval run --model stepsal` is the same.
"""

import sys


def main() -> None:
    """Run the harness's command with the arguments of this process."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        sys.exit(f"stepsal: {error}: lm-evaluation-harness is missing. Install it with `pip install 'stepsal[eval]'`.")
    import stepsal.harness.lm_eval_model  # noqa: F401  # it registers the model

    cli_evaluate()


if __name__ == "__main__":
    main()
