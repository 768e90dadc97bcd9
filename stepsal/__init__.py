"""stepsal: step-to-step saliency maps of reasoning models.

The public names are listed in `stepsal/__init__.pyi`, in the order of the data flow. A name is imported when it is first used,
so that `import stepsal` and `stepsal --help` need not wait for torch.
"""

from importlib import import_module as _import_module
from logging import NullHandler as _NullHandler
from logging import getLogger as _get_logger
from typing import Any as _Any

import lazy_loader as _lazy

_import_name, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)


def __getattr__(name: str) -> _Any:
    value = _import_name(name)
    if not name.startswith("_"):
        _import_module("stepsal.plot")  # it gives step maps the picture that a notebook shows
    return value


_get_logger("stepsal").addHandler(_NullHandler())  # what is logged is heard by those who ask for it
