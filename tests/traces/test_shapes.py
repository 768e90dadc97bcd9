"""What servers, chats and harnesses log, shape by shape: what was sent is what the trace's thinking and summary say."""

import json
import random
import re
import warnings
from itertools import accumulate
from pathlib import Path

import pytest
from toy_tokenizers import MODELS, _with_specials, byte_fallback, byte_level

import stepsal
from stepsal import InputError, Trace, read_traces
from stepsal.traces.convert import convert_traces
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
    return {
        "request": {"model": "m", **request},
        "response": {**about, "choices": [choice], "usage": {"total_tokens": 9}},
    }


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
    response = {
        "model": "m",
        "response": answer,
        "thinking": thinking,
        "done": True,
        "context": [1, 2],
        "eval_count": 9,
    }
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
    return {
        "request": {"max_tokens": 9, **request},
        "response": {**about, "content": parts, "usage": {"input_tokens": 1}},
    }


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
    return {
        "id": "a",
        "messages": [*request["messages"], {"role": "assistant", "thinking": thinking, "content": answer}],
    }


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


@pytest.mark.parametrize("amount", [400, pytest.param(5_000, marks=pytest.mark.slow)])
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


# --- a field that carries text is used or refused ------------------------------------------------------------------------
def message(**fields):
    return {"messages": [USER, {"role": "assistant", "content": "It is 4.", **fields}]}


UNREAD = {
    "scratchpad": message(scratchpad="Add two and two."),
    "refusal": message(refusal="No.", content=None),
    "audio": message(audio={"id": "x", "transcript": "Four."}),
    "chain_of_thought": {"prompt": "2+2?", "chain_of_thought": "Add.", "response": "4"},
    "rationale": {"prompt": "2+2?", "rationale": "Add.", "content": "4"},
    "output": {"prompt": "2+2?", "output": "4", "response": "5"},
    "text": {"prompt": "2+2?", "text": "Add. 4", "response": "4"},
    "deliberation": {"messages": QUESTION, "choices": [{"message": {"content": "4"}, "deliberation": "Add."}]},
    "monologue": {"request": {"messages": QUESTION}, "response": {"monologue": "Add.", "choices": [{"text": "4"}]}},
    "suffix": {"request": {"prompt": "2+2?", "suffix": "!"}, "response": {"choices": [{"text": "4"}]}},
    "chat_template": {
        "request": {"messages": QUESTION, "chat_template": "x"},
        "response": {"choices": [{"text": "4"}]},
    },
    "generated_text": {"prompt": "2+2?", "generated_text": "4", "response": "4!"},
    "steps": {**message(), "steps": ["Add two.", "Then two."]},
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_field_with_text_that_nothing_reads_is_refused_by_its_name(name, read):
    with pytest.raises(InputError, match=rf"the field '{name}' with text that nothing here reads"):
        read("qwen3", UNREAD[name])


BESIDE = {
    "system": "Be brief.",
    "instructions": "Be brief.",
    "prompt": "What is 3+3?",
    "tools": [{"type": "function", "function": {"name": "add"}}],
    "messages": [{"role": "user", "content": "What is 3+3?"}],
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_prompt_beside_the_request_is_refused_unless_it_is_the_same(name, read):
    record = answered({"messages": QUESTION}, content="It is 4.")
    with pytest.raises(InputError, match=rf"the object that the request is in has the field '{name}' with text"):
        read("qwen3", {name: BESIDE[name], **record})
    (plain,) = read("qwen3", record)
    for same in (
        {"prompt": USER["content"]},
        {"messages": QUESTION},
        {"messages": [*QUESTION, {"content": "It is 4."}]},
    ):
        assert read("qwen3", {**same, **record})[0].text == plain.text


@pytest.mark.parametrize(
    ("request_", "response", "reason"),
    [
        ({"truncate_prompt_tokens": 5}, {"choices": [{"message": {"content": "4"}}]}, "truncate_prompt_tokens=5"),
        ({"add_special_tokens": True}, {"choices": [{"message": {"content": "4"}}]}, "add_special_tokens=True"),
        ({"context": [1, 2]}, {"message": {"content": "4"}, "done": True}, "'context' of an earlier answer"),
    ],
)
def test_what_a_request_does_to_the_tokens_of_its_prompt_is_refused(request_, response, reason, read):
    tokenizer = byte_fallback()  # puts a BOS before a text
    tokenizer.chat_template = CHAT
    with pytest.raises(InputError, match=reason):
        read(tokenizer, {"request": {"messages": QUESTION, **request_}, "response": response})
    nothing = {"truncate_prompt_tokens": -1, "add_special_tokens": False, "context": []}
    read(
        tokenizer,
        {"request": {"messages": QUESTION, **{name: nothing[name] for name in request_}}, "response": response},
    )


def test_a_completion_without_special_tokens_is_refused_where_the_tokenizer_adds_one(read):
    record = {"prompt": "2+2?", "add_special_tokens": False, "choices": [{"text": " 4"}]}
    with pytest.raises(InputError, match="add_special_tokens=False"):
        read(byte_fallback(), record)
    assert read("qwen3", record)[0].prompt == "2+2?"


def test_a_thinking_that_a_message_has_is_never_dropped(read):
    record = {"messages": [USER, {"role": "assistant", "thinking": "Add two and two.", "content": "It is 4."}]}
    for family in MODELS:
        assert said(*read(family, record)) == ("Add two and two.", "It is 4.")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reasoning": "Add.", "thinking": "Subtract."}, "'reasoning' and 'thinking' say different things"),
        (
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x"}]},
            "the thinking is encrypted",
        ),
        ({"content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "4"}]}, "is encrypted"),
        (
            {"content": [{"type": "text", "text": "4"}, {"type": "thinking", "thinking": "Add."}]},
            "'thinking' after another kind of part",
        ),
        ({"content": [{"type": "text", "text": "4", "aside": "Hm."}]}, "a part of 'content' has the field 'aside'"),
        ({"content": [{"type": "poem", "poem": "4"}]}, "a response's content is text or thinking, found the part"),
        ({"response": "5"}, "'response' and 'content' say different things"),
    ],
)
def test_thinking_that_cannot_be_known_is_refused_with_the_reason(fields, reason, read):
    with pytest.raises(InputError, match=reason):
        read("qwen3", message(**fields) if "response" not in fields else {"prompt": "Q", "content": "4", **fields})


def test_a_summary_beside_the_whole_thinking_is_not_called_one(read):
    details = [{"type": "reasoning.text", "text": "Add."}, {"type": "reasoning.summary", "summary": "Adds."}]
    choices = [{"message": {"content": "It is 4.", "reasoning_details": details}}]
    (trace,) = read("qwen3", {"messages": QUESTION, "choices": choices})
    assert said(trace) == ("Add.", "It is 4.")
    assert "summarized_thinking" not in trace.meta


def test_a_summary_of_the_thinking_is_used_and_called_one(read):
    record = responses({"messages": QUESTION}, "", "It is 4.")
    record["response"]["output"][0] |= {"content": None, "summary": [{"type": "summary_text", "text": "Adds."}]}
    with pytest.warns(UserWarning, match="sent a summary of the thinking in its place"):
        (trace,) = read("qwen3", record)
    assert said(trace) == ("Adds.", "It is 4.")
    assert trace.meta["summarized_thinking"] is True


def items(*parts, **fields):
    return {"input": "2+2?", "output": list(parts), **fields}


def thought(*texts):
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text} for text in texts]}


