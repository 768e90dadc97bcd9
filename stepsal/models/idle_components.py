"""Hugging Face's own modules run in the place of a bridge's components where no hook would notice.

A `TransformerBridge` puts a component around each module of the Hugging Face model, which fires hooks before and after it, and
which computes attention and norms step by step. That takes time in each decoding step whether there are hooks or not.

1. A component is idle when no hook is on it or anywhere below it: no hook of TransformerLens, and no hook of PyTorch's own.
2. In the tree of the Hugging Face model, each idle component is replaced by the module around which it is
   (`original_component`), and so are the components within that module.
3. Only components are replaced that compute, to the bit, what their module computes. These are the kinds in `_wrappers`, with
   attention as Hugging Face's `eager` function has it (tests/models/test_idle_components.py). All others stay.
4. On leaving, every component is where it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# Settings of TransformerLens by which a component passes something to another one without a hook.
_SETTINGS = ("use_split_qkv_input", "use_attn_in", "use_attn_result", "use_hook_mlp_in")


@contextmanager
def without_idle_components(model: Any) -> Iterator[None]:
    """The components of a bridge on which there is no hook are out of the way inside. Hooks must not be added inside."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    unusual = model.compatibility_mode or any(getattr(model.cfg, setting, False) for setting in _SETTINGS)
    try:
        if not unusual:
            _replace_idle(model.original_model, _wrappers(), replaced, set())
        yield
    finally:
        for parent, name, component in reversed(replaced):
            parent.register_module(name, component)


def _wrappers() -> tuple[type[nn.Module], ...]:
    from transformer_lens.model_bridge import generalized_components as components

    return (
        components.BlockBridge,
        components.PositionEmbeddingsAttentionBridge,
        components.GatedMLPBridge,
        components.RMSNormalizationBridge,
        components.LinearBridge,
        components.EmbeddingBridge,
        components.RotaryEmbeddingBridge,
        components.UnembeddingBridge,
    )


def _replace_idle(
    parent: Any,
    wrappers: tuple[type[nn.Module], ...],
    replaced: list[tuple[nn.Module, str, nn.Module]],
    seen: set[nn.Module],
) -> None:
    """Replace the idle components below `parent`, and note what was replaced where."""
    if parent in seen:  # a component is below the module it wraps, too
        return
    seen.add(parent)
    child: Any
    for name, child in list(parent.named_children()):
        if type(child) in wrappers and _computes_the_same(child) and not _has_hooks(child):
            replaced.append((parent, name, child))
            parent.register_module(name, child.original_component)
        _replace_idle(parent.get_submodule(name), wrappers, replaced, seen)


def _computes_the_same(component: Any) -> bool:
    """Whether a component of one of the kinds in `_wrappers` computes what its module computes."""
    module = component.original_component
    if module is None or not getattr(component, "use_native_layernorm_autograd", True):
        return False
    configuration = getattr(module, "config", None)  # which only attention reads while it runs
    return getattr(configuration, "_attn_implementation", "eager") == "eager"


def _has_hooks(component: nn.Module) -> bool:
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    for module in component.modules():
        if isinstance(module, HookPoint | GeneralizedComponent):
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            if isinstance(
                module, GeneralizedComponent
            ):  # a block puts hooks of its own on its norms, for `_SETTINGS` alone
                hooks = [hook for hook in hooks if not getattr(hook, "__module__", "").startswith("transformer_lens.")]
            if hooks:
                return True
    return False
