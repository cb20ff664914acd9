"""The forerunner's program: import what workers need once, then fork a worker at each request.

Started as ``python -m modelyard.engines.forking HANDLE MODULE…`` by ``forerunner.py``; HANDLE is the
number of an open socket. A request is one line of JSON, and so is each answer. A fork takes this
process as it is, so it must have no thread of its own and no open device: it imports and waits, and
runs nothing of a user. A worker leaves ``main`` with its command and then runs it at the top level, as
``python -m MODULE`` and ``python FILE`` do, so that it ends in the interpreter's own way.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelyard.engines.launcher import die_with_parent


def main(handle: int, modules: Sequence[str]) -> dict[str, Any] | None:
    """Serve until the other end is closed; returns the request in the worker, None in the forerunner."""
    # A machine that is shut down asks every process to end: its workers save first, and need it until then.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in modules:
        _import(name)
    with socket.socket(fileno=handle) as channel, channel.makefile("rb") as lines:
        _answer(channel, {"ready": True})
        gc.collect()
        gc.freeze()  # what is here now stays: looking it over would copy its pages into each worker
        for line in lines:
            request = json.loads(line)
            if "collect" in request:
                _collect(request["collect"])
                continue
            pid = _fork()
            if pid is None:
                return _become(request)
            _answer(channel, {"pid": pid})
    return None


def _import(name: str) -> None:
    """A worker that needs a module that is missing says so in its own words."""
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001  an import runs foreign code, which may raise anything
        traceback.print_exc()


def _fork() -> int | None:
    """The worker's pid, once it leads a group of its own; None in the worker."""
    forerunner = os.getpid()
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Python counts the idle threads of OpenBLAS, which stops them around a fork by itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(write)
        with open(read, "rb") as pipe:  # noqa: PTH123  a number, not a path
            pipe.read()
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(read)
    die_with_parent()
    if os.getppid() != forerunner:  # it ended before the line above took effect
        os._exit(1)
    os.setsid()  # Ctrl-C reaches only the parent, which decides
    os.close(write)
    return None


def _become(request: dict[str, Any]) -> dict[str, Any]:
    """Take on the worker's own environment, files and name; the socket is closed by ``main``."""
    for place, flags, handles in (
        (os.devnull, os.O_RDONLY, (0,)),
        (request["log"], os.O_WRONLY | os.O_APPEND, (1, 2)),
    ):
        opened = os.open(place, flags)
        for handle in handles:
            os.dup2(opened, handle)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # a core was taken away meanwhile
        os.sched_setaffinity(0, request["cores"])
    _draw_anew()
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"worker-{request['rank']}")
    return request


def _draw_anew() -> None:
    """Python seeds its own generator after a fork; NumPy's would draw the same numbers in each worker."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


def _collect(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _answer(channel: socket.socket, answer: dict[str, Any]) -> None:
    channel.sendall(json.dumps(answer).encode() + b"\n")


def run(arguments: Sequence[str]) -> None:
    """What follows ``python``: ``-m MODULE …`` or ``FILE …``."""
    if arguments[0] == "-m":
        sys.argv[:] = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = arguments
        sys.path[0] = str(Path(arguments[0]).parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    taken = main(int(sys.argv[1]), sys.argv[2:])
    if taken is not None:
        run(taken["arguments"])
