"""Traces and causal matrices that Thought Anchors published, on our axes.

In: a problem's folder as that project lays it out, and the tokenizer of the model that wrote the trace. Out: a `Trace` whose
thinking steps are their sentences, and their matrices, `query_step key_step`, as knockouts have them.

    base_solution.json         prompt, solution, answer, is_correct
    chunks_labeled.json        the sentences, in order, with tags
    step_importance_supp.json  suppression: how far later sentences move where none of their tokens attends to one
    step_importance.json       resampling: how later sentences change where one is written anew

1. The solution is turned to tokens as any response is. Question and summary are the steps that the trace has by itself.
2. Each sentence is looked for where the one before ended. Nothing but white space may stand between the two, and within a
   sentence white space may differ, since they join short sentences to the next by one space.
3. A step begins with the token that holds the first character of its sentence. White space before that character may be in the
   same token, but no other character of the sentence before. What follows the last sentence is a step without a sentence.

Source: Thought Anchors (arXiv 2506.19143), github.com/interp-reasoning/thought-anchors.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stepsal.causality.knockout import Knockout
from stepsal.checks import checked
from stepsal.checks import path as a_path
from stepsal.checks import tokenizer as a_tokenizer
from stepsal.errors import FileError, InputError
from stepsal.traces.segment import TextStream, Tokenizer
from stepsal.traces.trace import Step, Trace

_MATRICES = {
    "suppression": ("step_importance_supp.json", "log KL, less the mean over the sources of each reader"),
    "resampling": ("step_importance.json", "their importance score"),
}


@dataclass(frozen=True, eq=False)
class Published:
    """What was published of a trace.

    Attributes:
        suppression, resampling: their matrices in the place of a knockout's `kl`, so that `faithfulness` takes them. They are
            not in nats: `meta["unit"]` says what they are. A suppression matrix is centred for each reader, so of the scores
            only those per reader mean what they say. `loss` and `answer` are missing.
        tags: their tags of each step's sentence; of a step without a sentence there are none.
    """

    suppression: Knockout
    resampling: Knockout
    tags: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        return f"Published({sum(map(bool, self.tags))} tagged of {len(self.tags)} steps)"


@checked(folder=a_path, tokenizer=a_tokenizer)
def read_thought_anchors(folder: str | Path, tokenizer: Tokenizer) -> tuple[Trace, Published]:
    """Read a problem's folder of Thought Anchors: the trace, split into their sentences, and their matrices on its steps.

    `tokenizer` is that of the model that is to read the trace. The trace can be given to `step_saliency` and `step_knockout`.
    Its steps follow no rule of ours, so `write_traces` does not take it.

    Raises:
        InputError: sentences that cannot be located in the thinking (the message names them), or a token with parts of two.
        FileError: a file of the folder is missing, or holds something else than expected.
    """
    folder = Path(folder)
    base = _read(folder / "base_solution.json", dict)
    chunks = _read(folder / "chunks_labeled.json", list)
    try:
        prompt, solution, name = str(base["prompt"]), str(base["solution"]), folder.resolve().name
        sentences = [str(chunk["chunk"]) for chunk in chunks]
        tags = [tuple(map(str, chunk.get("function_tags", ()))) for chunk in chunks]
    except (KeyError, TypeError, AttributeError) as error:
        raise FileError(
            f"{folder} is laid out otherwise than expected: {error!r}. base_solution.json needs prompt and solution, and every "
            "entry of chunks_labeled.json its chunk"
        ) from error
    answer, correct = base.get("answer"), base.get("is_correct")
    whole = Trace.from_text(tokenizer, prompt, solution, format="think", id=name, answer=answer, correct=correct)
    steps, first = _split(whole, tokenizer, sentences)
    trace = replace(whole, steps=steps, step_rule=published_sentences)
    found = {
        key: _knockout(folder / file, unit, key, trace, len(sentences), first)
        for key, (file, unit) in _MATRICES.items()
    }
    of_steps = [tags[at - first] if first <= at < first + len(tags) else () for at in range(len(steps))]
    return trace, Published(**found, tags=tuple(of_steps))


def published_sentences(step_text: str, token_text: str) -> bool:
    """In the place of a step rule: says that a trace's steps were read, and raises `InputError` where it is asked to split."""
    raise InputError(
        "the steps of this trace are published sentences, which no rule gives: read it with read_thought_anchors"
    )


