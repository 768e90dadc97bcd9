"""Sampling: one uniform number gives one token.

In: the logits of the next token, temperature, top-p, and a uniform number. Out: the token.

1. The logits over the temperature become probabilities, sorted with the most likely token first.
2. Top-p keeps the fewest of the first tokens that together reach the probability `top_p`.
3. The token is the first at which the cumulative probability of the kept ones exceeds the number.

The numbers come from `uniform_numbers`, so that an answer depends neither on the batch it is decoded in nor on other prompts.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.errors import NumericalError


def uniform_numbers(prompt: Sequence[int], repetition: int, seed: int, count: int) -> Float[np.ndarray, " pos"]:
    """The numbers that an answer's tokens are drawn with. They depend on the arguments alone.

    `repetition` counts the earlier answers to an equal prompt, so that no two answers get the same numbers.

    >>> uniform_numbers([1, 2], 0, 0, 3).shape
    (3,)
    """
    digest = hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).digest()
    words = [int.from_bytes(digest[at : at + 4], "little") for at in range(0, 16, 4)]
    return np.random.default_rng([seed, repetition, *words]).random(count)


def draw_tokens(
    logits: Float[Tensor, "batch vocabulary"], temperature: float, top_p: float, numbers: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """One token for each row, drawn with a uniform number in [0, 1). Raises `NumericalError` for logits that are not finite.

    >>> draw_tokens(torch.log(torch.tensor([[0.2, 0.5, 0.3]] * 3)), 1.0, 0.75, torch.tensor([0.0, 0.6, 0.99])).tolist()
    [1, 1, 2]
    """
    logits = logits.float()
    if bool(torch.isnan(logits).any() | (logits == torch.inf).any()):
        raise NumericalError(
            "the logits of the next token are not finite. Check the weights, or load the model in a wider precision "
            "(dtype='float32')."
        )
    cooled = (logits - logits.amax(-1, keepdim=True)) / temperature
    probabilities, order = torch.softmax(cooled, -1).sort(dim=-1, descending=True, stable=True)
    ends = probabilities.cumsum(-1)
    kept = (ends - probabilities < top_p).sum(-1, keepdim=True)  # at least the first
    limit = ends.gather(-1, kept - 1)
    index = (ends <= numbers[:, None] * limit).sum(-1, keepdim=True)
    return order.gather(-1, torch.minimum(index, kept - 1))[:, 0]
