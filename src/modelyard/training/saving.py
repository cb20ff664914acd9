"""Saves checkpoints beside the training, which stands still only while its state is copied.

Each worker has one `Writer`. ``save`` copies this worker's share of the state into memory that is used
again each time; a thread does the rest. The workers say nothing to each other over the network::

    every worker's thread     .step-…/model-0-of-2.safetensors, …      written, hashed, flushed
                              .step-…/shard-0.json                     renamed into place: mine is there
    worker 0's thread         waits until all shards are there
                              .step-…/progress.json, manifest.json
                              .step-… becomes step-…                   now it is a checkpoint
                              best.json; the too old ones go

A worker that dies never writes its shard: what is left is swept away when training begins again.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from msgspec.structs import replace

from modelyard.backends.base import Snapshot
from modelyard.backends.snapshots import share_of
from modelyard.backends.tensors import Array
from modelyard.spec.disk import size_in_words
from modelyard.spec.errors import DiskFull, StoreError, YardError, from_os_error
from modelyard.spec.work import World
from modelyard.store.files import make_folder
from modelyard.training import checkpoints
from modelyard.training.checkpoints import BrokenWeights, Progress

Saved = Callable[[Progress, float, float], None]
"""Called by the thread of worker 0 when a checkpoint is there: what it is of, the seconds of the whole,
and how many of these the training stood still."""
_PATIENCE_SECONDS = 600.0
_FAREWELL_SECONDS = 5.0
_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.001, 0.05


class Writer:
    """One worker's part of the saving: a context, left when all that was saved is on disk.

    Left by an exception, it does not wait for other workers any more.
    """

    def __init__(
        self,
        run_folder: Path,
        world: World,
        *,
        keep: int,
        saved: Saved = lambda *_: None,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        """``patience``: seconds that worker 0 waits for the slowest shard after it has written its own."""
        self._run_folder = run_folder
        self._world = world
        self._keep = keep
        self._saved = saved
        self._patience = patience
        self._buffers: dict[str, Array] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._given_up = threading.Event()

    def save(self, state: Snapshot, progress: Progress, *, epoch: float) -> float:
        """Copy ``state``, begin to write it, and return the seconds that this took.

        ``state`` may share memory with the training, which goes on as soon as this returns. Every
        worker must call it at the same step. Where the save before is still being written it waits
        for that; where that one turns out to be refused, nothing is written until ``refused`` has said so.
        Raises what else ``check`` raises.
        """
        began = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if isinstance(self._error, BrokenWeights):
            return time.perf_counter() - began
        self.check()
        share = share_of(state, self._world.rank, self._world.size)
        copied = replace(share, tensors={n: self._copy(n, a) for n, a in share.tensors.items()})
        blocked = time.perf_counter() - began
        self._thread = threading.Thread(
            target=self._run,
            args=(copied, progress, epoch, began, blocked),
            name="write-checkpoint",
            daemon=True,
        )
        self._thread.start()
        return blocked

    def check(self) -> None:
        """Raise what went wrong since the last call: TrainingError for a weight that is no finite
        number, StoreError for a full disk or a shard that never came."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def refused(self) -> bool:
        """Whether the last save was found to hold a weight that is no finite number; else as ``check``."""
        if isinstance(self._error, BrokenWeights):
            self._error = None
            return True
        self.check()
        return False

    @property
    def busy(self) -> bool:
        """Whether a save is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until this worker's part of all that was saved is on disk; for worker 0, all of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._given_up.set()
            self._thread.join(_FAREWELL_SECONDS)

    def _copy(self, name: str, array: Array) -> Array:
        """Into the memory of the last time: fresh pages cost more than the copy itself."""
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (array.shape, array.dtype):
            buffer = self._buffers[name] = np.empty(array.shape, array.dtype)
        np.copyto(buffer, array)
        return buffer

    def _run(
        self, share: Snapshot, progress: Progress, epoch: float, began: float, blocked: float
    ) -> None:
        try:
            self._write(share, progress, epoch, began, blocked)
        except OSError as error:
            self._error = self._told(error, share)
        except BaseException as error:  # noqa: BLE001  it is raised again by ``check``
            self._error = error

    def _told(self, error: OSError, share: Snapshot) -> YardError:
        """With the size: what was half written is gone by now, and its room counts as free again."""
        told = from_os_error(error, self._run_folder)
        if isinstance(told, DiskFull):
            rank, size = self._world.rank, self._world.size
            whose = "the checkpoint" if size == 1 else f"worker {rank}'s part of the checkpoint"
            needed = size_in_words(sum(array.nbytes for array in share.tensors.values()))
            others = f", one of {size} parts" if size > 1 else ""
            return DiskFull(f"{told.what}; {whose} takes {needed}{others}", told.mend)
        return told

    def _write(
        self, share: Snapshot, progress: Progress, epoch: float, began: float, blocked: float
    ) -> None:
        world, step = self._world, progress.step
        building = checkpoints.building_folder(self._run_folder, step, world.attempt)
        make_folder(building)
        checkpoints.write_share(building, share, world.rank, world.size, step)
        if world.rank == 0 and self._all_came(building, step):
            checkpoints.publish(
                self._run_folder, building, world.size, progress, epoch=epoch, keep=self._keep
            )
            self._saved(progress, time.perf_counter() - began, blocked)

    def _all_came(self, building: Path, step: int) -> bool:
        """Wait for the other workers' shards; False where the training has failed meanwhile."""
        deadline, pause = time.monotonic() + self._patience, _FIRST_POLL_SECONDS
        while missing := checkpoints.missing_shards(building, self._world.size):
            if self._given_up.wait(pause):
                return False
            if checkpoints.was_refused(building):
                raise BrokenWeights(f"another worker's share of step {step} holds broken weights")
            if time.monotonic() > deadline:
                names = ", ".join(str(rank) for rank in missing)
                raise StoreError(
                    f"the checkpoint of step {step} is not complete: worker {names} did not write "
                    f"its share within {self._patience:g} s",
                    "look at its log; the disk may be slow or full",
                )
            pause = min(2 * pause, _LAST_POLL_SECONDS)
        return True