def wrote(*texts):
    return {"type": "message", "content": [{"type": "output_text", "text": text} for text in texts]}


@pytest.mark.parametrize(
    ("record", "thinking", "summary"),
    [
        (items(thought("Add."), thought("Two."), wrote("4")), "Add.\n\nTwo.", "4"),
        (items(thought("Add.", "Two."), wrote("4"), wrote("Four.")), "Add.\n\nTwo.", "4\n\nFour."),
        (items(thought("Add.\n"), thought("Two."), wrote("4", "\nFour."), output_text="4\nFour."), "Add.\nTwo.", "4\nFour."),
        (items(thought("Add."), wrote("4", "Four."), output_text="4Four."), "Add.", "4\n\nFour."),
        (
            {"messages": [USER, {"role": "assistant", "reasoning_content": "Add.Two.", "content": "4", "thinking_blocks": [
                {"type": "thinking", "thinking": "Add."}, {"type": "thinking", "thinking": "Two."}]}]},
            "Add.\n\nTwo.",
            "4",
        ),
    ],
)  # fmt: skip
def test_separate_parts_are_paragraphs(read, record, thinking, summary):
    (trace,) = read("qwen3", record)
    assert said(trace) == (thinking, summary)
    assert trace.meta["rebuilt_response"] is True


def test_separate_blocks_of_an_answer_are_paragraphs_and_it_is_called_put_together(read):
    parts = [{"type": "text", "text": "4"}, {"type": "text", "text": "Four."}]
    record = {"messages": [USER, {"role": "assistant", "content": parts}]}
    (trace,) = read("qwen3", record)
    assert (trace.response, trace.meta["rebuilt_response"]) == ("4\n\nFour.", True)
    (whole,) = read("qwen3", {"messages": [USER, {"role": "assistant", "content": parts[:1]}]})
    assert "rebuilt_response" not in whole.meta
    ids = MODELS["qwen3"]().encode("4Four.")
    (trace,) = read("qwen3", {**record, "messages": QUESTION, "content": parts, "token_ids": ids})
    assert trace.response == "4Four."  # the ids are what the model wrote


def test_parts_of_a_summary_are_paragraphs_and_pieces_of_a_stream_are_one_text(read):
    parts = [{"type": "summary_text", "text": f"**{name}**\n\nI {name}."} for name in ("add", "check")]
    record = items({"type": "reasoning", "summary": parts}, wrote("4"))
    details = [{"type": "reasoning.summary", "summary": part["text"], "index": at} for at, part in enumerate(parts)]
    pieces = [{**details[0], "summary": text} for text in ("**add**\n\nI ", "add.")]
    details = {"messages": [USER, {"role": "assistant", "content": "4", "reasoning_details": [*pieces, details[1]]}]}
    for each in (record, details):
        with pytest.warns(UserWarning, match="a summary of the thinking"):
            (trace,) = read("qwen3", each)
        assert said(trace) == ("**add**\n\nI add.\n\n**check**\n\nI check.", "4")


def test_fields_about_the_problem_are_kept_and_others_of_servers_are_no_text(read):
    record = {**message(annotations=[]), "dataset": "MATH", "level": "Level 5", "score": 0.5, "meta": {"run": 1}}
    (trace,) = read("qwen3", record)
    assert {"dataset": "MATH", "level": "Level 5", "run": 1}.items() <= trace.meta.items()
    assert "score" not in trace.meta


