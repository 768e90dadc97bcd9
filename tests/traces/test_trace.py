import dataclasses
import random
import re
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import KINDS, MODELS, Pieces, byte_fallback, byte_level, characters, word_piece

from stepsal import InputError, Trace, read_traces, write_traces
from stepsal.models.tokenizers import fingerprint
from stepsal.traces.prompt import encode_prompt
from stepsal.traces.segment import decode
from stepsal.traces.trace import check_made_with

ALL = {f"{name}-{markers}": make(markers) for name, make in KINDS.items() for markers in (True, False)}
BYTES, CHARACTERS, LLAMA = byte_level(), characters(), byte_fallback()
BUNDLED_FINGERPRINT = "sha256:09eaddda7ecf70658b86b08b254292c5"
USER = [{"role": "user", "content": "2+2?"}]
every_tokenizer = pytest.mark.parametrize("tokenizer", ALL.values(), ids=ALL)


def from_text(tokenizer, prompt, response, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some of these tokenizers cannot give every text back
        return Trace.from_text(tokenizer, prompt, response, **options)


def is_partition(tokenizer, trace):
    """Steps cover the tokens in order, and their texts are the decoded text."""
    assert trace.text == decode(tokenizer, trace.tokens.tolist())
    assert [step.index for step in trace.steps] == list(range(len(trace.steps)))
    assert [step.start for step in trace.steps] == [0, *(step.stop for step in trace.steps[:-1])]
    assert trace.steps[-1].stop == len(trace.tokens)
    assert all(step.start < step.stop for step in trace.steps)
    assert trace.step_of.tolist() == [step.index for step in trace.steps for _ in range(step.start, step.stop)]
    names = [step.segment for step in trace.steps]
    assert names == sorted(names, key=("question", "thinking", "summary").index)
    assert names.count("question") == 1
    return True


# --- a lossless partition --------------------------------------------------------------------------------------------
@every_tokenizer
@given(
    format=st.sampled_from(["auto", "think"]),
    prompt=st.sampled_from(["Add 数 <think> é:", "2+2?<think>\n", "Q\n"]),
    parts=st.lists(
        st.sampled_from(["\n\n", "</think>", "So. ", "e\u0301🙂", "数字。", "👩‍👩‍👧", "First we add.", " "])
        | st.text(max_size=5),
        min_size=1,
    ),
)
def test_steps_partition_any_text(tokenizer, format, prompt, parts):
    trace = from_text(
        tokenizer, prompt, "A" + "".join(parts).replace("</think>", "</think>" * (format == "think")), format=format
    )
    assert is_partition(tokenizer, trace)
    assert trace.prompt + trace.response == trace.text
    before = ""
    for step in trace.steps:  # each step begins where its first token does
        # Bytes that are tokens decode together: where the last are half a character, others before them are unreadable, too.
        decoded = decode(tokenizer, trace.tokens[: step.start].tolist())
        readable = decoded.rstrip("\ufffd")
        assert before.startswith(readable)
        assert before == decoded or readable != decoded
        before += step.text


@every_tokenizer
@given(seed=st.integers(0, 10**6), size=st.integers(2, 150), given_prompt=st.booleans())
def test_steps_partition_any_tokens(tokenizer, seed, size, given_prompt):
    tokens = random.Random(seed).choices(range(len(tokenizer)), k=size)
    options = {"prompt_tokens": 1, "format": "think"} if given_prompt else {}
    trace = Trace.from_tokens(tokenizer, tokens, **options)
    assert is_partition(tokenizer, trace)
    starts = [step.start for step in trace.steps]
    end = random.Random(seed).randint(2, size)
    prefix = Trace.from_tokens(tokenizer, tokens[:end], **options)
    assert [step.start for step in prefix.steps] == [start for start in starts if start < end]


@every_tokenizer
def test_whether_a_tokenizer_tidies_spaces_changes_no_trace(tokenizer, monkeypatch):
    traces = []
    for tidy in (False, True):
        monkeypatch.setattr(tokenizer, "clean_up_tokenization_spaces", tidy)
        traces.append(from_text(tokenizer, "Q : we 've", "<think> I 'm so ! So 3 . 14 , no .\n\nYes ?</think> do n't"))
    assert traces[0].steps == traces[1].steps
    assert [step.segment for step in traces[0].steps][:: len(traces[0].steps) - 1] == ["question", "summary"]


def test_bytes_that_a_decoder_takes_back_do_not_shift_later_steps():
    good, bad = (LLAMA.convert_tokens_to_ids(token) for token in ("A", "<0xFF>"))
    euro = [LLAMA.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "€".encode()]
    end = LLAMA.convert_tokens_to_ids("</think>")
    trace = Trace.from_tokens(
        LLAMA, [good, *euro, *[bad] * 100, *[good] * 100, end, good, good], format="think", prompt_tokens=1
    )
    assert is_partition(LLAMA, trace)
    assert trace.steps[-1].text.strip() == "AA"


def test_long_traces_take_linear_time():
    calls = []

    class Counting(Pieces):
        def decode(self, token_ids, **options):
            calls.append(len(token_ids))
            return super().decode(token_ids, **options)

    tokenizer = Counting("Q", "<think>", "word ", "\n\n")
    Trace.from_tokens(tokenizer, [0, 1] + [2, 2, 2, 3] * 2000)
    assert sum(calls) < 20 * 8002


# --- text to tokens --------------------------------------------------------------------------------------------------
def test_prompt_and_response_are_encoded_each_by_itself():
    trace = Trace.from_text(BYTES, "Start at ", "k = 37.", format="plain")
    assert trace.tokens.tolist() == BYTES.encode("Start at ") + BYTES.encode("k = 37.")
    assert (trace.prompt, trace.response) == ("Start at ", "k = 37.")
    assert trace.prompt_tokens == len(BYTES.encode("Start at ")) == trace.steps[0].stop


def test_a_tokenizer_that_puts_spaces_before_texts_encodes_both_together():
    trace = Trace.from_text(LLAMA, "the answer", " is 数")
    assert trace.tokens.tolist() == LLAMA.encode("the answer is 数")[:-1]  # with its BOS, without its EOS
    assert (trace.prompt, trace.response) == ("<s> the answer", " is 数")
    assert "lossy_tokenization" not in trace.meta


@pytest.mark.parametrize("text", ["<s>the answer", "the answer"])
def test_there_is_one_bos_and_no_eos(text):
    tokens = Trace.from_text(LLAMA, text, "is").tokens.tolist() if text[0] != "<" else encode_prompt(LLAMA, text)
    assert tokens.count(LLAMA.bos_token_id) == 1
    assert LLAMA.eos_token_id not in tokens
    assert BYTES.bos_token_id not in encode_prompt(BYTES, "the answer")  # this one adds none by default


def test_messages_go_through_the_template_which_brings_its_own_bos():
    trace = Trace.from_text(BYTES, USER, "Add.\n</think>\n\n4")
    assert trace.prompt == BYTES.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert trace.tokens.tolist().count(BYTES.bos_token_id) == 1


def test_a_prompt_that_opens_the_thinking_ends_the_question_with_the_marker():
    trace = Trace.from_text(BYTES, USER, "Add.\n\nIt is 4.\n</think>\n\n4")
    assert [(step.segment, step.text) for step in trace.steps[1:]] == [
        ("thinking", "\nAdd.\n\n"),
        ("thinking", "It is 4.\n</think>"),
        ("summary", "\n\n4"),
    ]
    assert trace.steps[0].text.endswith("<think>")
    assert trace.prompt_tokens == trace.steps[0].stop + 1
    assert trace.response.startswith("Add.")


def test_a_tokenizer_that_loses_text_says_so():
    with pytest.warns(UserWarning, match=r"trace 'a': .* does not give the text back: from character 2"):
        trace = Trace.from_text(word_piece(), "We\nadd", "the numbers", id="a", meta={"kept": 1})
    assert trace.meta == {"kept": 1, "lossy_tokenization": True, "tokenizer": trace.meta["tokenizer"]}
    assert trace.text == "We addthe numbers"


def test_a_trace_says_what_it_is_in_one_line():
    trace = Trace.from_text(BYTES, USER, "Add.\n\nIt.</think>4", id="sum", answer="4", correct=True)
    assert repr(trace) == f"Trace('sum', {len(trace.tokens)} tokens, steps: 1 question, 2 thinking, 1 summary)"
    assert (trace.answer, trace.correct, list(trace.meta)) == ("4", True, ["tokenizer"])
    assert [step.index for step in trace.segment("thinking")] == [1, 2]


def test_tokens_may_be_a_list_an_array_or_a_tensor():
    tokens = BYTES.encode("2+2?<think></think>4")
    for kind in (tokens, torch.tensor(tokens), torch.tensor(tokens, dtype=torch.int32), torch.tensor(tokens).numpy()):
        trace = Trace.from_tokens(BYTES, kind)
        assert trace.tokens.tolist() == tokens
        assert trace.tokens.dtype == torch.int64


def test_without_markers_auto_is_plain_and_needs_no_prompt():
    assert [step.segment for step in Trace.from_tokens(BYTES, BYTES.encode("just text")).steps] == ["question"]
    for format in ("auto", "plain"):
        trace = Trace.from_text(BYTES, "Q: ", "One.\n\nTwo.", format=format)
        assert [step.text for step in trace.steps] == ["Q: ", "One.\n\n", "Two."]


# --- the response's beginning ----------------------------------------------------------------------------------------
@every_tokenizer
@pytest.mark.parametrize("format", ["auto", "think", "harmony", "plain", ("<r>", "</r>")])
@pytest.mark.parametrize(
    "response",
    ["[1, 2] is it", "<b>4</b>", "[", "<", "</", "[THIS]", "<thin", "\n\n[x", " [", "<|channel|>x", "<r", "to=4"],
)
def test_no_text_of_the_response_is_question(tokenizer, format, response):
    trace = from_text(tokenizer, "What is 2+2?", response, format=format)
    assert is_partition(tokenizer, trace)
    assert trace.steps[0].stop == trace.prompt_tokens
    assert {step.segment for step in trace.steps[1:]} == {"summary" if format in ("auto", "plain") else "thinking"}
    for end in range(trace.prompt_tokens + 1, len(trace.tokens)):
        part = Trace.from_tokens(tokenizer, trace.tokens[:end], prompt_tokens=trace.prompt_tokens, format=format)
        assert [step.start for step in part.steps] == [step.start for step in trace.steps if step.start < end]


def test_a_harmony_response_without_channels_is_the_response():
    prompt = "<|start|>user<|message|>2+2?<|end|><|start|>assistant"
    for response in ("It is 4.", " It is 4.", "So " + "it is four and so on " * 20, "<|channel|>odd<|message|>4"):
        trace = Trace.from_text(MODELS["gpt_oss"](), prompt, response)
        assert [(step.segment, step.text) for step in trace.steps] == [("question", prompt), ("summary", response)]


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "response", "message"),
    [
        (BYTES, "Q", "Sure. <think>Add.</think>4", "opens the thinking with '<think>' only after 'Sure. <think>Add"),
        (
            BYTES,
            "Q",
            "<think>\n\n</think>\n\nWe add.\n</think>\n\n4",
            "'</think>' comes again after a thinking that is empty",
        ),
        (
            BYTES,
            "Q<think>\n\n</think>\n\n",
            "We add.</think>4",
            "'</think>' comes again after a thinking that is empty",
        ),
        (
            BYTES,
            "Q",
            "<think>\n\n</think>\n\n<think>Add.</think>4",
            "'</think>' comes again after a thinking that is empty",
        ),
        (BYTES, "Q", "analysisWe add.assistantfinalIt is 4.", "as Harmony's 'analysis' does"),
        (BYTES, "Q", "assistantanalysisWe add.assistantfinalIt is 4.", "as Harmony's 'analysis' does"),
        (MODELS["gpt_oss"](), "Q", "analysisWe add. assistantfinalIt is 4.", "skip_special_tokens=False"),
        (MODELS["gpt_oss"](), "Q", "analysisWe add two and", "as Harmony's 'analysis' does"),  # cut off
        (BYTES, "Q", "<thinking>Add.</thinking>4", "format=('<thinking>', '</thinking>')"),
        (BYTES, "Q", "<reasoning>Add.</reasoning><answer>4</answer>", "--format '<reasoning>,</reasoning>'"),
        (MODELS["qwen3"](), "Q", "\n<THINK>Add.</THINK>4", "begins with '<THINK>' and has '</THINK>' after it"),
        (BYTES, "Q", "[REASON]Add.[/REASON]4", "begins with '[REASON]' and has '[/REASON]' after it"),
        (BYTES, "Q", "Sure!\n<think>Add two", "opens the thinking with '<think>' only after 'Sure!"),  # cut off
    ],
)
def test_markers_that_do_not_count_are_warned_about(tokenizer, prompt, response, message):
    with pytest.warns(UserWarning, match=re.escape(message)):
        trace = Trace.from_text(tokenizer, prompt, response)
    assert message in trace.meta["doubtful_markers"]


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "response"),
    [
        (BYTES, "Q", "<think>Add.</think>Write <think> and </think> around it."),
        (BYTES, "Q<think>\n\n</think>\n\n", "Write <think> before and </think> after."),
        (BYTES, "Q", "An analysis of the assistant's final words."),
        (BYTES, "Q", "analysis of the words"),
        (BYTES, "Q", "<b>Add.</b>4"),
        (BYTES, "Q", "<reasoning> is the tag of that model."),
        (BYTES, "Q", "A long answer. " * 20 + "Thinking begins with <think> in such models."),
        (
            MODELS["gpt_oss"](),
            "Q<|start|>assistant",
            "<|channel|>analysis<|message|>Use <think>.</think><|channel|>final<|message|>4",
        ),
    ],
)
def test_markers_that_are_mentioned_later_are_text(tokenizer, prompt, response):
    assert list(Trace.from_text(tokenizer, prompt, response).meta) == ["tokenizer"]  # warnings are errors here


