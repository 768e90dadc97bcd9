"""Let a model answer prompts, greedily or by sampling, in batches, with interventions.

In: prompts. Out: a `Trace` for each sample, made from the tokens that the model really produced. The decoding loop is that of
the model's host (`Host.decode`): Hugging Face's for a bridge.

1. Prompts of like length are decoded together, left-padded; as many at a time as memory allows.
2. A sampled token is drawn with one uniform number (`stepsal.generation.sampling`). The numbers come from the seed, the
   prompt's tokens and the sample's number alone (an equal prompt earlier in the list counts as earlier samples), so an answer
   depends neither on the batch it was decoded in nor on other prompts, but for rounding.
3. A response ends with the first end-of-sequence token, of the tokenizer or of the model's generation settings.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stepsal.checks import checked
from stepsal.checks import prompts as check_prompts
from stepsal.errors import InputError
from stepsal.generation.sampling import draw_tokens, uniform_numbers
from stepsal.interventions.base import Intervention, as_interventions
from stepsal.interventions.intervene import Interventions, intervene
from stepsal.models import host_of
from stepsal.models.checks import a_model
from stepsal.models.host import Model
from stepsal.models.memory import free_bytes
from stepsal.traces.formats import FormatSpec, StepsSpec
from stepsal.traces.prompt import Prompt, encode_prompt, prompt_record
from stepsal.traces.segment import Tokenizer, question_length
from stepsal.traces.trace import Trace, split_tokens, unopened


@checked(model=a_model, prompts=check_prompts)
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
    """Let the model answer each prompt; the answers are traces, in the order of the prompts, the samples of a prompt together.

    Args:
        model: a `TransformerBridge`, from `load_model` or booted by you, or a `HookedTransformer` of TransformerLens 3.9.
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
        seed: the seed of the sampling. A prompt that is given twice gets different samples, like `samples=2`.
        format, steps: how the traces are split, as in `Trace.from_text`. An answer that closes a thinking which nothing opened
            stays as it is, with `meta["unopened_thinking"]` and a warning.
        progress: show a progress bar. An interrupted call keeps nothing; the command `stepsal generate` goes on where it
            stopped.

    Raises:
        NumericalError: logits that are not finite while sampling.
        UnsupportedModelError: a `HookedTransformer` with which decoding would not be exact.
        InputError: no room for `max_new_tokens` in the model's context, an empty prompt, numbers out of range, or no token that
            ends a sequence.

    >>> from stepsal import generate, load_model
    >>> model = load_model()
    >>> trace, = generate(model, ["Facts: k = 37. m = k + 25."], max_new_tokens=4, progress=False)
    >>> trace.meta["truncated"]
    True
    """
    from tqdm import tqdm

    decoding = Decoding(max_new_tokens, batch_size, temperature, top_p, samples, seed)
    encoded = [encode_prompt(model.tokenizer, prompt) for prompt in prompts]
    requests, traces = make_requests(encoded, samples), dict[int, Trace]()
    with tqdm(total=len(requests), desc="generating", unit="trace", disable=not progress) as bar:
        for batch in stream(model, requests, decoding, interventions, format=format, steps=steps):
            for index, trace in batch.items():
                made = prompt_record(model.tokenizer, prompts[index // samples])
                traces[index] = replace(trace, meta=trace.meta | made)
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
        for name in ("temperature", "top_p"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int | float):
                raise InputError(f"{name}={getattr(self, name)!r} must be a number")
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
    requests: Sequence["Request"],
    decoding: Decoding,
    interventions: Intervention | Sequence[Intervention] | Interventions = (),
    *,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
) -> Iterator[dict[int, Trace]]:
    """`generate`, one batch at a time: yields the traces of a finished batch by their requests' `index`."""
    host = host_of(model)
    host.check_decodes()
    tokenizer = model.tokenizer
    check_room(requests, decoding, host.shape.context, host.stop_tokens())
    check_beginnings(requests, tokenizer)
    installed = None
    if isinstance(interventions, Interventions):
        installed, chosen = interventions, interventions.interventions
        if (format, steps) not in (("auto", "auto"), (installed.format, installed.steps)):
            raise InputError(
                f"format={format!r} and steps={steps!r} differ from those of `intervene`, {installed.format!r} and "
                f"{installed.steps!r}"
            )
        format, steps = installed.format, installed.steps
    else:
        chosen = as_interventions(interventions)
    if not requests:
        return
    left = sorted(requests, key=lambda request: len(request.prompt))  # little padding: prompts of like length together
    install = chosen and installed is None
    context = intervene(model, chosen, format=format, steps=steps) if install else nullcontext(installed)
    with context as live:
        warned = False
        while left:
            fit, reason = _affordable(model, left, decoding)
            if reason and not warned:
                warnings.warn(reason, stacklevel=4)
                warned = True
            batch, left = left[:fit], left[fit:]
            meta: dict[str, Any] = {"interventions": [each.record for each in chosen]} if chosen else {}
            if reason:
                meta["batch_size"] = fit
            with _knowing_questions(live, [question_length(tokenizer, each.prompt, format) for each in batch]):
                responses = _decode(model, batch, decoding)
            yield {
                request.index: _trace(model, request, response, decoding, meta, format, steps)
                for request, response in zip(batch, responses, strict=True)
            }


