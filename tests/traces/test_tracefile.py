"""A file of traces that is read part by part gives what `read_traces` gives, and holds no trace."""

import gc
import json
import weakref

import pytest
import torch
from hooked import TL3

from stepsal import FileError, InputError, StepMap, load_tokenizer, read_traces, save_step_maps
from stepsal.saliency.folder import check_traces
from stepsal.traces import tracefile
from stepsal.traces.tracefile import TraceFacts, TraceFile, facts_of, open_traces

TOKENIZER = load_tokenizer()


def line(index, **more):
    thought = "\n\n".join(f"Step {step}: é→🙂 {'so ' * (index + step)}" for step in range(3))
    return {"id": f"t{index}", "prompt": f"{index}+2?", "response": f"<think>{thought}</think>4", **more}


def write(path, records, end="\n", begin=b""):
    path.write_bytes(begin + end.join(json.dumps(each, ensure_ascii=False) for each in records).encode())
    return path


def alike(one, other):
    said = [{name: value for name, value in vars(trace).items() if name != "tokens"} for trace in (one, other)]
    return torch.equal(one.tokens, other.tokens) and said[0] == said[1]


@pytest.mark.parametrize(("end", "begin"), [("\n", b""), ("\r\n\r\n  \r\n", b"\xef\xbb\xbf")])
@pytest.mark.parametrize("part", [1, 700, 10**6])
def test_its_traces_are_those_of_read_traces_in_parts_of_any_size(tmp_path, monkeypatch, end, begin, part):
    monkeypatch.setattr(tracefile, "PART", part)
    answer = {"role": "assistant", "reasoning_content": "Add.", "content": "It is 4."}
    chat = {"messages": [{"role": "user", "content": "2+2?"}, answer]}
    records = [line(0), line(1, correct=True, answer="4", meta={"a": [1]}), chat, line(2, id=None), line(3)]
    path = write(tmp_path / "t.jsonl", records, end, begin)
    whole = read_traces(path, TOKENIZER, steps="line")
    traces = open_traces(path, "bundled", steps="line", processes=1)
    assert [each.id for each in traces.facts] == [each.id for each in whole]
    assert len(traces) == len(whole) == 5
    assert all(alike(one, other) for one, other in zip(traces, whole, strict=True))
    assert alike(traces[-1], whole[-1])
    assert [each.id for each in traces[1:3]] == [each.id for each in whole[1:3]]
    assert traces.facts == facts_of(whole) == [TraceFacts.of(each) for each in whole]


@pytest.mark.skipif(TL3, reason="one of the hosts is enough")
def test_processes_find_what_one_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(tracefile, "PART", 500)
    records = [line(index) for index in range(12)]
    del records[7]["response"]
    path = write(tmp_path / "t.jsonl", records)
    for processes in (1, 2):
        with pytest.warns(UserWarning, match=r"1 line left out. line 8: there is no 'response'"):
            traces = open_traces(path, "bundled", on_error="skip", processes=processes)
        assert [each.id for each in traces] == [f"t{index}" for index in range(12) if index != 7]
        with pytest.raises(InputError, match=r"t.jsonl, line 8: there is no 'response'"):
            open_traces(path, "bundled", processes=processes)


def test_what_is_wrong_is_said_as_read_traces_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tracefile, "PART", 1)
    path = tmp_path / "t.jsonl"
    for records in ([line(0), line(1), line(0)], [line(0), {"prompt": "a"}], [line(0), line(1, correct="yes")]):
        write(path, records)
        said = []
        for read in (lambda: read_traces(path, TOKENIZER), lambda: open_traces(path, "bundled")):
            with pytest.raises(InputError) as error:
                read()
            said.append(str(error.value))
        assert said[0] == said[1]
    path.write_text("[\n{}\n]")
    with pytest.raises(FileError, match="is one JSON list"):
        open_traces(path, "bundled")
    with pytest.raises(FileError, match="cannot read traces from"):
        open_traces(tmp_path / "none.jsonl", "bundled")
    with pytest.raises(InputError, match="format='mine' is not known"):
        open_traces(path, "bundled", format="mine")
    path.write_text("")
    assert len(open_traces(path, "bundled")) == 0


def test_the_requests_of_a_batch_may_stand_in_another_part_than_their_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(tracefile, "PART", 1)
    body = {"messages": [{"role": "user", "content": "2+2?"}]}
    said = {"message": {"role": "assistant", "reasoning_content": "Add.", "content": "It is 4."}}
    answers = {"custom_id": "a", "response": {"body": {"choices": [said, said | {"index": 1}]}}}
    path = write(tmp_path / "t.jsonl", [answers, {"custom_id": "a", "body": body, "url": "/v1", "method": "POST"}])
    whole, traces = read_traces(path, TOKENIZER), open_traces(path, "bundled")
    assert len(whole) == 2
    assert all(alike(one, other) for one, other in zip(traces, whole, strict=True))


def test_a_file_that_changed_after_it_was_checked_is_not_read_on(tmp_path):
    path = write(tmp_path / "t.jsonl", [line(0), line(1), line(2)])
    traces = open_traces(path, "bundled")
    for records in ([line(0), line(1, id="t99"), line(2)], [line(0), line(1), line(5)], [line(0), line(1)]):
        write(path, records)
        with pytest.raises(FileError, match=r"t.jsonl, line 3 has changed since it was checked"):
            traces[2]
    path.unlink()
    with pytest.raises(FileError, match="cannot read traces"):
        traces[0]


@pytest.mark.usefixtures("alone")
def test_maps_of_a_file_are_those_of_its_traces_and_few_traces_are_there_at_a_time(tmp_path, reasoner, monkeypatch):
    path = write(tmp_path / "t.jsonl", [line(index) for index in range(6)])
    made, most, real = weakref.WeakSet(), [], TraceFile.__getitem__

    def watched(self, index):
        trace = real(self, index)
        made.add(trace)
        gc.collect()
        most.append(len(made))
        return trace

    traces = open_traces(path, "bundled")
    by_list = save_step_maps(reasoner, list(traces), tmp_path / "list", progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(TraceFile, "__getitem__", watched)
        by_file = save_step_maps(reasoner, traces, tmp_path / "file", progress=False)
    assert max(most) <= 3
    for one, other in zip(by_list, by_file, strict=True):
        assert torch.equal(StepMap.load(one).mass, StepMap.load(other).mass)
    assert (tmp_path / "list/saliency.json").read_bytes() == (tmp_path / "file/saliency.json").read_bytes()


def test_a_trace_that_does_not_fit_is_found_by_its_facts(tmp_path):
    traces = open_traces(write(tmp_path / "t.jsonl", [line(0), line(1)]), "bundled")
    check_traces(traces, traces.facts, 1000, len(TOKENIZER), TOKENIZER)
    longest = max(each.tokens for each in traces.facts)
    with pytest.raises(InputError, match=rf"trace 't1': the trace has {longest} tokens but the model's context is"):
        check_traces(traces, traces.facts, longest - 1, len(TOKENIZER), TOKENIZER)
    with pytest.raises(InputError, match="is outside the model's vocabulary"):
        check_traces(traces, traces.facts, 1000, traces.facts[0].largest, TOKENIZER)
