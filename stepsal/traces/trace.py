"""Text to trace: tokens, and the steps they fall into, without losing a byte.

In: a tokenizer with a prompt and a response, or with the tokens a model really produced. Out: a `Trace`.

1. Positions that are no text are left out: padding before the text, what fills a row after its end token.
2. `from_text` turns prompt and response to tokens as a model that answers a prompt would see them: each by itself where
   that gives the text back exactly, else both together. What even that loses is recorded in `meta` and warned about.
3. `stepsal.traces.segment` decides from the tokens alone which of them open a step.
4. Each token's end in the decoded text comes from the same pass, never from re-tokenising a step: the steps' texts,
   joined, are the decoded text.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stepsal.checks import checked, instance, shown, whole
from stepsal.checks import tokenizer as check_tokenizer
from stepsal.errors import InputError
from stepsal.models.tokenizers import fingerprint
from stepsal.traces.formats import (
    LOOKS_LIKE_MARKER,
    FormatSpec,
    StepsSpec,
    find_formats,
    find_marker,
    how_to_name,
    last_marker,
    usual,
)
from stepsal.traces.prompt import Prompt, encode_text, prompt_record, prompt_text, starts_thinking
from stepsal.traces.segment import Segmenter, Tokenizer, decode, filling_token, marked_text, question_length

an_id = instance(str, "the trace's name, a text", "Give str(id).")
a_meta = instance(Mapping, "what is known of the trace, by name", "Give a dictionary, {'name': value}.", optional=True)
a_response = instance(str, "the text of the response", "Of token ids make a trace with `Trace.from_tokens`.")


@dataclass(frozen=True)
class Step:
    """A step of a trace: tokens `[start, stop)` and their text. `segment` is question, thinking or summary."""

    index: int
    segment: str
    start: int
    stop: int
    text: str


@dataclass(frozen=True, eq=False)
class Trace:
    r"""A token sequence, split into steps.

    Attributes:
        tokens: the token ids, on the CPU.
        steps: every token is in exactly one; in order; their texts, joined, are `text`.
        prompt: the decoded prompt (the question's text where `prompt_tokens` is None).
        prompt_tokens: how many tokens the prompt has, where that is known. The question is shorter where the prompt
            opens the thinking.
        id, answer, correct, meta: the caller's own. To `meta` are added `tokenizer`, the fingerprint of the tokenizer that
            the ids belong to (unless the caller has something else there); `lossy_tokenization`, where the tokenizer could
            not give the text back; `padding`, how many tokens before and after the text were left out; `template_time`, the
            time that the chat template of the prompt was told; and `doubtful_markers`, what looks like a marker and does not
            count.
        format, step_rule: what the steps were found with.

    >>> from stepsal import load_tokenizer
    >>> trace = Trace.from_text(load_tokenizer(), "2+2?", "<think>\nAdd.\n\nIt is 4.\n</think>\n\n4")
    >>> [(step.segment, step.text) for step in trace.steps[2:]]
    [('thinking', 'It is 4.\n</think>'), ('summary', '\n\n4')]
    """

    tokens: Int[Tensor, " pos"]
    steps: tuple[Step, ...]
    prompt: str
    prompt_tokens: int | None = None
    id: str = ""
    answer: Any = None
    correct: bool | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    format: FormatSpec = "auto"
    step_rule: StepsSpec = "auto"

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(self.segment(name))} {name}" for name in ("question", "thinking", "summary"))
        return f"Trace({self.id!r}, {len(self.tokens)} tokens, steps: {parts})"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{step.index}</td><td>{step.segment}</td><td>{step.stop - step.start}</td>"
            f'<td style="text-align:left;white-space:pre-wrap">{escape(step.text)}</td></tr>'
            for step in self.steps
        )
        heads = "".join(f"<th>{name}</th>" for name in ("step", "segment", "tokens", "text"))
        return f"<b>{escape(repr(self))}</b><table><tr>{heads}</tr>{rows}</table>"

    @property
    def text(self) -> str:
        """The decoded text, special tokens included."""
        return "".join(step.text for step in self.steps)

    @property
    def response(self) -> str:
        """The decoded text after the prompt."""
        return self.text[len(self.prompt) :]

    @property
    def step_of(self) -> Int[Tensor, " pos"]:
        """The index of each token's step."""
        return torch.repeat_interleave(torch.tensor([step.stop - step.start for step in self.steps]))

    def segment(self, name: str) -> tuple[Step, ...]:
        """The steps of a segment (`question`, `thinking` or `summary`)."""
        return tuple(step for step in self.steps if step.segment == name)

    @classmethod
    @checked(tokenizer=check_tokenizer, prompt_tokens=whole(1, optional=True), id=an_id, meta=a_meta)
    def from_tokens(
        cls,
        tokenizer: Tokenizer,
        tokens: Any,
        *,
        format: FormatSpec = "auto",
        steps: StepsSpec = "auto",
        prompt_tokens: int | None = None,
        id: str = "",
        answer: Any = None,
        correct: bool | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> "Trace":
        """A trace of the tokens a model really produced: a tensor, an array or a list of ids.

        `prompt_tokens` says how many of them are the prompt: markers that it mentions are then ordinary text. Without
        it the question ends with the first opening marker. Padding before the text, and end tokens and padding after the
        first end token, are left out; `prompt_tokens` counts the padding. Raises `InputError`.

        >>> from stepsal import load_tokenizer
        >>> tokenizer = load_tokenizer()
        >>> Trace.from_tokens(tokenizer, tokenizer.encode("2+2?<think></think>4"), id="a")
        Trace('a', 7 tokens, steps: 1 question, 1 thinking, 1 summary)
        """
        ids, prompt_tokens, padding = without_padding(tokenizer, check_tokens(tokens, len(tokenizer)), prompt_tokens)
        if padding:
            meta = {**(meta or {}), "padding": padding}
        keep = {"id": id, "answer": answer, "correct": correct, "meta": meta}
        trace = split_tokens(tokenizer, ids, format, steps, prompt_tokens, **keep)
        if prompt_tokens is not None:
            if format == "auto":
                check_opened(trace, tokenizer)
            if doubt := doubtful_markers(trace, tokenizer):
                trace.meta["doubtful_markers"] = doubt
                if format == "auto":
                    warnings.warn(f"trace {id!r}: {doubt}", stacklevel=2)
        return trace

    @classmethod
    @checked(tokenizer=check_tokenizer, response=a_response, id=an_id, meta=a_meta)
    def from_text(
        cls,
        tokenizer: Tokenizer,
        prompt: Prompt,
        response: str,
        *,
        format: FormatSpec = "auto",
        steps: StepsSpec = "auto",
        id: str = "",
        answer: Any = None,
        correct: bool | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> "Trace":
        r"""A trace of a prompt and a response. Warns where the tokenizer cannot give the text back.

        `prompt`: a text exactly as the model sees it (a BOS is put before it if the tokenizer does so by default and it
        has none), or chat messages for the tokenizer's template (then nothing is added). Raises `InputError`.

        >>> from stepsal import load_tokenizer
        >>> Trace.from_text(load_tokenizer(), [{"role": "user", "content": "2+2?"}], "Add.\n</think>4").prompt[-21:]
        '<｜Assistant｜><think>\n'
        """
        prefix = prompt_text(tokenizer, prompt)
        if not response:
            raise InputError(f"trace {id!r}: the response is {response!r}; it needs at least one character")
        pair = starts_thinking(prefix, format)
        if pair and (find_marker(pair[0], response.lstrip()) or (1,))[0] == 0:
            raise InputError(
                f"trace {id!r}: the prompt ends with {usual(pair[0])!r} and the response begins with another: drop one of them"
            )
        ids, prompt_tokens, lossy = encode_text(tokenizer, prompt, response)
        if made := prompt_record(tokenizer, prompt):
            meta = {**(meta or {}), **made}
        if lossy:
            warnings.warn(f"trace {id!r}: {lossy}", stacklevel=2)
            meta = {**(meta or {}), "lossy_tokenization": True}
        return cls.from_tokens(
            tokenizer,
            ids,
            format=format,
            steps=steps,
            prompt_tokens=prompt_tokens,
            id=id,
            answer=answer,
            correct=correct,
            meta=meta,
        )


def split_tokens(
    tokenizer: Tokenizer,
    tokens: Any,
    format: FormatSpec = "auto",
    steps: StepsSpec = "auto",
    prompt_tokens: int | None = None,
    **keep: Any,
) -> Trace:
    """`Trace.from_tokens` without its check of the markers: for what a model has just written, and for what was a trace before.

    >>> from stepsal import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> split_tokens(tokenizer, tokenizer.encode("2+2?It is.</think>4"), prompt_tokens=4, id="a")
    Trace('a', 10 tokens, steps: 1 question, 0 thinking, 1 summary)
    """
    ids = check_tokens(tokens, len(tokenizer))
    keep["meta"] = {"tokenizer": _fingerprint(tokenizer, keep), **(keep.get("meta") or {})}
    if prompt_tokens is not None and not 0 < prompt_tokens < len(ids):
        raise InputError(
            f"prompt_tokens={prompt_tokens} of {len(ids)} tokens leaves an empty prompt or an empty response: "
            "a trace needs one token of each"
        )
    question_tokens = None
    if prompt_tokens is not None:
        question_tokens = question_length(tokenizer, ids[:prompt_tokens], format)
    elif not any(each.markers for each in find_formats(format)):
        raise InputError(f"format={format!r} has no marker that ends the question: it needs prompt_tokens=")
    segmenter = Segmenter(tokenizer, format, steps, question_tokens)
    opened: list[str | None] = []
    pieces = []
    for token in ids:
        found_here = segmenter.push(token)
        opened.append(None)
        if found_here:
            opened[-1 - segmenter.back] = found_here
        pieces.append(segmenter.text)
    if left := segmenter.finish():
        opened[-segmenter.back] = left
    text = decode(tokenizer, ids)
    edges = _character_edges(tokenizer, ids, pieces, text)

    starts = [position for position, segment in enumerate(opened) if segment]
    spans = enumerate(zip(starts, [*starts[1:], len(ids)], strict=True))
    found = tuple(
        Step(index, opened[start] or "", start, stop, text[edges[start] : edges[stop]])
        for index, (start, stop) in spans
    )
    prompt = text[: edges[found[0].stop if prompt_tokens is None else prompt_tokens]]
    return Trace(torch.tensor(ids), found, prompt, prompt_tokens=prompt_tokens, format=format, step_rule=steps, **keep)


def check_tokens(tokens: Any, vocabulary: int) -> list[int]:
    """The ids as a list, or an `InputError` that says what is wrong with them.

    >>> check_tokens(torch.tensor([1, 2]), 10)
    [1, 2]
    """
    try:
        ids = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"tokens={shown(tokens)} are not a flat list of token ids ({error})") from error
    mixed = isinstance(tokens, list | tuple) and any(isinstance(each, bool) for each in tokens)
    whole = not (ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool or mixed)
    if ids.ndim != 1 or (len(ids) and not whole):
        given = f"shape {tuple(ids.shape)}, {torch.bool if mixed else ids.dtype}"
        raise InputError(f"tokens must be whole numbers in one dimension, (pos,); given: {given}. One trace at a time.")
    if len(ids) < 2:
        raise InputError(f"a trace needs at least two tokens, one to predict the other; given: {ids.tolist()}")
    outside = [(position, token) for position, token in enumerate(ids.tolist()) if not 0 <= token < vocabulary]
    if outside:
        position, token = outside[0]
        raise InputError(
            f"token {token} at position {position} is outside the tokenizer's vocabulary of {vocabulary}: these tokens "
            "come from another tokenizer"
        )
    return [int(token) for token in ids.tolist()]


def without_padding(
    tokenizer: Tokenizer, ids: list[int], prompt_tokens: int | None
) -> tuple[list[int], int | None, dict[str, int]]:
    """The tokens that are text, how many of them are the prompt, and how many were left out before and after.

    Before: padding tokens, but for one that begins a text, too. After: end tokens and padding that follow an end token,
    and padding that follows the text.

    >>> from stepsal import load_tokenizer
    >>> without_padding(load_tokenizer(), [0, 0, 20, 21, 2, 2, 0], 3)  # 0 is padding, 2 ends a text
    ([20, 21, 2], 1, {'before': 2, 'after': 2})
    """
    pad, end, bos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos", "bos"))
    fills = filling_token(tokenizer)
    start, stop = 0, len(ids)
    while fills is not None and start < stop and ids[start] == fills:
        start += 1
    if start and (fills == bos or (prompt_tokens is not None and start >= prompt_tokens)):
        start -= 1  # it begins the text
    least = start + 1 if prompt_tokens is None else max(prompt_tokens, start + 1)
    while stop > least and ids[stop - 1] in (end, fills):
        stop -= 1
    if stop == prompt_tokens and stop < len(ids) and ids[stop] != end:
        raise InputError(
            f"the response is padding alone (token {ids[stop]}): leave out this row, the model answered nothing"
        )
    if stop < len(ids) and (ids[stop] == end or stop == prompt_tokens):
        stop += 1  # the token that ends the text is text
    if prompt_tokens is not None and start + 1 < prompt_tokens < len(ids) and pad not in (None, end, bos):
        _check_prompt_end(ids, prompt_tokens, pad)
    left_out = {"before": start, "after": len(ids) - stop}
    shorter = None if prompt_tokens is None else prompt_tokens - start
    return ids[start:stop], shorter, left_out if any(left_out.values()) else {}


def _check_prompt_end(ids: list[int], prompt_tokens: int, pad: int | None) -> None:
    if ids[prompt_tokens - 1] == pad:
        raise InputError(
            f"the prompt of {prompt_tokens} tokens ends with padding (token {pad}), so the response does not follow its text. "
            "Pad prompts on their left (tokenizer.padding_side = 'left'), or take the padding out"
        )


def _fingerprint(tokenizer: Tokenizer, keep: Mapping[str, Any]) -> str:
    """The tokenizer's fingerprint. Raises `InputError` where tokens that were a trace before belong to another one."""
    now = fingerprint(tokenizer)
    before = (keep.get("meta") or {}).get("tokenizer")
    if isinstance(before, str) and before.startswith("sha256:") and before != now:
        raise InputError(
            f"trace {keep.get('id', '')!r} was made with the tokenizer {before}, and this one is {now}: its token ids mean "
            "something else here. Use the tokenizer that it was made with, or make the trace again from its text"
        )
    return now


def check_made_with(tokenizer: Any, trace: Trace) -> None:
    """Raise `InputError` where the trace's token ids belong to another tokenizer, and say something else in this one."""
    made_with = trace.meta.get("tokenizer")
    if tokenizer is None or not isinstance(made_with, str) or not made_with.startswith("sha256:"):
        return
    here = fingerprint(tokenizer)
    if here == made_with or (
        int(trace.tokens.max()) < len(tokenizer) and decode(tokenizer, trace.tokens.tolist()) == trace.text
    ):
        return
    raise InputError(
        f"trace {trace.id!r} was made with the tokenizer {made_with}, and the model's is {here}: its token ids say something "
        "else to this model. Make the trace with this model's tokenizer (model.tokenizer), from its text"
    )


def has_plain_prompt(tokenizer: Any, trace: Trace) -> bool:
    """Whether the prompt is a bare text, though the tokenizer has a chat template: it has no special token but a BOS.

    >>> from stepsal import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> traces = [Trace.from_text(tokenizer, prompt, "4.") for prompt in ("2+2?", "<｜User｜>2+2?")]
    >>> [has_plain_prompt(tokenizer, trace) for trace in traces]
    [True, False]
    """
    if not getattr(tokenizer, "chat_template", None) or trace.prompt_tokens is None:
        return False
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {*added, *getattr(tokenizer, "all_special_ids", ())} - {getattr(tokenizer, "bos_token_id", None)}
    return special.isdisjoint(trace.tokens[: trace.prompt_tokens].tolist())


def _all_pairs() -> list[tuple[str, str, str]]:
    return [(each.name, *pair) for each in find_formats("auto") for pair in each.markers]


def unopened(trace: Trace, tokenizer: Tokenizer) -> tuple[str, str, str] | None:
    """The format, opening and closing marker of a thinking that the response closes though nothing opened it; else None."""
    if trace.segment("thinking"):
        return None
    pairs = _all_pairs()
    response, written = marked_text(tokenizer, _response_tokens(trace), [pair[1:] for pair in pairs])
    response = response.lstrip()
    opened = [at for opening, _ in written if (at := find_marker(opening, response))]
    if any((find_marker(closing, response) or (1,))[0] == 0 for _, closing in written):  # nothing was thought
        return None
    for (name, opening, closing), (_, wanted) in zip(pairs, written, strict=True):
        closed = find_marker(wanted, response)
        if closed and closed[0] > 0 and not (opened and min(opened) < closed):
            return name, usual(opening), usual(closing)
    return None


def _response_tokens(trace: Trace) -> list[int]:
    return [int(token) for token in trace.tokens[trace.prompt_tokens or trace.steps[0].stop :].tolist()]


def check_opened(trace: Trace, tokenizer: Tokenizer) -> None:
    """Refuse a response that closes a thinking which nothing opened: `auto` would take all of it for the summary.

    Some servers cut the opening marker off.
    """
    if found := unopened(trace, tokenizer):
        name, opening, closing = found
        raise InputError(
            f"the response has {closing!r}, but nothing opens the thinking, so format='auto' would find none. "
            f"Give format={name!r}, or let the prompt end with {opening!r}."
        )


_STRIPPED = re.compile(r"\s*(?:assistant)?(?:analysis|commentary)(?:[^\W\da-z_]|.*assistantfinal)", re.DOTALL)
_PREAMBLE = (
    200  # characters before an opening marker that nothing closes: further on, a text rather speaks of the marker
)


def doubtful_markers(trace: Trace, tokenizer: Tokenizer) -> str:
    """What the response says like a marker though it is none by the rule, in words; "" where there is nothing.

    The rule: an opening marker counts at the response's beginning alone, white space aside, and then the first closing
    marker after it.

    >>> from stepsal import load_tokenizer
    >>> tokenizer = load_tokenizer()
    >>> trace = split_tokens(tokenizer, tokenizer.encode("2+2?Sure.<think>It is.</think>4"), prompt_tokens=4)
    >>> doubtful_markers(trace, tokenizer)[:63]
    "the response opens the thinking with '<think>' only after 'Sure"
    """
    formats = find_formats(trace.format)
    pairs = [pair for each in formats for pair in each.markers]
    said = {name: _marked(trace, tokenizer, name, pairs) for name in ("question", "thinking", "summary")}
    question, thinking, summary = (text.strip() for text, _ in said.values())
    response, written = thinking + summary, said["question"][1]
    ends = [at[1] for pair in written for marker in pair if (at := last_marker(marker, question))]
    ended = len(question) in ends
    for (opening, closing), (opens, closes) in zip(pairs, written, strict=True):
        at = find_marker(opens, response)
        closed = at and find_marker(closes, response, at[1])
        if at and at[0] > 0 and not ended and (closed or at[0] <= _PREAMBLE):
            return (
                f"the response opens the thinking with {usual(opening)!r} only after {trace.response[:30]!r}. A marker counts "
                "at the response's beginning alone: what stands before it and what is thought are one segment. Put what comes "
                f"before {usual(opening)!r} into the prompt, or leave it out"
            )
        again, opened = find_marker(closes, summary), find_marker(opens, summary)
        if find_marker(closes, thinking) == (0, len(thinking)) and again and not (opened and 0 < opened[0] < again[0]):
            return (
                f"{usual(closing)!r} comes again after a thinking that is empty. The first one counts, so that all "
                "that follows is summary. If the model thought between the two, leave the empty pair out of the prompt or the "
                "response"
            )
    if any(each.name == "harmony" for each in formats) and _STRIPPED.match(response):
        return (
            f"the response begins {response.lstrip()[:20]!r}, as Harmony's 'analysis' does when a server drops special tokens: "
            "no marker is left, so that all of it is one segment. Keep them (skip_special_tokens=False), or use the token ids"
        )
    return _unknown_pair(trace, pairs)


def _unknown_pair(trace: Trace, pairs: list[tuple[str, str]]) -> str:
    """What to say of a response that begins with what looks like a marker of thinking, and closes it, which no format knows."""
    found = LOOKS_LIKE_MARKER.match(trace.response.lstrip())
    opening = found[0] if found else "/"
    closing = re.sub(r"^(<[|｜]?|\[|◁)", r"\1/", opening)
    if not pairs or "/" in opening or opening in [usual(pair[0]) for pair in pairs] or closing not in trace.response:
        return ""
    unknown = "no format knows" if trace.format == "auto" else f"format={trace.format!r} does not know"
    return (
        f"the response begins with {opening!r} and has {closing!r} after it, markers which {unknown}: "
        f"{how_to_name(opening, closing)}"
    )


def _marked(
    trace: Trace, tokenizer: Tokenizer, name: str, pairs: list[tuple[str, str]]
) -> tuple[str, list[tuple[str, str]]]:
    """A segment's text, and the markers as they are to be looked for in it."""
    steps = trace.segment(name)
    tokens = trace.tokens[steps[0].start : steps[-1].stop].tolist() if steps else []
    return marked_text(tokenizer, tokens, pairs)


def _character_edges(tokenizer: Tokenizer, ids: list[int], pieces: list[str], text: str) -> list[int]:
    """Where each token begins in the decoded text, and at the end where the last one ends."""
    edges = [0, *accumulate(map(len, pieces))]
    if not text.startswith("".join(pieces)):
        # A decoder that rewrites earlier text (invalid bytes under byte fallback): decode from the start every 64
        # tokens, so that what is off stays off by a few tokens and never adds up.
        starts = range(0, len(ids), 64)
        known = [len(decode(tokenizer, ids[:start])) for start in starts] + [len(text)]
        for start, here, there in zip(starts, known, known[1:], strict=False):
            edges[start : start + 64] = [min(here + edge - edges[start], there) for edge in edges[start : start + 64]]
    edges[-1] = len(text)
    return list(accumulate((min(edge, len(text)) for edge in edges), max))
