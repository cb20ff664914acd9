"""Hangs: which worker did not arrive, where it is and for how long; found from heartbeats alone."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from modelyard.spec.work import JobStatus
from modelyard.training.heartbeat import (
    CHECKPOINT,
    COMPUTE,
    DATA,
    EXCHANGE,
    FINISH,
    START,
    WORDS,
    Beat,
    read_beat,
    read_stack,
    stack_of,
)

_LONG = {START, CHECKPOINT, FINISH}
_LONG_FACTOR = 10
"""Starting, saving and finishing may take so many times as long: they read, write and load."""
_FRAMES = 4
_LOOK_SECONDS = 0.25
_ABSENT = Beat(phase=START, step=0, time=0.0, first=-1, pid=0, host="")


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """One worker that has not ended."""

    rank: int
    beat: Beat
    still: float
    """Seconds since its heartbeat changed, by the parent's clock."""
    paused: bool = False
    """Stopped by a signal: it can neither go on nor say where it is."""


class Hang(msgspec.Struct, frozen=True, kw_only=True):
    """Who kept the others waiting, in words."""

    ranks: tuple[int, ...]
    reason: str


def culprits(
    workers: Sequence[Standing], patience: float, *, slow_start: bool = False
) -> tuple[Standing, ...]:
    """The workers that nobody can wait for any longer; none while all is well.

    A worker that waits for the others is to blame only where all of them wait: then those that are
    furthest behind. ``slow_start`` allows more time for the first step, which may compile the model.
    """
    stuck = [w for w in workers if w.still >= _limit(w, patience, slow_start)]
    guilty = [w for w in stuck if w.paused or w.beat.phase != EXCHANGE]
    if guilty:
        return tuple(w for w in guilty if w.paused) or tuple(guilty)
    if stuck and len(stuck) == len(workers):
        last = min(w.beat.step for w in stuck)
        return tuple(w for w in stuck if w.beat.step == last)
    return ()


def _limit(worker: Standing, patience: float, slow_start: bool) -> float:
    beat = worker.beat
    first = slow_start and beat.phase in (DATA, COMPUTE, EXCHANGE) and beat.step == beat.first
    long = (beat.phase in _LONG or first) and not worker.paused
    return patience * (_LONG_FACTOR if long else 1)


class HangWatch:
    """Looks at the heartbeats of one attempt, a few times a second at most."""

    def __init__(self, folder: Path, patience: float, *, slow_start: bool) -> None:
        self._folder = folder
        self._patience = patience
        self._slow_start = slow_start
        self._seen: dict[int, tuple[Beat, float]] = {}
        self._looked = 0.0

    def look(self, status: JobStatus) -> Hang | None:
        now = time.monotonic()
        if now - self._looked < min(_LOOK_SECONDS, self._patience / 10):
            return None
        self._looked = now
        workers = []
        for worker in status.workers:
            if worker.state == "running":
                beat = read_beat(self._folder, worker.rank) or _ABSENT
                before, since = self._seen.get(worker.rank, (None, now))
                since = since if beat == before else now
                self._seen[worker.rank] = (beat, since)
                workers.append(
                    Standing(rank=worker.rank, beat=beat, still=now - since, paused=worker.paused)
                )
        found = culprits(workers, self._patience, slow_start=self._slow_start)
        if not found:
            return None
        others = [w.rank for w in workers if w not in found and w.beat.phase == EXCHANGE]
        reason = "; ".join(self._words(worker) for worker in found)
        if others:
            named = ", ".join(map(str, others))
            reason += (
                f"; worker {named} waited" if len(others) == 1 else f"; workers {named} waited"
            )
        return Hang(ranks=tuple(worker.rank for worker in found), reason=reason)

    def _words(self, worker: Standing) -> str:
        beat = worker.beat
        who = f"worker {worker.rank}"
        if beat.pid:
            who += f" on {beat.host} (process {beat.pid})"
        what = WORDS[beat.phase] + (f" {beat.step + 1}" if beat.phase != START else "")
        text = f"{who} did not arrive: {what} for {worker.still:.0f} s"
        if worker.paused:
            return f"{text}; it was stopped by a signal (SIGSTOP), so it has no new stack"
        if frames := read_stack(self._folder, worker.rank):
            shown = " ← ".join(
                [frames[0], *(frame.rpartition("/")[2] for frame in frames[1:_FRAMES])]
            )
            return f"{text}; it is at {shown} (all threads: {stack_of(self._folder, worker.rank)})"
        return f"{text}; it left no stack"
