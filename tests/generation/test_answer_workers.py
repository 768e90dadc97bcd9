"""Many workers for `stepsal generate`: the same file as from one, each answer once, whatever happens to a worker."""

import os
import signal
import threading
from dataclasses import replace

import psutil
import pytest
import torch
from helpers import run_and_kill_a_ray_worker
from hooked import TL3

from stepsal import FileError, InputError, OddsEqualBridge
from stepsal.cli import main
from stepsal.engines.local import InProcess, Processes, WorkerProcess
from stepsal.engines.messages import ModelToLoad
from stepsal.errors import StepsalError
from stepsal.generation.files import generate_file
from stepsal.generation.generate import Decoding, Request, in_batches, make_requests
from stepsal.generation.questions import task_questions
from stepsal.generation.worker import AnswerItem, AnswerJob
from stepsal.models.host import BUNDLED

pytestmark = pytest.mark.skipif(TL3, reason="workers load bridges")
BUNDLED_MODEL = ModelToLoad(path="bundled")
QUESTIONS = task_questions("validation", [2, 4], 3)
QUESTIONS.append(replace(QUESTIONS[0], id="again"))  # an equal prompt, in another batch: other samples
DECODING = Decoding(max_new_tokens=12, batch_size=2, temperature=0.8, samples=2, seed=3)
INTERVENTIONS = [OddsEqualBridge(layers=(0, 1), tau_max=0.5)]


def answer(model, path, **options):
    return generate_file(model, QUESTIONS, path, DECODING, INTERVENTIONS, progress=False, **options)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    """The file of one worker, in this process."""
    path = tmp_path_factory.mktemp("one") / "a.jsonl"
    answer(BUNDLED_MODEL, path, workers=1)
    return path.read_bytes()


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced_and_give_the_file_of_one(tmp_path, by_one, monkeypatch, caplog):
    """The first is killed as it is given a batch, the second while it works."""
    asked, ask = [], WorkerProcess.ask

    def killing(self, item):
        if item.requests:
            asked.append(item.requests[0].index)
            if len(asked) == 1:
                os.kill(self.pid, signal.SIGKILL)
            elif len(asked) == 2:
                threading.Timer(0.02, self._process.kill).start()
        return ask(self, item)

    monkeypatch.setattr(WorkerProcess, "ask", killing)
    with caplog.at_level("INFO", logger="stepsal"):
        answer(BUNDLED_MODEL, tmp_path / "a.jsonl", workers=2)
    assert (tmp_path / "a.jsonl").read_bytes() == by_one
    assert asked.count(asked[0]) > 1
    assert "died (signal 9); its batch of 2 answers (the first is to problem " in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert not [child for child in psutil.Process().children() if "generation.worker" in " ".join(child.cmdline())]


def test_the_loaded_model_gives_the_file_of_workers(tmp_path, by_one, reasoner):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        answer(reasoner, tmp_path / "a.jsonl")
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "a.jsonl").read_bytes() == by_one


