import json
import random
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_tokenizers import byte_fallback, byte_level, characters

from stepsal import FileError, InputError, StepsalError, Trace, read_traces, write_traces
from stepsal.traces.files import read_grades
from stepsal.traces.formats import STEP_RULES

BYTES = byte_level()
MESSAGES = [{"role": "user", "content": "2+2?"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def lines(tmp_path):
    """Write lines (objects, text or bytes) to a file; its path."""

    def write(*lines):
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path = tmp_path / "traces.jsonl"
        path.write_bytes(b"\n".join(raw))
        return path

    return write


def same(a, b):
    keys = ("steps", "prompt", "prompt_tokens", "id", "answer", "correct", "meta", "format", "step_rule")
    return a.tokens.tolist() == b.tokens.tolist() and all(getattr(a, key) == getattr(b, key) for key in keys)


# --- checksums --------------------------------------------------------------------------------------------------------
@pytest.fixture
def three(tmp_path):
    """A file of three traces, and what it holds."""
    path = tmp_path / "three.jsonl"
    traces = [
        Trace.from_text(BYTES, MESSAGES, f"Two and two. 数\n\nSo {n}.</think>{n}", id=f"t{n}", correct=n == 4)
        for n in (3, 4, 5)
    ]
    write_traces(path, traces)
    return path, traces


def test_every_flipped_bit_of_a_file_of_traces_is_noticed_or_changes_nothing(three):
    path, traces = three
    whole, at, noticed = path.read_bytes(), random.Random(0), 0
    for _ in range(1500):
        content = bytearray(whole)
        content[at.randrange(len(whole))] ^= 1 << at.randrange(8)
        path.write_bytes(content)
        try:
            read = read_traces(path, BYTES)
        except StepsalError:
            noticed += 1
        else:
            assert all(map(same, read, traces))
            assert len(read) == len(traces)
    assert noticed > 1000


def test_a_changed_line_is_an_error_that_says_how_to_go_on(three):
    path, _ = three
    path.write_bytes(path.read_bytes().replace(b'"correct": true', b'"correct": false'))
    with pytest.raises(FileError, match=r"line 2: .* its checksum differs.*jq -c 'del\(.stepsal_sha256\)'"):
        read_traces(path, BYTES)
    with pytest.raises(FileError, match="line 2: .* its checksum differs"):
        read_grades(path)
    with pytest.warns(UserWarning, match="1 line left out. line 2: it does not say what was written"):
        assert len(read_traces(path, BYTES, on_error="skip")) == 2
    assert not any(trace.correct for trace in read_traces(path, BYTES, verify=False))


def test_a_line_without_its_checksum_and_one_that_is_laid_out_otherwise_are_read(three):
    path, traces = three
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.write_text("".join(json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n" for record in records))
    assert all(map(same, read_traces(path, BYTES), traces))
    for record in records:
        del record["stepsal_sha256"]
        record["correct"] = None
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [trace.correct for trace in read_traces(path, BYTES)] == [None] * 3


# --- there and back --------------------------------------------------------------------------------------------------
@given(
    response=st.text(min_size=1),
    answer=JSON,
    correct=st.none() | st.booleans(),
    meta=st.dictionaries(st.text(), JSON, max_size=3),
    steps=st.sampled_from(["auto", *STEP_RULES]),
)
def test_reading_gives_back_what_was_written(tmp_path_factory, response, answer, correct, meta, steps):
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    more = {"answer": answer, "correct": correct, "meta": meta}
    traces = [
        Trace.from_text(BYTES, MESSAGES, "It's 4. " + response, id="a", steps=steps, **more),
        Trace.from_text(BYTES, "数\u2028 <r>", "x</r> y", id="b", format=("<r>", "</r>"), **more),
        Trace.from_tokens(BYTES, BYTES.encode("<think>no prompt. No. " + response), id="c", **more),
        Trace.from_tokens(BYTES, list(range(2, len(BYTES), 3)), id="d", format="plain", prompt_tokens=5),
    ]
    write_traces(path, traces)
    assert all(map(same, read_traces(path, BYTES), traces))
    write_traces(path, iter(read_traces(path, BYTES)))
    assert all(map(same, read_traces(path, BYTES), traces))


def test_a_callers_format_and_steps_go_before_those_in_the_file(tmp_path):
    write_traces(tmp_path / "a.jsonl", [Trace.from_text(BYTES, "Q", "A\nB\n\nC", format="think", steps="line")])
    assert len(read_traces(tmp_path / "a.jsonl", BYTES)[0].segment("thinking")) == 3
    assert len(read_traces(tmp_path / "a.jsonl", BYTES, steps="paragraph")[0].segment("thinking")) == 2
    assert len(read_traces(tmp_path / "a.jsonl", BYTES, format="plain")[0].segment("summary")) == 3


def test_a_named_callable_can_be_written_and_another_cannot(tmp_path, monkeypatch):
    def rule(step_text, token_text):
        return token_text == "B"

    trace = Trace.from_text(characters(), "Q", "ABAB", steps=rule, id="a")
    with pytest.raises(InputError, match=r"trace 'a' was split by .* a file cannot hold a callable: name it"):
        write_traces(tmp_path / "a.jsonl", [trace])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(STEP_RULES, "b", rule)
    write_traces(tmp_path / "a.jsonl", [trace])
    assert read_traces(tmp_path / "a.jsonl", characters())[0].steps == trace.steps


@pytest.mark.parametrize("meta", [{"a": {1, 2}}, {"a": "\ud83d"}, {"a": float("nan")}])
def test_what_json_cannot_hold_leaves_the_file_as_it_was(tmp_path, meta):
    path = tmp_path / "a.jsonl"
    path.write_text("before")
    good = Trace.from_text(BYTES, "Q", "A", id="good")
    with pytest.raises(InputError, match="trace 'bad' cannot be written as JSON"):
        write_traces(path, [good, Trace.from_text(BYTES, "Q", "A", id="bad", meta=meta)])
    with pytest.raises(InputError, match=r"trace 1 has the id 'good' of an earlier one"):
        write_traces(path, [good, good])
    assert path.read_text() == "before"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": "a", "correct": true}]', "line 1 of .* is no object.*jq"),
        ('{"id": "a", "correct": true}\n{"id": "a", "correct": false}', "line 2 of .* grades 'a' otherwise"),
        ('{"id": "a", "correct": "yes"}', "'correct' must be true or false"),
        ('{"id": "a", "correct": 1}', "'correct' must be true or false"),
    ],
)
def test_a_grade_that_is_none_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "grades.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        read_grades(tmp_path / "grades.jsonl")


def test_grades_are_read_from_lines_that_hold_any_line_separator(tmp_path):
    trace = Trace.from_text(BYTES, "Q", "A\u2028B\x85C", id="a", correct=False)
    write_traces(tmp_path / "a.jsonl", [trace])
    assert read_grades(tmp_path / "a.jsonl") == {"a": False}


# --- other files -----------------------------------------------------------------------------------------------------
def test_ids_default_to_the_lines_number(lines):
    row = {"prompt": "Q", "response": "A"}
    found = read_traces(lines(row, b"", row | {"id": 7}, row, row | {"id": None}), BYTES)
    assert [trace.id for trace in found] == ["line-1", "7", "line-4", "line-5"]


def test_tokens_in_the_file_are_used_as_they_are(lines):
    letters = [BYTES.convert_tokens_to_ids(letter) for letter in "First"]
    assert letters != BYTES.encode("First")
    tokens = [BYTES.bos_token_id, *BYTES.encode("Q: "), *letters]
    (trace,) = read_traces(lines({"prompt": "Q: ", "response": "First", "tokens": tokens}), BYTES)
    assert trace.tokens.tolist() == tokens
    assert (trace.prompt, trace.response) == (BYTES.bos_token + "Q: ", "First")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_gets_the_formats_markers(lines, name):
    answer = {name: "Add.\n", "content": "\n\n4"}
    rows = [
        {"prompt": "2+2?", **answer},
        {"prompt": "2+2?<think>\n", **answer},
        {"prompt": "2+2?<think>", **answer},
        {"messages": [*MESSAGES, {"role": "assistant", **answer}]},
        {"prompt": MESSAGES, **answer},
    ]
    whole, after_line, after_marker, chat, beside = read_traces(lines(*rows), BYTES)
    assert whole.response == "<think>\nAdd.\n</think>\n\n4"
    assert after_line.response == chat.response == beside.response == "Add.\n</think>\n\n4"
    assert after_marker.response == "\nAdd.\n</think>\n\n4"
    assert chat.prompt == BYTES.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    for trace in (whole, after_line, after_marker, chat):
        assert [step.segment for step in trace.steps] == ["question", "thinking", "summary"]
    (own,) = read_traces(lines(rows[0]), BYTES, format=("<r>", "</r>"))
    assert own.response == "<r>\nAdd.\n</r>\n\n4"


def test_reasoning_follows_the_markers_that_the_template_names(lines):
    tokenizer = byte_level(markers=False)
    tokenizer.chat_template = "{{ messages[0].content }}{# <|channel|>analysis<|message|> #}<|start|>assistant"
    row = {"messages": [*MESSAGES, {"role": "assistant", "reasoning_content": "We add both numbers.", "content": "4"}]}
    (trace,) = read_traces(lines(row), tokenizer)
    assert trace.response == (
        "<|channel|>analysis<|message|>We add both numbers.<|end|><|start|>assistant<|channel|>final<|message|>4"
    )
    assert [step.segment for step in trace.steps] == ["question", "thinking", "summary"]


def test_reasoning_without_content_was_cut_off_while_thinking(lines):
    (trace,) = read_traces(lines({"prompt": "Q", "reasoning_content": "Add", "content": None}), BYTES)
    assert trace.response == "<think>\nAdd"
    (trace,) = read_traces(lines({"prompt": "Q", "reasoning_content": None, "content": "4"}), BYTES)
    assert trace.response == "4"


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(lines):
    path = lines(b'\xef\xbb\xbf{"prompt": "Q", "response": "A"}\r', b'{"prompt": "R", "response": "B"}\r', b"")
    assert [trace.text for trace in read_traces(path, BYTES)] == ["QA", "RB"]


# --- errors ----------------------------------------------------------------------------------------------------------
BAD = [
    (b'{"prompt": "Q", "resp', FileError, r"not a whole JSON object \(Unterminated"),
    (b'{"prompt": "\xff"}', FileError, r"not UTF-8 \(byte 12"),
    (b"[" * 10**5, FileError, "not a whole JSON object"),
    ([1], InputError, r"expected an object.*found \[1\]"),
    ({"response": "A"}, InputError, r"no 'prompt'.*found \['response'\]"),
    ({"prompt": "Q"}, InputError, r"no 'response' \(nor 'content'\)"),
    ({"prompt": 1, "response": "A"}, InputError, "'prompt' must be a string or a list or an object, found 1"),
    ({"prompt": [1], "response": "A"}, InputError, "messages of a prompt must be objects"),
    ({"prompt": "Q", "response": "A", "correct": 1}, InputError, "'correct' must be true or false, found 1"),
    ({"prompt": "Q", "response": "A", "meta": "m"}, InputError, "'meta' must be an object"),
    ({"prompt": "Q", "response": "A", "id": True}, InputError, "'id' must be a string or a whole number"),
    ({"prompt": "Q", "response": "\ud83d"}, InputError, "half a surrogate pair"),
    ({"prompt": "Q", "response": "A", "reasoning": "B"}, InputError, "call the answer alone 'content'"),
    ({"messages": []}, InputError, "then one with the role 'assistant'"),
    ({"messages": MESSAGES}, InputError, "then one with the role 'assistant'"),
    ({"messages": [{"role": "assistant", "content": "A"}]}, InputError, "then one with the role 'assistant'"),
    ({"prompt": "Q", "tokens": [5, 10**6]}, InputError, "token 1000000 at position 1"),
    ({"prompt": "Q", "tokens": ["a", "b"]}, InputError, "not a flat list"),
    ({"prompt": "Q", "tokens": [70, 71]}, InputError, "must begin with the prompt's"),
    ({"prompt": "Q", "response": "A", "segmentation": {"format": "no"}}, InputError, "format='no' is not known"),
    ({"prompt": "Q", "response": "A", "segmentation": {"format": [1]}}, InputError, "format=.* is not known"),
    ({"id": "first", "prompt": "Q", "response": "A"}, InputError, "'first' is already that of line 1"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD)
def test_a_bad_line_is_named_or_left_out_with_a_warning(lines, bad, error, message):
    good = {"id": "first", "prompt": "Q", "response": "A"}
    path = lines(good, bad, good | {"id": "last"})
    with pytest.raises(error, match=rf"traces.jsonl, line 2: .*{message}"):
        read_traces(path, BYTES)
    with pytest.warns(UserWarning, match=rf"1 line left out. line 2: .*{message}") as caught:
        assert [trace.id for trace in read_traces(path, BYTES, on_error="skip")] == ["first", "last"]
    assert len(caught) == 1


def test_all_lines_left_out_are_in_one_warning(lines):
    with pytest.warns(UserWarning, match="2 lines left out. line 1: .*; line 3: ") as caught:
        read_traces(lines([1], {"prompt": "Q", "response": "A"}, [2]), BYTES, on_error="skip")
    assert len(caught) == 1


def test_reasoning_needs_a_format_with_markers(lines):
    with pytest.raises(InputError, match="format='plain' has no markers"):
        read_traces(lines({"prompt": "Q", "reasoning": "B", "content": "A"}), BYTES, format="plain")


def test_a_file_that_is_not_there_is_a_file_error(tmp_path):
    with pytest.raises(FileError, match=r"cannot read traces from .*no.jsonl: No such file"):
        read_traces(tmp_path / "no.jsonl", BYTES)
    with pytest.raises(InputError, match="on_error='ignore' is not known"):
        read_traces(tmp_path / "no.jsonl", BYTES, on_error="ignore")


def test_a_lossy_tokenizer_reads_its_own_files(tmp_path):
    tokenizer = byte_fallback()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trace = Trace.from_text(tokenizer, "<s>[Q]", " <think>A</think>数", id="a")
    write_traces(tmp_path / "a.jsonl", [trace])
    assert same(read_traces(tmp_path / "a.jsonl", tokenizer)[0], trace)


def test_an_empty_id_is_none(lines):
    row = {"prompt": "Q", "response": "A", "id": ""}
    assert [trace.id for trace in read_traces(lines(row, row), BYTES)] == ["line-1", "line-2"]
