"""Engine ``local``: the workers are processes on this machine, and end with whoever started them.

Where a job says what its workers import (``preload``), a forerunner imports it once, lives as long as
this object, and forks them; otherwise, and where that cannot be, each worker is a Python of its own.
"""

import contextlib
import os
import select
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
from modelyard.engines.forerunner import (
    SWITCH,
    USABLE,
    Forerunner,
    ForerunnerLost,
    give_back,
    launched,
    take,
)
from modelyard.engines.processes import Condition, condition, identity, signal_group
from modelyard.spec.errors import NotFoundError, TrainingError, disk_full, from_os_error
from modelyard.spec.work import Job, JobStatus, Native, WorkerStatus
from modelyard.store.files import write_atomic

_PAUSE = 0.005
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""glibc keeps the memory of large arrays for the next step: without it each step gets its pages anew
from the kernel, a fifth of the time of a small CNN's step. The largest resident size stays the same."""


_GIVE_WAY = {"GOMP_SPINCOUNT": "3000"}
"""A thread that waits for the others of its process turns some microseconds and then sleeps. By itself OpenMP turns
a hundred times as long, on cores that others need: beside three busy processes on two cores a small model made
2.6 times as many steps with this. On an idle machine there was no difference; sleeping at once
(``OMP_WAIT_POLICY``) cost such a step 1 ms."""


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the process table."""

    rank: int
    pid: int
    identity: str
    log: str
    exit_code: int | None = None
    """Written by the process that started it, once it has collected it."""


_THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
"""What libraries read when they begin, which may be before a worker's own code could tell them."""
_OF_ONE_ATTEMPT = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MODELYARD_ATTEMPT", "MODELYARD_RENDEZVOUS"}
)  # fmt: skip
"""Variables that a forked worker can be given late: no library reads them while it is loaded."""


