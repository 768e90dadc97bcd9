"""Let a model answer prompts, greedily or by sampling, in batches, with interventions.

In: prompts. Out: a `Trace` for each sample, made from the tokens that the model really produced. The decoding loop is Hugging
Face's.

1. Prompts of like length are decoded together, left-padded; as many at a time as memory allows.
2. A sampled token is read off one uniform number: the first token at which the cumulative probability, most likely token
   first, exceeds it. The numbers come from the seed, the prompt's tokens and the sample's number alone (an equal prompt earlier
   in the list counts as earlier samples), so an answer depends neither on the batch it was decoded in nor on other prompts, but
   for rounding.
3. A response ends with the first end-of-sequence token, of the tokenizer or of the model's generation settings.
"""

import hashlib
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepsal.errors import InputError, NumericalError
from stepsal.interventions.base import Intervention, as_interventions
from stepsal.interventions.intervene import Interventions, intervene
from stepsal.models import host_of
from stepsal.models.host import Model
from stepsal.models.memory import free_bytes
from stepsal.traces.formats import FormatSpec, StepsSpec
from stepsal.traces.prompt import Prompt, encode_prompt
from stepsal.traces.segment import question_length
from stepsal.traces.trace import Trace, split_tokens, unopened


def generate(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    interventions: Intervention | Sequence[Intervention] | Interventions = (),
    max_new_tokens: int = 512,
    batch_size: int = 8,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    progress: bool = True,
) -> list[Trace]:
    """Responses as traces, in the order of the prompts, the samples of one prompt together.

    Args:
        model: a `TransformerBridge`, from `load_model` or booted by you.
        prompts: texts as the model sees them, or lists of chat messages for the tokenizer's template.
        interventions: what acts while decoding, such as `stepsal.stepflow()`; or, for its `report()`, what
            `stepsal.intervene` gave, inside its context.
        max_new_tokens: where a response is cut; `trace.meta["truncated"]` says whether it was.
        batch_size: sequences decoded together at most. Fewer where free memory would not do: `meta["batch_size"]` and a
            warning say so.
        temperature: 0 takes the most likely token each time; above 0, what logits are divided by before sampling. The
            model's own generation settings (temperature, repetition penalty, ...) are not used.
        top_p: sample from the most likely tokens that together have this probability.
        samples: responses for each prompt.
        seed: of the sampling. The same prompt given twice gets different samples, like `samples=2`.
        format, steps: how the traces are split, as in `Trace.from_text`. An answer that closes a thinking which nothing opened
            stays as it is, with `meta["unopened_thinking"]` and a warning.
        progress: show a progress bar. Nothing is kept of an interrupted call: `stepsal generate` goes on where it stopped.

    Raises:
        NumericalError: logits that are not finite while sampling.
        UnsupportedModelError: a `HookedTransformer`, which has no such loop.
        InputError: no room for `max_new_tokens` in the model's context, an empty prompt, numbers out of range, or no token that
            ends a sequence.

    >>> from stepsal import generate, load_model
    >>> model = load_model()
    >>> trace, = generate(model, ["Facts: k = 37. m = k + 25."], max_new_tokens=4, progress=False)
    >>> trace.meta["truncated"]
    True
    """
    from tqdm import tqdm

    if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], Mapping)):
        raise InputError(f"prompts={str(prompts)[:60]!r} is one prompt: give a list of prompts, [prompt]")
    decoding = Decoding(max_new_tokens, batch_size, temperature, top_p, samples, seed)
    encoded = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    traces: dict[int, Trace] = {}
    with tqdm(total=len(prompts) * samples, desc="generating", unit="trace", disable=not progress) as bar:
        for batch in stream(model, encoded, decoding, interventions, format=format, steps=steps):
            traces.update(batch)
            bar.update(len(batch))
    return [traces[index] for index in range(len(traces))]


