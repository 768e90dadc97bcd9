"""Traces as people have them: each family's own text, and every shape of JSON in which it is kept."""

import json

import pytest
from toy_tokenizers import MODELS, Pieces

from stepsal import InputError, Trace, read_traces, write_traces
from stepsal.traces.prompt import prompt_text
from stepsal.traces.segment import Segmenter, decode

USER = {"role": "user", "content": "2+2?"}
QUESTION = [USER]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
CALLING = {"role": "assistant", "content": None, "reasoning": "This needs a tool.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "4"}
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
TURN = "<|end|><|start|>assistant"
TOOL = (
    "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"
    "<|start|>functions.add to=assistant<|channel|>commentary<|message|>4<|end|><|start|>assistant"
)
# What models write, by family: the response, and its segments after the question.
RESPONSES = {
    "r1, marker in the prompt": ("r1", "Add.\n\nSo 4.\n</think>\n\n4", "\nAdd.\n\nSo 4.\n</think>", "\n\n4"),
    "r1, cut off": ("r1", "Add.\n\nSo", "\nAdd.\n\nSo", ""),
    "qwen3": ("qwen3", "<think>\nAdd.\n</think>\n\n4<|im_end|>", "\nAdd.\n</think>", "\n\n4<|im_end|>"),
    "qwen3, empty": ("qwen3", "<think>\n\n</think>\n\n4<|im_end|>", "\n\n</think>", "\n\n4<|im_end|>"),
    "qwen3, empty, tight": ("qwen3", "<think></think>4", "</think>", "4"),
    "qwen3, not thinking": ("qwen3", "It is 4.<|im_end|>", "", "It is 4.<|im_end|>"),
    "magistral": ("magistral", "[THINK]Add.[/THINK]4", "Add.[/THINK]", "4"),
    "harmony": ("gpt_oss", f"{ANALYSIS}Add.{TURN}{FINAL}4<|return|>", f"Add.{TURN}{FINAL}", "4<|return|>"),
    "harmony, answer alone": ("gpt_oss", f"{FINAL}4<|return|>", "", "4<|return|>"),
    "harmony, several analyses": (
        "gpt_oss",
        f"{ANALYSIS}Add.{TURN}{ANALYSIS}Yes.{TURN}{FINAL}4",
        f"Add.{TURN}{ANALYSIS}Yes.{TURN}{FINAL}",
        "4",
    ),
    "harmony, tool": (
        "gpt_oss",
        f"{ANALYSIS}Add.{TURN}{TOOL}{ANALYSIS}So 4.{TURN}{FINAL}4",
        f"Add.{TURN}{TOOL}{ANALYSIS}So 4.{TURN}{FINAL}",
        "4",
    ),
    "harmony, tool first": ("gpt_oss", f"{TOOL}{ANALYSIS}4.{TURN}{FINAL}4", None, "4"),
    "harmony, tool named with the role": (
        "gpt_oss",
        f" to=functions.add<|channel|>commentary json<|message|>{{}}<|call|>{TURN}{FINAL}4",
        f"{{}}<|call|>{TURN}{FINAL}",
        "4",
    ),
    "harmony, built-in tool": (
        "gpt_oss",
        f"<|channel|>analysis to=python code<|message|>2+2<|call|>{TURN}{FINAL}4",
        f"2+2<|call|>{TURN}{FINAL}",
        "4",
    ),
    "harmony, plan before the answer": (
        "gpt_oss",
        f"{ANALYSIS}Add.{TURN}<|channel|>commentary<|message|>Plan: add.{TURN}{FINAL}4",
        f"Add.{TURN}<|channel|>commentary<|message|>Plan: add.{TURN}{FINAL}",
        "4",
    ),
    "harmony, constrained answer": (
        "gpt_oss",
        f"{ANALYSIS}Add.{TURN}<|channel|>final <|constrain|>json<|message|>{{}}",
        f"Add.{TURN}<|channel|>final <|constrain|>json<|message|>",
        "{}",
    ),
    "harmony, cut off in the header": ("gpt_oss", f"{ANALYSIS}Add.{TURN}<|channel|>final", None, ""),
}
each_response = pytest.mark.parametrize(
    ("family", "response", "thinking", "summary"), RESPONSES.values(), ids=RESPONSES
)


@pytest.fixture
def read(tmp_path):
    """The traces of some objects in a file."""

    def read(family, *records, **options):
        path = tmp_path / "traces.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return read_traces(path, MODELS[family](), **options)

    return read


def text_of(trace, segment):
    return "".join(step.text for step in trace.segment(segment))


def same(a, b):
    return a.tokens.tolist() == b.tokens.tolist() and (a.steps, a.prompt, a.format) == (b.steps, b.prompt, b.format)


# --- what models write -----------------------------------------------------------------------------------------------
@each_response
@pytest.mark.parametrize("explicit", [False, True])
def test_each_familys_text_falls_into_its_segments_and_survives_a_file(
    family, response, thinking, summary, explicit, tmp_path
):
    tokenizer = MODELS[family]()
    explicit = explicit and not response.startswith("It is")  # an explicit format says that there is thinking
    format = {"gpt_oss": "harmony"}.get(family, "think") if explicit else "auto"
    trace = Trace.from_text(tokenizer, QUESTION, response, format=format)
    assert trace.text == prompt_text(tokenizer, QUESTION) + response == decode(tokenizer, trace.tokens.tolist())
    assert text_of(trace, "summary") == summary
    if thinking is not None:
        assert text_of(trace, "thinking") == thinking
    assert [step.start for step in trace.steps] == [0, *(step.stop for step in trace.steps[:-1])]
    assert trace.steps[-1].stop == len(trace.tokens)
    write_traces(tmp_path / "a.jsonl", [trace])
    assert same(read_traces(tmp_path / "a.jsonl", tokenizer)[0], trace)


@each_response
def test_each_prefix_of_a_familys_text_has_the_steps_of_the_whole(family, response, thinking, summary):
    tokenizer = MODELS[family]()
    whole = Trace.from_text(tokenizer, QUESTION, response)
    segmenter = Segmenter(tokenizer, question_tokens=whole.prompt_tokens)
    if family == "r1":
        segmenter = Segmenter(tokenizer, question_tokens=whole.steps[0].stop)
    opened = {}
    for position, token in enumerate(whole.tokens.tolist()):
        if segment := segmenter.push(token):
            opened[position] = segment
        if segmenter.segment != "question":  # what has been read so far is never taken back
            assert opened == {step.start: step.segment for step in whole.steps if step.start <= position}


def test_each_harmony_message_begins_a_step_and_its_header_ends_the_step_before():
    trace = Trace.from_text(MODELS["gpt_oss"](), QUESTION, RESPONSES["harmony, tool"][1])
    texts = [step.text for step in trace.segment("thinking")]
    assert all(text.endswith("<|message|>") for text in texts)
    assert [text.split("<|")[0] for text in texts] == ["Add.", "{}", "4", "So 4."]


def test_a_prompt_that_opens_the_analysis_ends_the_question():
    tokenizer = MODELS["gpt_oss"]()
    prompt = prompt_text(tokenizer, QUESTION) + ANALYSIS
    trace = Trace.from_text(tokenizer, prompt, f"Add.{TURN}{FINAL}4")
    assert trace.steps[0].text == prompt
    assert text_of(trace, "summary") == "4"


def test_a_response_may_repeat_the_header_that_a_template_writes():
    prompt = "<|start|>user<|message|>2+2?<|end|>"
    trace = Trace.from_text(MODELS["gpt_oss"](), prompt, f"<|start|>assistant{ANALYSIS}Add.{TURN}{FINAL}4")
    assert trace.steps[0].text == f"{prompt}<|start|>assistant{ANALYSIS}"


@pytest.mark.parametrize("family", MODELS)
def test_earlier_turns_and_their_thinking_are_the_question(family, read):
    answer = {"role": "assistant", "reasoning": "Earlier.", "content": "Four"}
    last = {"role": "assistant", "reasoning_content": "Now add.", "content": "six"}
    messages = [USER, answer, {"role": "user", "content": "4+2?"}, last]
    (trace,) = read(family, {"messages": messages})
    assert trace.prompt == prompt_text(MODELS[family](), messages[:-1])
    assert "Four" in trace.steps[0].text
    assert text_of(trace, "thinking").strip().startswith("Now add.")
    assert text_of(trace, "summary").strip() == "six"


def test_thinking_that_stands_in_a_raw_prompt_is_the_question():
    for family, response in (("qwen3", "<think>b</think>c"), ("gpt_oss", f"{ANALYSIS}b{TURN}{FINAL}c")):
        tokenizer = MODELS[family]()
        prompt = prompt_text(tokenizer, QUESTION)
        trace = Trace.from_text(tokenizer, prompt + response + prompt, response)
        assert trace.steps[0].text.count(prompt) == 2
        assert text_of(trace, "thinking")[0] == "b"
        assert text_of(trace, "summary") == "c"


def test_a_tool_round_before_the_last_message_is_part_of_the_prompt(read):
    for family in ("qwen3", "gpt_oss"):
        last = {"role": "assistant", "reasoning": "So it is 4.", "content": "4"}
        (trace,) = read(family, {"messages": [USER, CALLING, RESULT, last]})
        assert "This needs a tool." in trace.steps[0].text
        assert '{"a": 2, "b": 2}' in trace.steps[0].text  # an object, not a string of one
        assert text_of(trace, "thinking").strip().startswith("So it is 4.")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "thinking"])
