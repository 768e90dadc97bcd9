"""What servers, chats and harnesses log, shape by shape: what was sent is what the trace's thinking and summary say."""

import json
import random
import warnings

import pytest
from toy_tokenizers import MODELS, _with_specials, byte_level

import stepsal
from stepsal import InputError, Trace, read_traces
from stepsal.traces.files import read_grades
from stepsal.traces.formats import FORMATS, usual
from stepsal.traces.prompt import DEFAULT_TIME, encode_prompt, prompt_text

USER = {"role": "user", "content": "2+2?"}
QUESTION = [USER]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(*names):
    """A chat template that names these markers and writes no thinking itself."""
    return "{# " + " ".join(names) + " #}" + CHAT


@pytest.fixture
def read(tmp_path):
    """The traces of some objects in a file."""

    def read(tokenizer, *records, **options):
        path = tmp_path / "traces.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return read_traces(path, MODELS[tokenizer]() if isinstance(tokenizer, str) else tokenizer, **options)

    return read


def said(trace):
    """The thinking without its markers, and the answer, white space around them aside."""
    thinking, summary = ("".join(step.text for step in trace.segment(name)) for name in ("thinking", "summary"))
    for closing in sorted((usual(pair[1]) for each in FORMATS.values() for pair in each.markers), key=len):
        thinking = thinking.rstrip().removesuffix(closing)
    thinking = thinking.removesuffix("<|end|><|start|>assistant")
    return thinking.strip(), summary.strip().removeprefix("<|START_RESPONSE|>")


