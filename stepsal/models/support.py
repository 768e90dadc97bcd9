"""Whether stepsal is exact with a model: a check of the model itself, with a few tokens, before any work.

In: a model. Out: nothing, or an `UnsupportedModelError` with the reason. The user's own hooks are put aside. These conditions
must hold:

1. Every hook fires, with the shape that `stepsal.models.host` documents.
2. A token's attention score for itself is its scaled query times its key, and head outputs are the pattern times the values.
   The diagonal terms of saliency, and interventions, rest on this.
3. With keys and values cut, no gradient reaches other positions. Then tokens meet in attention only (there is no recurrence or
   convolution beside it), and one backward pass gives the gradient of each token's own loss.
4. The model continues over a cache of all keys and values as if it had read everything at once.

A model that has passed is not checked again.
"""

from importlib.metadata import version
from typing import Any
from weakref import WeakSet

import torch
from einops import einsum
from torch import Tensor

from stepsal.errors import UnsupportedModelError
from stepsal.models.host import Function, Hook, Host, Model, per_query_head
from stepsal.models.hosts import host_of

_FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_PARTS = ("query", "key", "value", "scores", "pattern", "output")
_passed: WeakSet[Any] = WeakSet()


def check_supported(model: Model) -> None:
    """Raise `UnsupportedModelError`, with the reason, unless stepsal is exact with this model.

    >>> from stepsal import load_model
    >>> check_supported(load_model())
    """
    host = host_of(model)
    reason = host.unsupported()
    if model in _passed and not reason:
        return
    about = host.describe()
    try:
        with host.frozen(), host.without_hooks():
            reason = reason or _problem(host)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        reason = f"a few tokens cannot be run through its hooks ({type(error).__name__}: {str(error)[:300]})"
    if reason:
        raise UnsupportedModelError(f"{about['model']} ({about['architecture']}) is not supported: {reason}")
    _passed.add(model)


def _problem(host: Host) -> str:
    """The condition that the model violates, in words; an empty text where it violates none."""
    size = host.shape
    if without := [layer for layer in range(size.layers) if not host.has_attention(layer)]:
        return f"{len(without)} of its {size.layers} layers have no attention (a recurrence in its place?)"
    # The length differs from the numbers of heads, so that no axis can pass for another.
    length = next(n for n in range(3, 9) if n not in (size.heads, size.kv_heads))
    tokens = torch.arange(length, device=host.device)[None] % size.vocabulary
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(layer: int, what: str) -> Function:
        def look(tensor: Tensor, hook: Any) -> None:
            seen[layer, what] = tensor.detach()

        return look

    hooks = {(-1, "tokens"): host.at_tokens(keep(-1, "tokens"))}
    for layer in range(size.layers):
        for what, at in (
            ("query", host.at_queries),
            ("key", host.at_keys),
            ("value", host.at_values),
            ("output", host.at_head_outputs),
            ("scores", host.at_scores),
            ("pattern", host.at_pattern),
            ("residual", host.at_residual),
        ):
            hooks[layer, what] = at(layer, keep(layer, what))
    with torch.no_grad():
        logits = host.forward(tokens, list(hooks.values()))
    if silent := [name for at, (name, _) in hooks.items() if at not in seen]:
        return f"its hook {silent[0]} never fires"
    for layer in range(size.layers):
        if reason := _disagreement(host, layer, *(seen[layer, what] for what in _PARTS)):
            return f"in layer {layer} {reason}"
    return _leak(host, tokens) or _cache_problem(host, tokens, logits)


def _disagreement(
    host: Host, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Tensor, pattern: Tensor, output: Tensor
) -> str:
    """How the tensors of a layer's attention disagree with each other; an empty text where they agree."""
    heads, length = host.shape.heads, scores.shape[-1]
    if pattern.shape != (1, heads, length, length) or any(
        tensor.ndim != 4 or tensor.shape[:2] != (1, length) or heads % tensor.shape[2] for tensor in (query, key, value)
    ):
        tensors = zip(_PARTS, (query, key, value, scores, pattern), strict=False)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
        return f"the shapes are not those of {heads} heads and {length} tokens: {shapes}"
    own = host.own_score(layer)
    products = query.float() * per_query_head(key, heads).float() * (1.0 if own.weights is None else own.weights)
    if not _near(own.of(products.sum(-1)), scores.diagonal(0, -2, -1).mT, own.scale * products.abs().sum(-1)):
        return "a token's attention score for itself is not its scaled query times its key"
    wide, values = pattern.float(), per_query_head(value, heads).float()
    made = einsum(wide, values, "b h q k, b k h d -> b q h d")
    size = einsum(wide, values.abs(), "b h q k, b k h d -> b q h d")
    if made.shape != output.shape or not _near(made, output, size):
        return "the head output is not the attention pattern times the values"
    return ""


def _near(expected: Tensor, found: Tensor, size: Tensor) -> bool:
    """Whether two tensors are equal but for rounding in the model's precision. `size` is the sum of the terms' magnitudes."""
    tolerance = max(1e-3, 16 * torch.finfo(found.dtype).eps)
    error = (expected - found.float()).abs()
    allowed = (error <= tolerance * size + 1e-6) | ~torch.isfinite(error)  # NaNs are reported later, by position
    return bool(allowed.all())


def _leak(host: Host, tokens: Tensor) -> str:
    """The reason why a model fails where anything but keys and values carries one position's residual stream to another's
    logits; an empty text where nothing does.
    """
    leaves: list[Tensor] = []

    def leaf(residual: Tensor, hook: Any) -> Tensor:
        leaves.append(residual.detach().requires_grad_(True))
        return leaves[0]

    def cut(tensor: Tensor, hook: Any) -> Tensor:
        return tensor.detach()

    hooks: list[Hook] = [host.at_residual(0, leaf)]
    for layer in range(1, host.shape.layers):
        hooks += [host.at_keys(layer, cut), host.at_values(layer, cut)]
    with torch.inference_mode(False), torch.enable_grad():
        last = host.forward(tokens, hooks)[0, -1].float()
        (gradient,) = torch.autograd.grad(last.logsumexp(0), leaves)
    if gradient[0, :-1].nan_to_num().any():
        return "tokens meet elsewhere than in attention (a recurrence or a convolution?), so one backward pass is not exact"
    return ""


def _cache_problem(host: Host, tokens: Tensor, logits: Tensor) -> str:
    """The reason why a model fails that does not continue over a cache; an empty text where it does continue."""
    cache, keys = host.new_cache(), []

    def count(pattern: Tensor, hook: Any) -> None:
        keys.append(pattern.shape[-1])

    with torch.no_grad():
        host.forward(tokens[:, :-1], [], cache)
        last = host.forward(tokens[:, -1:], [host.at_pattern(0, count)], cache)
    if keys == [1]:
        return (
            f"it does not read its cache (transformer-lens {version('transformer-lens')}, transformers "
            f"{version('transformers')}). TransformerLens 4.3 does not know the cache of transformers 5.24 and later: "
            "pip install 'transformers<5.24'"
        )
    # In half precision a rounding can send a token to another expert, and where activations are rounded to 8 bits, to another
    # step of theirs. There the model must only run, and the test suite checks what it computes.
    exact = logits.dtype in (torch.float32, torch.float64) and not host.quantization
    if exact and not _near(logits[:, -1:].float(), last, logits.abs().max().float()):
        return "over a cache it does not continue as if it had read everything at once"
    return ""