def test_templates_find_the_reasoning_under_each_of_its_names(name):
    class Template(Pieces):
        chat_template = "one"

        def apply_chat_template(self, messages, **options):
            return "".join(sorted(f"{key}={value} " for key, value in messages[1].items()))

    text = prompt_text(Template(), [USER, {"role": "assistant", name: "Add."}])
    assert text == "reasoning=Add. reasoning_content=Add. role=assistant thinking=Add. "


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
def test_a_last_message_that_calls_a_tool_is_written_by_the_template(family, read):
    (trace,) = read(family, {"messages": [USER, CALLING]})
    assert (
        trace.text
        == prompt_text(MODELS[family](), {"messages": [USER, CALLING], "add_generation_prompt": False}).strip()
    )
    assert trace.meta["rebuilt_response"] is True
    assert text_of(trace, "thinking").strip().startswith("This needs a tool.")


# --- shapes ----------------------------------------------------------------------------------------------------------
THOUGHT = {"qwen3": "\nAdd.\n", "magistral": "Add.", "gpt_oss": "Add.", "r1": "Add.\n"}
SAID = {"qwen3": "\n\n4", "magistral": "4", "gpt_oss": "4", "r1": "\n\n4"}


def shapes(family):
    """The same answer in every shape that says it in fields."""
    fields = {"reasoning_content": THOUGHT[family], "content": SAID[family]}
    newer = {"reasoning": THOUGHT[family], "content": SAID[family]}
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT[family]}]}]
    message = {"role": "assistant", **newer, "tool_calls": []}
    response = {"id": "a", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
    return {
        "message": {"id": "a", "messages": [*QUESTION, {"role": "assistant", **fields}]},
        "parts": {"id": "a", "prompt": QUESTION, "content": [*parts, {"type": "text", "text": SAID[family]}]},
        "beside": {"id": "a", "prompt": [{"role": "user", "content": [{"type": "text", "text": "2+2?"}]}], **newer},
        "response object": {"messages": QUESTION, **response},
        "pair": {"request": {"messages": QUESTION, "model": "m"}, "response": response},
        "pair with a message": {"id": "a", "request": {"messages": QUESTION}, "response": message},
        "batch": {"custom_id": "a", "body": {"messages": QUESTION}, "response": {"status_code": 200, "body": response}},
        "template's prompt": {"id": "a", "prompt": prompt_text(MODELS[family](), QUESTION), **fields},
    }


@pytest.mark.parametrize("shape", shapes("r1"))
@pytest.mark.parametrize("family", MODELS)
def test_every_shape_with_fields_gives_the_same_trace(family, shape, read):
    (trace,) = read(family, shapes(family)[shape])
    opening = {"qwen3": "<think>", "magistral": "[THINK]", "gpt_oss": ANALYSIS, "r1": ""}[family]
    closing = {"qwen3": "</think>", "magistral": "[/THINK]", "gpt_oss": TURN + FINAL, "r1": "</think>"}[family]
    whole = prompt_text(MODELS[family](), QUESTION) + opening + THOUGHT[family] + closing + SAID[family]
    assert trace.text == whole
    assert trace.id == "a"
    assert trace.meta["rebuilt_response"] is True
    assert [step.segment for step in trace.steps] == ["question", "thinking", "summary"]


def test_an_answer_without_reasoning_is_said_in_the_final_channel(read):
    record = {"prompt": QUESTION, "reasoning": None, "content": "4"}
    (trace,) = read("gpt_oss", record)
    assert trace.text == prompt_text(MODELS["gpt_oss"](), QUESTION) + FINAL + "4"
    assert text_of(trace, "summary") == "4"
    (trace,) = read("qwen3", record)
    assert (trace.response, list(trace.meta)) == ("4", ["tokenizer"])


def test_a_server_that_left_the_markers_in_the_content_is_read_as_it_is(read):
    for family in ("qwen3", "gpt_oss", "magistral"):
        response = next(each[1] for each in RESPONSES.values() if each[0] == family)
        (trace,) = read(family, {"messages": [USER, {"role": "assistant", "content": response}]})
        assert trace.response == response
        assert list(trace.meta) == ["tokenizer"]
        assert trace.segment("thinking")


def test_an_opening_marker_that_both_template_and_model_would_write_is_written_once(read):
    tokenizer = MODELS["r1"]()
    content = "<think>\nAdd.\n</think>\n\n4"
    (trace,) = read("r1", {"messages": [USER, {"role": "assistant", "content": content}]})
    assert trace.text == prompt_text(tokenizer, QUESTION).removesuffix("<think>\n") + content


@pytest.mark.parametrize("family", MODELS)
def test_token_ids_are_used_as_they_are_wherever_servers_put_them(family, read):
    tokenizer = MODELS[family]()
    prompt = tokenizer.encode(prompt_text(tokenizer, QUESTION), add_special_tokens=False)
    said = next(each[1] for each in RESPONSES.values() if each[0] == family)
    ids = [token for letter in said.split(">")[-1] for token in tokenizer.encode(letter)]  # not as it would encode it
    ids = tokenizer.encode(said.removesuffix(said.split(">")[-1]), add_special_tokens=False) + ids
    expected = Trace.from_tokens(tokenizer, prompt + ids, prompt_tokens=len(prompt))
    message = {"message": {"role": "assistant", "content": said.split(">")[-1] or None, "reasoning": "Add."}}
    text = {"prompt": prompt_text(tokenizer, QUESTION)}
    shapes = [
        {"prompt_token_ids": prompt, "choices": [{**message, "token_ids": ids}]},  # vLLM, chat
        {"choices": [{**message, "prompt_token_ids": prompt, "token_ids": ids}]},  # SGLang, chat
        {"choices": [{"text": said, "prompt_token_ids": prompt, "token_ids": ids}]},  # vLLM, completions
        {"request": {"prompt": prompt}, "response": {"choices": [{"text": said, "token_ids": ids}]}},
        {"request": text, "response": {"choices": [{"text": said, "token_ids": ids}]}},
        {"messages": QUESTION, "token_ids": ids},
        {"prompt_token_ids": prompt, "token_ids": ids},
        {**text, "tokens": prompt + ids},
    ]
    for record in shapes:
        (trace,) = read(family, record)
        assert same(trace, expected), record.keys()
        assert "rebuilt_response" not in trace.meta


def test_token_ids_of_the_prompt_alone_are_its_text(read):
    tokenizer = MODELS["magistral"]()
    prompt = tokenizer.encode(prompt_text(tokenizer, QUESTION), add_special_tokens=False)
    (trace,) = read("magistral", {"prompt_token_ids": prompt, "response": "[THINK]Add.[/THINK]4"})
    assert trace.tokens.tolist()[: len(prompt)] == prompt
    assert trace.response == "[THINK]Add.[/THINK]4"


def test_tokens_without_a_prompt_begin_with_the_question_up_to_the_marker(read):
    tokenizer = MODELS["qwen3"]()
    tokens = tokenizer.encode("2+2?<think>Add.</think>4")
    (trace,) = read("qwen3", {"tokens": tokens})
    assert trace.steps[0].text == "2+2?<think>"
    with pytest.raises(InputError, match=r"no opening marker: give the 'prompt'"):
        read("qwen3", {"tokens": tokens[:4]})


def test_each_choice_is_a_trace(read):
    choices = [
        {"message": {"content": answer}, "finish_reason": reason} for answer, reason in (("4", "stop"), ("5", "length"))
    ]
    record = {"id": "a", "model": "m", "messages": QUESTION, "answer": "4", "meta": {"run": 1}, "choices": choices}
    first, second = read("qwen3", record)
    assert [first.id, second.id] == ["a-0", "a-1"]
    assert [first.response, second.response] == ["4", "5"]
    assert first.answer == second.answer == "4"
    assert second.meta == {"run": 1, "model": "m", "finish_reason": "length", "tokenizer": second.meta["tokenizer"]}


def test_what_the_request_changes_in_the_prompt_is_in_the_prompt(read):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    choices = {"choices": [{"message": {"content": "4"}}]}
    (with_tools,) = read("qwen3", {"request": {"messages": QUESTION, "tools": tools}, "response": choices})
    assert '"parameters"' in with_tools.prompt
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    (switched_off,) = read("qwen3", {"request": {"messages": QUESTION, **kwargs}, "response": choices})
    assert switched_off.prompt.endswith("<think>\n\n</think>\n\n")
    assert [step.segment for step in switched_off.steps] == ["question", "thinking", "summary"]
    assert text_of(switched_off, "summary").strip() == "4"
    (high,) = read("gpt_oss", {"messages": QUESTION, "reasoning_effort": "high", **choices})
    assert "Reasoning: high" in high.prompt


def test_a_request_is_a_prompt_everywhere():
    tokenizer = MODELS["qwen3"]()
    request = {"messages": QUESTION, "chat_template_kwargs": {"enable_thinking": False}, "temperature": 1.0}
    trace = Trace.from_text(tokenizer, request, "4")
    assert trace.prompt == prompt_text(tokenizer, QUESTION) + "<think>\n\n</think>\n\n"


# --- errors ----------------------------------------------------------------------------------------------------------
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
BAD = {
    "stream": ({"choices": [{"delta": {"content": "4"}}]}, "the pieces of a stream are not put together"),
    "no choices": ({"choices": []}, "no 'choices' in the server's response"),
    "an error": (
        {"custom_id": "a", "response": None, "error": {"code": "expired"}},
        "answered with an error: .*expired",
    ),
    "a failed request": ({"response": {"status_code": 500, "body": {"error": "x"}}}, "no 'choices' .*'error': 'x'"),
    "a response alone": ({"choices": [{"message": {"content": "4"}}]}, "no 'prompt'.*found .*'content'"),
    "a request alone": ({"custom_id": "a", "body": {"messages": QUESTION}}, "no line of these files is the response"),
    "an image": ({"prompt": [{"role": "user", "content": [IMAGE]}], "response": "4"}, "does not write this part"),
    "a number": (
        {"prompt": [{"role": "user", "content": 4}], "response": "4"},
        "content of a message is 4: it must be a text",
    ),
    "an image said": ({"prompt": QUESTION, "content": [IMAGE]}, "a response's content is text or thinking"),
    "prompts": ({"request": {"prompt": ["Q", "R"]}, "response": {"choices": [{"text": "A"}]}}, "of several prompts"),
    "a tool without messages": ({"prompt": "Q", "tool_calls": [CALL]}, "how the model wrote that is not known"),
    "arguments that are no JSON": (
        {
            "messages": [USER, {**CALLING, "tool_calls": [{"function": {"name": "add", "arguments": "{"}}]}, RESULT],
            "content": "4",
        },
        "template does not take these messages",
    ),
    "other ids": (
        {"prompt": QUESTION, "content": "four", "token_ids": [60, 61]},
        r"token ids say .*'content' says: 'four'",
    ),
    "ids that are none": ({"prompt": QUESTION, "token_ids": [1, True]}, "whole numbers in one dimension"),
    "no ids": ({"prompt_token_ids": [], "token_ids": []}, "at least two tokens"),
    "template options": (
        {"messages": QUESTION, "chat_template_kwargs": {"chat_template": "{{ 1 }}"}, "response": "4"},
        "template does not take these messages",
    ),
}


@pytest.mark.parametrize(("record", "message"), BAD.values(), ids=BAD)
def test_what_is_no_trace_is_refused_with_the_reason(record, message, read):
    with pytest.raises(InputError, match=message):
        read("qwen3", record)


def test_a_template_that_does_not_write_the_tool_call_is_refused(read):
    with pytest.raises(InputError, match="Give the response's text as 'response', or its ids as 'token_ids'"):
        read("r1", {"messages": [USER, CALLING]})


def test_parts_that_a_template_writes_as_a_list_are_refused(read):
    parts = [{"type": "text", "text": "2+2?"}, {"type": "text", "text": "Now."}]
    tokenizer = MODELS["qwen3"]()
    assert "2+2?" in tokenizer.apply_chat_template([{"role": "user", "content": "2+2?"}], tokenize=False)
    with pytest.raises(
        InputError, match="does not write this part of a message's content|does not take these messages"
    ):
        read("qwen3", {"prompt": [{"role": "user", "content": parts}], "response": "4"})