def test_a_marker_spelt_in_pieces_is_text_where_it_is_a_token():
    opening, closing = (BYTES.convert_tokens_to_ids(marker) for marker in ("<think>", "</think>"))
    spelt = [id for piece in ("</", "think", ">") for id in BYTES.encode(piece)]
    assert BYTES.decode(spelt) == "</think>"
    assert closing not in spelt
    ids = [
        *BYTES.encode("Q"),
        opening,
        *BYTES.encode("I write "),
        *spelt,
        *BYTES.encode(" here."),
        closing,
        *BYTES.encode("4"),
    ]
    for prompt_tokens in (None, 1):
        trace = Trace.from_tokens(BYTES, ids, prompt_tokens=prompt_tokens)
        assert [step.text for step in trace.steps[1:]] == ["I write </think> here.</think>", "4"]
    plain = Trace.from_tokens(BYTES, [*BYTES.encode("Q"), *BYTES.encode("I write "), *spelt], prompt_tokens=1)
    assert [step.segment for step in plain.steps] == ["question", "summary"]


# --- padding ---------------------------------------------------------------------------------------------------------
PAD, BOS, END = BYTES.pad_token_id, BYTES.bos_token_id, BYTES.eos_token_id


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("after", [[], [END], [END, END, END], [END, PAD, PAD], [PAD, PAD]])
@pytest.mark.parametrize("with_prompt", [True, False])
def test_a_row_of_a_padded_batch_is_the_trace_of_its_text(before, after, with_prompt):
    prompt, response = [BOS, *BYTES.encode("2+2?")], BYTES.encode("<think>Add.</think>4")
    given = len(prompt) if with_prompt else None
    alone = Trace.from_tokens(BYTES, prompt + response + after[:1] * (after[:1] == [END]), prompt_tokens=given)
    row = Trace.from_tokens(
        BYTES, [PAD] * before + prompt + response + after, prompt_tokens=before + given if with_prompt else None
    )
    assert (row.tokens.tolist(), row.steps, row.prompt_tokens) == (
        alone.tokens.tolist(),
        alone.steps,
        alone.prompt_tokens,
    )
    left_out = {"before": before, "after": len(after) - (after[:1] == [END])}
    assert row.meta.get("padding", {"before": 0, "after": 0}) == left_out


