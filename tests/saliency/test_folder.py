import json
from dataclasses import replace

import pytest
import torch
from helpers import random_map, random_trace, unchecked

import stepsal.saliency.folder
from stepsal import FileError, InputError, StepMap, save_step_maps
from stepsal.saliency.folder import map_path


def some_traces(count=5):
    return [replace(random_trace(17 + 2 * i, [4, 9]), id=f"t{i}") for i in range(count)]


@pytest.fixture
def computed(monkeypatch):
    """The ids of the traces whose map was computed, as it happens."""
    ids = []
    compute = stepsal.saliency.folder.step_saliency

    def counted(model, trace, **options):
        ids.append(trace.id)
        return compute(model, trace, **options)

    monkeypatch.setattr(stepsal.saliency.folder, "step_saliency", counted)
    return ids


def save(model, traces, out, **options):
    return save_step_maps(model, traces, out, progress=False, **options)


def test_every_trace_gets_its_map_once(qwen2, tmp_path, computed):
    traces = some_traces()
    paths = save(qwen2, traces, tmp_path)
    assert computed == ["t0", "t1", "t2", "t3", "t4"]
    for trace, path in zip(traces, paths, strict=True):
        assert path == tmp_path / "maps" / f"{trace.id}.safetensors"
        assert StepMap.load(path).steps == trace.steps
        assert StepMap.load(path).meta["trace"] == trace.id
    written = [path.stat().st_mtime_ns for path in paths]
    assert save(qwen2, traces, tmp_path) == paths
    assert computed == ["t0", "t1", "t2", "t3", "t4"]
    assert [path.stat().st_mtime_ns for path in paths] == written


def test_more_traces_can_be_added_later(qwen2, tmp_path, computed):
    traces = some_traces()
    save(qwen2, traces[1:3], tmp_path)
    save(qwen2, traces, tmp_path)
    assert computed == ["t1", "t2", "t0", "t3", "t4"]


def test_an_interrupted_run_goes_on_and_ends_like_an_undisturbed_one(qwen2, tmp_path, monkeypatch, computed):
    traces = some_traces()
    undisturbed = save(qwen2, traces, tmp_path / "undisturbed")
    computed.clear()
    counted = stepsal.saliency.folder.step_saliency

    def interrupted(model, trace, **options):
        if trace.id == "t3":
            raise KeyboardInterrupt
        return counted(model, trace, **options)

    monkeypatch.setattr(stepsal.saliency.folder, "step_saliency", interrupted)
    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        save(qwen2, traces, out)
    assert sorted(path.name for path in (out / "maps").iterdir()) == [f"t{i}.safetensors" for i in range(3)]
    monkeypatch.setattr(stepsal.saliency.folder, "step_saliency", counted)
    paths = save(qwen2, traces, out)
    assert computed == ["t0", "t1", "t2", "t3", "t4"]  # none twice
    for path, expected in zip(paths, undisturbed, strict=True):
        assert torch.equal(StepMap.load(path).mass, StepMap.load(expected).mass)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"rule": "grad"}, r"\(rule 'abs' -> 'grad'\)"),
        ({"objective": "sequence"}, r"\(objective 'token' -> 'sequence'\)"),
        ({"layers": "deep"}, r"\(layers \[0, 1, 2\] -> \[2\]\)"),
    ],
)
def test_other_settings_in_one_folder_are_refused_by_name(qwen2, tmp_path, computed, options, difference):
    save(qwen2, some_traces(1), tmp_path)
    with pytest.raises(FileError, match=f"made with other settings {difference}. Use another --out folder"):
        save(qwen2, some_traces(2), tmp_path, **options)
    assert computed == ["t0"]


def test_another_chunk_size_is_no_other_setting(qwen2, tmp_path, computed):
    save(qwen2, some_traces(1), tmp_path, chunk=5)
    save(qwen2, some_traces(2), tmp_path, chunk=7)
    assert computed == ["t0", "t1"]


def test_an_option_that_is_refused_leaves_no_trace_of_itself(qwen2, tmp_path):
    out = tmp_path / "out"
    for options in ({"rule": "l2"}, {"objective": "answer"}, {"layers": 9}, {"chunk": 0}):
        with pytest.raises(InputError):
            unchecked(save_step_maps)(qwen2, some_traces(1), out, progress=False, **options)
    assert not out.exists()


