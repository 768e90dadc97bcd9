"""Which class of `Host` a model has, and which kinds can be had here: the one place that tells the kinds of models apart."""

from importlib.metadata import version

from stepsal.errors import InputError
from stepsal.models.bridge import BridgeHost
from stepsal.models.hooked_transformer import HookedTransformerHost
from stepsal.models.host import Host, Model

HOSTS = (BridgeHost.name, HookedTransformerHost.name)
"""The kinds of models that `load_model` gives. The first is the default, with every TransformerLens that stepsal takes."""


def check_host(name: str) -> None:
    """Raise `InputError` for a kind of model that is not known, or not to be had with the TransformerLens that is installed.

    >>> check_host("hooked")
    Traceback (most recent call last):
    stepsal.errors.InputError: unknown host 'hooked': expected 'bridge' or 'hooked_transformer'
    """
    if name not in HOSTS:
        raise InputError(f"unknown host {name!r}: expected {' or '.join(map(repr, HOSTS))}")
    if name == HookedTransformerHost.name and not version("transformer-lens").startswith("3.9."):
        raise InputError(
            f"host={name!r} needs TransformerLens 3.9, the last one that has HookedTransformer, and "
            f"{version('transformer-lens')} is installed: pip install 'transformer-lens==3.9.0' (in an environment of its own, "
            "if you need the newer one too), or leave host out for a TransformerBridge"
        )


def host_of(model: Model) -> Host:
    """The host of a model, chosen by the name of the model's class: TransformerLens is not imported for it.

    Any model that is no `HookedTransformer` is taken for a bridge; `check_supported` says where it is not one.

    >>> from stepsal import load_model
    >>> host_of(load_model()).shape.layers
    8
    """
    hooked = any(base.__name__ == "HookedTransformer" for base in type(model).__mro__)
    return HookedTransformerHost(model) if hooked else BridgeHost(model)