def test_a_padding_token_that_begins_or_ends_texts_is_kept_once():
    tokenizer = byte_level()
    tokenizer.pad_token = tokenizer.eos_token
    trace = Trace.from_tokens(tokenizer, [END, END, *BYTES.encode("2+2?<think></think>4"), END, END])
    assert trace.tokens.tolist() == [*BYTES.encode("2+2?<think></think>4"), END]
    tokenizer.bos_token = tokenizer.eos_token  # as GPT-2's
    trace = Trace.from_tokens(tokenizer, [END, END, *BYTES.encode("2+2?<think></think>4"), END, END])
    assert trace.tokens.tolist() == [END, *BYTES.encode("2+2?<think></think>4"), END]


def test_end_tokens_before_the_text_are_padding_where_the_tokenizer_has_none():
    """`generate` pads with the end token where a tokenizer has no padding token."""
    tokenizer = byte_level()
    tokenizer.pad_token = None
    text = BYTES.encode("2+2?<think></think>4")
    trace = Trace.from_tokens(tokenizer, [END, END, *text, END], prompt_tokens=6)
    assert (trace.tokens.tolist(), trace.prompt_tokens) == ([*text, END], 4)
    assert trace.meta["padding"] == {"before": 2, "after": 0}


def test_a_prompt_padded_on_its_right_is_refused():
    with pytest.raises(InputError, match=r"prompt of 4 tokens ends with padding .token 0.*padding_side = 'left'"):
        Trace.from_tokens(BYTES, [40, 41, PAD, PAD, 42, 43], prompt_tokens=4)


