import json
import subprocess
import sys

import pytest
import torch
from conftest import save_tiny
from hooked import HOST
from safetensors.torch import load_file, save_file

import stepsal
from stepsal import FileError, InputError, OddsEqualBridge, generate, read_traces
from stepsal.cli import main
from stepsal.engines.local import InProcess
from stepsal.generation.files import generate_file
from stepsal.generation.generate import Decoding
from stepsal.generation.questions import Question, read_questions, task_questions
from stepsal.traces.prompt import DEFAULT_TIME

SHORT = Decoding(max_new_tokens=12, batch_size=2)
QUESTIONS = task_questions("validation", [2], 5)


def one_batch(run, decoded):
    """An engine's `run` that is interrupted after a batch; `decoded` takes the indices of its answers."""

    def interrupted(self, items):
        for item, said in run(self, items):
            decoded.extend(request.index for request in item.requests)
            yield item, said
            if item.requests:
                raise KeyboardInterrupt

    return interrupted


def begin(model, path, monkeypatch, questions=QUESTIONS):
    """One batch, then an interrupt."""
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(InProcess, "run", one_batch(InProcess.run, []))
        generate_file(model, questions, path, SHORT, progress=False)


def test_the_file_holds_what_generate_gives_graded_and_in_order(reasoner, tmp_path):
    decoding = Decoding(max_new_tokens=150, batch_size=2)
    made = generate_file(reasoner, QUESTIONS[:3], tmp_path / "a.jsonl", decoding, progress=False)
    plain = generate(reasoner, [each.prompt for each in QUESTIONS[:3]], max_new_tokens=150, progress=False)
    back = read_traces(tmp_path / "a.jsonl", reasoner.tokenizer)
    assert [each.id for each in made] == [each.id for each in back] == [each.id for each in QUESTIONS[:3]]
    for one, two, three in zip(made, plain, back, strict=True):
        assert torch.equal(one.tokens, two.tokens)
        assert torch.equal(one.tokens, three.tokens)
    assert [each.correct for each in made] == [f"boxed{{{each.answer}}}" in each.response for each in made]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_interrupted_file_goes_on_and_ends_as_an_undisturbed_one(reasoner, tmp_path, monkeypatch):
    whole = generate_file(reasoner, QUESTIONS, tmp_path / "whole.jsonl", SHORT, progress=False)
    decoded, path = [], tmp_path / "a.jsonl"
    for _ in range(3):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(InProcess, "run", one_batch(InProcess.run, decoded))
            generate_file(reasoner, QUESTIONS, path, SHORT, progress=False)
        assert not path.exists()
        with open(tmp_path / ".a.jsonl.partial", "ab") as file:
            file.write(b'{"id": "half a li')  # a line that was being written
    assert len(decoded) == 5
    made = generate_file(reasoner, QUESTIONS, path, SHORT, progress=False)
    assert sorted(decoded) == list(range(5))  # nothing was decoded twice
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [each.text for each in made] == [each.text for each in whole]


def test_other_settings_do_not_go_on_where_these_were_begun(reasoner, tmp_path, monkeypatch):
    begin(reasoner, tmp_path / "a.jsonl", monkeypatch)
    with pytest.raises(FileError, match=r"begun with other settings \(interventions\)"):
        generate_file(reasoner, QUESTIONS, tmp_path / "a.jsonl", SHORT, [OddsEqualBridge()], progress=False)
    with pytest.raises(FileError, match=r"other settings \(decoding\)"):
        generate_file(reasoner, QUESTIONS, tmp_path / "a.jsonl", Decoding(max_new_tokens=9), progress=False)


