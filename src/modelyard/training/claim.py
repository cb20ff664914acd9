"""Who trains a run: one command at a time, and no worker of an earlier command beside it.

Both are advisory locks that the kernel frees when their holder ends, however it ends: nothing to
clean up after SIGKILL, nothing that can go stale.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from modelyard.spec.errors import StoreError, TrainingError, UsageError, from_os_error

_COMMAND, _WORKERS = "command.lock", "workers.lock"


@contextlib.contextmanager
def claim_run(folder: Path) -> Iterator[None]:
    """Hold the run in ``folder`` for this process. Raises UsageError naming who holds it already."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / _COMMAND, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise from_os_error(error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UsageError(
                f"the run {folder.name} is being trained by another command (process {holder})",
                f"wait for it, or end it with `kill -INT {holder}`; it keeps a checkpoint",
            ) from error
        _write_own_pid(handle, folder / _COMMAND)
        yield
    finally:
        os.close(handle)


def _write_own_pid(handle: int, path: Path) -> None:
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    except OSError as error:
        raise from_os_error(error, path) from error


def hold_as_worker(folder: Path) -> int:
    """Mark this process as a worker of the run until it ends; the handle must stay open."""
    handle = os.open(folder / _WORKERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def wait_for_old_workers(folder: Path, seconds: float = 30.0) -> None:
    """Return when no worker of an earlier command is left: it could still write a checkpoint.

    Raises TrainingError where one does not end.
    """
    deadline = time.monotonic() + seconds
    try:
        with (folder / _WORKERS).open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise TrainingError(
                            f"workers of an earlier command still run in {folder}",
                            f"`fuser {folder / _WORKERS}` names them; end them and run the command again",
                        ) from error
                    time.sleep(0.05)
                else:
                    return
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise StoreError(f"{folder / _WORKERS} cannot be locked") from error
        raise from_os_error(error) from error