class Local(Engine):
    """A handle is the path of the job's process table.

    ``submit`` and ``poll`` belong in a thread that lives as long as the job: on Linux the workers
    end with the *thread* that started them.
    """

    name = "local"

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._forked: dict[int, Forerunner] = {}
        self._forerunner: tuple[object, Forerunner] | None = None
        self._codes: dict[tuple[int, str], int | None] = {}
        """Pid and identity to the exit code of those that were collected: a full disk may keep it out of the table."""

    def plan(self, job: Job) -> Native:
        folder = Path(job.folder).resolve()
        shared = {
            **_KEEP_MEMORY,
            **_GIVE_WAY,
            **job.environment,
            "WORLD_SIZE": str(job.size),
            "LOCAL_WORLD_SIZE": str(job.size),
            "MODELYARD_ATTEMPT": str(job.attempt),
            "MODELYARD_RENDEZVOUS": (folder / f"rendezvous-{job.attempt}").as_uri(),
            **dict.fromkeys(_THREADS, str(job.resources.threads)),
            "PYTHONUNBUFFERED": "1",
        }
        return {
            "kind": "process-table",
            "name": job.name,
            "attempt": job.attempt,
            **({"preload": list(job.preload)} if job.preload else {}),
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
                started.append(self._start(process, plan))  # noqa: PERF401
            _write(plan["table"], started)
        except OSError as error:
            self._give_up(started)
            if full := disk_full(error, Path(plan["table"]).parent):
                raise full from error
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
        seen = [_seen(entry) for entry in before]  # once, so that what is told is also collected
        entries = [self._collect(*pair) for pair in zip(before, seen, strict=True)]
        if entries != before:
            try:
                _write(handle, entries)
            except OSError as error:
                if not disk_full(error, Path(handle)):
                    raise from_os_error(error) from error
                # What the workers ended with tells why: it stays here, and the next poll writes it.
        return JobStatus(workers=tuple(_status(*pair) for pair in zip(entries, seen, strict=True)))

    def logs(self, handle: str, rank: int) -> str:
        """Everything that worker ``rank`` printed, in all attempts; each begins with a line of its own."""
        for entry in _read(handle):
            if entry.rank == rank:
                return Path(entry.log).read_text(errors="replace")
        raise NotFoundError(f"{handle} has no worker {rank}")

    def cancel(self, handle: str, grace: float = 5.0) -> None:
        self._end(_read(handle), grace)
        self.poll(handle)

    def wait(self, handle: str, seconds: float) -> None:
        """Return as soon as a worker has ended: the kernel says so, on Linux."""
        entries = [entry for entry in _read(handle) if entry.exit_code is None]
        running = [entry for entry in entries if _running(entry)]
        if any(entry not in running and self._is_ours(entry) for entry in entries):
            return
        poller, opened = select.poll(), []
        try:
            for entry in running:
                with contextlib.suppress(OSError, AttributeError):  # gone, or no Linux
                    opened.append(os.pidfd_open(entry.pid))
                    poller.register(opened[-1], select.POLLIN)
            poller.poll(seconds * 1000)
        finally:
            for number in opened:
                os.close(number)

    def close(self) -> None:
        if self._forked:  # it ends them with it
            self._drop()
        elif self._forerunner is not None:
            give_back(self._forerunner[1])
        self._forerunner = None

    def _drop(self) -> None:
        if self._forerunner is not None:
            self._forerunner[1].close()
        self._forerunner = None

    def _start(self, process: dict[str, Any], plan: Native) -> _Entry:
        log = Path(process["log"])
        log.parent.mkdir(parents=True, exist_ok=True)
        rank, command = process["rank"], shlex.join(process["arguments"])
        with log.open("ab") as file:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            head = f"--- attempt {plan['attempt']}, rank {rank}, {now}: {command}\n"
            file.write(head.encode())
        pid = self._fork(process, plan)
        if pid is None:
            pid = self._spawn(process)
        return _Entry(rank=rank, pid=pid, identity=identity(pid), log=str(log))

    def _spawn(self, process: dict[str, Any]) -> int:
        """A worker that is a Python of its own."""
        with Path(process["log"]).open("ab") as file:
            child = subprocess.Popen(
                launched(process["arguments"][1:]),
                env={**os.environ, **process["environment"]},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the parent, which decides
            )
        self._children[child.pid] = child
        return child.pid

    def _fork(self, process: dict[str, Any], plan: Native) -> int | None:
        """A worker made by the forerunner; None where it must be started on its own."""
        preload, arguments = plan.get("preload"), process["arguments"][1:]
        if not (preload and USABLE) or SWITCH in os.environ or arguments[0] == "-c":
            return None
        early = {k: v for k, v in process["environment"].items() if k not in _OF_ONE_ATTEMPT}
        key, log = (preload, early), Path(process["log"])
        for _ in range(2):  # a forerunner of an earlier attempt may have been killed since
            if self._forerunner is None or self._forerunner[0] != key:
                self.close()
                self._forerunner = (key, take(preload, early, log.with_name("forerunner.log")))
            runner = self._forerunner[1]
            try:
                pid = runner.fork(process["rank"], arguments, process["environment"], log)
            except ForerunnerLost:
                self._drop()
            except BaseException:  # Ctrl-C: what was asked for must not come later
                self._drop()
                raise
            else:
                self._forked[pid] = runner
                return pid
        return None

    def _collect(self, entry: _Entry, seen: Condition) -> _Entry:
        """Take the exit code of a worker that has ended, after ending what it left behind."""
        who = entry.pid, entry.identity
        if entry.exit_code is None and who in self._codes:
            return msgspec.structs.replace(entry, exit_code=self._codes[who])
        if not self._is_ours(entry) or seen.state == "running":
            return entry
        signal_group(*who, signal.SIGKILL)
        if child := self._children.pop(entry.pid, None):
            self._codes[who] = child.wait()
        else:
            self._forked.pop(entry.pid).collect(entry.pid)
            self._codes[who] = seen.exit_code
        return msgspec.structs.replace(entry, exit_code=self._codes[who])

    def _is_ours(self, entry: _Entry) -> bool:
        """This object started it and has not collected it yet."""
        return entry.pid in self._children or entry.pid in self._forked

    def _give_up(self, started: list[_Entry]) -> None:
        self._end(started, grace=0)
        for entry in started:
            self._collect(entry, _seen(entry))

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


def _seen(entry: _Entry) -> Condition:
    return condition(entry.pid, entry.identity)


def _running(entry: _Entry) -> bool:
    return _seen(entry).state == "running"


def _status(entry: _Entry, seen: Condition) -> WorkerStatus:
    """A worker that is gone without a known exit code has failed: who started it is gone as well."""
    if entry.exit_code is None and seen.state == "running":
        return WorkerStatus(rank=entry.rank, pid=entry.pid, state="running", paused=seen.paused)
    code = seen.exit_code if entry.exit_code is None else entry.exit_code
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
