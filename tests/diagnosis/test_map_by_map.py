"""Maps that stay in their files are diagnosed as loaded ones are, and are not read again as long as they do not change."""

import gc
import os
import weakref

import pytest
import torch
from helpers import random_map

import stepsal
from stepsal import InputError, diagnose
from stepsal.cli import main
from stepsal.diagnosis import measuredfile
from stepsal.diagnosis.diagnosis import write_diagnoses
from stepsal.diagnosis.folder import diagnose_files
from stepsal.diagnosis.registry import METRICS
from stepsal.saliency.stepmapfile import StepMapFile


def some_maps(count=6):
    """Of 8 layers and 5 heads, correct and wrong ones in turn."""
    return [
        random_map(
            "q" + "t" * (3 + i) + "ss", [3, *[2 + i] * (3 + i), 2, 4], 8, 5, seed=i, trace=f"t{i}", correct=i % 2 == 0
        )
        for i in range(count)
    ]


@pytest.fixture
def files(tmp_path):
    return save(tmp_path, some_maps())


def save(folder, maps):
    paths = [folder / "maps" / f"{stepmap.meta['trace']}.safetensors" for stepmap in maps]
    for path, stepmap in zip(paths, maps, strict=True):
        stepmap.save(path)
    return list(map(StepMapFile.open, paths))


def bits(values):
    return {name: (each.dtype, each.shape, each.contiguous().numpy().tobytes()) for name, each in values.items()}


def assert_same(found, expected):
    """To the bit, NaN included, and in the same order."""
    for one, other in zip(found, expected, strict=True):
        for part in ("values", "position_only", "profile"):
            assert list(getattr(one, part)) == list(getattr(other, part))
            assert bits(getattr(one, part)) == bits(getattr(other, part))
        assert repr(one.decay) == repr(other.decay)
        assert repr(one.verdicts) == repr(other.verdicts)
        assert (one.layers, one.meta) == (other.layers, other.meta)


def forbid_reading(monkeypatch):
    def forbidden(file):
        raise AssertionError(f"{file.path} was read")

    monkeypatch.setattr(StepMapFile, "load", forbidden)


def test_maps_in_files_are_diagnosed_as_loaded_ones_to_the_bit_and_read_once(files, monkeypatch):
    expected = [diagnose(stepmap) for stepmap in some_maps()]
    assert_same(diagnose_files(files), expected)
    forbid_reading(monkeypatch)
    assert_same(diagnose_files(files), expected)
    reference = [diagnose(stepmap) for stepmap in some_maps(12)]
    judged = [diagnose(stepmap, reference=reference) for stepmap in some_maps()]
    assert repr(judged[0].verdicts) != repr(expected[0].verdicts)
    assert_same(diagnose_files(files, reference=reference), judged)


def test_a_map_that_changed_is_read_again(files, tmp_path):
    diagnose_files(files)
    changed = some_maps()
    changed[2].mass[:, :, 3, 1] *= 2  # only the numbers differ: header and size stay
    changed[2].save(files[2].path)
    again = save(tmp_path / "else", changed)
    assert_same(diagnose_files([StepMapFile.open(file.path) for file in files]), diagnose_files(again))
    os.utime(files[1].path, ns=(1, 1))  # nothing but the time of change says that something may have happened to it
    content = bytearray(files[1].path.read_bytes())
    content[-3] ^= 1
    files[1].path.write_bytes(content)
    with pytest.raises(stepsal.FileError, match="checksum differs"):
        diagnose_files(files[:2])


def test_metrics_of_other_code_are_measured_again(files, monkeypatch):
    diagnose_files(files)
    forbid_reading(monkeypatch)
    monkeypatch.setattr(measuredfile, "_code", lambda: "other code")
    with pytest.raises(AssertionError, match="was read"):
        diagnose_files(files)


def test_what_is_kept_depends_on_the_code_of_the_metrics(monkeypatch):
    before = measuredfile._code()
    measuredfile._code.cache_clear()
    monkeypatch.setattr(measuredfile.inspect, "getsource", lambda module: f"{module.__name__} as it never was")
    assert measuredfile._code() != before
    measuredfile._code.cache_clear()