def test_a_response_of_padding_alone_is_refused():
    with pytest.raises(InputError, match="the response is padding alone"):
        Trace.from_tokens(BYTES, [40, 41, PAD, PAD, PAD], prompt_tokens=2)


def test_a_row_of_padding_alone_is_refused():
    with pytest.raises(InputError, match="needs one token of each|at least two tokens"):
        Trace.from_tokens(BYTES, [PAD] * 6)


# --- the tokenizer's fingerprint -------------------------------------------------------------------------------------
def test_equal_tokenizers_have_equal_fingerprints_and_others_have_others():
    for kind, make in KINDS.items():
        if kind not in ("sentence_piece", "word_piece", "byte_level"):  # trained anew each time, or cached
            assert fingerprint(make()) == fingerprint(make())
    prints = [fingerprint(tokenizer) for tokenizer in ALL.values()]
    assert len(set(prints)) == len(prints)
    assert fingerprint(Pieces("a", "b")) != fingerprint(Pieces("b", "a"))
    assert fingerprint(byte_level()) == BUNDLED_FINGERPRINT  # in every process


def test_a_tokenizer_that_gets_a_token_gets_another_fingerprint():
    tokenizer = byte_level()
    before = fingerprint(tokenizer)
    tokenizer.add_tokens(["<more>"])
    assert fingerprint(tokenizer) != before


