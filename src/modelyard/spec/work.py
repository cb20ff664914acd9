"""A piece of work to be run to its end: what an engine is given and what it reports."""

from typing import Any, Literal

import msgspec


class World(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's place among all workers of a training."""

    rank: int
    size: int
    rendezvous: str
    """Where the workers meet, e.g. ``file:///…/rendezvous-0`` or ``tcp://host:port``."""
    attempt: int = 0
    """How many times the work was restarted before."""


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker may use."""

    threads: int = 1
    device: str = "cpu"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """``size`` copies of one command that run together and end together."""

    name: str
    arguments: tuple[str, ...]
    """What follows the Python interpreter, e.g. ``("-m", "modelyard.training.worker", …)``."""
    size: int
    folder: str
    """Where logs, the rendezvous and the process table go; exists."""
    environment: dict[str, str] = {}
    resources: Resources = Resources()
    attempt: int = 0
    preload: tuple[str, ...] = ()
    """Modules that every worker imports first: an engine may import them once for all workers."""


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as the engine sees it."""

    rank: int
    pid: int | None
    state: Literal["running", "succeeded", "failed"]
    exit_code: int | None = None
    """As in ``subprocess``: negative for a signal (-9 is SIGKILL)."""
    paused: bool = False
    """Running, but stopped by a signal, where the engine can tell."""


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """All workers of a job at one moment."""

    workers: tuple[WorkerStatus, ...]

    @property
    def state(self) -> Literal["running", "succeeded", "failed"]:
        states = {worker.state for worker in self.workers}
        if "failed" in states:
            return "failed"
        return "running" if "running" in states else "succeeded"


Native = dict[str, Any]
"""An engine's or target's own request, printable as JSON: a process table, an sbatch script, …"""