ANSWER = """
import sys
from pathlib import Path
import stepsal.generation.files as files
from stepsal import load_model
from stepsal.engines.local import InProcess
from stepsal.generation.generate import Decoding
from stepsal.generation.questions import task_questions

real = InProcess.run

def one_batch(self, items):
    for item, said in real(self, items):
        yield item, said
        if item.requests:
            print("one batch", flush=True)
            sys.stdin.read()

InProcess.run = one_batch
model = load_model(host=sys.argv[2])
files.generate_file(model, task_questions("validation", [2], 5), Path(sys.argv[1]), Decoding(12, 2), progress=False)
"""


def test_two_at_once_into_one_file_are_refused_and_a_killed_one_is_gone_on_from(reasoner, tmp_path):
    whole = generate_file(reasoner, QUESTIONS, tmp_path / "whole.jsonl", SHORT, progress=False)
    path = tmp_path / "out" / "a.jsonl"
    command = [sys.executable, "-c", ANSWER, path, HOST]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"one batch\n"
        kept = (path.parent / ".a.jsonl.partial").read_bytes()
        with pytest.raises(FileError, match=r"another run is writing answers to .*a\.jsonl: wait for it"):
            generate_file(reasoner, QUESTIONS, path, SHORT, progress=False)
        assert (path.parent / ".a.jsonl.partial").read_bytes() == kept
        first.kill()
    made = generate_file(reasoner, QUESTIONS, path, SHORT, progress=False)
    assert [each.text for each in made] == [each.text for each in whole]
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [each.name for each in path.parent.iterdir()] == ["a.jsonl"]


def test_a_file_whose_settings_are_lost_is_not_gone_on_from(reasoner, tmp_path):
    (tmp_path / ".a.jsonl.partial").write_bytes(b"{}\n")
    with pytest.raises(FileError, match=r"cannot go on from .*\.a\.jsonl\.partial: cannot read .*\.settings.*move"):
        generate_file(reasoner, QUESTIONS, tmp_path / "a.jsonl", SHORT, progress=False)


def test_nothing_is_written_over(reasoner, tmp_path):
    (tmp_path / "a.jsonl").write_text("mine")
    with pytest.raises(FileError, match="is there already"):
        generate_file(reasoner, QUESTIONS, tmp_path / "a.jsonl", SHORT, progress=False)
    assert (tmp_path / "a.jsonl").read_text() == "mine"


