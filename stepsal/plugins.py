"""Modules of a user's own, imported so that what they define (metrics, formats, interventions) is known by name.

In: the entry points of the group `stepsal.plugins`, and modules named by hand. Out: nothing but what importing them does. An
installed package makes itself known in its `pyproject.toml`:

    [project.entry-points."stepsal.plugins"]
    my_metrics = "my_package.metrics"

Every process loads its plugins itself, so the workers of a sweep are told `loaded_plugins()`.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from importlib.metadata import EntryPoint, entry_points

from stepsal.errors import InputError

GROUP = "stepsal.plugins"
_loaded: dict[str, None] = {}  # the modules' names, in the order in which they were loaded


def load_plugins(modules: Iterable[str] = ()) -> None:
    """Import the modules of the entry-point group `stepsal.plugins`, then the modules named; each once per process.

    A module that is named is also found in the current directory, as it is by `python -m`.

    Raises:
        InputError: a module that cannot be imported, with the cause; or one text where a list of names was expected.
    """
    if isinstance(modules, str):
        raise InputError(f"modules={modules!r} is one text: give a list of modules' names, such as [{modules!r}]")
    for point in entry_points(group=GROUP):
        if point.module not in _loaded:
            _load(point.module, point)
    for name in modules:
        if name not in _loaded:
            _load(name)


def loaded_plugins() -> tuple[str, ...]:
    """The names of the modules that `load_plugins` has imported in this process, for another process to load them too."""
    return tuple(_loaded)


def _load(name: str, point: EntryPoint | None = None) -> None:
    try:
        if point is None:
            with _current_directory_first():
                import_module(name)
        else:
            point.load()
    except Exception as error:  # whatever a user's module may raise
        raise InputError(
            f"plugin {name!r} cannot be imported: {type(error).__name__}: {error}. {_fix(name, point, error)}"
        ) from error
    _loaded[name] = None


def _fix(name: str, point: EntryPoint | None, error: Exception) -> str:
    if point is not None:
        owner = f"the package {point.dist.name!r}" if point.dist else "an installed package"
        return f"It is the entry point {point.name!r} of {owner}: mend that package, or uninstall it."
    if name.endswith(".py"):
        return f"Give the module's name, {name.removesuffix('.py').replace(os.sep, '.')!r}, and not its file's."
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return f"Install it, or run the command in the directory that holds it, which {os.getcwd()} does not."
    return f"Mend the module, until `python -c 'import {name}'` runs."


@contextmanager
def _current_directory_first() -> Iterator[None]:
    """Look for modules in the current directory before all others; afterwards, for what they import later, behind them.

    It does not stay first: a folder such as `datasets` in it would hide an installed package from everything imported later.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    invalidate_caches()  # the module may have been written a moment ago
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)
