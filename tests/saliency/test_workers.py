"""Many workers for step maps and knockouts: the same files as from one, each once, whatever happens to a worker."""

import os
import signal
import threading
from dataclasses import asdict, replace

import psutil
import pytest
import torch
from helpers import random_trace, run_and_kill_a_ray_worker
from hooked import TL3

from stepsal import InputError, Knockout, StepMap, save_knockouts, save_step_maps
from stepsal.cli import main
from stepsal.engines import local
from stepsal.engines.local import InProcess, Processes, WorkerProcess
from stepsal.engines.messages import ModelToLoad
from stepsal.errors import StepsalError
from stepsal.models.host import BUNDLED
from stepsal.saliency import recipe
from stepsal.saliency.folder import map_path
from stepsal.saliency.recipe import StepMapRecipe
from stepsal.saliency.worker import Piece, TraceItem, TraceJob

pytestmark = [pytest.mark.skipif(TL3, reason="workers load bridges"), pytest.mark.usefixtures("alone")]
BUNDLED_MODEL = ModelToLoad(path="bundled")
MEASURED = ("seconds", "peak_memory_bytes")


def some_traces(count=4):
    """Traces of 17, 19, ... tokens, with ids in the vocabulary of any model."""
    return [replace(random_trace(17 + 2 * i, [4, 9]), id=f"t{i}") for i in range(count)]


def contents(paths, load):
    """All that the files say, but what was measured; the order of a header's keys is not fixed."""
    found = []
    for path in paths:
        result = load(path)
        numbers = [result.mass, result.pairs] if load == StepMap.load else [result.kl, result.loss, result.answer]
        meta = {name: value for name, value in result.meta.items() if name not in (*MEASURED, "checksum")}
        found.append(([each.nan_to_num(-1).tolist() for each in numbers], result.steps, meta))
    return found


def job(**options):
    name = f"{StepMapRecipe.__module__}:{StepMapRecipe.__qualname__}"
    return TraceJob(
        model=ModelToLoad(path="bundled", device="cpu"), recipe=name, options=asdict(StepMapRecipe(**options))
    )


def an_item(trace, path, made_of):
    return TraceItem(pieces=(Piece(trace=trace, path=str(path), made_of=made_of),))


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    """The maps of one worker, in this process, each trace alone."""
    out = tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("stepsal.saliency.recipe.TOKENS_TOGETHER", 1)
        return contents(save_step_maps(BUNDLED_MODEL, some_traces(), out, workers=1, progress=False), StepMap.load)


def test_workers_that_are_killed_are_replaced_and_give_the_maps_of_one(tmp_path, by_one, monkeypatch, caplog):
    """The first is killed as it is given a trace, the second while it works."""
    asked, ask = [], WorkerProcess.ask

    def killing(self, item):
        if item.pieces:
            asked.append(item.pieces[0].trace.id)
            if len(asked) == 1:
                os.kill(self.pid, signal.SIGKILL)
            elif len(asked) == 2:
                threading.Timer(0.02, self._process.kill).start()
        return ask(self, item)

    monkeypatch.setattr(WorkerProcess, "ask", killing)
    with caplog.at_level("INFO", logger="stepsal"):
        paths = save_step_maps(BUNDLED_MODEL, some_traces(), tmp_path, workers=2, progress=False)
    assert contents(paths, StepMap.load) == by_one
    assert asked.count(asked[0]) > 1
    assert f"died (signal 9); its trace {asked[0]!r} is done again by a new one" in caplog.text
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["saliency.json", "t0.safetensors", "t1.safetensors", "t2.safetensors", "t3.safetensors"]
    assert not [child for child in psutil.Process().children() if "saliency.worker" in " ".join(child.cmdline())]


def test_the_loaded_model_gives_the_maps_of_workers(tmp_path, by_one, reasoner):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        paths = save_step_maps(reasoner, some_traces(), tmp_path, progress=False)
    finally:
        torch.set_num_threads(threads)
    assert contents(paths, StepMap.load) == by_one


def test_an_interrupted_run_keeps_what_is_finished_and_goes_on_with_any_number_of_workers(
    tmp_path, by_one, monkeypatch
):
    class Interrupted(InProcess):
        def run(self, items):
            for count, (item, said) in enumerate(super().run(items)):
                if count == 2:
                    raise KeyboardInterrupt
                yield item, said

    monkeypatch.setattr("stepsal.engines.workforce.InProcess", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_step_maps(BUNDLED_MODEL, some_traces(), tmp_path, workers=1, progress=False)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()}
    assert sorted(path.name for path in finished) == ["t1.safetensors", "t2.safetensors", "t3.safetensors"]
    asked = []
    do = Processes.run

    def counted(self, items):
        asked.extend(piece.trace.id for item in items for piece in item.pieces)
        return do(self, items)

    monkeypatch.setattr(Processes, "run", counted)
    paths = save_step_maps(BUNDLED_MODEL, some_traces(), tmp_path, workers=2, progress=False)
    assert asked == ["t0"]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(paths, StepMap.load) == by_one


def test_knockouts_are_the_same_from_two_workers(tmp_path):
    options = {"mode": "direct", "subsets": 2, "progress": False}
    one = save_knockouts(BUNDLED_MODEL, some_traces(3), tmp_path / "one", workers=1, **options)
    two = save_knockouts(BUNDLED_MODEL, some_traces(3), tmp_path / "two", workers=2, **options)
    assert contents(two, Knockout.load) == contents(one, Knockout.load)


