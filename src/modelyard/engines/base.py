"""What a place must do to run a job: N copies of one command that run together and end together.

- ``plan`` is pure: it returns the engine's own request (a process table, an sbatch script, a JobSet)
  as plain data that can be printed, compared and tested without the engine.
- ``submit`` sends it and returns a handle, a string that any later process can use.
- ``poll`` says how each worker is; it never blocks.
- ``logs`` gives what a worker printed.
- ``cancel`` ends all workers, gently first, by force after ``grace`` seconds, and returns when
  none is left.

Two more have a default that does for most: ``wait`` sleeps, and may return early when a worker ends;
``close`` lets go of what was kept for the next attempt of the same job.

Workers end when whoever submitted them dies, unless the engine is made to outlive it; a job never
leaves orphans. Third parties prove theirs with ``modelyard.engines.contract``.
"""

import time
from abc import ABC, abstractmethod

from modelyard.spec.work import Job, JobStatus, Native


class Engine(ABC):
    """The contract; one file per engine in this folder."""

    name: str

    @abstractmethod
    def plan(self, job: Job) -> Native: ...

    @abstractmethod
    def submit(self, plan: Native) -> str: ...

    @abstractmethod
    def poll(self, handle: str) -> JobStatus: ...

    @abstractmethod
    def logs(self, handle: str, rank: int) -> str: ...

    @abstractmethod
    def cancel(self, handle: str, grace: float = 5.0) -> None: ...

    def wait(self, handle: str, seconds: float) -> None:
        """Return after ``seconds``, or as soon as a worker has ended where the engine can tell."""
        time.sleep(seconds)

    def close(self) -> None:  # noqa: B027  most engines keep nothing
        """No further attempt will follow."""
