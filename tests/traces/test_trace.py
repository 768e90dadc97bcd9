import random
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import KINDS, Pieces, byte_fallback, byte_level, characters, word_piece

from stepsal import InputError, Trace
from stepsal.traces.prompt import encode_prompt
from stepsal.traces.segment import decode

ALL = {f"{name}-{markers}": make(markers) for name, make in KINDS.items() for markers in (True, False)}
BYTES, CHARACTERS, LLAMA = byte_level(), characters(), byte_fallback()
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
        assert before == decode(tokenizer, trace.tokens[: step.start].tolist()).rstrip("�")
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
    assert trace.meta == {"kept": 1, "lossy_tokenization": True}
    assert trace.text == "We addthe numbers"


def test_a_trace_says_what_it_is_in_one_line():
    trace = Trace.from_text(BYTES, USER, "Add.\n\nIt.</think>4", id="sum", answer="4", correct=True)
    assert repr(trace) == f"Trace('sum', {len(trace.tokens)} tokens, steps: 1 question, 2 thinking, 1 summary)"
    assert (trace.answer, trace.correct, trace.meta) == ("4", True, {})
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


@pytest.mark.parametrize("prompt_tokens", [0, 3, -1])
def test_a_prompt_must_leave_a_response(prompt_tokens):
    with pytest.raises(InputError, match=f"prompt_tokens={prompt_tokens} of 3 tokens leaves an empty"):
        Trace.from_tokens(BYTES, [10, 11, 12], prompt_tokens=prompt_tokens)


def test_plain_needs_the_prompts_length():
    with pytest.raises(InputError, match=r"format='plain' has no marker.*prompt_tokens="):
        Trace.from_tokens(BYTES, [10, 11, 12], format="plain")
