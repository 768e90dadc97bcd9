import json
import subprocess
import sys

import pytest

from stepsal.errors import FileError
from stepsal.files import agree_on_settings, atomic_path, locked

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
