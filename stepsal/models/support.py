"""Whether stepsal is exact with a model: a check of the model itself, with a few tokens, before any work.

In: a model. Out: nothing, or an `UnsupportedModelError` with the reason. The user's own hooks are put aside. These conditions
must hold:

1. Every hook fires, with the shape that `stepsal.models.host` documents.
2. Patterns are the softmax of the scores, and head outputs are the pattern times the values, or that times a gate that the
   bridge shows. Interventions rest on this.
3. Saliency may read several tokens at once (in chunks) where a token's attention score for itself is its scaled query times its
   key, head outputs have no gate, and, with keys and values cut, no gradient reaches other positions. Then tokens meet in
   attention only, and one backward pass gives the gradient of each token's own loss. Elsewhere (a recurrence or a convolution
   beside attention, scores of another kind) saliency reads one token at a time over a cache: then what is replaced in the
   token's own pattern must have an effect, and no gradient may reach the tokens before.
4. The model continues over a cache of all keys and values as if it had read everything at once, by one token and by several.

A model that has passed is not checked again.
"""

import logging
from importlib.metadata import version
from typing import Any
from weakref import WeakKeyDictionary

import torch
from einops import einsum, rearrange
from torch import Tensor

from stepsal.errors import UnsupportedModelError
from stepsal.models.host import Function, Hook, Host, Model, per_query_head
from stepsal.models.hosts import host_of

logger = logging.getLogger("stepsal")
_FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
_PARTS = ("query", "key", "value", "scores", "pattern", "output")
# model -> whether one backward pass may span several tokens
_passed: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


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
    in_chunks = True
    try:
        host.adapt()
        with host.frozen(), host.without_hooks():
            if not reason:
                reason, in_chunks = _examine(host)
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        reason = f"a few tokens cannot be run through its hooks ({type(error).__name__}: {str(error)[:300]})"
    if reason:
        raise UnsupportedModelError(f"{about['model']} ({about['architecture']}) is not supported: {reason}")
    if not in_chunks:
        logger.warning(
            "%s: saliency reads its traces one token at a time: exact, but slower than in chunks", about["model"]
        )
    _passed[model] = in_chunks


def reads_in_chunks(model: Model) -> bool:
    """Whether one backward pass may span several tokens of this model, which has been checked."""
    return _passed[model]


def _examine(host: Host) -> tuple[str, bool]:
    """The condition that the model violates, in words, an empty text where it violates none; whether one backward pass may span
    several tokens.
    """
    if not host.attention_layers:
        return (
            f"none of its {host.shape.layers} layers has attention where it is looked for, `blocks[layer].attn`",
            False,
        )
    tokens = _tokens(host)
    seen: dict[tuple[int, str], Tensor] = {}

    def keep(layer: int, what: str) -> Function:
        def look(tensor: Tensor, hook: Any) -> None:
            seen[layer, what] = tensor.detach()

        return look

    hooks: dict[tuple[int, str], Hook | None] = {(-1, "tokens"): host.at_tokens(keep(-1, "tokens"))}
    for layer in host.attention_layers:
        for what, at in (
            ("query", host.at_queries),
            ("key", host.at_keys),
            ("value", host.at_values),
            ("gate", host.at_output_gate),
            ("output", host.at_head_outputs),
            ("scores", host.at_scores),
            ("pattern", host.at_pattern),
            ("residual", host.at_residual),
        ):
            hooks[layer, what] = at(layer, keep(layer, what))
    there = {at: hook for at, hook in hooks.items() if hook is not None}
    with torch.no_grad():
        logits = host.forward(tokens, list(there.values()))
    if silent := [name for at, (name, _) in there.items() if at not in seen]:
        return f"its hook {silent[0]} never fires", False
    in_chunks = True
    for layer in host.attention_layers:
        query, key, value, scores, pattern, output = (seen[layer, what] for what in _PARTS)
        gate = seen.get((layer, "gate"))
        if reason := _disagreement(host, query, key, value, scores, pattern, output, gate):
            return f"in layer {layer} {reason}", False
        in_chunks = in_chunks and gate is None and _own_score_is_known(host, layer, query, key, scores)
    if reason := _cache_problem(host, tokens, logits):
        return reason, False
    if in_chunks and not _leaks(host):
        return "", True
    return _problem_of_one_token(host), False


def _tokens(host: Host) -> Tensor:
    """A few tokens. How many differs from the numbers of heads, so that no axis can pass for another."""
    length = next(n for n in range(3, 9) if n not in (host.shape.heads, host.shape.kv_heads))
    return torch.arange(length, device=host.device)[None] % host.shape.vocabulary


