"""What a worker leaves behind when it fails: why, in ``failure-<rank>.json``, for the parent to read.

A disk that is full may refuse even that file. Then the exit code alone says so (`DISK_FULL_EXIT`), and the
parent names the folder and the room that is left there. No room is reserved for the file ahead of time:
under a quota, or where a file system writes beside what it replaces, such room could not be counted on.
"""

import contextlib
import sys
import traceback
from pathlib import Path

import msgspec

from modelyard.spec.errors import YardError, disk_full, from_os_error
from modelyard.spec.work import World
from modelyard.store.events import now
from modelyard.store.files import write_atomic
from modelyard.training.order import attempt_folder
from modelyard.training.recovery import DISK_FULL_EXIT, Failure


def leave_word(folder: Path, world: World, error: Exception) -> int:
    """Write down what ended this worker of the run in ``folder``; returns its exit code."""
    _log("".join(traceback.format_exception(error)))
    place = attempt_folder(folder, world.attempt) / f"failure-{world.rank}.json"
    try:
        write_atomic(place, _failure(folder, world, error).to_json())
    except OSError as reason:
        _log(f"{place} could not be written: {reason}\n")
        return DISK_FULL_EXIT if disk_full(reason, place) else 1
    return 1


def words_left(folder: Path, attempt: int) -> list[Failure]:
    """What the workers of one attempt wrote down."""
    found = []
    for path in attempt_folder(folder, attempt).glob("failure-*.json"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found.append(Failure.from_json(path.read_bytes()))
    return found


def _failure(folder: Path, world: World, error: Exception) -> Failure:
    told: Exception = disk_full(error, folder) or error
    if isinstance(told, OSError):
        told = from_os_error(told)
    known = isinstance(told, YardError)
    return Failure(
        rank=world.rank,
        time=now(),
        type=type(told).__name__,
        what=told.what if isinstance(told, YardError) else f"{type(told).__name__}: {told}",
        mend=told.mend if isinstance(told, YardError) else "",
        extra=getattr(told, "extra", "") if known else "",
        device=getattr(told, "device", "") if known else "",
        known=known,
    )


def _log(text: str) -> None:
    """The worker's log lies on the disk that may be full: what is lost of it must not stop the rest."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
