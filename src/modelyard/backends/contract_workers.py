"""Worker processes for the checks of a contract: one process imports the framework, and forks two at each request.

A Python that imports a framework takes seconds, and the checks need many workers. As in a training
(decision 10) a fork is taken where only imports have happened; elsewhere than on Linux, each worker is
a Python of its own. ``python -m modelyard.backends.contract_workers BACKEND`` is the program.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from modelyard.backends.preload import of_backend

_FORKS = sys.platform == "linux"
_CHANGES_BETWEEN_TESTS = "PYTEST_CURRENT_TEST"


class _Program:
    """Lives until another is needed, and no longer than this process: it ends with its input."""

    def __init__(self, backend: str) -> None:
        command = [sys.executable, "-m", "modelyard.backends.contract_workers", backend]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )

    def run(self, module: str, plans: Sequence[Path], seconds: float) -> list[int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"module": module, "plans": [str(p.resolve()) for p in plans], "seconds": seconds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the program that forks workers has ended with {self._process.wait()}"
        codes: list[int] = json.loads(line)
        return codes

    def close(self) -> None:
        """End it and the workers that it may have."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


_there: dict[object, _Program] = {}


@atexit.register
def _close() -> None:
    while _there:
        _there.popitem()[1].close()


def run_plans(backend: str, module: str, plans: Sequence[Path], seconds: float) -> list[int]:
    """Exit codes of ``python -m MODULE PLAN``, at once for each plan; each prints to ``PLAN`` with the ending ``.log``.

    A worker that has not ended after ``seconds`` is killed, so that its code is -9.
    """
    if not _FORKS:
        return _each_of_its_own(module, plans, seconds)
    variables = {key: v for key, v in os.environ.items() if key != _CHANGES_BETWEEN_TESTS}
    needs = (backend, tuple(sorted(variables.items())), str(Path.cwd()))
    if needs not in _there:
        _close()
        _there[needs] = _Program(backend)
    try:
        return _there[needs].run(module, plans, seconds)
    except BaseException:  # a test's timeout: what was asked for must not be answered later
        _there.pop(needs).close()
        raise


def _each_of_its_own(module: str, plans: Sequence[Path], seconds: float) -> list[int]:
    children = []
    for plan in plans:
        with plan.with_suffix(".log").open("wb") as log:
            command = [sys.executable, "-m", module, str(plan)]
            children.append(subprocess.Popen(command, stdout=log, stderr=log))
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
        child.kill()
    return [child.wait() for child in children]


def _serve(backend: str, answers: TextIO) -> str | None:
    """Until the input ends; the plan in a worker, None in the program itself."""
    for name in of_backend(backend):
        with contextlib.suppress(ImportError):  # a worker says it in its own words
            importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        pids: list[int] = []
        for plan in request["plans"]:
            pid = _fork()
            if pid == 0:
                answers.close()
                sys.argv[:] = [request["module"], plan]
                return str(plan)
            pids.append(pid)
        codes = _ends(pids, time.monotonic() + request["seconds"])
        answers.write(json.dumps(codes) + "\n")
        answers.flush()
    return None


def _fork() -> int:
    with warnings.catch_warnings():
        # Python counts the idle threads of OpenBLAS, which stops them around a fork by itself.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _ends(pids: Sequence[int], deadline: float) -> list[int]:
    """Exit codes, negative for a signal."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def _become_worker(plan: str) -> None:
    """No input, and a log of its own for what it prints."""
    for place, flags, handles in (
        (os.devnull, os.O_RDONLY, (0,)),
        (str(Path(plan).with_suffix(".log")), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, (1, 2)),
    ):
        opened = os.open(place, flags, 0o644)
        for handle in handles:
            os.dup2(opened, handle)
        os.close(opened)


def main(backend: str) -> None:
    """Answers go where this process was told to print; what imports print does not."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    plan = _serve(backend, answers)
    if plan is not None:
        _become_worker(plan)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
