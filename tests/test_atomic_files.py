import errno
import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import save_tiny

from stepsal import load_model
from stepsal.errors import FileError
from stepsal.files import agree_on_settings, atomic_path, exclusive_path, locked, write_settings
from stepsal.models import lookup

AT_WORK = "another run is at work"
TEXTS = {"refusal": "begun with other settings", "unknown": "nothing says of what", "fix": "Use another folder."}
HOLD = """
import sys
from stepsal.files import locked
with locked(sys.argv[1], "another run is at work"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def hold(path):
    """A second process that holds the lock until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    return process


@pytest.mark.parametrize("end", ["killed", "ended"])
def test_a_second_process_is_refused_at_once_and_let_in_when_the_first_is_gone(tmp_path, end):
    path = tmp_path / "new" / "a.txt"
    with hold(path) as process:
        with pytest.raises(FileError, match=AT_WORK), locked(path, AT_WORK):
            pass
        process.kill() if end == "killed" else process.stdin.close()
        process.wait()
    assert [each.name for each in path.parent.iterdir()] == ([".a.txt.lock"] if end == "killed" else [])
    with locked(path, AT_WORK):
        pass
    assert list(path.parent.iterdir()) == []


def test_what_killed_runs_left_is_removed_under_the_lock_and_nothing_else(tmp_path):
    (tmp_path / "rows").mkdir()
    left = [tmp_path / ".a[1].txt.7.part", tmp_path / "rows" / ".x.parquet.7.part"]
    kept = [tmp_path / ".a1.txt.7.part", tmp_path / "a[1].txt", tmp_path / "rows" / "x.parquet", tmp_path / ".lock"]
    for path in [*left, *kept]:
        path.touch()
    with locked(tmp_path / "a[1].txt", AT_WORK, also=["rows/*"]):
        assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_an_error_within_frees_the_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path / "a", AT_WORK):
        raise KeyboardInterrupt
    with locked(tmp_path / "a", AT_WORK):
        pass


@pytest.mark.parametrize(("number", "text"), [(37, "No locks available"), (38, "Function not implemented")])
def test_a_disk_without_locks_is_named_as_such(tmp_path, monkeypatch, number, text):
    import fcntl

    def no_locks(*given):
        raise OSError(number, text)

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(FileError, match=f"cannot lock .*: {text}"), locked(tmp_path / "a", AT_WORK):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileError, match="cannot write .*Choose a folder you may write to"),
        locked(tmp_path / "file" / "a", AT_WORK),
    ):
        pass


def agree(path, settings, begun=True, **options):
    agree_on_settings(path, settings, begun=begun, **TEXTS, **options)


def test_settings_are_compared_as_values_not_as_text(tmp_path):
    path = tmp_path / "settings.json"
    agree(path, {"b": (1, 2), "a": 1.0}, begun=False)
    path.write_text(json.dumps({"a": 1, "b": [1, 2]}))
    agree(path, {"b": (1, 2), "a": 1.0})


def test_every_difference_is_named_with_both_values(tmp_path):
    path = tmp_path / "settings.json"
    agree(path, {"a": 1, "b": [1, 2], "c": "x", "same": 0}, begun=False)
    with pytest.raises(FileError) as error:
        agree(path, {"a": 2, "b": [1], "d": None, "same": 0})
    assert str(error.value) == (
        "begun with other settings (a 1 -> 2, b [1, 2] -> [1], c 'x' -> absent, d absent -> None). Use another folder."
    )


def test_a_difference_within_a_record_is_shown_as_a_diff(tmp_path):
    path = tmp_path / "settings.json"
    agree(path, {"decoding": {"seed": 0, "top_p": 1.0}}, begun=False)
    with pytest.raises(FileError) as error:
        agree(path, {"decoding": {"seed": 1, "top_p": 1.0}})
    first, *diff = str(error.value).splitlines()
    assert first == "begun with other settings (decoding). Use another folder."
    assert [line for line in diff if line[0] in "+-"] == [
        "--- begun here",
        "+++ given now",
        '-  "seed": 0,',
        '+  "seed": 1,',
    ]


def test_a_key_that_the_file_lacks_agrees_if_it_is_at_its_default_and_only_then(tmp_path):
    path = tmp_path / "settings.json"
    agree(path, {"grid": {"k": 1}}, begun=False)
    defaults = {"grid": {"k": 9, "range": (0, 1)}, "new": None}
    agree(path, {"grid": {"k": 1, "range": (0, 1)}, "new": None}, defaults=defaults)
    with pytest.raises(FileError, match=r"\(grid\)"):
        agree(path, {"grid": {"k": 1, "range": (0, 2)}, "new": None}, defaults=defaults)
    with pytest.raises(FileError, match=r"\(grid\)"):
        agree(path, {"grid": {"k": 9, "range": (0, 1)}, "new": None}, defaults=defaults)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot read"), (b"{", "is damaged"), (b"[1]", "is damaged"), (b"\xff", "is damaged")]
)
def test_settings_that_cannot_be_read_are_no_settings(tmp_path, content, says):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=rf"nothing says of what: .*{says}.* Use another folder\."):
        agree(path, {"a": 1})