def test_calls_of_tools_are_read_in_each_servers_shape(read):
    arguments = {"a": 2, "b": 2}
    use = {"type": "tool_use", "id": "1", "name": "add", "input": arguments}
    parts = [{"type": "thinking", "thinking": "A tool."}, use]
    item = {"type": "function_call", "call_id": "1", "name": "add", "arguments": json.dumps(arguments)}
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "A tool."}]}
    call = {"function": {"name": "add", "arguments": arguments}}
    records = [
        {"messages": [USER, {"role": "assistant", "reasoning": "A tool.", "content": None, "tool_calls": [CALL]}]},
        {"messages": [USER, {"role": "assistant", "content": parts}]},
        {"input": "2+2?", "output": [thought, item]},
        {
            "messages": QUESTION,
            "message": {"role": "assistant", "thinking": "A tool.", "content": "", "tool_calls": [call]},
        },
        {
            "messages": [USER, {"role": "assistant", "reasoning": "A tool.", "function_call": CALL["function"]}],
        },
    ]
    for family in ("qwen3", "gpt_oss"):
        first, *others = read(family, *records)
        assert "A tool." in first.response
        assert '{"a": 2, "b": 2}' in first.response
        assert [trace.text for trace in others] == [first.text] * len(others)


def test_chats_of_sharegpt_are_chats(read):
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2+2?"}]
    answer = "<think>\nAdd.\n</think>\n\nIt is 4."
    (trace,) = read("qwen3", {"id": "a", "conversations": [*turns, {"from": "gpt", "value": answer}]})
    assert trace.prompt == prompt_text(MODELS["qwen3"](), [{"role": "system", "content": "Be brief."}, USER])
    assert said(trace) == ("Add.", "It is 4.")
    with pytest.raises(InputError, match="'from' must be one of 'human'.*found 'narrator'"):
        read("qwen3", {"conversations": [*turns, {"from": "narrator", "value": answer}]})


def harness(prompt, *responses, **fields):
    return {
        "doc_id": 3, "doc": {"question": "2+2?", "answer": "4"}, "target": "4", "arguments": prompt, "resps": [list(responses)],
        "filtered_resps": ["4"], "filter": "strict-match", "metrics": ["exact_match"], "exact_match": 1.0,
        "doc_hash": "d", "prompt_hash": "p", "target_hash": "t", **fields,
    }  # fmt: skip


def test_logged_samples_of_the_harness_are_answers_to_their_prompts(read):
    text = prompt_text(MODELS["qwen3"](), QUESTION)
    answer = "<think>\nAdd.\n</think>\n\nIt is 4."
    options = {"until": ["</s>"]}
    prompts = [
        [[text, options]],
        {"gen_args_0": {"arg_0": text, "arg_1": options}},
        [[[json.dumps(QUESTION)], options]],
        {"gen_args_0": {"arg_0": [json.dumps(QUESTION)], "arg_1": options}},
        {"gen_args_0": {"arg_0": json.dumps(QUESTION), "arg_1": options}},
    ]
    for prompt in prompts:
        (trace,) = read("qwen3", harness(prompt, answer))
        assert (trace.id, trace.prompt, trace.response) == ("doc-3-strict-match", text, answer)
        assert (trace.answer, trace.correct, trace.meta["doc"]["question"]) == ("4", True, "2+2?")
    first, second = read("qwen3", harness(prompts[0], answer, "4", exact_match=0.0))
    assert (first.id, second.id, second.response) == ("doc-3-strict-match-0", "doc-3-strict-match-1", "4")
    assert (first.correct, second.correct) == (None, None)  # which of them was graded, the sample does not say
    assert second.meta["grade_of_the_sample"] == 0
    with pytest.raises(InputError, match="log-likelihoods are no traces"):
        read("qwen3", harness(prompts[0], ["-1.2", "False"]))
    with pytest.raises(InputError, match="the field 'commentary' with text"):
        read("qwen3", harness(prompts[0], answer, commentary="Add."))


def test_the_harness_goes_on_with_the_message_that_a_prefix_begins(read):
    chat = [USER, {"role": "assistant", "content": "Answer:"}]
    (trace,) = read("qwen3", harness({"gen_args_0": {"arg_0": json.dumps(chat), "arg_1": {}}}, " 4"))
    expected = prompt_text(MODELS["qwen3"](), {"messages": chat, "continue_final_message": True})
    assert (trace.prompt, trace.response) == (expected, " 4")
    assert trace.prompt.endswith("assistant\nAnswer:")


@pytest.mark.parametrize(
    ("metrics", "correct"),
    [
        ({"wer": 0.0}, None),
        ({"wer": 1.0, "exact_match": 0.0}, False),
        ({"exact_match": 1, "math_verify": 1.0, "length": 0}, True),
        ({"exact_match": 0, "math_verify": 1}, None),
        ({"exact_match,strict": 1.0}, True),
        ({"acc": 0.5}, None),
    ],
)
def test_accuracies_alone_grade_a_sample_of_the_harness(read, metrics, correct):
    record = harness([["2+2?", {}]], "4", metrics=list(metrics))
    del record["exact_match"]
    (trace,) = read("qwen3", record | metrics)
    assert trace.correct is correct
    assert trace.meta.get("metrics_of_the_sample") == (metrics if correct is None else None)


