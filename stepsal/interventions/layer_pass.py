"""What an intervention is shown of one layer in the forward pass that is running.

`stepsal.interventions.intervene` makes one `LayerPass` for each intervention in each of its layers and keeps it for as long
as the context lasts; its properties speak of the pass that is running.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepsal.errors import InputError
from stepsal.interventions.text_state import CODES, PassState

Memory = TypeVar("Memory")


class RunningPass:
    """The forward pass that is running, for all layers: `intervene` fills it as the pass goes on.

    Attributes:
        text: the segments and steps of all tokens so far; None before they are known.
        visible: for each kind of attention, which keys each query can see.
        values: the values of the layer that is running, by the layer's index.
        shared: what interventions share between layers in this pass, under keys of their own; `shared_before` is that of the
            pass before, so that decoding can go on from there.
    """

    def __init__(self, refuse: Callable[[str], Exception]) -> None:
        self.text: PassState | None = None
        self.visible: dict[str, Bool[Tensor, "batch query key"]] = {}
        self.values: dict[int, Tensor] = {}
        self.shared: dict[Any, Any] = {}
        self.shared_before: dict[Any, Any] = {}
        self._refuse = refuse

    def begin(self) -> None:
        """Forget the pass before, but for what it shared."""
        self.end()
        self.shared_before, self.shared = self.shared, {}

    def end(self) -> None:
        """Let go of what belongs to this pass alone."""
        self.text = None
        self.visible, self.values = {}, {}

    def known_text(self) -> PassState:
        """The text's state; raises where the pass began above the lowest layer that is watched."""
        if self.text is None:
            raise self._refuse("the pass did not begin below the lowest chosen layer (start_at_layer?)")
        return self.text


class LayerPass:
    """One layer, as one intervention sees it.

    Attributes:
        layer: the layer's index.
        kind: the layer's kind of attention; layers of one kind see the same keys.
        heads: the chosen heads, `head`; None where all are chosen.
    """

    def __init__(self, running: RunningPass, layer: int, kind: str, heads: Bool[Tensor, " head"] | None) -> None:
        self.layer, self.kind, self.heads = layer, kind, heads
        self._running = running
        self._memory: Any = None

    @property
    def text(self) -> PassState:
        """The segment and step of every token so far, and the steps that this pass opens."""
        return self._running.known_text()

    @property
    def visible(self) -> Bool[Tensor, "batch query key"]:
        """The keys that each query can see: causal, no padding, inside a sliding window where the layer has one."""
        return self._running.visible[self.kind]

    @property
    def values(self) -> Float[Tensor, "batch pos kv_head d_head"]:
        """The layer's values of this pass's tokens, without a gradient. Raises `InputError` in `edit_pattern`."""
        if self.layer not in self._running.values:
            raise InputError("at.values are known in edit_head_outputs only: read them there")
        return self._running.values[self.layer]

    @property
    def shared(self) -> dict[Any, Any]:
        """What interventions share between layers in this pass, under keys of their own."""
        return self._running.shared

    @property
    def shared_before(self) -> dict[Any, Any]:
        """What they shared in the pass before."""
        return self._running.shared_before

    def memory(self, make: Callable[[], Memory]) -> Memory:
        """What this intervention remembers in this layer from pass to pass; made at its first use."""
        if self._memory is None:
            self._memory = make()
        return self._memory

    def queries_in(self, segment: str) -> Bool[Tensor, "batch 1 query 1"]:
        """A mask over an attention pattern: the queries of a segment (`question`, `thinking` or `summary`)."""
        own = self.text.own_segments == CODES[segment]
        return own[:, None, :, None].to(self.visible.device)

    def keys_in(self, segment: str) -> Bool[Tensor, "batch 1 query key"]:
        """A mask over an attention pattern: the keys of a segment that each query can see."""
        text, visible = self.text, self.visible
        columns = text.segments[:, text.end - visible.shape[2] : text.end] == CODES[segment]
        return (columns[:, None].to(visible.device) & visible)[:, None]

    def queries_answering(self) -> Bool[Tensor, "batch 1 query"]:
        """Which queries are thinking or summary."""
        return (self.text.own_segments >= CODES["thinking"])[:, None].to(self.visible.device)


def only_heads(
    new: Float[Tensor, "batch head *rest"], old: Float[Tensor, "batch head *rest"], heads: Bool[Tensor, " head"] | None
) -> Float[Tensor, "batch head *rest"]:
    """The new tensor in the chosen heads, the old one in the others; in the old one's precision."""
    new = new.to(old.dtype)
    if heads is None:
        return new
    return torch.where(heads.to(old.device).reshape(-1, *[1] * (old.ndim - 2)), new, old)
