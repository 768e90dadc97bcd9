"""Language models: loading them, and the one folder that knows TransformerLens and transformers.

`host_of(model)` is what the rest of stepsal asks a model through; `quiet()` silences the libraries' progress bars.
"""

from stepsal.models.hosts import host_of
from stepsal.models.loading import quiet

__all__ = ["host_of", "quiet"]
