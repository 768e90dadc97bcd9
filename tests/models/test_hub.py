"""Downloads, from a little hub of our own: it answers what huggingface_hub asks for of one model, and refuses the others."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stepsal.models.host import BUNDLED

COMMIT = "c" * 40
REFUSED = {"org/missing": (404, "RepoNotFound"), "org/private": (401, "RepoNotFound"), "org/gated": (403, "GatedRepo")}
LOAD = """
import sys, time
import stepsal
from stepsal import FileError
before = time.monotonic()
try:
    model = getattr(stepsal, sys.argv[1])(sys.argv[2])
except FileError as error:
    print(type(error).__name__, error)
else:
    print("loaded", getattr(model, "cfg", model).model_name if sys.argv[1] == "load_model" else len(model))
print(time.monotonic() - before)
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
            status, code = REFUSED[name]
            self.answer(status, {"X-Error-Code": code})
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

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for each in (headers | {"Content-Length": str(len(body))}).items():
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


def load(function, name, endpoint, home):
    """What a process of its own says of a name: huggingface_hub reads its settings when it is imported."""
    mine = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, function, name], capture_output=True, text=True, timeout=300, env=kept | mine, check=True
    )
    *said, seconds = done.stdout.splitlines()
    return said, float(seconds), done.stderr
