"""Who is alive: processes told apart by pid and start time, the supervisor by the lock it holds."""

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec

from modelyard.deployment.process_table import Identity

SUPERVISOR_LOCK = "supervisor.lock"


def identity(pid: int) -> Identity:
    """The identity of a running process. Raises ProcessLookupError where there is none."""
    return Identity(pid=pid, started=_started(pid))


def _started(pid: int) -> str:
    if not Path("/proc/self/stat").exists():
        os.kill(pid, 0)
        return ""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    # The command's name, in brackets, may hold spaces and brackets; fields are counted after it.
    fields = text.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        raise ProcessLookupError(pid)
    return fields[19]


def is_alive(process: Identity) -> bool:
    """Whether this very process runs: not a zombie, not a later one with the same number."""
    try:
        return _started(process.pid) == process.started
    except (ProcessLookupError, PermissionError):
        return False


def kill(processes: Iterable[Identity], *, timeout: float = 5.0) -> None:
    """SIGKILL those that still run, and wait until they are gone."""
    remaining = [process for process in processes if is_alive(process)]
    for process in remaining:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout
    while any(is_alive(process) for process in remaining) and time.monotonic() < deadline:
        time.sleep(0.01)


def hold_supervisor_lock(folder: Path, *, patience: float = 2.0) -> IO[str] | None:
    """Become the supervisor of ``folder``: the file holds the lock until it is closed.

    None where another supervisor holds it. A reader's look at the lock lasts microseconds, so it is
    waited out.
    """
    file = (folder / SUPERVISOR_LOCK).open("a+")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                return None
            time.sleep(0.02)
    file.truncate(0)
    file.write(msgspec.json.encode(identity(os.getpid())).decode())
    file.flush()
    return file


def live_supervisor(folder: Path) -> Identity | None:
    """The supervisor of ``folder``, if one is alive: only a living process can hold the lock."""
    try:
        with (folder / SUPERVISOR_LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_identity(file)
            return None
    except FileNotFoundError:
        return None


def _read_identity(file: IO[str]) -> Identity | None:
    # The holder writes its identity right after it took the lock.
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        file.seek(0)
        with contextlib.suppress(msgspec.DecodeError):
            found = msgspec.json.decode(file.read().encode(), type=Identity)
            if is_alive(found):
                return found
        time.sleep(0.01)
    return None
