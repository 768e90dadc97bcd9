"""StepFlow, the paper's repair: the odds-equal bridge in shallow layers and step momentum in deep ones."""

from typing import Any

from stepsal.errors import InputError
from stepsal.interventions.base import Intervention
from stepsal.interventions.bridge import OddsEqualBridge
from stepsal.interventions.momentum import StepMomentum


def stepflow(**overrides: Any) -> tuple[OddsEqualBridge, StepMomentum]:
    """Bridge and momentum with the paper's defaults. An override goes to the one that has it; `layers` and `heads`, which both
    have, are `oeb_layers`, `smi_layers`, `oeb_heads` and `smi_heads`.

    Raises `InputError` for a name that neither has.

    >>> stepflow(tau_max=0.2, smi_layers=[6, 7])[1].layers
    (6, 7)
    """
    both: tuple[type[Intervention], ...] = (OddsEqualBridge, StepMomentum)
    names: dict[str, tuple[type[Intervention], str]] = {}
    for kind in both:
        names |= {f"{kind.name}_{field}": (kind, field) for field in ("layers", "heads")}
        names |= {field: (kind, field) for field in kind.options()}
    options: dict[type[Intervention], dict[str, Any]] = {kind: {} for kind in both}
    for name, value in overrides.items():
        if name not in names:
            raise InputError(f"stepflow has no option {name!r}: expected some of {', '.join(names)}")
        kind, field = names[name]
        options[kind][field] = value
    return OddsEqualBridge(**options[OddsEqualBridge]), StepMomentum(**options[StepMomentum])
