"""How much each earlier token influences the next prediction: attention times gradient, exactly, in one pass.

In: a model and a `Trace`. Out: a token map (`token_influence`) or, pooled on the way, a `StepMap` (`step_saliency`).

    I[layer, head, t, k] = | A[layer, head, t, k] * dL_t / dA[layer, head, t, k] |,    L_t = -log p(x[t+1] | x[..t])

Every row `t` has its own loss, so the definition asks for one backward pass per token. A single pass suffices:

1. `A[layer, head, t, :]` changes only the residual stream of position `t`, and `L_t` reads only position `t`. So the gradient
   through the keys and values of every *other* position is cut: they enter attention detached.
2. A position's own key and value do carry gradient. It is restored by terms of value zero (`sg` = stop gradient):
       score_tt += scale * sg(q_t) . (k_t - sg(k_t)),     z_t += sg(A_tt) * (v_t - sg(v_t)).
3. `sum_t L_t` is back-propagated once. The gradient that reaches a pattern is `dL_t / dA[t, :]` for every `t` at once. A
   tensor hook multiplies it by the pattern, pools the product and drops it.
4. Since past keys and values are detached anyway, the trace runs through the model in chunks of queries over a growing
   key-value cache, with a forward and a backward pass for each chunk. Memory grows with `chunk * T`, not with
   `T^2 * layers * heads`.
5. Short traces may share a pass: each is a row of a batch, with its padding to the right, where causal attention lets no token
   of the trace read it. The padding's own rows of the gradient, which reach nothing else, are left out (`saliency_together`).
6. Where tokens also meet in a recurrence or a convolution, cutting keys and values is not enough. There a chunk is one token:
   its own patterns reach its loss through its own position alone, and all else comes out of the cache, which is constant.

Steps 1 and 2 and the hooks of step 3 are in `stepsal.saliency.gradients`. The last token has no target and nothing else reads
it, so it never enters the model. Source: method.md section 2.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepsal._version import __version__
from stepsal.checks import checked
from stepsal.errors import InputError, NumericalError
from stepsal.models import host_of
from stepsal.models.checks import a_model
from stepsal.models.host import Host, Model
from stepsal.models.layer_choice import LayerSpec, resolve_layers
from stepsal.models.memory import free_bytes, peak_bytes, spread
from stepsal.models.support import check_supported, reads_in_chunks
from stepsal.saliency.attention import in_float32, keeping_repeats_once
from stepsal.saliency.gradients import WITHOUT_GRADIENT, PatternReader, Receive, Rule, check_logits
from stepsal.saliency.patterns import AttentionReader
from stepsal.saliency.pooling import StepPool, count_pairs
from stepsal.saliency.stepmap import StepMap
from stepsal.traces.checks import a_trace
from stepsal.traces.trace import Trace, check_made_with

Objective = Literal["token", "sequence", "answer"]
Score = Literal["loss", "logit", "margin"]

# Longer chunks were no faster on a CPU and took more than half of the floor's memory (benchmarks/saliency.py). The other two
# numbers are estimates (docs/precision.md).
MAX_CHUNK = {"cpu": 192, "cuda": 512, "mps": 256}
# A chunk with this many pairs of a query and a key is long enough, so that the patterns of a chunk stop growing with the length
# of the trace. With this limit 32k tokens of a 7B model should fit into 60 GB (docs/precision.md).
ENOUGH_PAIRS = 3 * 2**20


@checked(model=a_model, trace=a_trace)
def step_saliency(
    model: Model,
    trace: Trace,
    *,
    objective: Objective = "token",
    rule: Rule = "abs",
    score: Score = "loss",
    layers: LayerSpec = "all",
    chunk: int | Literal["auto"] = "auto",
    answer: tuple[int, int] | None = None,
    progress: bool = False,
) -> StepMap:
    """The step map of a trace: influence summed over the token pairs of each pair of steps.

    Args:
        model: a `TransformerBridge`, from `load_model` or booted by you, or a `HookedTransformer` of TransformerLens 3.9.
        trace: the trace. Its tokens are fed to the model as they are.
        objective: the loss that is differentiated. With `token` every row has its own next-token loss (the paper's
            equation). With `sequence` the whole trace has one loss (the official code), so that row `t` also contains what
            row `t` does to later tokens. With `answer` it is the summed loss of the tokens of `answer`, seen from every row.
        rule: `abs` is |A * dL/dA|, `signed` is A * dL/dA, and `grad` is |dL/dA|. Two baselines need no gradient: `attention` is
            A alone, and `value_attention` is A times the norm of the output-projected value, ||A v W_O||.
        score: what is differentiated. `loss` is the paper's L; its gradient shrinks with 1 - p, so rows of which the model is
            sure go dark whatever they read. `logit` is the logit of the token that follows, and `margin` is that logit minus
            the largest other one.
        layers: `"all"`, `"shallow"`, `"deep"`, an index or several indices.
        chunk: the number of query positions in a pass with the `token` objective. `"auto"` chooses it from the free memory.
            The result does not depend on it. The other objectives need the whole graph at once.
        answer: the token positions `[start, stop)` whose loss is summed, for `objective="answer"`.
        progress: whether to show a progress bar.

    Returns:
        A `StepMap` in float32 on the CPU. Its `meta` says how it was made.

    Raises:
        InputError: an option is unknown, a token is not in the model's vocabulary, or the trace is longer than the model's
            context.
        UnsupportedModelError: the result would not be exact with this model (`value_attention`: where head outputs are
            gated). It is raised before any work is done.
        NumericalError: a value is NaN or infinite. The message names the layer and the position.

    >>> from stepsal import Trace, load_model, step_saliency
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> step_saliency(model, trace)
    StepMap(8 layers, 4 heads, 3 steps)
    """
    check_options(len(trace.tokens), objective, rule, chunk, answer, score)
    host = host_of(model)
    size, indices = host.shape, resolve_layers(layers, host.shape.layers, host.attention_layers or None)
    pool = StepPool(trace.steps, len(indices), size.heads)
    meta = _run(model, trace, objective, rule, score, indices, chunk, answer, progress, pool)
    return StepMap(pool.mass, count_pairs(trace.steps), trace.steps, indices, meta)


def saliency_together(
    model: Model, traces: Sequence[Trace], *, rule: Rule = "abs", score: Score = "loss", layers: LayerSpec = "all"
) -> list[StepMap]:
    """The step maps of short traces that share one forward and one backward pass; `rule` is one with a gradient.

    They are those of `step_saliency`, but for the rounding of float32. Where memory is short, each trace has passes of its own;
    and so it has where a number is not finite, so that the error is of one trace.

    >>> from stepsal import Trace, load_model
    >>> model = load_model()
    >>> texts = ("So k.</think>37", "37</think>37")
    >>> saliency_together(model, [Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", text) for text in texts])
    [StepMap(8 layers, 4 heads, 3 steps), StepMap(8 layers, 4 heads, 3 steps)]
    """
    host = host_of(model)
    longest = max(len(trace.tokens) for trace in traces)
    if _fit_together(host, len(traces), longest):
        with suppress(NumericalError):
            return _together(model, traces, longest, rule, score, layers)
    return [step_saliency(model, trace, rule=rule, score=score, layers=layers) for trace in traces]


def _together(
    model: Model, traces: Sequence[Trace], longest: int, rule: Rule, score: Score, layers: LayerSpec
) -> list[StepMap]:
    for trace in traces:
        check_trace(model, trace)
    check_supported(model)
    started = time.monotonic()
    host = host_of(model)
    size, indices = host.shape, resolve_layers(layers, host.shape.layers, host.attention_layers or None)
    pools = [StepPool(trace.steps, len(indices), size.heads) for trace in traces]
    tokens = torch.zeros(len(traces), longest, dtype=torch.long)
    for row, trace in zip(tokens, traces, strict=True):
        row[: len(trace.tokens)] = trace.tokens

    def own(pool: StepPool, queries: int) -> Receive:
        """Leaves out the padding. Its rows of the gradient depend on no row of the trace, and the trace's on none of them."""
        return lambda index, start, block: pool(index, start, block[:, :queries, :queries])

    receive = [own(pool, len(trace.tokens) - 1) for pool, trace in zip(pools, traces, strict=True)]
    with host.frozen():
        _run_chunk(host, tokens.to(host.device), rule, score, indices, 0, longest - 1, None, receive)
    about = {"objective": "token", "rule": rule, "answer": None, "chunk": longest - 1, "score": score}
    begun = time.monotonic() - (time.monotonic() - started) / len(traces)  # a trace's share
    return [
        StepMap(pool.mass, count_pairs(trace.steps), trace.steps, indices, about | record_of_run(host, trace, begun))
        for pool, trace in zip(pools, traces, strict=True)
    ]


def _fit_together(host: Host, rows: int, length: int) -> bool:
    """Whether there is memory for a pass of so many traces of this length."""
    once, per_query = _bytes_kept(host, length)
    need = rows * (once + length * per_query)
    return all(need <= 0.8 * free_bytes(device) / share for device, share in spread(host.model).items())


@checked(model=a_model, trace=a_trace)
def token_influence(
    model: Model,
    trace: Trace,
    *,
    objective: Objective = "token",
    rule: Rule = "abs",
    score: Score = "loss",
    layers: LayerSpec = "all",
    answer: tuple[int, int] | None = None,
) -> Float[Tensor, "layer head query key"]:
    """The token-to-token influence map itself, for short traces, since it holds `layers * heads * tokens^2` numbers.

    The arguments and errors are those of `step_saliency`. The last row is zero, because the last token has no target.

    >>> from stepsal import Trace, load_model, token_influence
    >>> model = load_model()
    >>> trace = Trace.from_text(model.tokenizer, "Facts: k = 37.<think>", "First k = 37.</think>So 37.")
    >>> token_influence(model, trace).shape == (8, 4, len(trace.tokens), len(trace.tokens))
    True
    """
    check_options(len(trace.tokens), objective, rule, "auto", answer, score)
    host = host_of(model)
    size, indices = host.shape, resolve_layers(layers, host.shape.layers, host.attention_layers or None)
    length = len(trace.tokens)
    influence = torch.zeros(len(indices), size.heads, length, length)

    def store(index: int, start: int, block: Float[Tensor, "head query key"]) -> Tensor:
        influence[index, :, start : start + block.shape[1], : block.shape[2]] = block
        return block

    _run(model, trace, objective, rule, score, indices, "auto", answer, False, store)
    return influence


def _run(
    model: Model,
    trace: Trace,
    objective: Objective,
    rule: Rule,
    score: Score,
    layers: tuple[int, ...],
    chunk: int | Literal["auto"],
    answer: tuple[int, int] | None,
    progress: bool,
    receive: Receive,
) -> dict[str, Any]:
    """Check the trace and the model, run the trace through the model, and hand each block of influence to `receive`.

    Returns the `meta` of the map.
    """
    check_trace(model, trace)
    check_supported(model)
    started = time.monotonic()
    host = host_of(model)
    tokens = trace.tokens.to(host.device)[None]
    with host.frozen():
        if rule in WITHOUT_GRADIENT:
            size = _chunk_size(host, len(trace.tokens), chunk)
            _read_attention(host, tokens, rule, layers, size, progress, receive)
        elif objective == "token":
            size = (
                _chunk_size(host, len(trace.tokens), chunk) if reads_in_chunks(model) else _one_at_a_time(host, chunk)
            )
            _run_chunks(host, tokens, rule, score, layers, size, progress, receive)
        else:
            size = len(trace.tokens) - 1
            _warn_if_large(host, size, objective)
            _run_whole(host, tokens, rule, score, layers, answer or (1, size + 1), receive)
    about = {"objective": objective, "rule": rule, "answer": list(answer) if answer else None, "chunk": size}
    return about | ({} if rule in WITHOUT_GRADIENT else {"score": score}) | record_of_run(host, trace, started)


def record_of_run(host: Host, trace: Trace, started: float) -> dict[str, Any]:
    """What the `meta` of any result says of its model, its trace and the work; `started` is of `time.monotonic`."""
    return host.describe() | {
        "tokens": len(trace.tokens),
        "model_layers": host.shape.layers,
        "trace": trace.id,
        "correct": trace.correct,
        "stepsal": __version__,
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - started, 3),
        "peak_memory_bytes": peak_bytes(spread(host.model)),
    }


def _run_chunks(
    host: Host,
    tokens: Tensor,
    rule: Rule,
    score: Score,
    layers: tuple[int, ...],
    chunk: int,
    progress: bool,
    receive: Receive,
) -> None:
    cache = host.new_cache()
    for start, stop in _chunks(tokens, chunk, progress):
        _run_chunk(host, tokens, rule, score, layers, start, stop, cache, [receive])


def _chunks(tokens: Int[Tensor, "1 pos"], chunk: int, progress: bool) -> Iterator[tuple[int, int]]:
    """The first query of each chunk, and where it ends. The last token is no query."""
    from tqdm import tqdm

    queries = tokens.shape[1] - 1
    with tqdm(total=queries, desc="saliency", unit="tok", disable=not progress) as bar:
        for start in range(0, queries, chunk):
            stop = min(start + chunk, queries)
            yield start, stop
            bar.update(stop - start)


def _read_attention(
    host: Host,
    tokens: Tensor,
    rule: Rule,
    layers: tuple[int, ...],
    chunk: int,
    progress: bool,
    receive: Receive,
) -> None:
    reader, cache = AttentionReader(host, rule, layers, receive), host.new_cache()
    with torch.no_grad():
        for start, stop in _chunks(tokens, chunk, progress):
            logits = host.forward(tokens[:, start:stop], in_float32(host, reader.hooks(start)), cache)
            check_logits(host, logits, tokens[:, :stop], start)


def _run_chunk(
    host: Host,
    tokens: Tensor,
    rule: Rule,
    score: Score,
    layers: tuple[int, ...],
    start: int,
    stop: int,
    cache: Any,
    receive: Sequence[Receive],
) -> None:
    """Run one chunk of every row of a batch forward and backward.

    This is a function of its own so that the memory of a chunk is free before the next one begins.
    """
    size = host.shape
    scales: Tensor | None = None

    def unscaled(row: int) -> Receive:
        def hand_on(index: int, start: int, block: Tensor) -> Tensor:
            own = block if scales is None else block / scales[row].to(block.device)[:, None]
            return receive[row](index, start, own)

        return hand_on

    cut = stop - start > 1  # a single token has nothing to cut: what the cache holds is constant
    reader = PatternReader(host, rule, layers, start, [unscaled(row) for row in range(len(receive))], cut=cut)
    with keeping_repeats_once(size.heads, size.kv_heads):
        logits = host.forward(tokens[:, start:stop], in_float32(host, reader.hooks()), cache)
    check_logits(host, logits, tokens[:, :stop], start)
    targets = tokens[:, start + 1 : stop + 1]
    gradient = _score_gradient(logits.detach(), targets, score)
    if logits.dtype == torch.float16 and score == "loss":  # the others' are 1 at the target already
        losses = F.cross_entropy(logits.detach().float().mT, targets.to(logits.device), reduction="none")
        scales = row_scales(losses)
        gradient = gradient * scales[..., None]
    reader.backward(logits, gradient.to(logits.dtype))


def _run_whole(
    host: Host,
    tokens: Tensor,
    rule: Rule,
    score: Score,
    layers: tuple[int, ...],
    target: tuple[int, int],
    receive: Receive,
) -> None:
    reader = PatternReader(host, rule, layers, 0, [receive], cut=False)
    size = host.shape
    with keeping_repeats_once(size.heads, size.kv_heads):
        logits = host.forward(tokens[:, :-1], in_float32(host, reader.hooks()))
    check_logits(host, logits, tokens[:, :-1], 0)
    start, stop = target
    scored = logits[:, start - 1 : stop - 1]
    gradient = _score_gradient(scored[0].detach(), tokens[0, start:stop], score)
    reader.backward(scored, gradient.to(logits.dtype)[None])


def _score_gradient(
    logits: Float[Tensor, "*batch pos vocabulary"], targets: Int[Tensor, "*batch pos"], score: Score
) -> Float[Tensor, "*batch pos vocabulary"]:
    """The gradient of the summed score of all positions by the logits, in float32 or better.

    For the loss it is `p - 1` at each target and `p` elsewhere (autograd would need three tensors as large as the logits for
    it); for the logit 1 at each target; for the margin also -1 at the largest other logit.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    at = targets.to(logits.device)[..., None]  # of several devices
    if score == "loss":
        return torch.softmax(logits, -1, dtype=wide).scatter_add_(-1, at, torch.full_like(at, -1, dtype=wide))
    gradient = torch.zeros_like(logits, dtype=wide).scatter_(-1, at, 1)
    if score == "margin":
        best = logits.topk(2).indices
        gradient.scatter_(-1, torch.where(best[..., :1] == at, best[..., 1:], best[..., :1]), -1)
    return gradient


def row_scales(losses: Float[Tensor, "*batch pos"]) -> Float[Tensor, "*batch pos"]:
    """Powers of two that scale each row's gradient to a size of about 1, since float16 has no numbers below 6e-8.

    The largest derivative of a loss by a logit is the one by the target's logit, `1 - p`. Rows do not mix, so each row has a
    scale of its own. Its influence is divided by that scale, which is exact for powers of two.

    >>> row_scales(torch.tensor([3.0, 0.1, 0.0])).tolist()
    [2.0, 16.0, 16777216.0]
    """
    largest = -torch.expm1(-losses)
    return torch.exp2(-torch.floor(torch.log2(largest.clamp(min=2.0**-24))))


def check_trace(model: Model, trace: Trace) -> None:
    """Raise `InputError` unless the length, the token ids and the tokenizer of the trace fit the model."""
    size = host_of(model).shape
    check_fits(trace, size.context, size.vocabulary, getattr(model, "tokenizer", None))


def check_fits(trace: Trace, context: int, vocabulary: int, tokenizer: Any) -> None:
    """`check_trace`, of a model of which only its sizes and its tokenizer are here."""
    tokens = trace.tokens
    if len(tokens) < 2:
        raise InputError(f"a trace of {len(tokens)} token(s) predicts nothing: it needs at least two")
    if len(tokens) > context:
        raise InputError(
            f"the trace has {len(tokens)} tokens but the model's context is {context}: influence beyond the context would "
            "mean nothing. Use a model with a longer context, or shorten the trace yourself."
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
        bad = int(tokens.max()) if int(tokens.max()) >= vocabulary else int(tokens.min())
        raise InputError(
            f"token {bad} is outside the model's vocabulary (0 to {vocabulary - 1}): the trace was made with another "
            "tokenizer. Make the trace with this model's tokenizer."
        )
    check_made_with(tokenizer, trace)


def check_options(
    length: int, objective: str, rule: str, chunk: object, answer: tuple[int, int] | None, score: str = "loss"
) -> None:
    """Raise `InputError` for options that are unknown or do not go together."""
    for name, value, known in (
        ("objective", objective, get_args(Objective)),
        ("rule", rule, get_args(Rule)),
        ("score", score, get_args(Score)),
    ):
        if value not in known:
            raise InputError(f"unknown {name} {value!r}: expected one of {', '.join(known)}")
    if rule in WITHOUT_GRADIENT and score != "loss":
        raise InputError(f"rule={rule!r} differentiates nothing: leave out score={score!r}")
    if chunk != "auto" and (not isinstance(chunk, int) or chunk < 1):
        raise InputError(f"chunk {chunk!r} must be 'auto' or a whole number of query positions, at least 1")
    if chunk != "auto" and objective != "token":
        raise InputError(
            f"objective {objective!r} needs the whole graph and cannot run in chunks: leave out chunk={chunk!r}"
        )
    if (answer is None) == (objective == "answer"):
        raise InputError(
            f"objective={objective!r} with answer={answer!r}: give answer=(start, stop) with 'answer' only"
        )
    check_answer(length, answer)


def check_answer(length: int, answer: object) -> None:
    """Raise `InputError` unless these are token positions of a trace of this length, or None."""
    if answer is not None and not (isinstance(answer, tuple | list) and [type(each) for each in answer] == [int, int]):
        raise InputError(f"answer={answer!r} must be two token positions, (start, stop)")
    if isinstance(answer, tuple | list) and not 1 <= answer[0] < answer[1] <= length:
        raise InputError(f"answer {answer} must be token positions [start, stop) within 1 to {length}")


def _chunk_size(host: Host, length: int, chunk: int | Literal["auto"]) -> int:
    if chunk != "auto":
        return min(chunk, length - 1)
    once, per_query = _bytes_kept(host, length)
    shares = spread(host.model).items()
    fits = min(int((0.8 * free_bytes(device) / share - once) / per_query) for device, share in shares)
    enough = max(16, min(MAX_CHUNK[host.device.type], ENOUGH_PAIRS // length))
    return max(16, min(enough, fits, length - 1))


def _one_at_a_time(host: Host, chunk: int | Literal["auto"]) -> int:
    """The only exact chunk of such a model: one token. Raises `InputError` for another that was asked for."""
    if chunk not in ("auto", 1):
        raise InputError(
            f"chunk={chunk}: for {host.describe()['architecture']} only a backward pass over one token is exact. Leave the "
            "chunk out, or give chunk=1."
        )
    return 1


def _bytes_kept(host: Host, length: int) -> tuple[int, int]:
    """Estimates of the bytes that a chunk needs once, and of those that it needs for each of its queries.

    Once, it needs the keys and values in the cache and for the backward pass, and the repeated keys and values of one layer.
    For each query it needs a row of the pattern in every layer and about six more rows while a layer runs, the activations, and
    the logits with their gradient. `benchmarks/gpu.py --estimate` counts the bytes exactly.
    """
    size, element = host.shape, host.dtype.itemsize
    wide = max(4, element)
    keys = 2 * length * size.d_head * wide
    row = size.heads * length * wide
    once = keys * (2 * size.layers * size.kv_heads + 2 * size.heads)
    return once, (size.layers + 6) * row + size.layers * 24 * size.d_model * element + 16 * size.vocabulary


def _warn_if_large(host: Host, queries: int, objective: str) -> None:
    once, per_query = _bytes_kept(host, queries)
    need, free = once + queries * per_query, sum(map(free_bytes, spread(host.model)))
    if need > free:
        warnings.warn(
            f"objective {objective!r} keeps the whole graph: about {need / 2**30:.1f} GiB for {queries} tokens, but only "
            f"{free / 2**30:.1f} GiB are free. Use a shorter trace, or objective='token', which runs in chunks.",
            stacklevel=2,
        )
