"""Progress bars of the libraries that load models."""


def hide_loading_bars() -> None:
    """Switch off the bars that transformers draws while it loads weights, for this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
