import socket
import threading
import time
from contextlib import suppress

import pytest

from stepsal import FileError, InputError, load_model, load_tokenizer, sweep
from stepsal.cli import main
from stepsal.models.host import BUNDLED
from stepsal.models.sources import locate

LOADERS = {"model": load_model, "tokenizer": load_tokenizer}


def unreachable(*given, **options):
    raise OSError("Network is unreachable\nand more lines")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["gpt-typo", "org/no-such-model"])
def test_a_wrong_name_without_a_network_is_answered_at_once_and_in_one_line(load, name, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    before = time.monotonic()
    with pytest.raises(FileError, match=f"'{name}': no such folder, and the hub cannot be reached") as error:
        LOADERS[load](name)
    assert time.monotonic() - before < 5
    assert "Network is unreachable)" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_never_answers_is_given_up_after_seconds(monkeypatch):
    """A server that takes connections and says nothing, as behind a firewall."""
    monkeypatch.setattr("stepsal.models.sources.WAIT", 0.5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    taken = []

    def take():
        with suppress(OSError):  # the server is closed
            while True:
                taken.append(server.accept())

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda name, file: f"{url}/{name}/{file}")
        threading.Thread(target=take, daemon=True).start()
        before = time.monotonic()
        with pytest.raises(FileError, match="the hub cannot be reached"):
            load_tokenizer("org/name")
        assert time.monotonic() - before < 10
        server.shutdown(socket.SHUT_RDWR)  # ends `accept`
    assert taken
    for connection, _ in taken:
        connection.close()


def test_what_an_earlier_download_left_is_used_where_the_hub_cannot_be_reached(tmp_path, monkeypatch):
    commit = "a" * 40
    home = tmp_path / "hub" / "models--org--name"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(BUNDLED)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = load_model("org/name")
    assert model.cfg.model_name == "org/name"
    assert load_tokenizer("org/name").encode("k = 37.") == model.tokenizer.encode("k = 37.")


@pytest.mark.parametrize(("kind", "said"), [("Repository", "the hub has no model of that name"), ("Gated", "is gated")])
def test_what_the_hub_says_of_a_name_is_said_on(kind, said, monkeypatch):
    import huggingface_hub.errors as errors

    error = {"Repository": errors.RepositoryNotFoundError, "Gated": errors.GatedRepoError}[kind]

    def answer(*given, **options):
        raise error.__new__(error)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answer)
    with pytest.raises(FileError, match=said):
        load_model("org/name")


def test_a_name_that_the_hub_knows_is_left_to_transformers(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *given, **options: None)
    assert locate("org/name") == "org/name"


@pytest.mark.parametrize("name", [None, "bundled"])
def test_the_bundled_model_has_a_name(name, tmp_path):
    assert load_model(name).cfg.n_layers == 8
    assert load_tokenizer(name).encode("k = 37.") == load_tokenizer().encode("k = 37.")
    command = ["generate", "1", "--out", str(tmp_path / "t.jsonl"), "--max-new-tokens", "2"]
    assert main([*command, *(["--model", name] if name else [])]) == 0


def test_the_bundled_model_makes_maps_by_its_name(tmp_path):
    assert main(["generate", "2", "--out", str(tmp_path / "t.jsonl"), "--max-new-tokens", "4"]) == 0
    command = ["saliency", str(tmp_path / "t.jsonl"), "--model", "bundled", "--out", str(tmp_path / "maps")]
    assert main([*command, "--layers", "0"]) == 0


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("", InputError, "no name of a model"),
        (3, InputError, "is an int, and no name of a model"),
        ("two words", FileError, "it is no hub id"),
        ("/nowhere/at/all", FileError, "there is no folder /nowhere/at/all"),
        ("./nowhere", FileError, "there is no folder nowhere"),
        ("a/b/c", FileError, "there is no folder a/b/c"),
        (__file__, FileError, "is no model: it is a file"),
    ],
)
@pytest.mark.parametrize("load", LOADERS)
def test_what_can_be_no_model_is_refused_without_asking_anyone(load, name, error, said, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", unreachable)
    with pytest.raises(error, match=said):
        LOADERS[load](name)


def test_a_sweep_of_a_wrong_name_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    with pytest.raises(FileError, match="no such folder, and the hub cannot be reached"):
        sweep({"model": {"name": "org/typo"}, "problems": {"count": 1}}, out=tmp_path / "out", progress=False)
