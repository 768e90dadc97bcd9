"""Questions to a library that runs in a process of its own, within limits (`stepsal.generation.limited_process`).

In: a question as plain data. Out: the library's reply, or that the question was too much for it. The process is started with
the first question, and anew after one that was too much for it.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from stepsal.errors import StepsalError

_START = 300.0
SCRIPT = Path(__file__).with_name("limited_process.py")


class LimitedProcess:
    """The process that a library runs in. Threads may share it; a fork needs one of its own.

    Args:
        library: the name of the script beside this file that loads the library and answers.
        cure: what to do where the library cannot be loaded.
        wait: seconds by the clock after which a question is given up, whatever the process says.
    """

    def __init__(self, library: str, cure: str, wait: float = 60.0) -> None:
        self._library, self._cure, self._wait = library, cure, wait
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def ask(self, **question: Any) -> dict[str, Any]:
        """The reply; where the question took too much time or memory, only `failed`.

        `seconds` in a question: how much processor time it may take, in the place of `limited_process.SECONDS`.
        """
        with self._lock:
            if self._process is None:
                self._start()
            reply = self._exchange(json.dumps(question) + "\n", self._wait)
            if reply is None or reply.get("failed") == "MemoryError":
                self._end()
            return {"failed": "too much time or memory"} if reply is None else reply

    def close(self) -> None:
        with self._lock:
            self._end()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-X", "utf8", str(SCRIPT), str(SCRIPT.with_name(self._library))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONHASHSEED": "0"},  # the order of a set must not change from run to run
        )
        if self._exchange("", _START) is None:
            said = self._process.stderr.read() if self._process.stderr else ""
            self._end()
            reason = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise StepsalError(f"what {self._library} needs cannot be started ({reason}): {self._cure}")

    def _exchange(self, line: str, seconds: float) -> dict[str, Any] | None:
        """Say a line and hear one; None where the process ends before it answers, or is ended because it took too long."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            heard = process.stdout.readline()
        except OSError:
            heard = ""
        finally:
            timer.cancel()
        return json.loads(heard) if heard.endswith("\n") else None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what could not be said to a process that has ended
                    continue