def test_the_command_answers_problems_of_a_file_with_parts_in_their_places(tmp_path, capsys):
    problems = tmp_path / "p.jsonl"
    lines = [
        {"prompt": [{"role": "user", "content": "Facts: k = 37."}], "id": "x"},
        {"prompt": "Facts: k", "answer": 4},
    ]
    problems.write_text("".join(json.dumps(each) + "\n" for each in lines))
    command = ["generate", str(problems), "--out", str(tmp_path / "t.jsonl"), "--max-new-tokens", "5", "--samples", "2"]
    command += ["--temperature", "1", "--oeb", "0.3", "--smi", "--layers", "oeb=0,2", "smi=-1", "--heads", "oeb=1"]
    with pytest.warns(UserWarning, match="never fired"):  # five tokens are no second step
        assert main(command) == 0
    traces = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert [each["id"] for each in traces] == ["x-0", "x-1", "problem-2-0", "problem-2-1"]
    bridge, momentum = traces[0]["meta"]["interventions"]
    assert (bridge["layers"], bridge["heads"], bridge["tau_max"]) == ([0, 2], [1], 0.3)
    assert (momentum["layers"], momentum["heads"], momentum["alpha"]) == ([-1], None, 0.06)
    assert "0 of 2 right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "0"], "say where interventions such as --oeb and --smi act"),
        (["--oeb", "--layers", "smi=0"], "--layers smi=... is for --smi, which is not given"),
        (["--oeb", "1.5"], "tau_max=1.5 must be a number in"),
        (["--oeb", "--layers", "9"], "layer 9 does not exist"),
        (["--oeb", "--heads", "4"], "head 4 does not exist"),
        (["--samples", "2"], "would all be alike"),
        (["--oeb", "--layers", "0", "1"], "--layers has two values for oeb: write several indices as 0,1"),
    ],
)
def test_the_command_says_what_it_cannot_do(tmp_path, capsys, options, message):
    assert main(["generate", "1", "--out", str(tmp_path / "t.jsonl"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_value_for_an_unknown_intervention_is_bad_usage(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "1", "--out", str(tmp_path / "t.jsonl"), "--oeb", "--layers", "bridge=0"])
    assert ended.value.code == 2
    assert "expected one of oeb, smi, random-bridge" in capsys.readouterr().err


def test_a_broken_problem_is_named_by_its_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "2+2?"}\n{"answer": 4}\n')
    with pytest.raises(InputError, match=r"p.jsonl, line 2 needs a 'prompt'"):
        read_questions(path, graded=False)
    with pytest.raises(InputError, match="line 1 needs an 'answer'"):
        read_questions(path, graded=True)


def test_what_was_refused_can_be_put_right(reasoner, tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(InputError, match="layer 9"):
        generate_file(reasoner, QUESTIONS[:1], path, SHORT, [OddsEqualBridge(9)], progress=False)
    assert len(generate_file(reasoner, QUESTIONS[:1], path, SHORT, progress=False)) == 1


def test_two_questions_with_one_id_are_refused_before_any_work(reasoner, tmp_path):
    with pytest.raises(InputError, match=r"the id 'validation-2-0' is .* of several"):
        generate_file(reasoner, [QUESTIONS[0]] * 2, tmp_path / "a.jsonl", SHORT, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "mine"], "--format mine is not known"),
        (["--steps", "mine"], "--steps mine is not known"),
        (["--grader", "maths"], "unknown grader 'maths'"),
        (["--device", "toaster"], "unknown device 'toaster'"),
        (["--dtype", "float33"], "unknown dtype 'float33'"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--oeb", "--layers", "99"], "layer 99 does not exist"),
        (["--oeb", "--heads", "99"], "head 99"),
        (["--oeb", "--layers", "top"], "unknown layers 'top'"),
    ],
)
def test_every_option_is_checked_before_the_model_is_loaded(tmp_path, monkeypatch, capsys, options, said):
    def never(*given, **more):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("stepsal.models.loading.load_model", never)
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+1?", "answer": "2"}\n')
    assert main(["generate", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "t.jsonl"), *options]) == 2
    assert said in capsys.readouterr().err
    assert main(["generate", "1", "--out", str(tmp_path / "p.jsonl" / "below" / "t.jsonl")]) == 2
    assert "p.jsonl is a file" in capsys.readouterr().err
    assert main(["generate", "1", "--out", str(tmp_path)]) == 2
    assert not (tmp_path / "t.jsonl").exists()


@pytest.mark.bridge
def test_weights_that_were_replaced_in_place_are_refused(tmp_path, monkeypatch):
    folder = save_tiny("qwen2", tmp_path / "model")
    begin(stepsal.load_model(folder), tmp_path / "a.jsonl", monkeypatch)
    weights = load_file(folder / "model.safetensors")
    weights[sorted(weights)[3]].view(-1)[7] += 0.001
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileError, match=r"begun with other settings \(model: what is in it differs, by its hash\)"):
        generate_file(stepsal.load_model(folder), QUESTIONS, tmp_path / "a.jsonl", SHORT, progress=False)


@pytest.mark.bridge
def test_a_chat_template_that_was_replaced_in_place_is_refused(tmp_path, monkeypatch):
    folder = save_tiny("qwen2", tmp_path / "model")
    questions = [Question(str(index), [{"role": "user", "content": f"{index}?"}], None) for index in range(4)]
    begin(stepsal.load_model(folder), tmp_path / "a.jsonl", monkeypatch, questions)
    template = folder / "chat_template.jinja"
    template.write_text("Hello. " + template.read_text())
    with pytest.raises(FileError, match=r"\(prompts: what is in it differs, by its hash, tokenizer: "):
        generate_file(stepsal.load_model(folder), questions, tmp_path / "a.jsonl", SHORT, progress=False)


