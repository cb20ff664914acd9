"""Engine ``local``: the workers are processes on this machine, and end with whoever started them."""

import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from modelyard.engines.base import Engine
from modelyard.engines.processes import condition, identity, signal_group
from modelyard.spec.errors import NotFoundError, TrainingError, from_os_error
from modelyard.spec.work import Job, JobStatus, Native, WorkerStatus
from modelyard.store.files import write_atomic

_LAUNCHER = Path(__file__).with_name("launcher.py")
_PAUSE = 0.02
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""glibc keeps the memory of large arrays for the next step: without it each step gets its pages anew
from the kernel, a fifth of the time of a small CNN's step. The largest resident size stays the same."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the process table."""

    rank: int
    pid: int
    identity: str
    log: str
    exit_code: int | None = None
    """Written by the process that started it, once it has collected it."""


class Local(Engine):
    """A handle is the path of the job's process table.

    ``submit`` and ``poll`` belong in a thread that lives as long as the job: on Linux the workers
    end with the *thread* that started them.
    """

    name = "local"

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def plan(self, job: Job) -> Native:
        folder = Path(job.folder).resolve()
        shared = {
            **_KEEP_MEMORY,
            **job.environment,
            "WORLD_SIZE": str(job.size),
            "LOCAL_WORLD_SIZE": str(job.size),
            "MODELYARD_ATTEMPT": str(job.attempt),
            "MODELYARD_RENDEZVOUS": (folder / f"rendezvous-{job.attempt}").as_uri(),
            "OMP_NUM_THREADS": str(job.resources.threads),
            "PYTHONUNBUFFERED": "1",
        }
        return {
            "kind": "process-table",
            "name": job.name,
            "attempt": job.attempt,
            "table": str(folder / f"processes-{job.attempt}.json"),
            "processes": [
                {
                    "rank": rank,
                    "arguments": [sys.executable, *job.arguments],
                    "environment": {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    "log": str(folder / "logs" / f"rank-{rank}.log"),
                }
                for rank in range(job.size)
            ],
        }

    def submit(self, plan: Native) -> str:
        """Raises TrainingError where a process cannot be started (none is left then), StoreError for the folder."""
        started: list[_Entry] = []
        try:
            _forget_meetings(plan)
            for process in plan["processes"]:
                # One by one: where a start fails, the list holds those that must be ended.
                started.append(self._start(process, plan["attempt"]))  # noqa: PERF401
            _write(plan["table"], started)
        except OSError as error:
            self._give_up(started)
            if error.filename is None:  # no memory or no process numbers left
                raise TrainingError(
                    f"worker {len(started)} of {plan['name']} could not be started: {error.strerror}",
                    "use fewer train.workers, or raise the limit on processes (`ulimit -u`)",
                ) from error
            raise from_os_error(error) from error
        except BaseException:  # Ctrl-C between two starts
            self._give_up(started)
            raise
        return str(plan["table"])

    def poll(self, handle: str) -> JobStatus:
        before = _read(handle)
        entries = [self._collect(entry) for entry in before]
        if entries != before:
            _write(handle, entries)
        return JobStatus(workers=tuple(_status(entry) for entry in entries))

    def logs(self, handle: str, rank: int) -> str:
        """Everything that worker ``rank`` printed, in all attempts; each begins with a line of its own."""
        for entry in _read(handle):
            if entry.rank == rank:
                return Path(entry.log).read_text(errors="replace")
        raise NotFoundError(f"{handle} has no worker {rank}")

    def cancel(self, handle: str, grace: float = 5.0) -> None:
        self._end(_read(handle), grace)
        self.poll(handle)

    def _start(self, process: dict[str, Any], attempt: int) -> _Entry:
        log = Path(process["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        rank, command = process["rank"], shlex.join(process["arguments"])
        with log.open("ab") as file:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"--- attempt {attempt}, rank {rank}, {now}: {command}\n".encode())
            file.flush()
            launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid())]
            child = subprocess.Popen(
                [*launcher, *process["arguments"]],
                env={**os.environ, **process["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the parent, which decides
            )
        self._children[child.pid] = child
        return _Entry(rank=rank, pid=child.pid, identity=identity(child.pid), log=str(log))

    def _collect(self, entry: _Entry) -> _Entry:
        """Take the exit code of a child that has ended, after ending what it left behind."""
        child = self._children.get(entry.pid)
        if child is None or entry.exit_code is not None:
            return entry
        if condition(entry.pid, entry.identity).state == "running":
            return entry
        signal_group(entry.pid, entry.identity, signal.SIGKILL)
        code = child.wait()
        del self._children[entry.pid]
        return msgspec.structs.replace(entry, exit_code=code)

    def _give_up(self, started: list[_Entry]) -> None:
        self._end(started, grace=0)
        for entry in started:
            self._collect(entry)

    def _end(self, entries: list[_Entry], grace: float) -> None:
        """Ask all groups to end, insist after ``grace`` seconds, return when none is left."""
        members = [entry for entry in entries if entry.exit_code is None]
        for entry in members:
            signal_group(entry.pid, entry.identity, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while any(_running(entry) for entry in members) and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        for entry in members:
            signal_group(entry.pid, entry.identity, signal.SIGKILL)
        while any(_running(entry) for entry in members):
            time.sleep(_PAUSE)


def _running(entry: _Entry) -> bool:
    return condition(entry.pid, entry.identity).state == "running"


def _status(entry: _Entry) -> WorkerStatus:
    """A worker that is gone without a known exit code has failed: who started it is gone as well."""
    code = entry.exit_code
    if code is None:
        seen = condition(entry.pid, entry.identity)
        if seen.state == "running":
            return WorkerStatus(rank=entry.rank, pid=entry.pid, state="running")
        code = seen.exit_code
    return WorkerStatus(
        rank=entry.rank,
        pid=entry.pid,
        state="succeeded" if code == 0 else "failed",
        exit_code=code,
    )


def _forget_meetings(plan: Native) -> None:
    """Remove a meeting file left by an earlier command: workers would find names in it of others."""
    for process in plan["processes"]:
        place = urlsplit(process["environment"]["MODELYARD_RENDEZVOUS"])
        Path(unquote(place.path)).unlink(missing_ok=True)


def _write(handle: str, entries: list[_Entry]) -> None:
    content = msgspec.json.format(msgspec.json.encode(entries), indent=1)
    write_atomic(Path(handle), content + b"\n")


def _read(handle: str) -> list[_Entry]:
    try:
        return msgspec.json.decode(Path(handle).read_bytes(), type=list[_Entry])
    except (OSError, msgspec.DecodeError) as error:
        raise NotFoundError(f"{handle} is no process table of a job: {error}") from error
