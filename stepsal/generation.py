"""Let a model answer prompts: greedy decoding, in batches.

In: prompts. Out: a `Trace` each, made from the tokens that the model really produced. The decoding loop is Hugging Face's.
"""

from collections.abc import Sequence

import torch

from stepsal import host
from stepsal.errors import InputError
from stepsal.formats import FormatSpec, StepsSpec
from stepsal.host import Model
from stepsal.prompt import Prompt, encode_prompt
from stepsal.trace import Trace


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 512,
    batch_size: int = 8,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    progress: bool = True,
) -> list[Trace]:
    """Greedy responses as traces, in the order of the prompts; each ends with the end-of-sequence token or is truncated.

    Args:
        model: a `TransformerBridge`, from `load_model` or booted by you.
        prompts: texts as the model sees them, or lists of chat messages for the tokenizer's template.
        max_new_tokens: where a response is cut; `trace.meta["truncated"]` says whether it was.
        batch_size: prompts decoded together.
        format, steps: how the traces are split, as in `Trace.from_text`.
        progress: show a progress bar.

    Raises:
        InputError: no room for `max_new_tokens` in the model's context, an empty prompt, or a tokenizer without an end.

    >>> from stepsal import generate, load_model
    >>> model = load_model()
    >>> trace, = generate(model, ["Facts: k = 37. m = k + 25."], max_new_tokens=4, progress=False)
    >>> trace.meta["truncated"]
    True
    """
    from tqdm import tqdm

    tokenizer = model.tokenizer
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    context = host.shape(model).context
    longest = max((len(ids) for ids in encoded), default=0)
    if longest + max_new_tokens > context:
        raise InputError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} do not fit the model's context of {context}: "
            f"use max_new_tokens={max(1, context - longest)} at most"
        )
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token, so no answer would end: set tokenizer.eos_token")
    if max_new_tokens < 1 or batch_size < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1")
    order = sorted(
        range(len(encoded)), key=lambda i: len(encoded[i])
    )  # little padding: prompts of like length together
    traces: dict[int, Trace] = {}
    with tqdm(total=len(encoded), desc="generating", unit="trace", disable=not progress) as bar:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            for row, tokens in zip(rows, _decode(model, [encoded[i] for i in rows], max_new_tokens), strict=True):
                response = tokens[len(encoded[row]) :]
                truncated = tokenizer.eos_token_id not in response
                traces[row] = Trace.from_tokens(
                    tokenizer,
                    tokens,
                    format=format,
                    steps=steps,
                    prompt_tokens=len(encoded[row]),
                    id=f"trace-{row}",
                    meta={"truncated": truncated},
                )
            bar.update(len(rows))
    return [traces[i] for i in range(len(encoded))]


def _decode(model: Model, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Prompts and their greedy continuations, up to and including the first end-of-sequence token."""
    width, device = max(map(len, prompts)), host.device_of(model)
    end = model.tokenizer.eos_token_id
    tokens = torch.full((len(prompts), width), end)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    with torch.no_grad(), host.frozen(model):
        output = host.decode_greedily(model, tokens.to(device), mask.to(device), max_new_tokens)
    results = []
    for ids, row in zip(prompts, output[:, width:].tolist(), strict=True):
        stop = row.index(end) + 1 if end in row else len(row)
        results.append(ids + row[:stop])
    return results