def test_a_second_run_into_a_folder_is_refused_while_the_first_is_at_work(qwen2, tmp_path, monkeypatch):
    compute = stepsal.saliency.folder.step_saliency

    def meanwhile(*given, **options):
        with pytest.raises(FileError, match="another run is making step maps in"):
            save(qwen2, some_traces(1), tmp_path)
        return compute(*given, **options)

    monkeypatch.setattr(stepsal.saliency.folder, "step_saliency", meanwhile)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / ".t0.safetensors.7.part").touch()  # of a killed run
    save(qwen2, some_traces(1), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["maps", "saliency.json", "t0.safetensors"]


def test_a_damaged_settings_file_is_named(qwen2, tmp_path):
    for content in (b"{", b"[1]", b"\xff{}"):
        (tmp_path / "saliency.json").write_bytes(content)
        with pytest.raises(FileError, match=r"saliency\.json is damaged"):
            save(qwen2, some_traces(1), tmp_path)


def test_the_settings_are_kept_beside_the_maps(qwen2, tmp_path):
    save(qwen2, some_traces(1), tmp_path, layers=[-1, 0])
    settings = json.loads((tmp_path / "saliency.json").read_text())
    assert settings["layers"] == [0, 2]
    assert settings["dtype"] == "float32"


def test_two_traces_with_one_id_are_refused(qwen2, tmp_path, computed):
    first, second = some_traces(2)
    with pytest.raises(InputError, match="two traces have the id 't0'"):
        save(qwen2, [first, replace(second, id="t0")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert computed == []


def test_a_trace_that_does_not_fit_is_refused_before_any_is_computed(qwen2, tmp_path, computed):
    long = replace(random_trace(513, [9]), id="long")
    with pytest.raises(InputError, match="trace 'long': the trace has 513 tokens but the model's context is 512"):
        save(qwen2, [*some_traces(2), long], tmp_path / "out")
    assert computed == []
    assert not (tmp_path / "out").exists()


def test_a_map_of_another_trace_with_the_same_id_is_not_taken_for_this_one(qwen2, tmp_path):
    save(qwen2, some_traces(1), tmp_path)
    other = replace(random_trace(17, [3, 9]), id="t0")
    with pytest.raises(FileError, match="made from another trace with the id 't0': its steps differ"):
        save(qwen2, [other], tmp_path)


def test_a_damaged_map_is_named_and_not_taken_for_done(qwen2, tmp_path):
    (path,) = save(qwen2, some_traces(1), tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match=r"t0\.safetensors is cut short or damaged"):
        save(qwen2, some_traces(1), tmp_path)


def test_no_traces_give_no_maps(qwen2, tmp_path):
    assert save(qwen2, [], tmp_path) == []


IDS = [
    "a",
    "a/b",
    "a%2Fb",
    "a\\b",
    "..",
    ".",
    "",
    " ",
    "...",
    "/etc/passwd",
    "x" * 500,
    "x" * 501,
    "é",
    "模" * 90,
    "a\nb",
]


def test_any_id_makes_a_safe_file_of_its_own(tmp_path):
    paths = [map_path(tmp_path, trace_id) for trace_id in IDS]
    assert len({str(path).casefold() for path in paths}) == len(IDS)
    for path in paths:
        assert path.parent == tmp_path / "maps"
        assert path.resolve().parent == (tmp_path / "maps").resolve()
        assert path.name.isascii()
        assert len(path.name) < 230  # room for what atomic_path adds, within the 255 bytes of a file name
        assert path.suffix == ".safetensors"


def test_maps_of_odd_ids_are_written_and_found_again(qwen2, tmp_path, monkeypatch):
    computed = []

    def quick(model, trace, **options):
        computed.append(trace.id)
        return replace(random_map("qt", [4, 7], trace=trace.id), steps=trace.steps)

    monkeypatch.setattr(stepsal.saliency.folder, "step_saliency", quick)
    traces = [replace(random_trace(11, [4]), id=trace_id) for trace_id in IDS]
    paths = save(qwen2, traces, tmp_path)
    assert [StepMap.load(path).meta["trace"] for path in paths] == IDS
    save(qwen2, traces, tmp_path)
    assert computed == IDS