@contextmanager
def _knowing_questions(live: Interventions | None, lengths: list[int]) -> Iterator[None]:
    """Interventions know how long the questions of a batch are; afterwards they know what they knew before."""
    if live is None:
        yield
        return
    before = live.question_tokens
    live.question_tokens = lengths
    try:
        yield
    finally:
        live.question_tokens = before


@dataclass(frozen=True)
class Request:
    """One response that is to be made.

    Attributes:
        index: the trace's index in the result.
        prompt: the prompt's tokens.
        prompt_index: the prompt's index in the list.
        sample: the response's number among the samples for this prompt.
        repetition: the response's number among all responses to this prompt and to equal ones earlier in the list.
    """

    index: int
    prompt: list[int]
    prompt_index: int
    sample: int
    repetition: int


def make_requests(encoded: Sequence[list[int]], samples: int) -> list[Request]:
    """The requests for so many samples of each prompt, given as token ids, in the order of the result."""
    asked: dict[tuple[int, ...], int] = {}
    requests = []
    for prompt_index, prompt in enumerate(encoded):
        before = asked.get(tuple(prompt), 0)
        asked[tuple(prompt)] = before + samples
        requests += [
            Request(prompt_index * samples + sample, prompt, prompt_index, sample, before + sample)
            for sample in range(samples)
        ]
    return requests


def in_batches(requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """The batches in which `stream` decodes the requests where memory allows, the one with the longest prompts first."""
    ordered = sorted(requests, key=lambda request: len(request.prompt))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)][::-1]


def check_room(requests: Sequence[Request], decoding: Decoding, context: int, stop_tokens: Collection[int]) -> None:
    """Raise `InputError` where a model of this context and with these end-of-sequence tokens could not end an answer."""
    longest = max((len(request.prompt) for request in requests), default=0)
    if longest + decoding.max_new_tokens > context:
        which = next(request.prompt_index for request in requests if len(request.prompt) == longest)
        fix = f"use max_new_tokens={context - longest} at most" if longest < context else "shorten it, or leave it out"
        raise InputError(
            f"prompt {which}, of {longest} tokens, and max_new_tokens={decoding.max_new_tokens} do not fit the model's context "
            f"of {context}: {fix}"
        )
    if not stop_tokens:
        raise InputError("the tokenizer has no end-of-sequence token, so no answer would end: set tokenizer.eos_token")


