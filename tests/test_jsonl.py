"""One reader for every JSONL file: what a line is, and what is refused with its cure."""

import json

import pytest
from toy_tokenizers import byte_level

from stepsal import FileError, InputError, StepsalError, read_traces
from stepsal.generation.questions import read_questions
from stepsal.jsonl import parse_line, read_lines
from stepsal.traces.convert import convert_traces
from stepsal.traces.files import read_grades

ROW = {"id": "a", "prompt": "2+2?", "response": "4", "answer": "4", "correct": True}
READERS = {
    "traces": lambda path: [trace.id for trace in read_traces(path, byte_level())],
    "grades": lambda path: list(read_grades(path)),
    "problems": lambda path: [question.id for question in read_questions(path, graded=True)],
}
each_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@each_reader
@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_a_line_feed_ends_a_line(read, separator, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [ROW | {"id": id, "prompt": f"2{separator}+2?"} for id in "ab"]
    raw = "\r\n".join(json.dumps(row, ensure_ascii=ord(separator) < 32) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + raw.encode() + b"\r\n\r\n  \n")
    assert read(path) == ["a", "b"]


@each_reader
@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ([ROW, ROW | {"id": "b"}], r"is one JSON list.*`jq -c '.\[\]' a.jsonl > lines.jsonl`"),
        (ROW, r"is JSON over several lines.*`jq -c . a.jsonl > lines.jsonl`"),
    ],
)
@pytest.mark.parametrize("indent", [0, 1, 4, "\t"])
def test_json_over_several_lines_is_refused_with_what_makes_lines_of_it(read, value, cure, indent, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(value, indent=indent))
    with pytest.raises(FileError, match=cure):
        read(path)
    with pytest.raises(FileError, match=cure):
        convert_traces([path], tmp_path / "out.jsonl", byte_level())


def test_objects_one_after_the_other_over_several_lines_are_refused_likewise(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROW, indent=2) + "\n" + json.dumps(ROW, indent=2))
    with pytest.raises(FileError, match="is JSON over several lines"):
        list(read_lines(path, "traces"))


def test_a_list_on_one_line_is_refused_with_what_makes_lines_of_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps([ROW]))
    for name in ("traces", "problems"):
        with pytest.raises(InputError, match=r"line 1.*`jq -c '.\[\]'` makes lines of a list"):
            READERS[name](path)


@each_reader
def test_a_line_that_is_nested_too_deeply_is_named(read, tmp_path):
    path = tmp_path / "a.jsonl"
    for deep in ("[" * 10_000 + "]" * 10_000, '{"a": ' * 10_000 + "1" + "}" * 10_000):
        path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "b"})[:-1] + f', "meta": {deep}}}\n')
        with pytest.raises(StepsalError, match="line 2.*nested too deeply"):
            read(path)


@each_reader
def test_a_field_that_is_there_twice_is_refused(read, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROW)[:-1] + ', "prompt": "3+3?"}')
    with pytest.raises(StepsalError, match="the field 'prompt' is there twice"):
        read(path)


def test_what_is_no_utf_8_is_said_to_be_none():
    with pytest.raises(FileError, match=r"not UTF-8 \(byte 1 of the line\)"):
        parse_line('"é"'.encode("latin-1"))


@each_reader
def test_a_file_that_is_not_there_is_said_to_be_missing(read, tmp_path):
    with pytest.raises(FileError, match=r"cannot read (traces|grades|problems) from .*a.jsonl: No such file"):
        read(tmp_path / "a.jsonl")


def test_half_a_surrogate_pair_in_an_id_is_refused_before_any_work(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROW | {"id": "\ud83d"}))
    with pytest.raises(InputError, match=r"line 1: the id '\\ud83d' has half a surrogate pair"):
        READERS["traces"](path)
    with pytest.raises(InputError, match="line 1: the id of the problem .* has half a surrogate pair"):
        READERS["problems"](path)
    path.write_text(json.dumps(ROW | {"prompt": [{"role": "user", "content": "\udc00"}]}))
    with pytest.raises(InputError, match="line 1: the prompt of the problem 'a' has half a surrogate pair"):
        READERS["problems"](path)
