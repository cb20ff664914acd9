"""Processes known by pid *and* start: a pid that was given to another process is never mistaken for ours."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec

LINUX = sys.platform == "linux"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A process as anyone on this machine sees it."""

    state: Literal["running", "ended", "gone"]
    """``ended``: its parent has not collected it yet, so its pid and its group are still its own."""
    exit_code: int | None = None
    """As in ``subprocess``; known only while ``ended``."""
    paused: bool = False
    """``running``, but stopped by SIGSTOP or the like until SIGCONT."""


def identity(pid: int) -> str:
    """What tells this process from any other of that pid, also after a reboot; empty if there is none."""
    if not LINUX:
        return _ask_ps(pid, "lstart")
    fields = _stat(pid)
    return f"{_boot()} {fields[19]}" if fields else ""


def condition(pid: int, known: str) -> Condition:
    """How the process with this pid and identity is. It never waits and never collects a child."""
    if not known or identity(pid) != known:
        return Condition(state="gone")
    if not LINUX:
        letter = _ask_ps(pid, "stat")[:1]
        return Condition(state="ended" if letter == "Z" else "running", paused=letter == "T")
    fields = _stat(pid)
    if not fields:
        return Condition(state="gone")
    if fields[0] not in ("Z", "X"):
        return Condition(state="running", paused=fields[0] == "T")
    return Condition(state="ended", exit_code=os.waitstatus_to_exitcode(int(fields[49])))


def signal_group(pid: int, known: str, number: signal.Signals) -> None:
    """Signal the process and all of its group, while the group is certainly its own."""
    if condition(pid, known).state != "gone":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; see proc_pid_stat(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _ask_ps(pid: int, column: str) -> str:
    asked = ["ps", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
