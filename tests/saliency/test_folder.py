import hashlib
import json
import os
import subprocess
import unicodedata
from dataclasses import asdict, replace

import pytest
import torch
from conftest import save_tiny
from helpers import random_map, random_trace, unchecked
from safetensors.torch import load_file, save_file

import stepsal.saliency.recipe
from stepsal import FileError, InputError, StepMap, save_step_maps
from stepsal.saliency.folder import group_maps, load_step_maps, map_path, open_step_maps
from stepsal.saliency.stepmapfile import dtype_of, heads_of, loaded

pytestmark = pytest.mark.usefixtures("alone")


def some_traces(count=5):
    return [replace(random_trace(17 + 2 * i, [4, 9]), id=f"t{i}") for i in range(count)]


@pytest.fixture
def computed(monkeypatch):
    """The ids of the traces whose map was computed, as it happens."""
    ids = []
    compute = stepsal.saliency.recipe.step_saliency

    def counted(model, trace, **options):
        ids.append(trace.id)
        return compute(model, trace, **options)

    monkeypatch.setattr(stepsal.saliency.recipe, "step_saliency", counted)
    return ids


def save(model, traces, out, **options):
    return save_step_maps(model, traces, out, progress=False, **options)


def test_every_trace_gets_its_map_once(qwen2, tmp_path, computed):
    traces = some_traces()
    paths = save(qwen2, traces, tmp_path)
    assert computed == ["t4", "t3", "t2", "t1", "t0"]  # the longest first
    for trace, path in zip(traces, paths, strict=True):
        assert path == tmp_path / "maps" / f"{trace.id}.safetensors"
        assert StepMap.load(path).steps == trace.steps
        assert StepMap.load(path).meta["trace"] == trace.id
    written = [path.stat().st_mtime_ns for path in paths]
    assert save(qwen2, traces, tmp_path) == paths
    assert computed == ["t4", "t3", "t2", "t1", "t0"]
    assert [path.stat().st_mtime_ns for path in paths] == written


def test_more_traces_can_be_added_later(qwen2, tmp_path, computed):
    traces = some_traces()
    save(qwen2, traces[1:3], tmp_path)
    save(qwen2, traces, tmp_path)
    assert computed == ["t2", "t1", "t4", "t3", "t0"]