def test_a_thinking_in_the_markers_of_another_family_is_thinking(read):
    content = "<think>\nAdd.\n</think>\n\n4"
    (trace,) = read("gpt_oss", {"messages": [USER, {"role": "assistant", "content": content}]})
    assert said(trace) == ("Add.", "4")


@pytest.mark.parametrize(
    ("indices", "ids"), [((1, 0), ["1", "0"]), ((0, 0), ["0", "1"]), ((2, None), ["0", "1"]), ((True, 0), ["0", "1"])]
)
def test_choices_are_called_by_their_index(read, indices, ids):
    choices = [{"index": index, "message": {"content": "4"}} for index in indices]
    traces = read("qwen3", {"messages": QUESTION, "choices": choices, "id": "a"})
    assert [trace.id for trace in traces] == [f"a-{each}" for each in ids]


def test_a_grade_is_that_of_its_own_answer(read):
    choices = [{"message": {"content": "4"}, "correct": True}, {"message": {"content": "5"}, "correct": False}]
    right, wrong = read("qwen3", {"messages": QUESTION, "choices": choices})
    assert (right.correct, wrong.correct) == (True, False)
    with pytest.raises(InputError, match="one grade, 'correct', for 2 answers"):
        read("qwen3", {"messages": QUESTION, "choices": choices, "correct": True})


@pytest.mark.parametrize(
    "fields",
    [
        {"think": "Add two and two."},
        {"reasoning": {"content": "Add."}},
        {"reasoning": {"summary": "Add two and two."}},
        {"thinking": {"text": "Add."}},
    ],
    ids=["think", "reasoning", "summary", "thinking"],
)
def test_thinking_in_an_unknown_shape_is_refused_and_never_lost(read, fields):
    for record in (
        {"messages": [*QUESTION, {"role": "assistant", "content": "4", **fields}]},
        {"prompt": "2+2?", "content": "4", **fields},
    ):
        with pytest.raises(InputError):
            read("qwen3", record)


def test_an_answer_that_was_begun_in_the_request_is_gone_on_with(read):
    begun = [*QUESTION, {"role": "assistant", "content": "It is"}]
    request = {"messages": [*QUESTION, begun[-1] | {"prefix": True}]}
    (trace,) = read("qwen3", {"request": request, "response": {"choices": [{"message": {"content": " 4"}}]}})
    assert trace.prompt.endswith("It is")
    response = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": " 4"}]}
    (trace,) = read("qwen3", {"request": {"messages": begun}, "response": response})
    assert trace.prompt.endswith("It is")


def test_raw_completions_of_llama_cpp_and_sglang_are_texts_or_ids(read):
    tokenizer = MODELS["qwen3"]()
    prompt = prompt_text(tokenizer, QUESTION)
    answer = "<think>\nAdd.\n</think>\n\n4"
    ids = tokenizer.encode(answer)
    expected = Trace.from_text(tokenizer, prompt, answer)
    native = {"text": answer, "meta_info": {"id": "x", "finish_reason": {"type": "stop"}}}
    records = [
        {"content": answer, "prompt": prompt, "generation_settings": {"grammar": "x"}, "tokens_predicted": 9},
        {"content": answer, "prompt": prompt, "generation_settings": {}, "stop_type": "eos", "tokens": ids},
        {"request": {"text": prompt}, "response": native},
        {"request": {"input_ids": tokenizer.encode(prompt)}, "response": {**native, "output_ids": ids}},
        {"model": "m", "prompt": prompt, "raw": True, "response": answer, "done": True},
    ]
    for record in records:
        (trace,) = read("qwen3", record)
        assert trace.steps == expected.steps
        assert trace.prompt == prompt
        assert "rebuilt_response" not in trace.meta


# --- what the request asked ------------------------------------------------------------------------------------------
def answered(request, text=None, **message):
    choice = {"text": text} if text is not None else {"message": {"role": "assistant", **message}}
    return {"request": request, "response": {"choices": [choice]}}


def test_an_echo_of_the_prompt_is_no_answer(read):
    tokenizer = MODELS["qwen3"]()
    prompt = prompt_text(tokenizer, QUESTION)
    (trace,) = read("qwen3", answered({"prompt": prompt, "echo": True}, prompt + "It is 4."))
    assert (trace.prompt, trace.response) == (prompt, "It is 4.")
    begun = {
        "messages": [USER, {"role": "assistant", "content": "It is"}],
        "continue_final_message": True,
        "echo": True,
    }
    (trace,) = read("qwen3", answered(begun, content="It is 4."))
    assert (trace.prompt, trace.response) == (prompt + "It is", " 4.")
    with pytest.raises(InputError, match="asked for an echo, but the answer begins with 'It is 4.'"):
        read("qwen3", answered({"prompt": prompt, "echo": True}, "It is 4."))


def test_a_message_that_goes_on_is_continued(read):
    tokenizer = MODELS["qwen3"]()
    prompt = prompt_text(tokenizer, QUESTION)
    begun = {"messages": [USER, {"role": "assistant", "content": "It is"}], "continue_final_message": True}
    for request in (begun, {**begun, "add_generation_prompt": False}):
        (trace,) = read("qwen3", answered(request, content=" 4."))
        assert (trace.prompt, trace.response) == (prompt + "It is", " 4.")
    begun["messages"][1]["content"] = "<think>\nAdd two"
    (trace,) = read("qwen3", answered(begun, reasoning_content=" and two.", content="It is 4."))
    assert (trace.prompt, trace.response) == (prompt + "<think>\nAdd two", " and two.\n</think>\n\nIt is 4.")
    assert said(trace) == ("and two.", "It is 4.")


