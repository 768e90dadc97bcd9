"""Which class of `Host` a model has: the one place that tells the kinds of models apart."""

from stepsal.models.bridge import BridgeHost
from stepsal.models.hooked_transformer import HookedTransformerHost
from stepsal.models.host import Host, Model


def host_of(model: Model) -> Host:
    """The host of a model, chosen by the name of the model's class: TransformerLens is not imported for it.

    Any model that is no `HookedTransformer` is taken for a bridge; `check_supported` says where it is not one.

    >>> from stepsal import load_model
    >>> host_of(load_model()).shape.layers
    8
    """
    hooked = any(base.__name__ == "HookedTransformer" for base in type(model).__mro__)
    return HookedTransformerHost(model) if hooked else BridgeHost(model)
