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
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
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
        self.serves: object = None
        """Which jobs it may serve after its first; set by ``take``."""
        self._finish = weakref.finalize(self, _end, self._process, ours, self._lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

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


class _Shelf(threading.local):
    """Forerunners between two jobs, the oldest first; of each thread its own, since they end with it."""

    def __init__(self) -> None:
        self.most = 0
        self.apart_from: tuple[str, ...] = ()
        self.runners: dict[object, Forerunner] = {}

    def shrink(self) -> None:
        while len(self.runners) > self.most:
            self.runners.pop(next(iter(self.runners))).close()


_shelf = _Shelf()


@contextlib.contextmanager
def kept(most: int = 1, apart_from: tuple[str, ...] = ()) -> Iterator[None]:
    """Inside, up to ``most`` forerunners of this thread outlive their jobs, for jobs that need the same one.

    Trainings one after another then import their framework once. Each that waits holds the memory of its
    imports. ``apart_from`` names variables of the environment that no import reads: they may differ.
    """
    before = _shelf.most, _shelf.apart_from
    _shelf.most, _shelf.apart_from = most, apart_from
    try:
        yield
    finally:
        _shelf.most, _shelf.apart_from = before
        _shelf.shrink()


def take(modules: Sequence[str], environment: Mapping[str, str], log: Path) -> Forerunner:
    """One that was kept, with the same imports, variables and folder; otherwise a new one."""
    if not _shelf.most:
        return Forerunner(modules, environment, log)
    variables = {**os.environ, **environment}
    for name in _shelf.apart_from:
        variables.pop(name, None)
    serves = (tuple(modules), tuple(sorted(variables.items())), str(Path.cwd()))
    runner = _shelf.runners.pop(serves, None)
    if runner is None or not runner.alive:
        runner = Forerunner(modules, environment, log)
        runner.serves = serves
    return runner


def give_back(runner: Forerunner) -> None:
    """Keep it, where ``kept`` allows it, or end it; no worker of it may be left."""
    if not (_shelf.most and runner.serves and runner.alive):
        runner.close()
        return
    if earlier := _shelf.runners.pop(runner.serves, None):
        earlier.close()
    _shelf.runners[runner.serves] = runner
    _shelf.shrink()


def _end(process: "subprocess.Popen[bytes]", channel: socket.socket, lines: Any) -> None:
    process.kill()
    process.wait()
    lines.close()
    channel.close()
