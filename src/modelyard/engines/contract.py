"""The checks that any engine must pass, for pytest: real workers that succeed, fail, hang and are left alone.

In a test module of your own::

    from modelyard.engines.contract import EngineContract

    class TestMine(EngineContract):
        engine = "mine"

The workers here are a few lines of Python that need nothing but its standard library. The last check
kills the submitting process and needs workers on this machine: where they are elsewhere, override it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import msgspec

from modelyard.engines import BUILT_IN
from modelyard.engines.base import Engine
from modelyard.spec.plugins import load
from modelyard.spec.work import Job, JobStatus

_DEADLINE = 30.0

_TELL = """
import os
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MODELYARD_ATTEMPT", "OWN")
print("I am", *(os.environ[name] for name in names), flush=True)
print("meet at", os.environ["MODELYARD_RENDEZVOUS"], flush=True)
"""
_HANG = "import time; print('waiting', flush=True); time.sleep(600)"
_DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + _HANG
_GENTLE = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(0)));"
    + _HANG
)
_FIRST_FAILS = f"import os, sys\nif os.environ['RANK'] == '0': sys.exit(7)\n{_HANG}"


class EngineContract:
    """Subclass it with a name that pytest collects, and set ``engine``."""

    engine: ClassVar[str]
    preload: ClassVar[tuple[str, ...]] = ()
    """What the jobs say that their workers import: an engine may start them another way then."""

    def test_a_plan_is_data_and_changes_nothing(self, tmp_path: Path) -> None:
        engine, job = self._open(), self._job(tmp_path, _TELL)
        plan = engine.plan(job)
        assert plan == engine.plan(job) == json.loads(json.dumps(plan))
        assert list(tmp_path.iterdir()) == []
        secrets = [name for name in os.environ if name not in job.environment]
        assert not {"PATH", "HOME"} & set(secrets) & set(_keys(plan))

    def test_all_succeed(self, tmp_path: Path) -> None:
        engine = self._open()
        handle = engine.submit(engine.plan(self._job(tmp_path, _TELL, attempt=2)))
        status = _until(engine, handle, lambda now: now.state != "running")
        assert status.state == "succeeded"
        assert [(w.rank, w.exit_code) for w in status.workers] == [(0, 0), (1, 0)]
        meetings = set()
        for rank in (0, 1):
            log = engine.logs(handle, rank)
            assert f"I am {rank} {rank} 2 2 yes" in log, log
            meetings.add(log.partition("meet at ")[2].split("\n")[0])
        assert len(meetings) == 1

    def test_one_fails_and_the_others_can_be_ended(self, tmp_path: Path) -> None:
        engine = self._open()
        handle = engine.submit(engine.plan(self._job(tmp_path, _FIRST_FAILS)))
        status = _until(engine, handle, lambda now: now.state == "failed")
        assert status.workers[0].exit_code == 7
        assert status.workers[1].state == "running"
        engine.cancel(handle, grace=0.5)
        assert engine.poll(handle).workers[1].state == "failed"

    def test_a_killed_worker_has_failed(self, tmp_path: Path) -> None:
        engine = self._open()
        handle = engine.submit(engine.plan(self._job(tmp_path, _HANG)))
        pid = engine.poll(handle).workers[1].pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            status = _until(engine, handle, lambda now: now.state == "failed")
            assert status.workers[1].exit_code == -signal.SIGKILL
        engine.cancel(handle, grace=0)

    def test_cancel_lets_workers_end_gently(self, tmp_path: Path) -> None:
        engine = self._open()
        handle = engine.submit(engine.plan(self._job(tmp_path, _GENTLE)))
        _until_logged(engine, handle, "waiting")
        engine.cancel(handle, grace=_DEADLINE)
        assert "saved" in engine.logs(handle, 0) and "saved" in engine.logs(handle, 1)
        assert engine.poll(handle).state == "succeeded"

    def test_cancel_ends_those_that_do_not_listen(self, tmp_path: Path) -> None:
        engine = self._open()
        handle = engine.submit(engine.plan(self._job(tmp_path, _DEAF)))
        _until_logged(engine, handle, "waiting")
        engine.cancel(handle, grace=0.2)
        assert {w.state for w in engine.poll(handle).workers} == {"failed"}
        engine.cancel(handle)  # once more does no harm

    def test_to_wait_is_bounded_and_may_end_early(self, tmp_path: Path) -> None:
        engine = self._open()
        handle = engine.submit(engine.plan(self._job(tmp_path, _FIRST_FAILS)))
        deadline = time.monotonic() + _DEADLINE
        while engine.poll(handle).state == "running":
            assert time.monotonic() < deadline
            engine.wait(handle, 0.5)
        began = time.monotonic()
        engine.wait(handle, 0.2)
        assert time.monotonic() - began < 2
        engine.cancel(handle, grace=0)
        engine.close()

    def test_a_handle_serves_any_later_engine(self, tmp_path: Path) -> None:
        engine = self._open()
        handle = engine.submit(engine.plan(self._job(tmp_path, _HANG)))
        _until_logged(engine, handle, "waiting")
        other = self._open()
        assert other.poll(handle).state == "running"
        other.cancel(handle, grace=0.5)
        assert other.poll(handle).state == engine.poll(handle).state == "failed"

    def test_workers_end_with_whoever_submitted_them(self, tmp_path: Path) -> None:
        """Killed, so that it can do nothing about it."""
        job = tmp_path / "job.json"
        job.write_bytes(msgspec.json.encode(self._job(tmp_path, _DEAF)))
        command = [sys.executable, "-m", "modelyard.engines.contract", self.engine, str(job)]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            handle = (parent.stdout.readline() if parent.stdout else "").strip()
            engine = self._open()
            _until_logged(engine, handle, "waiting")
        finally:
            parent.kill()
            parent.communicate()
        _until(engine, handle, lambda now: all(w.state == "failed" for w in now.workers))

    def _arguments(self, folder: Path, program: str) -> tuple[str, ...]:
        """How Python is told to run ``program``; ``folder`` must stay as it is."""
        return ("-c", program)

    def _open(self) -> Engine:
        engine: Engine = load("engines", self.engine, BUILT_IN)()
        return engine

    def _job(self, folder: Path, program: str, attempt: int = 0) -> Job:
        return Job(
            name="check",
            arguments=self._arguments(folder, program),
            size=2,
            folder=str(folder),
            environment={"OWN": "yes"},
            attempt=attempt,
            preload=self.preload,
        )


def _keys(value: object) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(key for inner in value.values() for key in _keys(inner))]
    return [key for inner in value for key in _keys(inner)] if isinstance(value, list) else []


def _until(engine: Engine, handle: str, done: Callable[[JobStatus], bool]) -> JobStatus:
    deadline = time.monotonic() + _DEADLINE
    while not done(status := engine.poll(handle)):
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.02)
    return status


def _until_logged(engine: Engine, handle: str, word: str) -> None:
    """The command line, which a log may begin with, does not count: the word must stand alone."""
    deadline = time.monotonic() + _DEADLINE
    while not all(word in engine.logs(handle, rank).split("\n") for rank in (0, 1)):
        assert time.monotonic() < deadline, f"no {word!r} in the logs of {handle}"
        time.sleep(0.02)


if __name__ == "__main__":
    opened: Engine = load("engines", sys.argv[1], BUILT_IN)()
    job = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=Job)
    sys.stdout.write(opened.submit(opened.plan(job)) + "\n")
    sys.stdout.flush()
    time.sleep(_DEADLINE * 2)