def test_a_prompt_without_the_header_of_the_answer_is_the_prompt(read):
    request = {"messages": QUESTION, "add_generation_prompt": False}
    (trace,) = read("qwen3", answered(request, content="4"))
    assert trace.prompt == prompt_text(MODELS["qwen3"](), request) == "<|im_start|>user\n2+2?<|im_end|>\n"


@pytest.mark.parametrize(
    "switch",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"enable_thinking": False},
        {"think": False},
        {"thinking": {"type": "disabled"}},
        {"reasoning": {"enabled": False}},
    ],
)
def test_thinking_that_a_request_switched_off_is_switched_off_in_the_prompt(switch, read):
    (trace,) = read("qwen3", answered({"messages": QUESTION, **switch}, content="It is 4."))
    assert trace.prompt.endswith("<think>\n\n</think>\n\n")
    assert trace.response == "It is 4."


def test_what_a_request_says_beside_its_messages_is_in_the_prompt(read):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    expected = prompt_text(
        MODELS["qwen3"](), {"messages": [{"role": "system", "content": "Be brief."}, USER], "tools": tools}
    )
    requests = [
        {"messages": QUESTION, "system": "Be brief.", "tools": [{"name": "add", "input_schema": {}}]},
        {"messages": QUESTION, "system": [{"type": "text", "text": "Be brief."}], "tools": tools},
        {
            "input": "2+2?",
            "instructions": "Be brief.",
            "tools": [{"type": "function", "name": "add", "parameters": {}}],
        },
        {"input": [{"role": "developer", "content": "Be brief."}, USER], "tools": tools},
        {
            "messages": [{"role": "system", "content": "Be brief."}, USER],
            "functions": [{"name": "add", "parameters": {}}],
        },
    ]
    for request in requests:
        assert read("qwen3", answered(request, content="4"))[0].prompt == expected
    (trace,) = read("gpt_oss", answered({"messages": QUESTION, "reasoning": {"effort": "high"}}, content="4"))
    assert "Reasoning: high" in trace.prompt
    with pytest.raises(InputError, match="'system' beside it would be lost"):
        read("qwen3", answered({"prompt": "2+2?", "system": "Be brief."}, "4"))
    with pytest.raises(InputError, match="'messages' and 'prompt' are two prompts"):
        read("qwen3", answered({"messages": QUESTION, "prompt": "3+3?"}, "4"))


def test_thinking_that_the_request_left_out_is_not_known(read):
    for option in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
        with pytest.raises(InputError, match="to leave the thinking out of the answer"):
            read("qwen3", answered({"messages": QUESTION, **option}, content="4"))


# --- what is put together parses to what went in -------------------------------------------------------------------------
OFF = {"messages": QUESTION, "chat_template_kwargs": {"enable_thinking": False}}


def test_no_thinking_is_invented_after_a_prompt_that_closed_it(read):
    with pytest.warns(UserWarning, match="so what the server calls thinking is the answer: 'It is 4.'"):
        (trace,) = read("qwen3", answered(OFF, reasoning_content="It is 4.", content=None))
    assert trace.response == "It is 4."
    assert said(trace) == ("", "It is 4.")
    with pytest.raises(
        InputError, match=r"the prompt has closed the thinking with '</think>', but the server sends thinking"
    ):
        read("qwen3", answered(OFF, reasoning_content="Add.", content="4"))


@pytest.mark.parametrize("family", MODELS)
def test_markers_that_the_server_left_around_the_thinking_are_not_put_there_twice(family, read):
    opening, closing = {
        "magistral": ("[THINK]", "[/THINK]"),
        "gpt_oss": ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    }.get(family, ("<think>", "</think>"))
    plain = read(family, answered({"messages": QUESTION}, reasoning_content="Add.", content="4"))[0]
    for thinking in (f"{opening}Add.{closing}", f"{opening}Add.", f"Add.{closing}"):
        (trace,) = read(family, answered({"messages": QUESTION}, reasoning_content=thinking, content="4"))
        assert trace.text == plain.text
    for left in (f"{opening}Add.{closing}", closing, f"{opening}{closing}"):
        (trace,) = read(family, answered({"messages": QUESTION}, reasoning_content="Add.", content=f"{left}4"))
        assert said(trace) == ("Add.", "4")
        assert trace.text.count(closing) == plain.text.count(closing)


def test_a_marker_within_the_thinking_would_end_it_and_is_refused(read):
    with pytest.raises(InputError, match="a marker stands within a text"):
        read("qwen3", answered({"messages": QUESTION}, reasoning_content="Say </think> here.", content="4"))


def test_content_that_leaves_an_opened_thinking_open_is_warned_about(read):
    with pytest.warns(
        UserWarning, match="'content' does not close it, so all of it is taken for thinking that was cut off"
    ):
        read("r1", answered({"messages": QUESTION}, content="It is 4."))
    cut = answered({"messages": QUESTION}, content="Add")
    cut["response"]["choices"][0]["finish_reason"] = "length"
    assert said(*read("r1", cut)) == ("Add", "")


