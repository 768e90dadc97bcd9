"""Whatever is in a file or comes from a caller: a trace, or a `StepsalError` that says why not. Never anything else.

Seeded, so that a case is the same everywhere. The suite tries some 2,000 of each kind, `make test-slow` 20,000.
"""

import copy
import itertools
import json
import random
import warnings

import numpy as np
import pytest
import torch
from test_records import CALL, CALLING, QUESTION, RESPONSES, RESULT, USER, shapes
from test_shapes import SERVERS, harness, template
from toy_tokenizers import KINDS, MARKERS, MODELS

from stepsal import InputError, StepsalError, Trace, read_traces
from stepsal.traces.convert import convert_traces
from stepsal.traces.files import read_grades
from stepsal.traces.formats import FORMATS, STEP_RULES, usual
from stepsal.traces.segment import decode

HALF = "\ud83d"  # of a surrogate pair
REFUSED_GRADES = ("is not JSON", "is no object", "'correct' must be true", "otherwise than an earlier line")
AMOUNTS = [2_000, pytest.param(20_000, marks=pytest.mark.slow)]
TOKENIZERS = [make() for make in KINDS.values()]
TOKENIZERS = [each for pair in zip(TOKENIZERS, itertools.cycle(make() for make in MODELS.values())) for each in pair]
for each in TOKENIZERS[4:]:  # the first of them take no messages
    each.chat_template = each.chat_template or template("<think>")
SPECIAL = [usual(marker) for each in FORMATS.values() for pair in each.markers for marker in pair]
SPECIAL += [*MARKERS, "<|start|>", "<|end|>", "<|call|>", "<|im_end|>", "<think", "</", "<|channel|>final", "{header}"]
ODD = [*"\0\ufeff\u200b\u200d\u202e\u0301\u2028\x85\r🙂\ufffd", "e\u0301", "\x1b[2J", "👩‍👩‍👧", "数。", HALF]
WORDS = ["First we add. ", "So 4.", "\n\n", "\n", " ", "3.14", "Wait", "I say this is long enough. "]
DEEP = "as many brackets as the reader takes, or more"
NASTY = [None, True, False, 0, -1, 7, 2**63, 10**400, 0.5, float("nan"), float("inf"), 1e308, "", " ", HALF, DEEP]
NASTY += [[], {}, [[]], [None], [True, 5], [5, 6.0], ["5"], [5, -1], [5, 10**6], [5, 2**70], {"a": {}}]
NASTY += ["assistant", "think", ["<r>", "</r>"], ["<r>", 1], [{"role": "user", "content": None}], {"role": "user"}]
PUT = [b"", b"\xfe\x01", b"\\u0000", b"\\ud800", b"\xe2\x80", b"\xef\xbb\xbf", b"-1", b'"', b"{", b"]", b"1e999", b","]
RUBBISH = [b"[" * 10**5, b'{"a":' * 10**4, b"{" * 3, b"9" * 5000, b"NaN", b"null", b'""', b"\xff\xfe{", b"\0", b"{}"]


def text(at, longest=9):
    pick = [SPECIAL, ODD, WORDS, [chr(at.randrange(0x110000)) for _ in range(3)]]
    said = "".join(at.choice(at.choice(pick)) for _ in range(at.randrange(longest)))
    return said if at.random() < 0.05 else said.encode("utf-8", "replace").decode()