# --- the shapes of servers -------------------------------------------------------------------------------------------
def openai(request, thinking, answer):
    """vLLM, SGLang, llama.cpp, DeepSeek."""
    message = {"role": "assistant", "reasoning_content": thinking, "content": answer, "refusal": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    about = {"id": "a", "object": "chat.completion", "created": 1700000000, "model": "m", "service_tier": None}
    return {"request": {"model": "m", **request}, "response": {**about, "choices": [choice], "usage": {"total_tokens": 9}}}


def vllm_both(request, thinking, answer):
    message = {"role": "assistant", "reasoning": thinking, "reasoning_content": thinking, "content": answer}
    return {**request, "id": "a", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


def ollama_chat(request, thinking, answer):
    message = {"role": "assistant", "content": answer, "thinking": thinking}
    about = {"model": "m", "created_at": "2025-06-01T10:00:00.123456789Z", "done": True, "done_reason": "stop"}
    return {"id": "a", "request": {"model": "m", "stream": False, **request}, "response": {**about, "message": message}}


def ollama_chat_flat(request, thinking, answer):
    message = {"role": "assistant", "content": answer, "thinking": thinking}
    return {"id": "a", **request, "model": "m", "message": message, "done": True}


def ollama_generate(request, thinking, answer):
    prompt = {"model": "m", "prompt": request["messages"][-1]["content"], "stream": False}
    response = {"model": "m", "response": answer, "thinking": thinking, "done": True, "context": [1, 2], "eval_count": 9}
    return {"id": "a", "request": prompt, "response": response}


def ollama_generate_flat(request, thinking, answer):
    pair = ollama_generate(request, thinking, answer)
    return {"id": "a", **pair["request"], **pair["response"]}


def openrouter(request, thinking, answer):
    half = len(thinking) // 2
    details = [
        {"type": "reasoning.text", "text": part, "signature": None, "id": "r", "format": "unknown", "index": index}
        for index, part in enumerate((thinking[:half], thinking[half:]))
    ]
    message = {"role": "assistant", "content": answer, "reasoning": thinking, "reasoning_details": details}
    choice = {"message": message, "finish_reason": "stop", "native_finish_reason": "stop"}
    return {"id": "a", "request": request, "response": {"provider": "x", "choices": [choice]}}


def openrouter_details(request, thinking, answer):
    details = [{"type": "reasoning.text", "text": thinking, "format": "unknown", "index": 0}]
    message = {"role": "assistant", "content": answer, "reasoning_details": details}
    return {"id": "a", "messages": [*request["messages"], message]}


def anthropic(request, thinking, answer):
    parts = [{"type": "thinking", "thinking": thinking, "signature": "EqQB"}, {"type": "text", "text": answer}]
    about = {"id": "a", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    return {"request": {"max_tokens": 9, **request}, "response": {**about, "content": parts, "usage": {"input_tokens": 1}}}


def responses(request, thinking, answer):
    given = [{"role": "user", "content": [{"type": "input_text", "text": request["messages"][-1]["content"]}]}]
    output = [
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": thinking}]},
        {
            "type": "message", "id": "msg", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": answer, "annotations": []}],
        },
    ]  # fmt: skip
    about = {"id": "a", "object": "response", "status": "completed", "reasoning": {"effort": None, "summary": None}}
    return {
        "request": {"model": "m", "input": given},
        "response": {**about, "output": output, "text": {"format": {"type": "text"}}, "instructions": None},
    }


def responses_flat(request, thinking, answer):
    pair = responses(request, thinking, answer)
    return {"input": request["messages"][-1]["content"], **pair["response"], "output_text": answer}


def litellm(request, thinking, answer):
    blocks = [{"type": "thinking", "thinking": thinking, "signature": "EqQB"}]
    message = {
        "role": "assistant", "content": answer, "reasoning_content": thinking, "thinking_blocks": blocks,
        "provider_specific_fields": {"reasoning_content": thinking, "refusal": None},
    }  # fmt: skip
    return {"id": "a", "request": request, "response": {"choices": [{"message": message}]}}


def mistral(request, thinking, answer):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": thinking}]}, {"type": "text", "text": answer}]
    return {"id": "a", "messages": [*request["messages"], {"role": "assistant", "content": parts}]}


def message_alone(request, thinking, answer):
    return {"id": "a", "messages": [*request["messages"], {"role": "assistant", "thinking": thinking, "content": answer}]}


SERVERS = {
    each.__name__: each
    for each in (
        openai, vllm_both, ollama_chat, ollama_chat_flat, ollama_generate, ollama_generate_flat, openrouter,
        openrouter_details, anthropic, responses, responses_flat, litellm, mistral, message_alone,
    )
}  # fmt: skip


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("server", SERVERS)
def test_what_a_server_sent_is_what_the_trace_says(server, family, read):
    (trace,) = read(family, SERVERS[server]({"messages": QUESTION}, "Add two and two.", "It is 4."))
    assert said(trace) == ("Add two and two.", "It is 4.")
    assert trace.prompt == prompt_text(MODELS[family](), QUESTION)
    assert trace.meta["rebuilt_response"] is True
    assert trace.id == "a"


@pytest.mark.parametrize("amount", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_any_text_that_a_server_sent_comes_back_or_is_refused(amount, tmp_path):
    path = tmp_path / "traces.jsonl"
    markers = [usual(marker) for each in FORMATS.values() for pair in each.markers for marker in pair]
    words = ["Add. ", "So 4.", "\n", "\n\n", " ", "数。", "🙂", "\u2028", "a < b", "</", "e.g. "]
    kept = 0
    for start in range(0, amount, 100):
        at = random.Random(f"server {start}")
        family = at.choice(list(MODELS))
        pairs = []
        for _ in range(100):
            pick = [*words * 3, at.choice(markers)]
            pairs.append(tuple("".join(at.choice(pick) for _ in range(at.randrange(1, 7))) for _ in "ab"))
        names = [at.choice(list(SERVERS)) for _ in pairs]
        records = [
            {**SERVERS[name]({"messages": QUESTION}, *pair), "id": str(index)}
            for index, (name, pair) in enumerate(zip(names, pairs, strict=True))
        ]
        for index, record in enumerate(records):
            if isinstance(record.get("response"), dict):
                record["response"]["id"] = str(index)
        path.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            traces = read_traces(path, MODELS[family](), on_error="skip")
        for trace in traces:
            thinking, answer = pairs[int(trace.id)]
            has = [marker in thinking + answer for marker in markers]
            if not any(has) and thinking.strip() and answer.strip():
                assert said(trace) == (thinking.strip(), answer.strip()), (names[int(trace.id)], family)
                kept += 1
        found = {trace.id for trace in traces}
        for index, (thinking, answer) in enumerate(pairs):
            if thinking.strip() and answer.strip() and not any(marker in thinking + answer for marker in markers):
                assert str(index) in found, (names[index], family, thinking, answer)
    assert kept > amount / 5