def _disagreement(
    host: Host,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scores: Tensor,
    pattern: Tensor,
    output: Tensor,
    gate: Tensor | None,
) -> str:
    """How the tensors of a layer's attention disagree with each other; an empty text where they agree."""
    heads, length = host.shape.heads, scores.shape[-1]
    if pattern.shape != (1, heads, length, length) or any(
        tensor.ndim != 4 or tensor.shape[:2] != (1, length) or heads % tensor.shape[2] for tensor in (query, key, value)
    ):
        tensors = zip(_PARTS, (query, key, value, scores, pattern), strict=False)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
        return f"the shapes are not those of {heads} heads and {length} tokens: {shapes}"
    wide, values = pattern.float(), per_query_head(value, heads).float()
    softmax = scores.float().softmax(-1) * wide.sum(-1, keepdim=True)  # an attention sink takes its part of each row
    if not _near(softmax, pattern, softmax):
        return "the attention pattern is not the softmax of the scores"
    made = einsum(wide, values, "b h q k, b k h d -> b q h d")
    size = einsum(wide, values.abs(), "b h q k, b k h d -> b q h d")
    if gate is not None:
        opening = rearrange(gate.float().sigmoid(), "b q (h d) -> b q h d", h=heads)
        made, size = made * opening, size * opening
    if made.shape != output.shape or not _near(made, output, size):
        return "the head output is not the attention pattern times the values"
    return ""


def _own_score_is_known(host: Host, layer: int, query: Tensor, key: Tensor, scores: Tensor) -> bool:
    """Whether a token's attention score for itself is its scaled query times its key, as `host.own_score` says."""
    own = host.own_score(layer)
    products = query.float() * per_query_head(key, host.shape.heads).float()
    products = products if own.weights is None else products * own.weights
    return _near(own.of(products.sum(-1)), scores.diagonal(0, -2, -1).mT, own.scale * products.abs().sum(-1))


def _near(expected: Tensor, found: Tensor, size: Tensor) -> bool:
    """Whether two tensors are equal but for rounding in the model's precision. `size` is the sum of the terms' magnitudes."""
    tolerance = max(1e-3, 16 * torch.finfo(found.dtype).eps)
    error = (expected - found.float()).abs()
    allowed = (error <= tolerance * size + 1e-6) | ~torch.isfinite(error)  # NaNs are reported later, by position
    return bool(allowed.all())


def _leaks(host: Host) -> bool:
    """Whether anything but keys and values carries one position's residual stream to another's logits."""
    leaves: list[Tensor] = []

    def cut(tensor: Tensor, hook: Any) -> Tensor:
        return tensor.detach()

    hooks = [host.at_residual(0, _leaf(leaves))]
    for layer in host.attention_layers:
        if layer > 0:
            hooks += [host.at_keys(layer, cut), host.at_values(layer, cut)]
    with torch.inference_mode(False), torch.enable_grad():
        last = host.forward(_tokens(host), hooks)[0, -1].float()
        (gradient,) = torch.autograd.grad(last.logsumexp(0), leaves)
    return bool(gradient[0, :-1].nan_to_num().any())


def _leaf(leaves: list[Tensor]) -> Function:
    """A function that makes a tensor a leaf of the graph, and adds it to `leaves`."""

    def leaf(tensor: Tensor, hook: Any) -> Tensor:
        leaves.append(tensor.detach().requires_grad_(True))
        return leaves[-1]

    return leaf


def _problem_of_one_token(host: Host) -> str:
    """The reason why a model fails where the backward pass of one token, read over a cache, does not give the gradient of that
    token's own loss by its own patterns alone; an empty text where it does.
    """
    tokens, cache = _tokens(host), host.new_cache()
    leaves: list[Tensor] = []
    hook = host.at_pattern(host.attention_layers[0], _leaf(leaves))
    for position in range(tokens.shape[1]):
        with torch.inference_mode(False), torch.enable_grad():
            last = host.forward(tokens[:, position : position + 1], [hook], cache)[0, -1].float()
            gradients: tuple[Tensor | None, ...] = torch.autograd.grad(last.logsumexp(0), leaves, allow_unused=True)
        if gradients[-1] is None:
            return "what its attention pattern is replaced with has no effect"
        if any(gradient is not None for gradient in gradients[:-1]):
            return "tokens meet elsewhere than in attention and in the states of the cache"
    return ""


def _cache_problem(host: Host, tokens: Tensor, logits: Tensor) -> str:
    """The reason why a model fails that does not continue over a cache; an empty text where it does continue."""
    keys: list[int] = []

    def count(pattern: Tensor, hook: Any) -> None:
        keys.append(pattern.shape[-1])

    length = tokens.shape[1]
    for first in (length - 1, 1):  # one token is left over, or several
        cache = host.new_cache()
        with torch.no_grad():
            host.forward(tokens[:, :first], [], cache)
            rest = host.forward(tokens[:, first:], [host.at_pattern(host.attention_layers[-1], count)], cache)
        if keys.pop() != length:
            return (
                f"it does not read its cache (transformer-lens {version('transformer-lens')}, transformers "
                f"{version('transformers')})"
            )
        # In half precision a rounding can send a token to another expert, and where activations are rounded to 8 bits, to
        # another step of theirs. There the model must only run, and the test suite checks what it computes.
        exact = logits.dtype in (torch.float32, torch.float64) and not host.quantization
        if exact and not _near(logits[:, first:].float(), rest, logits.abs().max().float()):
            return "over a cache it does not continue as if it had read everything at once"
    return ""