def check_beginnings(requests: Sequence[Request], tokenizer: Tokenizer) -> None:
    """Raise `InputError` for a prompt whose first token a trace would leave out, as padding."""
    pad, bos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos"))
    begun = [request.prompt_index for request in requests if pad not in (None, bos) and request.prompt[:1] == [pad]]
    if begun:
        raise InputError(
            f"prompt {begun[0]} begins with {tokenizer.decode([pad])!r}, the tokenizer's padding token, which a trace leaves "
            "out before its text: take it out of the prompt"
        )


def _affordable(model: Model, requests: list[Request], decoding: Decoding) -> tuple[int, str]:
    """How many of the next requests to decode together, and where memory is too short for the batch a sentence that says so."""
    size = min(decoding.batch_size, len(requests))
    longest = len(requests[size - 1].prompt)
    host = host_of(model)
    per_sequence = host.decoding_bytes(longest, longest + decoding.max_new_tokens)
    free = free_bytes(host.device)
    fit = max(1, int(0.8 * free / per_sequence))
    if fit >= size:
        return size, ""
    reason = (
        f"batch_size={decoding.batch_size} would need about {decoding.batch_size * per_sequence / 2**30:.2g} GiB and "
        f"{free / 2**30:.2g} GiB are free: decoding {fit} sequence(s) at a time"
    )
    return min(size, fit), reason


def _trace(
    model: Model,
    request: Request,
    response: list[int],
    decoding: Decoding,
    meta: dict[str, Any],
    format: FormatSpec,
    steps: StepsSpec,
) -> Trace:
    name = f"trace-{request.prompt_index}" + (f"-{request.sample}" if decoding.samples > 1 else "")
    sampling = {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "seed": decoding.seed,
        "sample": request.repetition,
    }
    meta = (
        {"truncated": response[-1] not in host_of(model).stop_tokens()}
        | (sampling if decoding.temperature else {})
        | meta
    )
    tokens, length = request.prompt + response, len(request.prompt)
    trace = split_tokens(model.tokenizer, tokens, format, steps, length, id=name, meta=meta)
    if format == "auto" and (found := unopened(trace, model.tokenizer)):
        trace.meta["unopened_thinking"] = True
        warnings.warn(
            f"an answer has {found[2]!r}, but nothing opens the thinking, so all of it counts as summary. Let the prompts end "
            f"with {found[1]!r}, or give format={found[0]!r}.",
            stacklevel=5,
        )
    return trace


def _decode(model: Model, requests: list[Request], decoding: Decoding) -> list[list[int]]:
    """The responses, up to and including the first token that ends a sequence."""
    host = host_of(model)
    ends, known = host.stop_tokens(), len(model.tokenizer)  # a vocabulary may be padded
    width, device = max(len(request.prompt) for request in requests), host.device
    tokens = torch.full((len(requests), width), min(ends))
    mask = torch.zeros_like(tokens)
    for row, request in enumerate(requests):
        tokens[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
        mask[row, width - len(request.prompt) :] = 1
    numbers = None
    if decoding.temperature > 0:
        count = decoding.max_new_tokens
        uniform = np.stack(
            [uniform_numbers(request.prompt, request.repetition, decoding.seed, count) for request in requests]
        )
        numbers = torch.from_numpy(np.minimum(uniform, 1 - 2**-24)).to(torch.float32)  # rounding must not give 1

    def choose(so_far: Tensor, logits: Tensor) -> Tensor:
        if logits.shape[1] > known:
            logits = logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= known, -torch.inf)
        if numbers is None:
            return logits
        number = numbers[:, so_far.shape[1] - width].to(logits.device)
        chosen = draw_tokens(logits, decoding.temperature, decoding.top_p, number)
        return torch.full_like(logits, -torch.inf).scatter(1, chosen[:, None], 0.0)

    with torch.no_grad(), host.frozen():
        output = host.decode(tokens.to(device), mask.to(device), decoding.max_new_tokens, ends, choose)
    responses = []
    for row in output[:, width:].tolist():
        stop = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
        responses.append(row[:stop])
    return responses