# --- every family's markers ------------------------------------------------------------------------------------------
FAMILIES = {
    "Seed-OSS": ("<seed:think>", "</seed:think>", ""),
    "Command A Reasoning": ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
    "Kimi-VL": ("◁think▷", "◁/think▷", ""),
    "EXAONE Deep": ("<thought>", "</thought>", ""),
    "MiniMax-M3": ("<mm:think>", "</mm:think>", ""),
    "Gemma 4": ("<|channel>thought", "<channel|>", ""),
    "Apertus": ("<|inner_prefix|>", "<|inner_suffix|>", ""),
    "OpenThinker": ("<|begin_of_thought|>", "<|end_of_thought|>", ""),
    "Granite 3.3, EXAONE 4, MiniMax-M2, GLM, Kimi-K2": ("<think>", "</think>", ""),
    "Granite 3.2": ("Here is my thought process:", "Here is my response:", ""),
}


def family_tokenizer(*names, tokens=()):
    return _with_specials(tokens, template(*names))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("as_tokens", [True, False])
def test_each_family_has_its_own_markers(family, as_tokens, read):
    opening, closing, before = FAMILIES[family]
    as_tokens = as_tokens and not opening.startswith("Here")
    whole = [opening, closing, *filter(None, [before])]
    tokenizer = family_tokenizer(opening, closing, tokens=whole if as_tokens else ())
    (trace,) = read(tokenizer, answered({"messages": QUESTION}, reasoning_content="Add two.", content="It is 4."))
    assert "".join(trace.response.split()) == "".join(f"{opening}Add two.{closing}{before}It is 4.".split())
    assert said(trace) == ("Add two.", "It is 4.")
    (raw,) = read(tokenizer, answered({"messages": QUESTION}, trace.response))
    assert [step.segment for step in raw.steps] == ["question", "thinking", "summary"]
    (plain,) = read(tokenizer, answered({"messages": QUESTION}, content="It is 4."))
    assert plain.response == f"{before}It is 4."
    assert said(plain) == ("", "It is 4.")


def test_the_vocabulary_says_the_markers_where_the_template_does_not(read):
    tokenizer = byte_level(markers=False)
    tokenizer.add_tokens(["<seed:think>", "</seed:think>"])
    tokenizer.chat_template = CHAT
    (trace,) = read(tokenizer, message(reasoning="Add."))
    assert trace.response == "<seed:think>Add.</seed:think>It is 4."


UNKNOWN = [
    ("<reason>", "</reason>"), ("<|start_reasoning|>", "<|end_reasoning|>"), ("[REASON]", "[/REASON]"),
    ("◁reason▷", "◁/reason▷"), ("<x:thought>", "</x:thought>"),
]  # fmt: skip


@pytest.mark.parametrize(("opening", "closing"), UNKNOWN)
def test_markers_that_no_format_knows_are_never_taken_for_others(opening, closing, read):
    tokenizer = byte_level(markers=False)
    tokenizer.chat_template = template(opening, closing)
    record = message(reasoning_content="Add.")
    with pytest.raises(InputError) as error:
        read(tokenizer, record)
    assert f"format=({opening!r}, {closing!r})" in str(error.value)
    assert f"--format '{opening},{closing}'" in str(error.value)
    assert said(*read(tokenizer, record, format=(opening, closing)))[1] == "It is 4."
    with pytest.warns(UserWarning, match="which no format knows: give the pair of markers"):
        read(tokenizer, answered({"messages": QUESTION}, f"{opening}Add.{closing}4"))


def test_a_template_that_names_no_markers_is_asked_for_them(read):
    tokenizer = byte_level(markers=False)
    tokenizer.chat_template = CHAT
    with pytest.raises(InputError, match=r"how this model marks its thinking: give the pair of markers as format"):
        read(tokenizer, message(reasoning_content="Add."))


def test_prose_that_one_family_uses_as_markers_is_prose_for_the_others(read):
    for text in ("Here is my response: 4.", "So. Here is my response: 4.", "Here is my thought process: add."):
        assert read("qwen3", answered({"messages": QUESTION}, text))[0].segment("summary")[0].text == text
    assert "granite" in FORMATS


# --- no clock in the input -------------------------------------------------------------------------------------------
@pytest.fixture
def dated():
    tokenizer = byte_level()
    tokenizer.chat_template = "  {{ strftime_now('%d %b %Y, %H:%M %B %-d %j %F %%m') }}|" + CHAT + "{# <think> #}"
    return tokenizer


def test_a_template_that_asks_for_the_time_is_told_when_the_server_answered(dated, read):
    for created in (1700000000, 1700000000.5, "2023-11-14T22:13:20.123456789Z", "2023-11-14T23:13:20+01:00"):
        record = answered({"messages": QUESTION}, content="4")
        record["response"]["created"] = created
        (trace,) = read(dated, record)
        assert trace.prompt.startswith("  14 Nov 2023, 22:13 November 14 318 2023-11-14 %m|<|im_start|>user\n2+2?")
        assert trace.meta["template_time"].startswith("2023-11-14T22:13:20")
    with pytest.raises(InputError, match="the time 'created' is 'yesterday'"):
        read(dated, {"prompt": {"messages": QUESTION, "created": "yesterday"}, "response": "4"})


