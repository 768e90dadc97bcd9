import json

import pytest
import torch
from toy_tokenizers import MODELS, byte_level, word_piece

import stepsal
from stepsal import FileError, InputError, read_traces
from stepsal.cli import main
from stepsal.traces.convert import convert_traces

BYTES = byte_level()
QUESTION = [{"role": "user", "content": "2+2?"}]
GOOD = {"id": "good", "prompt": "2+2?", "response": "<think>Add.</think>4", "correct": True, "meta": {"run": 1}}
CHAT = {"id": "chat", "messages": [*QUESTION, {"role": "assistant", "reasoning": "Add.", "content": "4"}]}


@pytest.fixture
def write(tmp_path):
    """Write lines (objects, or bytes as they are) to a file of that name; its path."""

    def write(name, *lines):
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / name).write_bytes(b"\n".join(raw) + b"\n")
        return tmp_path / name

    return write


def same(a, b):
    keys = ("steps", "prompt", "prompt_tokens", "id", "answer", "correct", "meta", "format", "step_rule")
    return a.tokens.tolist() == b.tokens.tolist() and all(getattr(a, key) == getattr(b, key) for key in keys)


# --- files -----------------------------------------------------------------------------------------------------------
def test_the_result_holds_the_same_traces_and_converts_to_itself(write, tmp_path):
    source, out, again = write("in.jsonl", GOOD, CHAT), tmp_path / "out.jsonl", tmp_path / "again.jsonl"
    result = convert_traces([source], out, BYTES)
    traces = read_traces(out, BYTES)
    assert all(map(same, traces, read_traces(source, BYTES)))
    assert (result.written, result.unread, result.rebuilt) == (2, (), 1)
    convert_traces([out], again, BYTES)
    assert again.read_bytes() == out.read_bytes()


def test_lines_that_cannot_be_read_are_named_and_the_others_are_written(write, tmp_path):
    first = write(
        "a.jsonl", GOOD, b'{"prompt": "Q"', b"", {"prompt": "Q", "response": "A", "meta": {"a": float("nan")}}
    )
    second = write("b.jsonl", [1], GOOD, {**CHAT, "id": "\ud83d"}, CHAT)
    result = convert_traces([first, second], tmp_path / "out.jsonl", BYTES)
    assert [trace.id for trace in read_traces(tmp_path / "out.jsonl", BYTES)] == ["good", "chat"]
    assert [(each.path, each.line) for each in result.unread] == [
        *((first, line) for line in (2, 4)),
        *((second, line) for line in (1, 2, 3)),
    ]
    reasons = (
        "not a whole JSON object",
        "cannot be written as JSON",
        "expected an object",
        "'good' is already that of",
    )
    assert all(reason in each.reason for reason, each in zip(reasons, result.unread, strict=False))
    assert f"{first}, line 1" in result.unread[3].reason


def test_a_file_is_replaced_whole_or_not_at_all(write, tmp_path):
    out = write("out.jsonl", GOOD)
    before = out.read_bytes()
    result = convert_traces([write("in.jsonl", [1])], out, BYTES)
    assert (result.written, len(result.unread), out.read_bytes()) == (0, 1, before)
    with pytest.raises(FileError, match=r"cannot read traces from .*no.jsonl"):
        convert_traces([write("in.jsonl", GOOD), tmp_path / "no.jsonl"], out, BYTES)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_traces_without_a_name_are_called_after_their_file_and_line(write, tmp_path):
    row = {"prompt": "Q", "response": "A"}
    convert_traces([write("a.jsonl", row, row), write("b.jsonl", row)], tmp_path / "out.jsonl", BYTES)
    assert [trace.id for trace in read_traces(tmp_path / "out.jsonl", BYTES)] == ["a-line-1", "a-line-2", "b-line-1"]


def test_one_answer_of_several_may_be_unreadable(write, tmp_path):
    choices = [{"message": {"content": content}} for content in ("4", None, "5")]
    source = write("in.jsonl", {"id": "a", "messages": QUESTION, "choices": choices})
    result = convert_traces([source], tmp_path / "out.jsonl", BYTES, format="think")
    assert [trace.id for trace in read_traces(tmp_path / "out.jsonl", BYTES)] == ["a-0", "a-2"]
    assert [each.reason[:15] for each in result.unread] == ["answer 'a-1': t"]