def test_a_trace_records_its_tokenizer_and_another_one_refuses_it(tmp_path):
    trace = Trace.from_text(BYTES, "2+2?", "<think>Add.</think>4", id="a")
    assert trace.meta["tokenizer"] == fingerprint(BYTES)
    write_traces(tmp_path / "a.jsonl", [trace])
    assert read_traces(tmp_path / "a.jsonl", BYTES)[0].meta == trace.meta
    other = MODELS["qwen3"]()
    with pytest.raises(
        InputError, match=rf"'a' was made with the tokenizer {fingerprint(BYTES)}, and this one is {fingerprint(other)}"
    ):
        read_traces(tmp_path / "a.jsonl", other)


def test_a_model_refuses_a_trace_whose_ids_say_something_else_to_it():
    trace = Trace.from_text(BYTES, "2+2?", "<think>Add.</think>4", id="a")
    check_made_with(BYTES, trace)
    check_made_with(MODELS["qwen3"](), trace)  # it has more tokens, and these are the same
    with pytest.raises(
        InputError, match=r"'a' was made with the tokenizer sha256:\w+, and the model's is sha256:.*model.tokenizer"
    ):
        check_made_with(byte_level(markers=False), trace)
    unknown = dataclasses.replace(trace, meta={})  # from an older file
    check_made_with(byte_level(markers=False), unknown)


