"""A forerunner: a process that has imported what workers need, and forks one at each request.

A Python that imports a framework takes seconds; a fork takes milliseconds and shares the memory of
what was imported. This is the side of the process that asks; the other one is ``forking.py``. The
forerunner ends with the thread that started it, and its workers end with it, however it ends.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LAUNCHER = Path(__file__).with_name("launcher.py")
USABLE = sys.platform == "linux"
"""Elsewhere the system's own libraries do not survive a fork, and nothing ends a worker by itself."""
SWITCH = "MODELYARD_PLAIN_WORKERS"
"""A variable of the environment: set, each worker is a Python of its own."""


class ForerunnerLost(Exception):
    """It has ended, or could not start."""


def launched(arguments: Sequence[str]) -> list[str]:
    """The command that starts ``python ARGUMENTS`` so that it ends with the calling thread."""
    return [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), sys.executable, *arguments]


class Forerunner:
    """Starts on construction and imports meanwhile; the first ``fork`` waits until it has."""

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as file:
            number = str(theirs.fileno())
            self._process = subprocess.Popen(
                launched(["-m", "modelyard.engines.forking", number, *modules]),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._channel = ours
        self._lines = ours.makefile("rb")
        self._ready = False
        self._finish = weakref.finalize(self, _end, self._process, ours, self._lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(
        self, rank: int, arguments: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> int:
        """The pid of a new worker, which leads a group of its own. Raises ForerunnerLost."""
        if not self._ready:
            self._hear()
            self._ready = True
        request = {
            "rank": rank,
            "arguments": list(arguments),
            "environment": {**os.environ, **environment},
            "log": str(log),
            # Perhaps not those that this process had when the forerunner was started.
            "cores": sorted(os.sched_getaffinity(0)),
        }
        self._say(request)
        return int(self._hear()["pid"])

    def collect(self, pid: int) -> None:
        """Let go of a worker that has ended; its number may then be given to another process."""
        with contextlib.suppress(ForerunnerLost):
            self._say({"collect": pid})

    def close(self) -> None:
        """End it, and with it what is left of its workers."""
        self._finish()

    def _say(self, request: dict[str, Any]) -> None:
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise ForerunnerLost(str(error)) from error

    def _hear(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except OSError as error:
            raise ForerunnerLost(str(error)) from error
        if not line:
            raise ForerunnerLost(f"process {self.pid} has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _end(process: "subprocess.Popen[bytes]", channel: socket.socket, lines: Any) -> None:
    process.kill()
    process.wait()
    lines.close()
    channel.close()