def test_without_a_time_it_is_told_a_fixed_one_that_the_trace_records(dated, read):
    (trace,) = read(dated, {"prompt": QUESTION, "response": "4"})
    assert trace.prompt.startswith("  01 Jan 2025, 00:00 January 1 001 2025-01-01 %m|")
    assert trace.meta["template_time"] == DEFAULT_TIME.isoformat()
    assert encode_prompt(dated, QUESTION) == trace.tokens[: trace.prompt_tokens].tolist()
    (trace,) = read(dated, {"prompt": "  01 Jan|2+2?", "response": "4"})
    assert "template_time" not in trace.meta


# --- token ids say what the text beside them says ------------------------------------------------------------------------
def test_ids_that_do_not_say_the_text_beside_them_are_refused_in_every_shape(read, tmp_path):
    tokenizer = MODELS["qwen3"]()
    prompt, answer = prompt_text(tokenizer, QUESTION), "<think>\nAdd two.\n</think>\n\nIt is 4."
    ids, prompt_ids = (tokenizer.encode(text) for text in (answer, prompt))
    moved = [token + 1 for token in ids]
    stepsal.write_traces(tmp_path / "own.jsonl", [Trace.from_text(tokenizer, prompt, answer, id="a")])
    own = json.loads((tmp_path / "own.jsonl").read_text())
    del own["stepsal_sha256"]  # what is refused must not be so for its checksum alone
    fields = {"reasoning": "Add two.", "content": "It is 4."}
    right = [
        own,
        {"prompt": prompt, "response": answer, "tokens": prompt_ids + ids},
        {"prompt": QUESTION, "response": answer, "tokens": prompt_ids + ids},
        {"prompt": prompt, "response": answer, "token_ids": ids},
        {"prompt": prompt, **fields, "token_ids": ids},
        {"request": {"prompt": prompt}, "response": {"choices": [{"text": answer, "token_ids": ids}]}},
        {"request": {"messages": QUESTION}, "response": {"choices": [{"message": fields, "token_ids": ids}]}},
        {"messages": QUESTION, "choices": [{"message": fields, "token_ids": ids, "prompt_token_ids": prompt_ids}]},
        {"prompt": prompt, "response": answer, "prompt_token_ids": prompt_ids},
        {"prompt": prompt, "content": answer, "tokens": ids, "stop_type": "eos"},
    ]

    def wrong(record):
        """The record with its ids moved by one."""
        text = json.dumps(record)
        return json.loads(text.replace(json.dumps(ids)[1:-1], json.dumps(moved)[1:-1]))

    for record in right:
        assert read("qwen3", record)[0].text == prompt + answer
        if (other := wrong(record)) != record:
            with pytest.raises(InputError, match="the token ids say"):
                read("qwen3", other)
    before = [token + 1 for token in prompt_ids]
    for record in (
        {**own, "tokens": before + ids},
        {"prompt": prompt, "response": answer, "prompt_token_ids": before},
        {"prompt": QUESTION, "response": answer, "prompt_token_ids": before, "token_ids": ids},
        {"prompt": prompt, "response": answer, "prompt_token_ids": before, "token_ids": ids},
    ):
        with pytest.raises(InputError, match="the token ids say"):
            read("qwen3", record)
    longer = own["segmentation"] | {"prompt_tokens": own["segmentation"]["prompt_tokens"] + 4}
    with pytest.raises(InputError, match="tokens of the prompt say .*, and not what 'prompt' says"):
        read("qwen3", {**own, "segmentation": longer})
    for name, other in (("prompt", "response"), ("response", "prompt")):
        alone = {key: value for key, value in own.items() if key != other}
        assert read("qwen3", alone)[0].text == prompt + answer
        with pytest.raises(InputError, match=f"tokens of the {name} say .*, and not what '{name}' says: 'Something"):
            read("qwen3", alone | {name: "Something else."})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": [{**USER, "images": ["a cat"]}], "response": "4"},
            "does not write the field 'images' of a message",
        ),
        ({"messages": [{**USER, "attachment": "a.pdf"}], "response": "4"}, "does not write the field 'attachment'"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": "", "function_call": {"name": "sum", "arguments": "{}"}},
                    USER,
                ]
            }
            | {"response": "4"},
            "does not write the call of a tool in a message",
        ),
        ({"request": {"messages": 5}, "response": {"type": "message", "content": "4"}}, "chat messages need a 'role'"),
        ({"messages": QUESTION, "response": "4", "phase": "Add two and two."}, "the field 'phase' with text"),
        ({"messages": QUESTION, "response": "4", "format": "Add two and two."}, "the field 'format' with text"),
        ({"prompt": "2+2?", "response": "4", "segmentation": {}, "scratch": "Add."}, "the field 'scratch' with text"),
        (
            {
                "request": {"input": "And 3?", "conversation": "conv_1"},
                "response": {"output": [{"type": "message", "content": "3"}]},
            },
            "has the 'conversation' of an earlier answer",
        ),
        (
            {"request": {"input": "And 3?"}}
            | {"response": {"previous_response_id": "resp_1", "output": [{"type": "message", "content": "3"}]}},
            "has the 'previous_response_id' of an earlier answer",
        ),
        (
            {"messages": QUESTION, "chat_template_kwargs": "thinking", "response": "4"},
            "'chat_template_kwargs' is 'thinking'",
        ),
        ({"messages": QUESTION, "add_generation_prompt": "false", "response": "4"}, "must be true or false"),
        ({"messages": QUESTION, "echo": 1, "response": "4"}, "'echo' must be true or false, found 1"),
        (
            {"inputs": "2+2?", "generated_text": "4"},
            "Give the prompt as 'prompt' or 'messages', and the answer as 'response'",
        ),
    ],
)
def test_what_would_be_lost_or_misread_is_refused(read, record, message):
    tokenizer = MODELS["qwen3"]()
    tokenizer.chat_template = CHAT
    with pytest.raises(InputError, match=message):
        read(tokenizer, record)