def _split(trace: Trace, tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[tuple[Step, ...], int]:
    """The steps, with the thinking split into the sentences, and the index of the first sentence's step."""
    thinking = trace.segment("thinking")
    if not thinking or not sentences:
        raise InputError(
            f"trace {trace.id!r} has {len(thinking)} thinking steps and {len(sentences)} sentences: need both"
        )
    edges = _edges(trace, tokenizer)
    start, stop = thinking[0].start, thinking[-1].stop
    text = trace.text[edges[start] : edges[stop]]
    closing = text.rfind("</think>")
    spans = _locate(trace.id, text[: closing if closing >= 0 else len(text)], sentences)
    begins = [edges[start] + begin for begin, _ in spans]
    after = spans[-1][1]
    if rest := text[after : closing if closing >= 0 else None].strip():
        begins.append(edges[start] + text.index(rest, after))
    opened = [start, *(_token_of(trace, edges, begin) for begin in begins[1:])]
    outside = [(step.segment, step.start) for step in trace.steps if step.segment != "thinking"]
    before = sum(segment == "question" for segment, _ in outside)
    starts = [*outside[:before], *(("thinking", token) for token in opened), *outside[before:]]
    stops = [*(token for _, token in starts[1:]), len(trace.tokens)]
    return tuple(
        Step(index, segment, begin, end, trace.text[edges[begin] : edges[end]])
        for index, ((segment, begin), end) in enumerate(zip(starts, stops, strict=True))
    ), before


def _edges(trace: Trace, tokenizer: Tokenizer) -> list[int]:
    """Where each token begins in the text, and where the last one ends."""
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in trace.tokens.tolist()]
    if "".join(pieces) + stream.held != trace.text:
        raise InputError(
            f"trace {trace.id!r}: this tokenizer rewrites text that it has already decoded, so sentences cannot be located in "
            "its tokens. Use the tokenizer of the model that wrote the trace"
        )
    return [0, *accumulate(map(len, pieces[:-1])), len(trace.text)]


def _locate(name: str, text: str, sentences: Sequence[str]) -> list[tuple[int, int]]:
    """Where each sentence begins and ends in the text. Raises `InputError`, which names those that are not there."""
    spans: list[tuple[int, int]] = []
    missing: list[str] = []
    end = 0
    for index, sentence in enumerate(sentences):
        words = sentence.split()
        pattern = re.compile(r"\s+".join(map(re.escape, words)))
        found = pattern.search(text, end) if words else None
        if found is None or (text[end : found.start()].strip() and not missing):
            missing.append(f"{index} ({sentence[:40]!r})")
        if found is not None:
            spans.append(found.span())
            end = found.end()
    if missing:
        raise InputError(
            f"trace {name!r}: {len(missing)} of {len(sentences)} sentences do not follow the one before in the thinking: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Give the folder as it was published"
        )
    return spans


def _token_of(trace: Trace, edges: Sequence[int], begin: int) -> int:
    """The token that holds this character. Raises `InputError` where it holds text of what comes before, too."""
    token = int(torch.searchsorted(torch.tensor(edges), torch.tensor(begin), right=True)) - 1
    if trace.text[edges[token] : begin].strip():
        shared = trace.text[edges[token] : edges[token + 1]]
        raise InputError(
            f"trace {trace.id!r}: token {token}, {shared!r}, belongs to two sentences (the second begins with "
            f"{trace.text[begin : begin + 30]!r}), so no step can begin there. Use the tokenizer of the model that wrote the "
            "trace"
        )
    return token


def _knockout(path: Path, unit: str, name: str, trace: Trace, sentences: int, first: int) -> Knockout:
    """A published matrix on the trace's steps, NaN where nothing was published."""
    n = len(trace.steps)
    matrix: Float[Tensor, "query_step key_step"] = torch.full((n, n), torch.nan)
    for entry in _read(path, list):
        try:
            source = entry["source_chunk_idx"]
            impacts = [(each["target_chunk_idx"], float(each["importance_score"])) for each in entry["target_impacts"]]
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} is laid out otherwise than expected: {error!r} in {str(entry)[:60]}") from error
        for target, value in impacts:
            if not 0 <= source < target < sentences or not math.isfinite(value):
                raise FileError(
                    f"{path} has the value {value} of sentence {source} for sentence {target}: expected a finite number for a "
                    f"sentence and a later one, of {sentences}"
                )
            matrix[first + target, first + source] = value
    missing = torch.full((n, n), torch.nan)
    meta = {"trace": trace.id, "mode": f"published {name}", "unit": unit, "tokens": len(trace.tokens)}
    return Knockout(matrix, missing, missing[0], trace.steps, meta)


def _read(path: Path, kind: type) -> Any:
    """A JSON file that holds an object of this kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(
            f"cannot read {path}: {error.strerror or error}. Give a problem's folder of Thought Anchors"
        ) from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged ({error}): get it anew") from error
    if not isinstance(content, kind):
        raise FileError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}")
    return content