# --- errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("prompt", "response", "message"),
    [
        ("", "A", r"prompt is ''; it needs"),
        ([], "A", r"prompt is \[\]; it needs"),
        ("Q", "", r"trace 'x': the response is ''"),
        ("Q<think>\n", " \n<think>A", r"begins with another: drop one"),
        (USER, "<think>A", r"begins with another: drop one"),
        (
            "Q",
            "A\n</think>\n4",
            r"has '</think>', but nothing opens.*format='think', or let the prompt end with '<think>'",
        ),
        ("Q", "A\n[/THINK]\n4", r"has '\[/THINK\]'.*format='think', or let the prompt end with '\[THINK\]'"),
        ("Q", "A\ud83d", r"half a surrogate pair at character 1"),
        ([{"content": "2+2?"}], "A", r"messages need a 'role'"),
    ],
)
def test_a_text_that_makes_no_trace_is_refused_with_the_fix(prompt, response, message):
    with pytest.raises(InputError, match=message):
        Trace.from_text(BYTES, prompt, response, id="x")


def test_the_named_fix_gives_the_thinking():
    for trace in (
        Trace.from_text(BYTES, "Q", "A\n</think>\n4", format="think"),
        Trace.from_text(BYTES, "Q<think>", "A\n</think>\n4"),
    ):
        assert [step.segment for step in trace.steps] == ["question", "thinking", "summary"]


def test_messages_without_a_template_are_refused_with_the_fix():
    with pytest.raises(InputError, match="no chat template: give the prompt as the text"):
        Trace.from_text(CHARACTERS, USER, "A")


def test_what_the_template_refuses_is_an_input_error():
    tokenizer = byte_level(markers=False)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"template does not take these messages .roles must alternate"):
        Trace.from_text(tokenizer, USER, "A")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "at least two tokens"),
        ([5], r"at least two tokens.*\[5\]"),
        ([1, -1], "token -1 at position 1 is outside"),
        ([1, 2, 10**6], f"token 1000000 at position 2 is outside the tokenizer's vocabulary of {len(BYTES)}"),
        ([1, 10**30], "not a flat list of token ids"),
        ([1.0, 2.0], "whole numbers in one dimension"),
        ([True, False], "whole numbers in one dimension"),
        ([[1, 2]], r"shape \(1, 2\).*One trace at a time"),
        ([[1], [2, 3]], "not a flat list of token ids"),
        (["a", "b"], "not a flat list of token ids"),
        (None, "not a flat list of token ids"),
    ],
)
def test_tokens_that_make_no_trace_are_refused(tokens, message):
    with pytest.raises(InputError, match=message):
        Trace.from_tokens(BYTES, tokens)


@pytest.mark.parametrize(
    ("prompt_tokens", "said"),
    [
        (0, "must be a whole number, at least 1"),
        (3, "of 3 tokens leaves an empty"),
        (-1, "must be a whole number, at least 1"),
    ],
)
def test_a_prompt_must_leave_a_response(prompt_tokens, said):
    with pytest.raises(InputError, match=f"prompt_tokens={prompt_tokens} {said}"):
        Trace.from_tokens(BYTES, [10, 11, 12], prompt_tokens=prompt_tokens)


def test_plain_needs_the_prompts_length():
    with pytest.raises(InputError, match=r"format='plain' has no marker.*prompt_tokens="):
        Trace.from_tokens(BYTES, [10, 11, 12], format="plain")