def test_no_bit_that_flips_in_what_is_kept_changes_a_diagnosis(tmp_path):
    files = save(tmp_path, some_maps(1))
    expected = diagnose_files(files)
    (kept,) = (tmp_path / "diagnoses").iterdir()
    whole = kept.read_bytes()
    key = measuredfile.key_of(files[0])
    noticed = 0
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        kept.write_bytes(changed)
        found = measuredfile.read_measured(kept, key)
        noticed += found is None
        assert found is None or bits(found.values) == bits(expected[0].values)
    assert noticed > 0.9 * len(range(0, len(whole), 7))
    kept.write_bytes(whole[:100])
    assert_same(diagnose_files(files), expected)
    assert bits(measuredfile.read_measured(kept, key).values) == bits(expected[0].values)  # and it is whole again


def test_metrics_of_ones_own_are_measured_anew_and_never_kept(files, tmp_path):
    diagnose_files(files)
    factor = [1]

    @stepsal.metric(label="own")
    def own(stepmap):
        return stepmap.mass.sum((2, 3)) * factor[0]

    try:
        for factor[0] in (1, 3):
            assert_same(diagnose_files(files), [diagnose(stepmap) for stepmap in some_maps()])
        kept = measuredfile.read_measured(tmp_path / "diagnoses" / "t0.safetensors", measuredfile.key_of(files[0]))
        assert "own" not in kept.values
    finally:
        METRICS.pop("own")


def test_where_nothing_can_be_kept_it_is_said_once_and_the_result_is_the_same(files, tmp_path):
    (tmp_path / "diagnoses").write_text("in the way")
    with pytest.warns(UserWarning, match="the metrics of 6 maps cannot be kept in .*diagnoses") as warned:
        found = diagnose_files(files)
    assert len(warned) == 1
    assert_same(found, [diagnose(stepmap) for stepmap in some_maps()])


def test_no_more_maps_are_in_memory_than_there_are_workers(files, monkeypatch):
    alive, most = weakref.WeakSet(), []
    load = StepMapFile.load

    def counted(file):
        gc.collect()
        most.append(len(alive))
        stepmap = load(file)
        alive.add(stepmap)
        return stepmap

    monkeypatch.setattr(StepMapFile, "load", counted)
    monkeypatch.setattr("stepsal.diagnosis.folder._workers", lambda files: 1)
    diagnose_files(files)
    assert len(most) == len(files)
    assert max(most) <= 1
    gc.collect()
    assert not alive


def test_the_threads_of_torch_are_as_before_and_workers_fit_into_memory(files, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    size = 8 * 5 * 11**2 * 4  # of the largest map
    for free, workers in ((1e12, 64), (size * 4 * 2 * 3, 3), (0, 1)):
        monkeypatch.setattr("stepsal.diagnosis.folder.free_bytes", lambda device, free=free: int(free))
        assert stepsal.diagnosis.folder._workers(files) == workers
    diagnose_files(files)
    assert torch.get_num_threads() == before


def test_a_map_with_signs_is_refused_from_its_file_too(tmp_path):
    (signed,) = some_maps(1)
    signed.mass[0, 0, 1, 0] = -1
    with pytest.raises(InputError, match="the map holds negative influence"):
        diagnose_files(save(tmp_path, [signed]))


@pytest.mark.filterwarnings("ignore:.*no saliency.json")
def test_the_commands_say_what_the_functions_say_of_loaded_maps(tmp_path, capsys):
    folder, maps = tmp_path / "out", some_maps(8)
    save(folder, maps)
    write_diagnoses(tmp_path / "expected.jsonl", [diagnose(stepmap) for stepmap in maps])
    groups = [[stepmap for stepmap in maps if stepmap.meta["correct"] is grade] for grade in (True, False)]
    stepsal.compare(*groups, resamples=99).save(tmp_path / "expected.json")
    for _ in range(2):  # the second time from what is kept
        assert main(["diagnose", str(folder)]) == 0
        assert (folder / "diagnosis.jsonl").read_bytes() == (tmp_path / "expected.jsonl").read_bytes()
        assert main(["compare", str(folder), "--resamples", "99"]) == 0
        assert (folder / "comparison.json").read_bytes() == (tmp_path / "expected.json").read_bytes()
        stepsal.report(tmp_path / "expected.html", maps, heads=[1], title="out")
        assert main(["report", str(folder), "--heads", "1"]) == 0
        assert (folder / "report.html").read_bytes() == (tmp_path / "expected.html").read_bytes()
    assert sorted(os.listdir(folder / "diagnoses")) == [f"t{i}.safetensors" for i in range(8)]
    capsys.readouterr()