def test_an_interrupted_file_goes_on_with_any_number_of_workers_and_no_batch_is_decoded_twice(
    tmp_path, by_one, monkeypatch
):
    def interrupted(self, items):
        for count, (item, said) in enumerate(run(self, items)):
            if count == 2:
                raise KeyboardInterrupt
            done.extend(each.index for each in item.requests)
            yield item, said

    def counted(self, items):
        done.extend(request.index for item in items for request in item.requests)
        return run(self, items)

    done, run = [], InProcess.run
    monkeypatch.setattr(InProcess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answer(BUNDLED_MODEL, tmp_path / "a.jsonl", workers=1)
    assert len(done) == 4
    run = Processes.run
    monkeypatch.setattr(Processes, "run", counted)
    answer(BUNDLED_MODEL, tmp_path / "a.jsonl", workers=2)
    assert sorted(done) == list(range(2 * len(QUESTIONS)))
    assert (tmp_path / "a.jsonl").read_bytes() == by_one


def test_a_batch_that_was_half_written_is_made_whole_without_an_answer_twice(tmp_path, by_one, reasoner, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("stepsal.generation.files.write_traces", stop)
        answer(BUNDLED_MODEL, tmp_path / "a.jsonl", workers=1)
    partial = tmp_path / ".a.jsonl.partial"
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    written = []

    def watched(path, traces):
        written.extend(partial.read_bytes().splitlines(keepends=True))
        path.write_bytes(b"".join(sorted(written)))

    with monkeypatch.context() as patched:
        patched.setattr("stepsal.generation.files.write_traces", watched)
        answer(BUNDLED_MODEL, tmp_path / "a.jsonl", workers=1)
    assert written[:5] == lines[:5]
    assert sorted(written) == sorted(lines) == sorted(by_one.splitlines(keepends=True))


def test_the_longest_prompts_come_first_in_batches_of_like_length():
    requests = make_requests([[0] * length for length in (3, 9, 4, 8, 2)], 1)
    lengths = [[len(request.prompt) for request in batch] for batch in in_batches(requests, 2)]
    assert lengths == [[9], [4, 8], [2, 3]]


def test_a_worker_whose_model_is_another_is_refused():
    job = AnswerJob(
        model=ModelToLoad(path="bundled", device="cpu"),
        decoding=Decoding(2),
        interventions=(),
        format="auto",
        steps="auto",
        grader="task",
    )
    engine = InProcess(job)
    ((_, said),) = engine.run([AnswerItem()])
    request = Request(0, [5, 6], 0, 0, 0)
    other = said["made_of"] | {"model_sha256": "0"}
    item = AnswerItem(requests=(request,), questions=(QUESTIONS[0],), made_of=other)
    with pytest.raises(InputError, match=r"a worker's model differs from that of the others \(model_sha256\)"):
        list(engine.run([item]))
    again = AnswerItem.from_line(item.line())
    assert again == item


def test_what_workers_cannot_do_is_said_before_anything_is_written(tmp_path, reasoner):
    path = tmp_path / "out" / "a.jsonl"
    for options in ({"workers": 2}, {"engine": "ray"}):
        with pytest.raises(InputError, match="a model that is loaded cannot be sent to workers"):
            answer(reasoner, path, **options)
    with pytest.raises(InputError, match="device_map='auto' spreads one model over the GPUs"):
        answer(ModelToLoad(path="bundled", device_map="auto"), path, workers=2)
    with pytest.raises(InputError, match="and max_new_tokens=100000 do not fit the model's context"):
        generate_file(BUNDLED_MODEL, QUESTIONS, path, Decoding(100_000), workers=1, progress=False)
    assert not path.parent.exists()


def test_the_command_takes_workers_and_a_file_that_it_began_goes_on_without(tmp_path, capsys, monkeypatch):
    common = ["generate", "3", "--max-new-tokens", "3", "--batch-size", "1", "--out", f"{tmp_path}/t.jsonl"]
    run = InProcess.run

    def interrupted(self, items):
        for item, said in run(self, items):
            yield item, said
            if item.requests:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(InProcess, "run", interrupted)
        assert main([*common, "--workers", "1"]) == 1
    assert main([*common, "--address", "auto"]) == 2
    assert "is of a Ray cluster" in capsys.readouterr().err
    assert main(common) == 0
    assert "3 traces, 0 of 3 right" in capsys.readouterr().out


@pytest.mark.slow
def test_ray_gives_the_same_answers_though_a_worker_is_killed(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepsal[ray]'")
    common = ["generate", "12", "--model", str(BUNDLED), "--batch-size", "2", "--oeb", "--workers"]
    assert main([*common, "1", "--out", f"{tmp_path}/one.jsonl"]) == 0
    command = [*common, "2", "--engine", "ray", "--out", f"{tmp_path}/two.jsonl"]
    run_and_kill_a_ray_worker(command, tmp_path, ".two.jsonl.partial")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_batch_whose_worker_dies_again_and_again_is_an_error_and_what_is_finished_is_kept(tmp_path, monkeypatch):
    ask = WorkerProcess.ask

    def killing(self, item):
        if item.requests and item.requests[0].index == 0:
            self._process.kill()
        return ask(self, item)

    with monkeypatch.context() as patched:
        patched.setattr(WorkerProcess, "ask", killing)
        patched.setattr("stepsal.engines.local.ATTEMPTS", 1)
        with pytest.raises(StepsalError, match=r"died 2 times on the same batch of .* or a smaller batch_size"):
            answer(BUNDLED_MODEL, tmp_path / "a.jsonl", workers=2)
    assert (tmp_path / ".a.jsonl.partial").read_bytes().count(b"\n") >= 2
    with pytest.raises(FileError, match="begun with other settings"):
        generate_file(BUNDLED_MODEL, QUESTIONS, tmp_path / "a.jsonl", Decoding(5), workers=1, progress=False)
