"""Downloads, from a little hub of our own: it answers what huggingface_hub asks for of one model, and refuses the others."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stepsal.models.host import BUNDLED

COMMIT = "c" * 40
REFUSED = {
    "org/missing": (404, "RepoNotFound", "the hub has no model of that name"),
    "org/private": (401, "RepoNotFound", "the hub has no model of that name .or a private one: `hf auth login`"),
    "org/gated": (403, "GatedRepo", "is gated on the hub: ask for access"),
    "org/closed": (401, "GatedRepo", "is gated on the hub: ask for access"),
    "org/forbidden": (403, None, "the hub answers with an error .*403 Forbidden"),
    "org/busy": (503, None, "the hub answers with an error .*503 Service Unavailable"),
    "org/often": (429, None, "the hub answers with an error .*429 Too Many Requests"),
}
"""By the names of models: the status and the reason that the hub answers with, and what is said of it."""
LOAD = """
import json, sys, time
import stepsal
for function, name in json.loads(sys.argv[1]):
    before = time.monotonic()
    try:
        loaded = getattr(stepsal, function)(name)
    except stepsal.FileError as error:
        said = f"FileError: {error}"
    else:
        said = loaded.cfg.model_name if function == "load_model" else loaded.decode(loaded.encode("k = 37."))
    print(json.dumps([said, time.monotonic() - before]))
"""


class Hub(BaseHTTPRequestHandler):
    """`org/tiny` is the bundled reasoner. The hub's refusals are a status and a header that names the reason."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *given):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/").removeprefix("api/models/").split("/")
        name, rest = "/".join(path[:2]), path[2:]
        self.server.asked.append((self.command, self.path))
        if name in REFUSED:
            status, reason, _ = REFUSED[name]
            self.answer(status, {"X-Error-Code": reason} if reason else {})
        elif name == "org/cut" and rest[-1:] == ["model.safetensors"]:
            self.answer(200, {"X-Repo-Commit": COMMIT, "ETag": '"cut"'}, b"half", length=8)
        elif rest[:2] == ["resolve", "main"] or rest[:2] == ["resolve", COMMIT]:
            file = BUNDLED.joinpath(*rest[2:])
            if file.is_file():
                self.answer(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{rest[-1]}"'}, file.read_bytes())
            else:
                self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif self.path.startswith("/api/models/") and rest == ["tree", "main"]:
            files = [{"type": "file", "path": each.name, "size": each.stat().st_size, "oid": "0"} for each in FILES]
            self.answer(200, {}, json.dumps(files).encode())
        elif self.path.startswith("/api/models/") and rest[:1] != ["tree"]:
            files = [{"rfilename": each.name} for each in FILES]
            self.answer(200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())
        else:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})

    def answer(self, status, headers, body=b"", length=None):
        self.send_response(status)
        self.close_connection = length is not None
        for each in (headers | {"Content-Length": str(length or len(body))}).items():
            self.send_header(*each)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


FILES = sorted(each for each in BUNDLED.iterdir() if each.is_file())


@contextmanager
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def load(endpoint, home, *loaded):
    """What a process of its own says, and how long it takes: huggingface_hub reads its settings when it is imported."""
    mine = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))
    } | mine
    command = [sys.executable, "-c", LOAD, json.dumps(loaded)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_model_and_a_tokenizer_are_downloaded_by_their_name_once_and_then_need_no_hub(tmp_path):
    names = [["load_model", "org/tiny"], ["load_tokenizer", "org/tiny"]]
    with hub() as (server, endpoint):
        assert [said for said, _ in load(endpoint, tmp_path, *names)] == ["org/tiny", "k = 37."]
        fetched = [
            path.rpartition("/")[2] for command, path in server.asked if command == "GET" and "/resolve/" in path
        ]
        assert len(fetched) == len(set(fetched))
        assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= set(fetched)
    assert [said for said, _ in load(endpoint, tmp_path, *names)] == ["org/tiny", "k = 37."]  # the hub is gone
    (cached,) = tmp_path.glob(f"hub/models--org--tiny/snapshots/{COMMIT}/model.safetensors")
    assert cached.read_bytes() == (BUNDLED / "model.safetensors").read_bytes()


def test_what_the_hub_refuses_is_said_in_one_line_within_seconds(tmp_path):
    names = [[function, name] for name in REFUSED for function in ("load_model", "load_tokenizer")]
    with hub() as (_, endpoint):
        answers = load(endpoint, tmp_path, *names)
    for (_, name), (said, seconds) in zip(names, answers, strict=True):
        assert re.search(f"^FileError: .*'{name}'.*{REFUSED[name][2]}", said)
        assert len(said.splitlines()) == 1
        assert seconds < 20
    ((said, seconds),) = load(endpoint, tmp_path, ["load_model", "org/tiny"])  # now nobody listens there
    assert re.search("^FileError: 'org/tiny': no such folder, and the hub cannot be reached .*refused", said)
    assert seconds < 20


@pytest.mark.slow
def test_a_download_that_is_cut_off_again_and_again_is_an_error_and_no_model(tmp_path):
    with hub() as (_, endpoint):
        ((said, _),) = load(endpoint, tmp_path, ["load_model", "org/cut"])
    assert said.startswith("FileError: cannot load a model from 'org/cut'")
