"""What to do when workers have ended: a policy that only decides. ``train.py`` acts on it."""

import signal
from collections.abc import Sequence
from typing import Literal

import msgspec

from modelyard.spec import errors
from modelyard.spec.errors import MissingExtraError, ProjectError, UsageError, YardError
from modelyard.spec.records import Record
from modelyard.spec.work import JobStatus, WorkerStatus
from modelyard.training.hangs import Hang

INTERRUPTED_EXIT = 75
"""Exit code of a worker that was asked to stop and did so after a checkpoint (EX_TEMPFAIL)."""
DISK_FULL_EXIT = 74
"""Exit code of a worker that found the disk so full that it could not even write why it ended (EX_IOERR)."""

_CHECKPOINT_SECONDS = 30.0
_REASON_SECONDS = 2.0


class Failure(Record, frozen=True, kw_only=True):
    """``failure-<rank>.json``: why a worker ended by itself."""

    rank: int
    time: float
    """Seconds since 1970: of two failures of equal weight the first is the cause (`cause_of`)."""
    type: str
    """Name of the exception's class."""
    what: str
    mend: str = ""
    extra: str = ""
    """Of a MissingExtraError."""
    device: str = ""
    """Of an OutOfMemory: the kind that was too small."""
    known: bool
    """True for a YardError: words for people; False for an exception that nobody expected."""

    @property
    def final(self) -> bool:
        """True where trying again cannot help and another worker's loss cannot be the cause."""
        return self.known and self.type not in ("TrainingError", "PeerLost")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What follows, and why in words."""

    action: Literal["restart", "give-up", "done", "interrupted"]
    reason: str = ""
    failure: Failure | None = None
    """To be raised on ``give-up``, where a worker said why it failed."""
    budgeted: bool = True
    """False for a restart that is no repetition: ``max_restarts`` does not count it."""
    lost: tuple[WorkerStatus, ...] = ()
    """Workers that ended without a word of their own."""


def decide(
    status: JobStatus,
    restarts: int,
    max_restarts: int,
    interrupted: bool,
    failures: Sequence[Failure] = (),
    hang: Hang | None = None,
) -> Decision:
    """Decide from a status that is no longer ``running``.

    A worker that was killed, or asked to stop by someone else, is replaced (all start again from
    the last checkpoint). A worker that raised is not: it would raise again. One that hung is.
    """
    if status.state == "succeeded":
        return Decision(action="done")
    if interrupted:
        return Decision(action="interrupted", reason="interrupted")
    if hang is not None:
        hung = tuple(worker for worker in status.workers if worker.rank in hang.ranks)
        if restarts < max_restarts:
            return Decision(action="restart", reason=hang.reason, lost=hung)
        return Decision(action="give-up", reason=hang.reason + _after(restarts), lost=hung)
    first = cause_of(failures)
    lost = tuple(worker for worker in status.workers if _was_lost(worker, failures))
    if first is not None and (first.final or not lost):
        return Decision(action="give-up", reason=first.what, failure=first)
    if full := tuple(worker for worker in lost if worker.exit_code == DISK_FULL_EXIT):
        reason = "; ".join(f"worker {worker.rank} {_ending(worker)}" for worker in full)
        return Decision(action="give-up", reason=reason, lost=full)
    reason = "; ".join(f"worker {worker.rank} {_ending(worker)}" for worker in lost)
    if restarts < max_restarts and any(_may_return(worker) for worker in lost):
        return Decision(action="restart", reason=reason, lost=lost)
    return Decision(action="give-up", reason=reason + _after(restarts), lost=lost)


def cause_of(failures: Sequence[Failure]) -> Failure | None:
    """The one that the others follow from; None where there is none.

    Who fails has much to close before it says why, and its peers see their line closed meanwhile: they are
    often the first to speak. So what cannot come from another's loss goes before what can, a PeerLost last.
    """
    return min(
        failures,
        key=lambda f: (f.type != "OutOfMemory", not f.final, f.type == "PeerLost", f.time),
        default=None,
    )


def parted(status: JobStatus) -> bool:
    """All stopped after a checkpoint because they were asked to, before the training was done."""
    codes = {worker.exit_code for worker in status.workers}
    return INTERRUPTED_EXIT in codes and codes <= {0, INTERRUPTED_EXIT}


def _after(restarts: int) -> str:
    return f" (after {restarts} restart{'s' if restarts != 1 else ''})" if restarts else ""


def settle_seconds(status: JobStatus) -> float:
    """How long the others may take to end by themselves after one worker has failed.

    Not at all where one was killed: its peers only wait for it. One that was asked to stop is
    followed by all, after a checkpoint. For the rest, the peers may still say why it happened.
    """
    codes = {worker.exit_code for worker in status.workers if worker.state == "failed"}
    if codes & {None, -signal.SIGKILL, -signal.SIGTERM}:
        return 0.0
    return _CHECKPOINT_SECONDS if codes == {INTERRUPTED_EXIT} else _REASON_SECONDS


def raised_again(failure: Failure) -> YardError:
    """The worker's error as the same class here; an unexpected one has no class that users know."""
    if failure.type == "MissingExtraError":
        return MissingExtraError(failure.what, failure.extra)
    kind = getattr(errors, failure.type, YardError)
    if kind is ProjectError:  # its mistakes stay in the worker; its words and exit code do not
        kind = UsageError
    error: YardError = kind(failure.what, failure.mend)
    return error


def _was_lost(worker: WorkerStatus, failures: Sequence[Failure]) -> bool:
    return worker.state == "failed" and all(worker.rank != failure.rank for failure in failures)


def _may_return(worker: WorkerStatus) -> bool:
    """A signal, or a polite stop; Python's own exit codes 1 and 2 without a word would come again."""
    return worker.exit_code is None or worker.exit_code not in (1, 2)


def _ending(worker: WorkerStatus) -> str:
    code = worker.exit_code
    if code == INTERRUPTED_EXIT:
        return "was asked to stop"
    if code is None:
        return "disappeared"
    if code == DISK_FULL_EXIT:
        return "found the disk full and could not even write why it ended"
    number = -code if code < 0 else code - 128
    name = {item.value: item.name for item in signal.Signals}.get(number, "")
    if name:
        memory = ", by hand or because memory ran out" if name == "SIGKILL" else ""
        return f"was killed by {name}{memory}"
    return f"ended with exit code {code}"