def test_what_the_tokenizer_loses_is_counted_and_not_warned_about(write, tmp_path):
    result = convert_traces([write("in.jsonl", GOOD)], tmp_path / "out.jsonl", word_piece())
    assert (result.written, result.lossy) == (1, 1)
    assert "1 whose text the tokenizer does not give back" in str(result)


def test_format_and_steps_reach_the_traces(write, tmp_path):
    source = write("in.jsonl", {"prompt": "Q", "response": "A\nB</r>C"})
    convert_traces([source], tmp_path / "out.jsonl", BYTES, format=("<r>", "</r>"), steps="line")
    (trace,) = read_traces(tmp_path / "out.jsonl", BYTES)
    assert [step.segment for step in trace.steps] == ["question", "thinking", "thinking", "summary"]


def test_bare_prompts_are_counted_where_the_model_has_a_chat_template(write, tmp_path, reasoner):
    bare, chat = (
        {"prompt": "2+2?", "response": "4"},
        {"prompt": [{"role": "user", "content": "2+2?"}], "response": "4"},
    )
    result = convert_traces([write("in.jsonl", bare, chat)], tmp_path / "out.jsonl", reasoner.tokenizer)
    assert (result.written, result.plain) == (2, 1)
    assert "1 with a bare text as the prompt" in str(result)


def test_wrong_options_are_nobodys_line(write, tmp_path):
    source = write("in.jsonl", GOOD)
    with pytest.raises(InputError, match="format='no' is not known"):
        convert_traces([source], tmp_path / "out.jsonl", BYTES, format="no")
    with pytest.raises(InputError, match="a file cannot hold a callable"):
        convert_traces([source], tmp_path / "out.jsonl", BYTES, steps=lambda step, token: False)
    with pytest.raises(InputError, match="is to be read and written: give the result another name"):
        convert_traces([source], source, BYTES)
    with pytest.raises(InputError, match="there is no line in"):
        convert_traces([write("empty.jsonl")], tmp_path / "out.jsonl", BYTES)
    assert not (tmp_path / "out.jsonl").exists()


# --- batches ---------------------------------------------------------------------------------------------------------
def batch(*ids):
    """A batch's requests and its results."""
    requests = [
        {
            "custom_id": id,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"messages": [{**QUESTION[0], "name": id}]},
        }
        for id in ids
    ]
    bodies = [{"id": f"chatcmpl-{id}", "choices": [{"message": {"content": f"It is {id}."}}]} for id in ids]
    results = [
        {"id": f"batch_req_{id}", "custom_id": id, "response": {"status_code": 200, "body": body}, "error": None}
        for id, body in zip(ids, bodies, strict=True)
    ]
    return requests, results


@pytest.mark.parametrize("requests_first", [True, False])
def test_a_batchs_requests_and_results_are_put_together_by_their_ids(write, tmp_path, requests_first):
    requests, results = batch("a", "b", "c")
    files = [write("requests.jsonl", *requests), write("results.jsonl", *reversed(results))]
    result = convert_traces(files if requests_first else files[::-1], tmp_path / "out.jsonl", MODELS["qwen3"]())
    assert result.unread == ()
    traces = read_traces(tmp_path / "out.jsonl", MODELS["qwen3"]())
    assert [(trace.id, trace.response) for trace in traces] == [(id, f"It is {id}.") for id in "cba"]


def test_requests_and_results_that_have_no_counterpart_are_not_read(write, tmp_path):
    requests, results = batch("a", "b", "c")
    failed = {"custom_id": "b", "response": None, "error": {"code": "batch_expired"}}
    files = [write("requests.jsonl", *requests[:2]), write("results.jsonl", failed, results[2])]
    result = convert_traces(files, tmp_path / "out.jsonl", MODELS["qwen3"]())
    assert result.written == 0
    reasons = ("no line of these files is the response", "answered with an error", "there is no 'prompt'")
    assert [reason in each.reason for reason, each in zip(reasons, result.unread, strict=True)] == [True] * 3