@dataclass(frozen=True)
class Decoding:
    """How responses are decoded; see `generate`."""

    max_new_tokens: int = 512
    batch_size: int = 8
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch_size", "samples", "seed"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise InputError(f"{name}={getattr(self, name)!r} must be a whole number")
        if min(self.max_new_tokens, self.batch_size, self.samples) < 1:
            raise InputError(
                f"max_new_tokens={self.max_new_tokens}, batch_size={self.batch_size} and samples={self.samples} must be at "
                "least 1"
            )
        if self.temperature != 0 and not 1e-6 <= self.temperature < float("inf"):
            raise InputError(f"temperature={self.temperature} must be 0 (the most likely token) or at least 1e-6")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must be above 0 and at most 1: it is a share of the probability")
        if self.seed < 0:
            raise InputError(f"seed={self.seed} must be a whole number, at least 0")
        if self.temperature == 0 and self.samples > 1:
            raise InputError(
                f"samples={self.samples} at temperature=0 would all be alike: give a temperature, such as 0.6"
            )


def stream(
    model: Model,
    encoded: Sequence[list[int]],
    decoding: Decoding,
    interventions: Intervention | Sequence[Intervention] | Interventions = (),
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    skip: Collection[int] = (),
) -> Iterator[dict[int, Trace]]:
    """`generate` of encoded prompts, batch by batch as they are done: index in its result -> trace; without those in `skip`."""
    host_of(model).check_decodes()
    tokenizer = model.tokenizer
    _check_room(model, encoded, decoding)
    given = None
    if isinstance(interventions, Interventions):
        given, parts = interventions, interventions.interventions
        if (format, steps) not in (("auto", "auto"), (given.format, given.steps)):
            raise InputError(
                f"format={format!r} and steps={steps!r} differ from those of `intervene`, {given.format!r} and {given.steps!r}"
            )
        format, steps = given.format, given.steps
    else:
        parts = as_interventions(interventions)
    units = [unit for unit in _units(encoded, decoding.samples) if unit.index not in skip]
    if not units:
        return
    units.sort(key=lambda unit: len(unit.prompt))  # little padding: prompts of like length together
    own = intervene(model, parts, format=format, steps=steps) if parts and given is None else nullcontext(given)
    with own as live:
        warned = False
        while units:
            fit, reason = _affordable(model, units, decoding)
            if reason and not warned:
                warnings.warn(reason, stacklevel=3)
                warned = True
            batch, units = units[:fit], units[fit:]
            if live is not None:
                live.question_tokens = [question_length(tokenizer, unit.prompt, format) for unit in batch]
            meta: dict[str, Any] = {"interventions": [each.record for each in parts]} if parts else {}
            if reason:
                meta["batch_size"] = fit
            responses = _decode(model, batch, decoding)
            if live is not None:
                live.question_tokens = None
            yield {
                unit.index: _trace(model, unit, response, decoding, meta, format, steps)
                for unit, response in zip(batch, responses, strict=True)
            }


@dataclass(frozen=True)
class _Unit:
    """One response to make: its index in the result, its prompt's, the sample, and which of this prompt's answers it is."""

    index: int
    prompt_index: int
    sample: int
    draw: int
    prompt: list[int]


def _units(encoded: Sequence[list[int]], samples: int) -> list[_Unit]:
    seen: dict[tuple[int, ...], int] = {}
    units = []
    for prompt_index, prompt in enumerate(encoded):
        before = seen.get(tuple(prompt), 0)
        seen[tuple(prompt)] = before + samples
        units += [
            _Unit(prompt_index * samples + sample, prompt_index, sample, before + sample, prompt)
            for sample in range(samples)
        ]
    return units


def _check_room(model: Model, encoded: Sequence[list[int]], decoding: Decoding) -> None:
    host = host_of(model)
    context, longest = host.shape.context, max(map(len, encoded), default=0)
    if longest + decoding.max_new_tokens > context:
        which = next(index for index, each in enumerate(encoded) if len(each) == longest)
        fix = f"use max_new_tokens={context - longest} at most" if longest < context else "shorten it, or leave it out"
        raise InputError(
            f"prompt {which}, of {longest} tokens, and max_new_tokens={decoding.max_new_tokens} do not fit the model's context "
            f"of {context}: {fix}"
        )
    if not host.stop_tokens():
        raise InputError("the tokenizer has no end-of-sequence token, so no answer would end: set tokenizer.eos_token")