def test_traces_are_handed_out_longest_first(tmp_path, monkeypatch, by_one):
    given = []

    class Watched(InProcess):
        def run(self, items):
            given.append([len(piece.trace.tokens) for item in items for piece in item.pieces])
            return super().run(items)

    monkeypatch.setattr("stepsal.engines.workforce.InProcess", Watched)
    paths = save_step_maps(BUNDLED_MODEL, some_traces(), tmp_path, workers=1, progress=False)
    assert given == [[], [23, 21, 19, 17]]
    assert paths == [map_path(tmp_path, f"t{i}") for i in range(4)]  # in the order of the traces all the same


def test_the_error_of_one_trace_says_which(tmp_path):
    (tmp_path / "file").touch()
    settings = {"objective": "token"}
    engine = InProcess(job())
    ((_, said),) = engine.run([TraceItem()])
    item = an_item(some_traces(1)[0], tmp_path / "file" / "x.safetensors", said["settings"])
    with pytest.raises(StepsalError, match="^trace 't0': cannot write"):
        list(engine.run([item]))
    other = an_item(some_traces(1)[0], tmp_path / "x", said["settings"] | {"model_sha256": "0"} | settings)
    with pytest.raises(
        InputError, match=r"trace 't0': a worker's model differs from that of the others \(model_sha256\)"
    ):
        list(engine.run([other]))


def test_an_error_that_is_not_ours_says_its_trace_too(monkeypatch):
    def fails(*given, **options):
        raise RuntimeError("out of memory")

    worker = InProcess(job())._worker
    ((_, said),) = InProcess(job()).run([TraceItem()])
    monkeypatch.setattr(recipe, "step_saliency", fails)
    reply = worker.reply(an_item(some_traces(1)[0], "none", said["settings"]))
    with pytest.raises(StepsalError, match=r"(?s)out of memory.*This was trace 't0'"):
        reply.result()


def test_a_trace_whose_worker_dies_again_and_again_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(local.sys, "executable", "/bin/false")
    item = an_item(some_traces(1)[0], tmp_path / "x", {})
    with pytest.raises(StepsalError, match=r"died 4 times on the same trace 't0' .* or a smaller chunk"):
        list(Processes(job(), 2).run([item]))


def test_a_trace_goes_through_a_pipe_as_it_is():
    trace = replace(random_trace(17, [4, 9]), correct=True, format=("<r>", "</r>"), meta={"a": [1.5, None, "é\u2028"]})
    item = an_item(trace, "a", {"layers": [0]})
    again = TraceItem.from_line(item.line())
    (piece,) = again.pieces
    assert torch.equal(piece.trace.tokens, trace.tokens)
    assert piece.trace.tokens.dtype == trace.tokens.dtype
    assert again.model_dump() == item.model_dump()
    assert piece.trace.format == trace.format
    assert piece.trace.steps == trace.steps


def test_a_loaded_model_has_no_other_workers_and_a_spread_one_neither(tmp_path, reasoner):
    for options in ({"workers": 2}, {"engine": "ray"}):
        with pytest.raises(InputError, match="a model that is loaded cannot be sent to workers"):
            save_step_maps(reasoner, some_traces(1), tmp_path / "out", progress=False, **options)
    with pytest.raises(InputError, match="device_map='auto' spreads one model over the GPUs"):
        save_knockouts(ModelToLoad(path="bundled", device_map="auto"), some_traces(1), tmp_path / "out", workers=2)
    with pytest.raises(InputError, match="of a Ray cluster"):
        save_step_maps(reasoner, some_traces(1), tmp_path / "out", address="auto")
    with pytest.raises(InputError, match="trace 'long': the trace has .* tokens but the model's context is"):
        long = replace(random_trace(100_000, [9]), id="long", meta={})
        save_step_maps(BUNDLED_MODEL, [long], tmp_path / "out", workers=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_the_command_takes_workers(tmp_path, capsys):
    (tmp_path / "t.jsonl").write_text(
        '{"id": "a", "prompt": "2+2?", "response": "<think>Add.\\n\\nIt is 4.</think>4"}\n'
    )
    common = [f"{tmp_path}/t.jsonl", "--model", str(BUNDLED), "--out", f"{tmp_path}/out", "--workers", "1"]
    assert main(["saliency", *common]) == 0
    assert main(["knockout", *common]) == 0
    assert "1 step map in" in capsys.readouterr().out
    assert main(["saliency", *common, "--address", "auto"]) == 2
    assert "is of a Ray cluster" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_gives_the_same_maps_though_a_worker_is_killed(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'stepsal[ray]'")
    assert main(["generate", "6", "--out", f"{tmp_path}/t.jsonl", "--max-new-tokens", "60"]) == 0
    common = ["saliency", f"{tmp_path}/t.jsonl", "--model", str(BUNDLED), "--workers"]
    assert main([*common, "1", "--out", f"{tmp_path}/one"]) == 0
    command = [*common, "2", "--engine", "ray", "--out", f"{tmp_path}/two"]
    run_and_kill_a_ray_worker(command, tmp_path, "two/maps/*.safetensors")
    one, two = (sorted((tmp_path / name / "maps").glob("*.safetensors")) for name in ("one", "two"))
    assert len(one) == 6
    assert contents(two, StepMap.load) == contents(one, StepMap.load)