def records():
    """An example of everything that can be read."""
    found = [record for family in MODELS for record in shapes(family).values()]
    found += [{"prompt": QUESTION, "response": response} for _, response, _, _ in RESPONSES.values()]
    found += [server({"messages": QUESTION, "think": False}, "Add.", "4") for server in SERVERS.values()]
    found += [harness(arguments, "4") for arguments in ([["2+2?", {}]], {"gen_args_0": {"arg_0": "[{}]", "arg_1": {}}})]
    found += [
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "system": "Be brief."},
        {"prompt": "2+2?", "content": "4", "tokens": [70], "generation_settings": {}, "stop_type": "eos"},
        {"request": {"text": "2+2?", "echo": True}, "response": {"text": "2+2?4", "meta_info": {}, "output_ids": [70]}},
        {"messages": [USER, {"role": "assistant", "content": "It"}], "continue_final_message": True, "response": "4"},
        {"input": [{"type": "function_call", "name": "add", "arguments": "{}"}, USER], "output": [], "created": 17e8},
    ]
    ids = {"prompt_token_ids": [5, 6, 7], "token_ids": [8, 9, 70, 71]}
    batch = {"custom_id": "a", "body": {"messages": QUESTION, "tools": [{"a": 1}], "chat_template_kwargs": {"b": 1}}}
    stored = {"format": "think", "steps": "line", "prompt_tokens": 2}
    found += [
        {"messages": [USER, CALLING, RESULT, CALLING]},
        {"id": 7, "prompt": "Q", "reasoning": "R.", "content": "4", "answer": 4, "correct": True, "meta": {"a": [1]}},
        {"prompt": "2+2?", "tool_calls": [CALL]},
        {
            "messages": QUESTION,
            "model": "m",
            "choices": [{"index": 0, "message": {"content": "4"}}, {"text": "5"}],
            **ids,
        },
        {"prompt": "2+2?", "response": {"choices": [{"text": "4", **ids}]}},
        {"prompt": "2+2?", "response": "4", "tokens": [18, 10, 18, 30, 21], "segmentation": stored},
        {**ids, "segmentation": {**stored, "format": ["<r>", "</r>"]}},
        batch,
        {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": [{"message": {"content": "4"}}]}}},
    ]
    return found


RECORDS = records()


def places(value, path=()):
    """The places in a JSON value, itself first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(at, record):
    """A copy with something in it replaced, removed or added."""
    record = copy.deepcopy(record)
    for _ in range(at.choice([1, 1, 1, 2, 3])):
        if not record:
            break
        *path, key = at.choice(list(places(record))[1:])
        inside = record
        for each in path:
            inside = inside[each]
        change = at.random()
        if change < 0.15:
            del inside[key]
        elif change < 0.3 and isinstance(inside, dict):
            name, value = at.choice(list(at.choice(RECORDS).items()))
            inside[name] = copy.deepcopy(value)
        else:
            inside[key] = text(at) if change < 0.6 else copy.deepcopy(at.choice(NASTY))
    return record


def line(seed):
    """A line of a file: random bytes, a changed record, or the bytes of one with some of them changed."""
    at = random.Random(f"line {seed}")
    if at.random() < 0.1:
        return at.choice([*RUBBISH, *(at.randbytes(at.randrange(60)) for _ in RUBBISH)])
    raw = json.dumps(changed(at, at.choice(RECORDS)), ensure_ascii=at.random() < 0.9).encode("utf-8", "surrogatepass")
    raw = raw.replace(b'"id": "a"', f'"id": "{seed}"'.encode())  # ids must differ in a file
    depth = at.choice([100, 500, 800, 900, 5000])
    raw = raw.replace(f'"{DEEP}"'.encode(), b"[" * depth + b"]" * depth)
    if at.random() < 0.5:
        return raw
    for _ in range(at.randrange(1, 4)):
        start = at.randrange(len(raw) + 1)
        end = min(len(raw), start + at.randrange(12))
        put = at.choice([*PUT, raw[start:end] * 2])
        raw = raw[:start] + put + raw[end:]
    return raw


def is_whole(tokenizer, trace):
    """Every token in exactly one step, and the steps' texts are the decoded text."""
    assert trace.text == decode(tokenizer, trace.tokens.tolist())
    assert [step.start for step in trace.steps] == [0, *(step.stop for step in trace.steps[:-1])]
    assert trace.steps[-1].stop == len(trace.tokens)
    return True


@pytest.fixture(autouse=True)
def some_of_these_tokenizers_lose_text():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.mark.parametrize("amount", AMOUNTS)
def test_any_line_is_a_trace_or_a_reason(tmp_path, amount):
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    read = unread = 0
    for start in range(0, amount, 100):
        tokenizer = TOKENIZERS[start // 100 % len(TOKENIZERS)]
        lines = [line(seed).replace(b"\n", b" ") for seed in range(start, start + 100)]
        path.write_bytes(b"\n".join(lines))
        try:
            result = convert_traces([path], out, tokenizer)
        except InputError as error:  # of the whole file
            assert "custom_id" in str(error)  # noqa: PT017
            continue
        if not result.written:
            continue
        traces = read_traces(path, tokenizer, on_error="skip")
        unread += len(result.unread)
        read += result.written
        assert {each.line for each in result.unread} <= set(range(1, 101))
        for trace, again in zip(traces, read_traces(out, tokenizer), strict=False):
            assert is_whole(tokenizer, trace)
            if trace.id == again.id:
                assert again.tokens.tolist() == trace.tokens.tolist()
                assert again.steps == trace.steps
        refused = ""
        try:
            grades = read_grades(path)
        except StepsalError as error:
            grades, refused = {}, str(error)
        assert set(map(type, grades.values())) <= {bool}
        assert not refused or any(reason in refused for reason in REFUSED_GRADES)
    assert read > amount / 20  # the lines are not all hopeless
    assert unread > amount / 20


@pytest.mark.parametrize("amount", AMOUNTS)
def test_any_text_is_a_trace_or_a_reason(amount):
    made = 0
    for seed in range(amount):
        at = random.Random(f"text {seed}")
        tokenizer = at.choice(TOKENIZERS)
        prompt = at.choice(
            [text(at), text(at), QUESTION, [{"role": "user", "content": text(at)}], changed(at, RECORDS[0])]
        )
        format = at.choice(["auto", "auto", "think", "harmony", "plain", ("<r>", "</r>"), ("a", " ")])
        try:
            trace = Trace.from_text(tokenizer, prompt, text(at), format=format, steps=at.choice(["auto", *STEP_RULES]))
        except StepsalError as error:
            assert str(error)  # noqa: PT017
        else:
            made += is_whole(tokenizer, trace)
    assert made > amount / 4


@pytest.mark.parametrize("amount", AMOUNTS)
def test_any_tokens_are_a_trace_or_a_reason(amount):
    made = 0
    for seed in range(amount):
        at = random.Random(f"tokens {seed}")
        tokenizer = at.choice(TOKENIZERS)
        tokens = [at.randrange(len(tokenizer)) for _ in range(at.randrange(2, 20))]
        if at.random() < 0.3:
            tokens[at.randrange(len(tokens))] = at.choice(NASTY)
        if at.random() < 0.1:
            tokens = at.choice(
                [*NASTY, np.array(tokens, dtype=object), torch.zeros(0), torch.ones(2, 2), np.zeros(3), b"ab"]
            )
        options = {
            "prompt_tokens": at.choice([None, 1, 2, 0, -1, 10**9]),
            "format": at.choice(["auto", "think", "plain"]),
        }
        try:
            trace = Trace.from_tokens(tokenizer, tokens, **options)
        except StepsalError as error:
            assert str(error)  # noqa: PT017
        else:
            made += is_whole(tokenizer, trace)
    assert made > amount / 4
