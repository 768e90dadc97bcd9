"""A stand-in until the module itself is merged."""

from collections.abc import Sequence


def load_plugins(modules: Sequence[str] = ()) -> None:
    """Nothing to load yet."""


def loaded_plugins() -> tuple[str, ...]:
    """Nothing is loaded yet."""
    return ()