def test_a_header_that_the_prompt_has_begun_already_is_read(read):
    """A server that sends the whole message, though the prompt ends with `<|start|>assistant`."""
    final = "<|start|>assistant<|channel|>final<|message|>It is 4."
    (trace,) = read("gpt_oss", {"messages": QUESTION, "response": final})
    assert said(trace) == ("", "It is 4.")
    (trace,) = read(
        "gpt_oss",
        {"messages": QUESTION, "response": f"<|start|>assistant<|channel|>analysis<|message|>Add.<|end|>{final}"},
    )
    assert said(trace) == ("Add.", "It is 4.")


@pytest.mark.parametrize("opening", ["Here is", "Here's"])
@pytest.mark.parametrize("closing", ["Here is", "Here's"])
def test_granite_may_spell_its_two_lines_differently(opening, closing):
    response = f"{opening} my thought process:\nAdd.\n\n{closing} my response:\n4"
    trace = Trace.from_text(byte_level(), "2+2?", response, format="granite")
    thinking = "".join(step.text for step in trace.segment("thinking"))
    assert thinking == f"\nAdd.\n\n{closing} my response:"


# --- real traces -----------------------------------------------------------------------------------------------------
def test_grades_and_traces_of_one_file_have_one_reader(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        '{"id": "a", "prompt": "Q", "response": "A\u2028B\u2029C\x85D", "correct": true}',
        "",
        '{"id": "b", "correct": false}',
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    assert read_grades(path) == {"a": True, "b": False}
    with pytest.warns(UserWarning, match="1 line left out"):
        (trace,) = read_traces(path, byte_level(), on_error="skip")
    assert trace.response == "A\u2028B\u2029C\x85D"


COMMITTED = Path(__file__).parents[2] / "experiments/r1_traces/r1_distill_qwen_14b.jsonl"
REAL = next(
    (
        path
        for parent in Path(__file__).parents
        if (path := parent / "shared/data/thought_anchors/r1_distill_qwen_14b.jsonl").exists()
    ),
    None,
)


BLOCK = re.compile(r"\\\[.*?\\\]|\$\$.*?\$\$", re.DOTALL)


@pytest.mark.slow
def test_no_sentence_of_real_traces_is_longer_than_the_longest_that_a_simple_reader_finds():
    """A line, a display equation, and what ends with a terminator before a capital letter are at most a sentence each."""
    tokenizer = MODELS["r1"]()
    for trace in read_traces(COMMITTED, tokenizer, steps="sentence"):
        steps = [step.text.strip() for name in ("thinking", "summary") for step in trace.segment(name)]
        assert not any(re.search(r"\n[^\S\n]*\n", text) for text in steps)
        text = BLOCK.sub(lambda found: "#" * len(found[0]), trace.response)
        sentences = re.split(r"\n|(?<=[.?!…])[\"')]*\s+(?=[A-Z\"(])", text)
        assert max(map(len, steps)) <= max(map(len, sentences))


@pytest.mark.skipif(REAL is None, reason="the published traces of R1-Distill-Qwen-14B are not here")
@pytest.mark.slow
@pytest.mark.parametrize("family", ["r1", "qwen3"])
def test_published_traces_are_converted_without_loss(family, tmp_path):
    rows = [json.loads(line) for line in REAL.read_text().split("\n") if line]
    result = convert_traces([REAL], tmp_path / "out.jsonl", MODELS[family]())
    assert (result.written, result.lossy, result.rebuilt, result.unread) == (20, 0, 0, ())
    for row, trace in zip(rows, read_traces(tmp_path / "out.jsonl", MODELS[family]()), strict=True):
        assert trace.text == row["prompt"] + row["response"]
        assert (trace.prompt, trace.id, trace.answer, trace.correct) == tuple(
            row[name] for name in ("prompt", "id", "answer", "correct")
        )
        assert trace.steps[0].text.rstrip() == row["prompt"].rstrip()
        assert {step.segment for step in trace.steps} == {"question", "thinking", "summary"}


PUBLISHED = [] if REAL is None else sorted(REAL.parent.glob("problem_*"))


@pytest.mark.skipif(not PUBLISHED, reason="the sentences that Thought Anchors published are not here")
def test_sentences_end_where_the_published_ones_do():
    """docs/traces.md says: 144 of 147. A sentence's end is told by the characters before it that are not white space."""
    together = theirs_in_all = 0
    for folder in PUBLISHED:
        base = json.loads((folder / "base_solution.json").read_text())
        chunks = json.loads((folder / "chunks_labeled.json").read_text())
        trace = Trace.from_text(MODELS["r1"](), base["prompt"], base["solution"], steps="sentence")
        ours, theirs = (
            set(accumulate(len("".join(text.removesuffix("</think>").split())) for text in texts))
            for texts in ([step.text for step in trace.segment("thinking")], [chunk["chunk"] for chunk in chunks])
        )
        together += len(ours & theirs)
        theirs_in_all += len(theirs)
    assert theirs_in_all == 147
    assert together >= 144
