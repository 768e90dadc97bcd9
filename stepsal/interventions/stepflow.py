"""StepFlow, the paper's repair: the odds-equal bridge in shallow layers and step momentum in deep ones."""

import inspect
from collections.abc import Sequence
from typing import Any

from stepsal.errors import InputError
from stepsal.interventions.bridge import OddsEqualBridge
from stepsal.interventions.heads import HeadSpec
from stepsal.interventions.momentum import StepMomentum
from stepsal.models.layer_choice import LayerSpec


def stepflow(
    *,
    oeb_layers: LayerSpec = OddsEqualBridge.layers,
    oeb_heads: HeadSpec = OddsEqualBridge.heads,
    tau_max: float | int = OddsEqualBridge.tau_max,
    scope: str = OddsEqualBridge.scope,
    feasible: str = OddsEqualBridge.feasible,
    bos_in_bridge: bool = OddsEqualBridge.bos_in_bridge,
    smi_layers: LayerSpec = StepMomentum.layers,
    smi_heads: HeadSpec = StepMomentum.heads,
    alpha: float | int = StepMomentum.alpha,
    window: int | None = StepMomentum.window,
    into: Sequence[str] = StepMomentum.into,
    **unknown: Any,
) -> tuple[OddsEqualBridge, StepMomentum]:
    """Bridge and momentum, by default the paper's.

    `OddsEqualBridge` says what `tau_max`, `scope`, `feasible` and `bos_in_bridge` are; `StepMomentum` says what `alpha`,
    `window` and `into` are.

    Raises `InputError` for a name that neither has, and for a value that one of them refuses.

    >>> stepflow(tau_max=0.2, smi_layers=[6, 7])[1].layers
    (6, 7)
    """
    if unknown:
        names = [name for name in inspect.signature(stepflow).parameters if name != "unknown"]
        raise InputError(f"stepflow has no option {min(unknown)!r}: expected some of {', '.join(names)}")
    bridge = OddsEqualBridge(oeb_layers, oeb_heads, tau_max, scope, feasible, bos_in_bridge)
    return bridge, StepMomentum(smi_layers, smi_heads, alpha, window, into)