def test_a_file_that_is_not_written_whole_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [atomic_path, exclusive_path])
@pytest.mark.parametrize("chain", [1, 3])
def test_a_symbolic_link_is_written_through_and_stays(tmp_path, write, chain):
    target = tmp_path / "elsewhere" / "real.txt"
    target.parent.mkdir()
    target.write_text("old")
    link = target
    for index in range(chain):
        (tmp_path / f"link-{index}").symlink_to(os.path.relpath(link, tmp_path))
        link = tmp_path / f"link-{index}"
    with write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["real.txt"]


def test_a_link_that_leads_nowhere_yet_is_written_through_and_one_that_leads_to_itself_is_an_error(tmp_path):
    link, circle = tmp_path / "link", tmp_path / "circle"
    link.symlink_to("new/real.txt")
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "new" / "real.txt").read_text() == "new"
    circle.symlink_to("circle")
    with pytest.raises(FileError, match="cannot write .*circle"), atomic_path(circle) as temporary:
        pass
    assert circle.is_symlink()


def test_two_names_of_one_file_share_its_lock(tmp_path):
    (tmp_path / "real").touch()
    (tmp_path / "link").symlink_to("real")
    with (
        locked(tmp_path / "real", AT_WORK),
        pytest.raises(FileError, match=AT_WORK),
        locked(tmp_path / "link", AT_WORK),
    ):
        pass


def test_a_second_run_that_writes_the_same_file_is_refused(tmp_path):
    with exclusive_path(tmp_path / "a") as temporary:
        temporary.write_text("first")
        with pytest.raises(FileError, match="another run is writing .*a: wait for it"), exclusive_path(tmp_path / "a"):
            pass
    assert (tmp_path / "a").read_text() == "first"


def test_a_full_disk_and_a_folder_that_may_not_be_written_have_fixes_of_their_own(tmp_path):
    for number, fix in (
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EACCES, "Choose a folder you may"),
    ):
        with pytest.raises(FileError, match=fix), atomic_path(tmp_path / "a"):
            raise OSError(number, os.strerror(number))


def test_what_is_beside_the_settings_is_not_compared(tmp_path):
    path = tmp_path / "settings.json"
    write_settings(path, {"a": 1, "made": ["x"]})
    agree(path, {"a": 1}, beside=("made",))
    with pytest.raises(FileError, match=r"\(made \['x'\] -> absent\)"):
        agree(path, {"a": 1})


def test_of_a_hash_only_that_it_differs_is_said(tmp_path):
    path = tmp_path / "settings.json"
    agree(path, {"model_sha256": "0"}, begun=False)
    with pytest.raises(FileError, match=r"\(model: what is in it differs, by its hash\)"):
        agree(path, {"model_sha256": "1"})


def test_settings_that_are_nested_too_deeply_are_damaged(tmp_path):
    (tmp_path / "settings.json").write_text('{"a":' * 100_000)
    with pytest.raises(FileError, match="is damaged"):
        agree(tmp_path / "settings.json", {"a": 1})


# --- fingerprints of models ---------------------------------------------------------------------------------------------
def test_a_byte_in_the_middle_of_a_large_file_changes_the_fingerprint_of_a_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    content = bytearray(5 * 2**20)
    weights.write_bytes(content)
    before = lookup._fingerprint(tmp_path, "")
    times = weights.stat()
    content[5 * 2**19] = 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert lookup._fingerprint(tmp_path, "") != before


def test_hashes_of_large_files_are_kept_and_a_damaged_or_stale_entry_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lookup, "KEPT_FROM", 1)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert lookup._file_hash(weights) == expected
    assert not (tmp_path / "cache").exists()  # it was changed a moment ago
    monkeypatch.setattr(lookup, "_SETTLED", -1)
    assert lookup._file_hash(weights) == expected
    (entry,) = (tmp_path / "cache" / "stepsal" / "sha256").iterdir()
    assert "weights" not in entry.read_text().replace(str(weights), "")
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert lookup._file_hash(weights) == expected  # not hashed again
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lookup, "KEPT_FROM", 1)
    for damaged in (entry.read_text().replace(expected, expected[::-1]), "{", "[]", "", '{"of": 1}'):
        entry.write_text(damaged)
        assert lookup._file_hash(weights) == expected
    weights.write_bytes(b"WEIGHTS")
    assert lookup._file_hash(weights) == hashlib.sha256(b"WEIGHTS").hexdigest()


def test_a_cache_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lookup, "KEPT_FROM", 1)
    monkeypatch.setattr(lookup, "_SETTLED", -1)
    (tmp_path / "weights").write_bytes(b"weights")
    assert lookup._file_hash(tmp_path / "weights") == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.bridge
def test_a_model_in_memory_has_another_fingerprint_once_a_weight_or_its_configuration_changes(tmp_path):
    model, same = (load_model(save_tiny("qwen2", tmp_path / name)) for name in "ab")
    before = lookup.model_fingerprint(model)
    assert lookup.model_fingerprint(same) == before
    weight = next(iter(model.parameters()))
    with torch.no_grad():
        weight.view(-1)[5] += 1
    assert lookup.model_fingerprint(model) != before
    with torch.no_grad():
        weight.view(-1)[5] -= 1
    other = load_model(save_tiny("qwen2", tmp_path / "c", rms_norm_eps=1e-3))
    assert lookup.model_fingerprint(other) != before