def test_a_template_that_asks_for_the_time_is_told_one_that_the_trace_records(tmp_path, monkeypatch):
    model = stepsal.load_model()
    model.tokenizer.chat_template = "{{ strftime_now('%Y') }}" + model.tokenizer.chat_template
    decoding, question = Decoding(max_new_tokens=2), Question("a", [{"role": "user", "content": "2+2?"}], "4")
    (trace,) = generate_file(model, [question], tmp_path / "t.jsonl", decoding, progress=False)
    assert trace.meta["template_time"] == DEFAULT_TIME.isoformat()
    assert trace.prompt.startswith(f"{DEFAULT_TIME.year}")
    assert read_traces(tmp_path / "t.jsonl", model.tokenizer)[0].meta == trace.meta
    for trace in stepsal.generate(model, [question.prompt] * 2, max_new_tokens=2, progress=False):
        assert trace.meta["template_time"] == DEFAULT_TIME.isoformat()
    trace = stepsal.Trace.from_text(model.tokenizer, question.prompt, "It is 4.</think>4", meta={"mine": 1})
    assert trace.meta | {"template_time": DEFAULT_TIME.isoformat(), "mine": 1} == trace.meta
    (plain,) = generate_file(stepsal.load_model(), [question], tmp_path / "p.jsonl", decoding, progress=False)
    assert "template_time" not in plain.meta


def test_a_file_that_stepsal_0_1_began_is_gone_on_with_after_a_warning(reasoner, tmp_path, monkeypatch):
    whole = generate_file(reasoner, QUESTIONS, tmp_path / "whole.jsonl", SHORT, progress=False)
    begin(reasoner, tmp_path / "a.jsonl", monkeypatch)
    about = tmp_path / ".a.jsonl.settings"
    new = ("model_sha256", "tokenizer_sha256", "prompts_sha256", "stop_tokens")
    about.write_text(json.dumps({key: value for key, value in json.loads(about.read_text()).items() if key not in new}))
    with pytest.warns(UserWarning, match=r"begun by stepsal 0\.1.* cannot be checked"):
        made = generate_file(reasoner, QUESTIONS, tmp_path / "a.jsonl", SHORT, progress=False)
    assert [each.text for each in made] == [each.text for each in whole]


@pytest.mark.parametrize("content", ["[1]", "1", "null", '"x"', "{", '{"a":' * 100_000])
def test_settings_that_are_no_settings_are_named(reasoner, tmp_path, monkeypatch, content):
    begin(reasoner, tmp_path / "a.jsonl", monkeypatch)
    (tmp_path / ".a.jsonl.settings").write_text(content)
    with pytest.raises(FileError, match=r"cannot go on from .*a\.jsonl\.settings is damaged .*move"):
        generate_file(reasoner, QUESTIONS, tmp_path / "a.jsonl", SHORT, progress=False)


def test_with_the_disk_full_nothing_is_lost_and_the_file_goes_on_when_there_is_room(reasoner, tmp_path):
    whole = generate_file(reasoner, QUESTIONS, tmp_path / "whole.jsonl", SHORT, progress=False)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        (disk / "other").write_bytes(b"x" * 4096)  # leaves a page for the settings and one for the traces
        with pytest.raises(FileError, match=r"cannot write .*No space left on device"):
            generate_file(reasoner, QUESTIONS, disk / "a.jsonl", SHORT, progress=False)
        assert not (disk / "a.jsonl").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        made = generate_file(reasoner, QUESTIONS, disk / "a.jsonl", SHORT, progress=False)
        assert [each.text for each in made] == [each.text for each in whole]
        assert (disk / "a.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    finally:
        subprocess.run(["umount", disk], check=True)