def test_an_interrupted_run_goes_on_and_ends_like_an_undisturbed_one(qwen2, tmp_path, monkeypatch, computed):
    traces = some_traces()
    undisturbed = save(qwen2, traces, tmp_path / "undisturbed")
    computed.clear()
    counted = stepsal.saliency.recipe.step_saliency

    def interrupted(model, trace, **options):
        if trace.id == "t1":
            raise KeyboardInterrupt
        return counted(model, trace, **options)

    monkeypatch.setattr(stepsal.saliency.recipe, "step_saliency", interrupted)
    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        save(qwen2, traces, out)
    assert sorted(path.name for path in (out / "maps").iterdir()) == [f"t{i}.safetensors" for i in (2, 3, 4)]
    monkeypatch.setattr(stepsal.saliency.recipe, "step_saliency", counted)
    paths = save(qwen2, traces, out)
    assert computed == ["t4", "t3", "t2", "t1", "t0"]  # none twice
    for path, expected in zip(paths, undisturbed, strict=True):
        assert torch.equal(StepMap.load(path).mass, StepMap.load(expected).mass)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"rule": "grad"}, r"\(rule 'abs' -> 'grad'\)"),
        ({"score": "logit"}, r"\(score 'loss' -> 'logit'\)"),
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
    compute = stepsal.saliency.recipe.step_saliency

    def meanwhile(*given, **options):
        with pytest.raises(FileError, match="another run is making step maps in"):
            save(qwen2, some_traces(1), tmp_path)
        return compute(*given, **options)

    monkeypatch.setattr(stepsal.saliency.recipe, "step_saliency", meanwhile)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / ".t0.safetensors.7.part").touch()  # of a killed run
    save(qwen2, some_traces(1), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["maps", "saliency.json", "t0.safetensors"]


def test_a_damaged_settings_file_is_named(qwen2, tmp_path):
    for content in (b"{", b"[1]", b"\xff{}", b"{}"):
        (tmp_path / "saliency.json").write_bytes(content)
        with pytest.raises(FileError, match=r"saliency\.json is damaged"):
            save(qwen2, some_traces(1), tmp_path)


def test_the_settings_are_kept_beside_the_maps(qwen2, tmp_path):
    save(qwen2, some_traces(1), tmp_path, layers=[-1, 0])
    settings = json.loads((tmp_path / "saliency.json").read_text())
    assert settings["layers"] == [0, 2]
    assert settings["dtype"] == "float32"


def test_a_folder_that_says_no_score_is_one_of_the_loss(qwen2, tmp_path, computed):
    """Folders of earlier versions: there was no other score."""
    save(qwen2, some_traces(1), tmp_path)
    settings = json.loads((tmp_path / "saliency.json").read_text())
    assert settings.pop("score") == "loss"
    (tmp_path / "saliency.json").write_text(json.dumps(settings))
    save(qwen2, some_traces(1), tmp_path)
    assert computed == ["t0"]
    (tmp_path / "saliency.json").write_text(json.dumps(settings))
    with pytest.raises(FileError, match="made with other settings"):
        save(qwen2, some_traces(1), tmp_path, score="margin")


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

    monkeypatch.setattr(stepsal.saliency.recipe, "step_saliency", quick)
    traces = [replace(random_trace(11, [4]), id=trace_id) for trace_id in IDS]
    paths = save(qwen2, traces, tmp_path)
    assert [StepMap.load(path).meta["trace"] for path in paths] == IDS
    save(qwen2, traces, tmp_path)
    assert computed == IDS


# --- stale and new do not mix -----------------------------------------------------------------------------------------
def trace_ids(out):
    return [stepmap.meta["trace"] for stepmap in load_step_maps(out)]


def without_what_it_was_made_of(path):
    """The file as stepsal 0.1 wrote it: without a checksum and without what the map was made of."""
    stepmap = StepMap.load(path)
    header = {
        "format": "stepsal step map 1",
        "steps": json.dumps([asdict(step) for step in stepmap.steps]),
        "layers": json.dumps(stepmap.layers),
        "meta": json.dumps({key: value for key, value in stepmap.meta.items() if key != "made_of"}),
    }
    save_file({"mass": stepmap.mass, "pairs": stepmap.pairs}, path, header)


@pytest.mark.bridge
def test_weights_that_were_replaced_in_place_are_noticed(tmp_path, computed):
    folder, out = tmp_path / "model", tmp_path / "out"
    save(stepsal.load_model(save_tiny("qwen2", folder)), some_traces(1), out)
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[7] += 0.001
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(FileError, match=r"made with other settings \(model: what is in it differs, by its hash\)"):
        save(stepsal.load_model(folder), some_traces(2), out)
    assert computed == ["t0"]


@pytest.mark.parametrize(("before", "now"), [(True, False), (None, True), (False, None)])
def test_a_trace_that_was_graded_anew_is_noticed(qwen2, tmp_path, before, now):
    (trace,) = some_traces(1)
    save(qwen2, [replace(trace, correct=before)], tmp_path)
    with pytest.raises(FileError, match=rf"'t0' has correct={now} now, and had correct={before} when"):
        save(qwen2, [replace(trace, correct=now)], tmp_path)


def test_other_tokens_with_the_same_text_and_spans_are_noticed(qwen2, tmp_path):
    (trace,) = some_traces(1)
    save(qwen2, [trace], tmp_path)
    with pytest.raises(FileError, match="from another trace with the id 't0': its tokens differ"):
        save(qwen2, [replace(trace, tokens=trace.tokens.flip(0))], tmp_path)


def test_maps_of_traces_that_are_gone_or_renamed_are_left_out_and_said(qwen2, tmp_path):
    traces = some_traces(3)
    save(qwen2, traces, tmp_path)
    renamed = [traces[0], replace(traces[1], id="new")]
    with pytest.warns(
        UserWarning, match=r"2 file\(s\) that are no maps of its traces \(t1.safetensors, t2.safetensors\)"
    ):
        save(qwen2, renamed, tmp_path)
    with pytest.warns(UserWarning, match="they are left out"):
        assert trace_ids(tmp_path) == ["new", "t0"]
    assert len(list((tmp_path / "maps").iterdir())) == 4  # nothing is deleted
    with pytest.warns(UserWarning, match="1 file"):
        save(qwen2, traces, tmp_path)
    with pytest.warns(UserWarning, match="new.safetensors"):
        assert trace_ids(tmp_path) == ["t0", "t1", "t2"]


def test_a_map_under_the_name_of_another_trace_is_noticed(qwen2, tmp_path):
    same = replace(some_traces(1)[0], id="u")  # the same text and the same spans
    traces = [*some_traces(1), same]
    first, second = save(qwen2, traces, tmp_path)
    second.write_bytes(first.read_bytes())
    with pytest.raises(FileError, match="it is the map of trace 't0'"):
        save(qwen2, traces, tmp_path)
    with pytest.raises(FileError, match="is no map of this folder: it is the map of trace 't0'"):
        load_step_maps(tmp_path)


def test_lost_settings_are_said_and_the_maps_speak_for_themselves(qwen2, tmp_path):
    save(qwen2, some_traces(2), tmp_path)
    (tmp_path / "saliency.json").unlink()
    with pytest.warns(UserWarning, match=r"holds step maps, but no saliency\.json says of what"):
        save(qwen2, some_traces(2), tmp_path)
    assert trace_ids(tmp_path) == ["t0", "t1"]
    (tmp_path / "saliency.json").unlink()
    with (
        pytest.warns(UserWarning, match=r"no saliency\.json"),
        pytest.raises(FileError, match="otherwise than now, of trace 't0': rule 'abs' in the place of 'grad'"),
    ):
        save(qwen2, some_traces(2), tmp_path, rule="grad")


def test_foreign_maps_are_left_out_or_refused(qwen2, tmp_path):
    save(qwen2, some_traces(2), tmp_path / "a")
    (foreign,) = save(qwen2, some_traces(1), tmp_path / "b", rule="grad")
    copied = tmp_path / "a" / "maps" / "foreign.safetensors"
    copied.write_bytes(foreign.read_bytes())
    with pytest.warns(UserWarning, match=r"no maps of its traces \(foreign.safetensors\)"):
        assert trace_ids(tmp_path / "a") == ["t0", "t1"]
    copied.rename(tmp_path / "a" / "maps" / "t0.safetensors")
    with pytest.raises(FileError, match="is no map of this folder: rule 'grad' in the place of 'abs'"):
        load_step_maps(tmp_path / "a")


def test_a_folder_whose_saliency_json_is_lost_is_read_with_a_warning_that_has_the_cure(qwen2, tmp_path, computed):
    save(qwen2, some_traces(2), tmp_path)
    (tmp_path / "saliency.json").unlink()
    with pytest.warns(UserWarning, match="no saliency.json says .* Run `stepsal saliency` with the same traces"):
        assert trace_ids(tmp_path) == ["t0", "t1"]
    computed.clear()
    with pytest.warns(UserWarning, match="no saliency.json says of what"):
        save(qwen2, some_traces(2), tmp_path)
    assert computed == []
    assert trace_ids(tmp_path) == ["t0", "t1"]


def test_maps_made_with_other_settings_than_their_neighbours_are_refused_where_nothing_says_which_are_right(
    qwen2, tmp_path
):
    save(qwen2, some_traces(1), tmp_path / "a")
    (foreign,) = save(qwen2, some_traces(2)[1:], tmp_path / "b", rule="grad")
    (tmp_path / "a" / "maps" / foreign.name).write_bytes(foreign.read_bytes())
    (tmp_path / "a" / "saliency.json").unlink()
    with (
        pytest.warns(UserWarning, match="no saliency.json says"),
        pytest.raises(FileError, match="was not made as .* was: rule 'grad' in the place of 'abs'"),
    ):
        load_step_maps(tmp_path / "a")


@pytest.mark.bridge
def test_maps_of_two_models_in_a_folder_that_says_nothing_are_refused(tmp_path):
    paths = []
    for seed, name in enumerate("ab"):
        model = stepsal.load_model(save_tiny("qwen2", tmp_path / name, initializer_range=0.1 + 0.05 * seed))
        paths += save(model, some_traces(seed + 1)[-1:], tmp_path / f"out-{name}")
    (tmp_path / "out-a" / "saliency.json").unlink()
    (tmp_path / "out-a" / "maps" / "other.safetensors").write_bytes(paths[1].read_bytes())
    with (
        pytest.warns(UserWarning, match="no saliency.json says"),
        pytest.raises(FileError, match="the model's weights or configuration differ"),
    ):
        load_step_maps(tmp_path / "out-a")


def test_maps_that_are_not_made_yet_are_said(qwen2, tmp_path):
    save(qwen2, some_traces(3), tmp_path)[1].unlink()
    with pytest.warns(UserWarning, match=r"lacks the maps of 1 of its 3 traces \('t1', ...\)"):
        assert trace_ids(tmp_path) == ["t0", "t2"]


def test_a_folder_of_stepsal_0_1_is_read_and_gone_on_with_after_a_warning(qwen2, tmp_path, computed):
    for path in save(qwen2, some_traces(2), tmp_path):
        without_what_it_was_made_of(path)
    settings = json.loads((tmp_path / "saliency.json").read_text())
    old = {key: value for key, value in settings.items() if key not in ("traces", "model_sha256")}
    (tmp_path / "saliency.json").write_text(json.dumps(old))
    assert trace_ids(tmp_path) == ["t0", "t1"]
    for _ in range(2):
        with pytest.warns(
            UserWarning, match="2 of [23] step maps .* do not say from which tokens and weights .* cannot be checked"
        ):
            save(qwen2, some_traces(3), tmp_path)
    assert computed == ["t1", "t0", "t2"]
    assert trace_ids(tmp_path) == ["t0", "t1", "t2"]


@pytest.mark.parametrize("traces", [[1], {"t0": 1}, {"t0": {}}, {"t0": {"file": []}}])
def test_a_damaged_list_of_traces_is_named(qwen2, tmp_path, traces):
    save(qwen2, some_traces(1), tmp_path)
    path = tmp_path / "saliency.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"traces": traces}))
    with pytest.raises(FileError, match=r"saliency.json is damaged"):
        load_step_maps(tmp_path)
    save(qwen2, some_traces(1), tmp_path)
    assert trace_ids(tmp_path) == ["t0"]


# --- names, permissions and full disks ----------------------------------------------------------------------------------
def test_ids_that_differ_only_in_case_or_normalisation_have_names_that_cannot_collide(tmp_path):
    ids = [
        "a",
        "A",
        "ab",
        "aB",
        "AB",
        "\u00e9",
        "e\u0301",
        "\u00c9",
        "con",
        "CON",
        "nul.x",
        "x" * 300,
        "X" * 300,
        "a+b",
        "\ufb01",
        "fi",
    ]
    names = [map_path(tmp_path, trace_id).name for trace_id in ids]
    folded = {unicodedata.normalize("NFKC", name.casefold()) for name in names}
    assert len(folded) == len(ids)
    assert not any(name.startswith(("con.", "nul.")) for name in names)


def test_maps_under_the_names_of_stepsal_0_1_are_found(qwen2, tmp_path, computed):
    traces = [
        replace(trace, id=trace_id) for trace, trace_id in zip(some_traces(2), ["AIME/3", "y" * 300], strict=True)
    ]
    paths = save(qwen2, traces, tmp_path)
    old = ["AIME%2F3", "y" * 120 + "-" + hashlib.sha256(b"y" * 300).hexdigest()[:16]]
    for path, name in zip(paths, old, strict=True):
        path.rename(path.with_name(f"{name}.safetensors"))
    (tmp_path / "saliency.json").unlink()
    with pytest.warns(UserWarning, match=r"no saliency\.json"):
        found = save(qwen2, traces, tmp_path)
    assert [path.stem for path in found] == old
    assert computed == ["y" * 300, "AIME/3"]  # the longest first
    assert sorted(trace_ids(tmp_path)) == ["AIME/3", "y" * 300]


def test_half_a_surrogate_pair_in_an_id_is_refused_before_any_work(qwen2, tmp_path, computed):
    with pytest.raises(InputError, match="holds half a surrogate pair"):
        save(qwen2, [replace(some_traces(1)[0], id="\ud83d")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_have_the_permissions_that_the_users_umask_gives(qwen2, tmp_path):
    before = os.umask(0o027)
    try:
        save(qwen2, some_traces(1), tmp_path)
    finally:
        os.umask(before)
    for path in (tmp_path / "saliency.json", tmp_path / "maps" / "t0.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o640


def test_with_the_disk_full_what_is_finished_is_kept(qwen2, tmp_path, computed):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(FileError, match=r"cannot write .*No space left on device\. Make room"):
            save(qwen2, some_traces(9), tmp_path / "out")
        kept = {path.suffix for path in (tmp_path / "out" / "maps").iterdir()}
        assert kept == {".safetensors"}
        subprocess.run(["mount", "-o", "remount,size=20m", tmp_path], check=True)
        save(qwen2, some_traces(9), tmp_path / "out")
        assert len(computed) == 10  # the map that there was no room for
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- smaller maps, and maps that stay in their files --------------------------------------------------------------------
def test_maps_can_keep_the_mean_over_heads_and_two_bytes_a_number(qwen2, tmp_path):
    (whole,) = map(StepMap.load, save(qwen2, some_traces(1), tmp_path / "whole"))
    (mean,) = map(StepMap.load, save(qwen2, some_traces(1), tmp_path / "mean", heads="mean"))
    (small,) = map(StepMap.load, save(qwen2, some_traces(1), tmp_path / "small", precision="bfloat16"))
    assert torch.equal(mean.mass, whole.mean_heads().mass)
    assert mean.meta["heads"] == "mean"
    assert torch.equal(small.mass, whole.mass.bfloat16().float())
    assert 0 < small.meta["precision_error"] <= 2**-8
    assert [load_step_maps(tmp_path / name)[0].meta["made_of"]["heads"] for name in ("whole", "mean")] == [
        "all",
        "mean",
    ]


@pytest.mark.parametrize(
    ("options", "difference"),
    [({"heads": "mean"}, "heads 'all' -> 'mean'"), ({"precision": "bfloat16"}, "precision None -> 'bfloat16'")],
)
def test_smaller_maps_do_not_mix_with_others(qwen2, tmp_path, options, difference):
    save(qwen2, some_traces(1), tmp_path)
    settings = json.loads((tmp_path / "saliency.json").read_text())
    (tmp_path / "saliency.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in options}))
    with pytest.raises(FileError, match=difference):  # a folder that does not say it is of maps that are kept whole
        save(qwen2, some_traces(2), tmp_path, **options)
    save(qwen2, some_traces(2), tmp_path)


def test_an_unknown_way_to_keep_maps_is_refused(qwen2, tmp_path):
    with pytest.raises(InputError, match="unknown heads 'first': expected one of 'all', 'mean'"):
        unchecked(save_step_maps)(qwen2, some_traces(1), tmp_path, heads="first")
    with pytest.raises(InputError, match="unknown precision 'int8': expected one of None, 'bfloat16'"):
        unchecked(save_step_maps)(qwen2, some_traces(1), tmp_path, precision="int8")


def test_an_open_folder_says_what_its_maps_say_and_reads_them_when_asked(qwen2, tmp_path):
    save(qwen2, some_traces(3), tmp_path)
    files, maps = open_step_maps(tmp_path), load_step_maps(tmp_path)
    for file, stepmap in zip(files, maps, strict=True):
        assert (file.steps, file.layers, file.meta) == (stepmap.steps, stepmap.layers, stepmap.meta)
        assert (heads_of(file), dtype_of(file)) == (heads_of(stepmap), dtype_of(stepmap))
        assert torch.equal(loaded(file).mass, stepmap.mass)
    assert group_maps(files, {"t0": True, "t1": False, "t2": True}) == {"correct": files[::2], "wrong": files[1:2]}


def test_a_map_that_was_replaced_since_its_folder_was_opened_is_noticed(qwen2, tmp_path):
    paths = save(qwen2, some_traces(2), tmp_path)
    file = open_step_maps(tmp_path)[0]
    paths[0].write_bytes(paths[1].read_bytes())
    with pytest.raises(FileError, match="was replaced while it was worked with"):
        file.load()


def test_an_open_folder_is_checked_as_a_loaded_one(qwen2, tmp_path):
    first, second = save(qwen2, some_traces(2), tmp_path)
    second.write_bytes(first.read_bytes())
    with pytest.raises(FileError, match="is no map of this folder"):
        open_step_maps(tmp_path)
    second.write_bytes(second.read_bytes()[:90])
    with pytest.raises(FileError, match="is cut short or damaged"):
        open_step_maps(tmp_path)
