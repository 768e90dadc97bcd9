"""Versions of stepsal and of the packages that its numbers depend on."""

from importlib.metadata import version

from stepsal._version import __version__

PACKAGES = ("torch", "transformers", "transformer-lens")


def versions() -> dict[str, str]:
    """The version of stepsal and of each package that its numbers depend on.

    >>> list(versions())
    ['stepsal', 'torch', 'transformers', 'transformer-lens']
    """
    return {"stepsal": __version__} | {name: version(name) for name in PACKAGES}