def test_two_requests_of_one_name_are_refused(write, tmp_path):
    requests, results = batch("a", "b")
    requests[1]["custom_id"] = "a"
    requests[1]["body"]["messages"] = [{"role": "user", "content": "another"}]
    with pytest.raises(InputError, match="another request has the custom_id 'a' too"):
        convert_traces([write("all.jsonl", *requests, *results)], tmp_path / "out.jsonl", MODELS["qwen3"]())


# --- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def run(tmp_path_factory, tmp_path, capsys):
    """Run `stepsal traces convert`; gives the exit status, stdout and stderr."""
    from transformers.utils import logging

    threads = torch.get_num_threads()
    model = tmp_path_factory.mktemp("model")
    stepsal.load_tokenizer().save_pretrained(model)

    def run(*files, out=tmp_path / "out.jsonl", model=model):
        try:
            status = main(["traces", "convert", *map(str, files), "--out", str(out), "--model", str(model)])
        except SystemExit as error:  # argparse's own
            status = error.code
        return status, *capsys.readouterr()

    yield run
    torch.set_num_threads(threads)
    logging.enable_progress_bar()


def test_the_command_converts_and_says_how_many(run, write, tmp_path):
    status, printed, message = run(write("in.jsonl", GOOD, CHAT))
    assert (status, message) == (0, "")
    assert printed.startswith(
        f"{tmp_path}/out.jsonl   2 traces, 1 put together from fields (meta: rebuilt_response), 1 with a bare text"
    )
    assert printed.endswith(", everything read\n")
    assert len(read_traces(tmp_path / "out.jsonl", BYTES)) == 2


def test_the_command_names_each_line_that_it_cannot_read(run, write, tmp_path):
    source = write("in.jsonl", GOOD, [1], b"{")
    status, printed, message = run(source)
    assert status == 1
    first, second = message.splitlines()
    assert first.startswith(f"stepsal: {source}, line 2: expected an object")
    assert second.startswith(f"stepsal: {source}, line 3: not a whole JSON object")
    assert printed.startswith(f"{tmp_path}/out.jsonl   1 trace, 1 with a bare text")
    assert printed.endswith(", 2 not read\n")


def test_the_command_writes_nothing_where_nothing_can_be_read(run, write, tmp_path):
    status, printed, _ = run(write("in.jsonl", [1]))
    assert status == 1
    assert "is not written" in printed
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_usage_has_its_own_status(run, write, tmp_path):
    source = write("in.jsonl", GOOD)
    assert run(tmp_path / "no.jsonl")[0] == 2
    assert run(source, out=source)[0] == 2
    assert run(write("empty.jsonl"))[0] == 2
    assert run()[0] == 2
    assert run(source, model=tmp_path / "no-model")[0] == 2
    assert run(source, out=source / "below")[0] == 2


def test_a_pair_of_markers_is_a_format_on_the_command_line(write, tmp_path, tmp_path_factory, capsys):
    from transformers.utils import logging

    threads, model = torch.get_num_threads(), tmp_path_factory.mktemp("model")
    stepsal.load_tokenizer().save_pretrained(model)
    source = write("in.jsonl", {"prompt": "Q", "response": "<reason>A.</reason>B"})
    given = ["traces", "convert", str(source), "--out", str(tmp_path / "out.jsonl"), "--model", str(model), "--format"]
    assert main([*given, "<reason>,</reason>"]) == 0
    (trace,) = read_traces(tmp_path / "out.jsonl", BYTES)
    assert [step.text for step in trace.steps] == ["Q<reason>", "A.</reason>", "B"]
    assert trace.format == ("<reason>", "</reason>")
    for wrong in ("<reason>,", "a,b,c", "<a>,<a>"):
        with pytest.raises(SystemExit) as ended:
            main([*given, wrong])
        assert ended.value.code == 2
        assert "is not a pair of markers such as '<reason>,</reason>'" in capsys.readouterr().err
    torch.set_num_threads(threads)
    logging.enable_progress_bar()