def _affordable(model: Model, units: list[_Unit], decoding: Decoding) -> tuple[int, str]:
    """How many of the next units to decode together, and, where that is for lack of memory, a sentence that says so."""
    size = min(decoding.batch_size, len(units))
    longest = len(units[size - 1].prompt)
    host = host_of(model)
    each = host.decoding_bytes(longest, longest + decoding.max_new_tokens)
    free = free_bytes(host.device)
    fit = max(1, int(0.8 * free / each))
    if fit >= size:
        return size, ""
    reason = (
        f"batch_size={decoding.batch_size} would need about {decoding.batch_size * each / 2**30:.2g} GiB and "
        f"{free / 2**30:.2g} GiB are free: decoding {fit} sequence(s) at a time"
    )
    return min(size, fit), reason


def _trace(
    model: Model,
    unit: _Unit,
    response: list[int],
    decoding: Decoding,
    meta: dict[str, Any],
    format: FormatSpec,
    steps: StepsSpec,
) -> Trace:
    name = f"trace-{unit.prompt_index}" + (f"-{unit.sample}" if decoding.samples > 1 else "")
    sampling = {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "seed": decoding.seed,
        "sample": unit.draw,
    }
    meta = (
        {"truncated": response[-1] not in host_of(model).stop_tokens()}
        | (sampling if decoding.temperature else {})
        | meta
    )
    tokens, length = unit.prompt + response, len(unit.prompt)
    trace = split_tokens(model.tokenizer, tokens, format, steps, length, id=name, meta=meta)
    if format == "auto" and (found := unopened(trace)):
        trace.meta["unopened_thinking"] = True
        warnings.warn(
            f"an answer has {found[2]!r}, but nothing opens the thinking, so all of it counts as summary. Let the prompts end "
            f"with {found[1]!r}, or give format={found[0]!r}.",
            stacklevel=4,
        )
    return trace


def _decode(model: Model, units: list[_Unit], decoding: Decoding) -> list[list[int]]:
    """The responses, up to and including the first token that ends a sequence."""
    host = host_of(model)
    ends, known = host.stop_tokens(), len(model.tokenizer)  # a vocabulary may be padded
    width, device = max(len(unit.prompt) for unit in units), host.device
    tokens = torch.full((len(units), width), min(ends))
    mask = torch.zeros_like(tokens)
    for row, unit in enumerate(units):
        tokens[row, width - len(unit.prompt) :] = torch.tensor(unit.prompt)
        mask[row, width - len(unit.prompt) :] = 1
    numbers = None
    if decoding.temperature > 0:
        drawn = np.stack([_numbers(unit, decoding) for unit in units])
        numbers = torch.from_numpy(np.minimum(drawn, 1 - 2**-24)).to(torch.float32)  # rounding must not give 1

    def choose(so_far: Tensor, logits: Tensor) -> Tensor:
        logits = logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= known, -torch.inf)
        if numbers is None:
            return logits
        number = numbers[:, so_far.shape[1] - width].to(logits.device)
        chosen = draw(logits, decoding.temperature, decoding.top_p, number)
        return torch.full_like(logits, -torch.inf).scatter(1, chosen[:, None], 0.0)

    with torch.no_grad(), host.frozen():
        output = host.decode(tokens.to(device), mask.to(device), decoding.max_new_tokens, ends, choose)
    responses = []
    for row in output[:, width:].tolist():
        stop = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
        responses.append(row[:stop])
    return responses


def _numbers(unit: _Unit, decoding: Decoding) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One uniform number for each token of a response."""
    digest = hashlib.sha256(np.asarray(unit.prompt, dtype="<i8").tobytes()).digest()
    words = [int.from_bytes(digest[at : at + 4], "little") for at in range(0, 16, 4)]
    return np.random.default_rng([decoding.seed, unit.draw, *words]).random(decoding.max_new_tokens)


def draw(
    logits: Float[Tensor, "batch vocabulary"], temperature: float, top_p: float, numbers: Float[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """One token for each row, read off a uniform number in [0, 1).

    >>> draw(torch.log(torch.tensor([[0.2, 0.5, 0.3]] * 3)), 1.0, 0.75, torch.tensor([0.0, 0.6, 0.99])).tolist()
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
