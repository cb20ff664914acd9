"""Heartbeats: what each worker is at, in a small file that its parent can read while the worker hangs.

A mark costs less than a microsecond: a few bytes into memory that the kernel shares with the file
``workers/attempt-N/heartbeat-RANK``. Beside it lies ``stack-RANK.txt``: where a worker does not come
to its next meeting in time, a thread of the interpreter's own, which needs no lock of Python, writes
down there what all threads are doing.
"""

import faulthandler
import mmap
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

START, DATA, COMPUTE, EXCHANGE, EVALUATE, CHECKPOINT, FINISH = range(7)
"""What a worker can be at. In ``EXCHANGE`` it has done its own part and waits for the others."""
WORDS = (
    "starting",
    "fetching the data of step",
    "computing step",
    "waiting for the others at step",
    "evaluating after step",
    "saving the checkpoint of step",
    "finishing after step",
)
_PLACE = struct.Struct("<qdB")
_WHO = struct.Struct("<qq64s")
_SIZE = _PLACE.size + _WHO.size
_EARLY = 0.8
"""The stack is written after this share of the time that a hang may take: before it is read."""
_FRESH = 0.05
"""And counted anew once this share of that has passed: it comes by so much earlier at most."""


class Beat(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker last said of itself."""

    phase: int
    step: int
    """From 0: the one that it is at."""
    time: float
    """By the worker's clock; only good for telling whether it has changed."""
    first: int
    """The step at which this attempt began."""
    pid: int
    host: str


class Heart:
    """The worker's side; ``mark`` is for the thread that trains."""

    def __init__(self, folder: Path, rank: int, hang_seconds: float) -> None:
        """Raises OSError where ``folder`` cannot be written."""
        self._after = max(0.05, _EARLY * hang_seconds)
        self._step = 0
        self._armed: float | None = None
        path = path_of(folder, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written, not only made longer: on a full disk that is an error, and later it would be a signal.
        path.write_bytes(_place(START, 0) + _who(-1))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._stack = stack_of(folder, rank).open("ab")
        self.arm()

    @property
    def step(self) -> int:
        """The one that it is at, from 0."""
        return self._step

    def mark(self, phase: int, step: int, now: Callable[[], float] = time.time) -> None:
        self._step = step
        _PLACE.pack_into(self._memory, 0, step, now(), phase)

    def again(self, phase: int) -> None:
        """At the same step, or still at it."""
        _PLACE.pack_into(self._memory, 0, self._step, time.time(), phase)

    def exchange(self) -> None:
        """This worker's part is done; it waits for the others."""
        self.again(EXCHANGE)

    def begin(self, step: int) -> None:
        """The loop begins at ``step``."""
        self._memory[_PLACE.size :] = _who(step)
        self.mark(DATA, step)

    def arm(self) -> None:
        """All is well up to now: count anew the time after which the stacks are written."""
        now = time.perf_counter()
        if self._armed is not None and now - self._armed < _FRESH * self._after:
            return  # a thread would be ended and another one begun, four times a second
        self._armed = now
        faulthandler.dump_traceback_later(self._after, repeat=True, file=self._stack)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._memory.close()
        self._stack.close()


class DoomedHeart(Heart):
    """For a proof: it kills its own process at a step, once there is something to resume from."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        hang_seconds: float,
        *,
        dies_at: int,
        ready: Callable[[], bool],
    ) -> None:
        super().__init__(folder, rank, hang_seconds)
        self._dies_at = dies_at
        self._ready = ready

    def mark(self, phase: int, step: int, now: Callable[[], float] = time.time) -> None:
        super().mark(phase, step, now)
        if phase == COMPUTE and step >= self._dies_at:
            while not self._ready():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


class NoHeart(Heart):
    """For a loop that nobody watches."""

    def __init__(self) -> None:
        """Nothing is kept."""

    def mark(self, phase: int, step: int, now: Callable[[], float] = time.time) -> None:
        """Unheard."""

    def again(self, phase: int) -> None:
        """Unheard."""

    def begin(self, step: int) -> None:
        """Unheard."""

    def arm(self) -> None:
        """No stack is written."""

    def close(self) -> None:
        """Nothing was opened."""


def path_of(folder: Path, rank: int) -> Path:
    """``folder`` is that of an attempt."""
    return folder / f"heartbeat-{rank}"


def stack_of(folder: Path, rank: int) -> Path:
    return folder / f"stack-{rank}.txt"


def read_beat(folder: Path, rank: int) -> Beat | None:
    """None where the worker has not come so far."""
    try:
        content = path_of(folder, rank).read_bytes()
    except FileNotFoundError:
        return None
    if len(content) != _SIZE:
        return None
    step, moment, phase = _PLACE.unpack_from(content)
    first, pid, host = _WHO.unpack_from(content, _PLACE.size)
    name = host.rstrip(b"\0").decode(errors="replace")
    return Beat(phase=min(phase, FINISH), step=step, time=moment, first=first, pid=pid, host=name)


def read_stack(folder: Path, rank: int) -> list[str]:
    """Frames of the main thread when it was last written, innermost first: ``file:line in function``."""
    try:
        text = stack_of(folder, rank).read_text(errors="replace")
    except FileNotFoundError:
        return []
    frames: list[str] = []
    for line in text.splitlines():
        if line.startswith(("Thread ", "Current thread ")):
            frames = []  # the main thread, which began first, is listed last
        elif line.startswith('  File "'):
            file, _, rest = line.removeprefix('  File "').rpartition('", line ')
            number, _, function = rest.partition(" in ")
            frames.append(f"{file}:{number} in {function}")
    return frames


def _place(phase: int, step: int) -> bytes:
    return _PLACE.pack(step, time.time(), phase)


def _who(first: int) -> bytes:
    return _WHO.pack(first, os.getpid(), socket.gethostname().encode()[:64])
