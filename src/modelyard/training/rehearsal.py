"""A rehearsal: the real training, begun in a scratch store and left after a few seconds, to see how long its parts take.

Workers, exchanges, data, augmentation, checkpoints and whatever else keeps this machine busy are all
in it, so nothing has to be guessed but that the rest goes on like the beginning.
"""

import statistics
import time
from collections.abc import Sequence

import msgspec

from modelyard.spec.project import Project
from modelyard.spec.records import AnyEvent, Dataset, Evaluated, RunStarted, StepDone
from modelyard.store import Store
from modelyard.training.order import Proving
from modelyard.training.trial import Enough, try_training

_SECONDS, _LONGEST = 4.0, 20.0
"""How long steps are looked at; longer where they are so slow that fewer than _FEWEST were seen."""
_FEWEST = 6
_WINDOW = 0.4
"""Seconds; shorter ones are put together, since a checkpoint or a stall falls into few of many."""


class Rehearsed(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, by the clock, with all workers at work."""

    start: float
    """From the order to the first step: processes, the model, and what ``"auto"`` measures."""
    steps: tuple[float, ...]
    """What a step took, in each of the windows that were looked at; saving and data are in it."""
    evaluation: float | None = None
    """Of the validation split; None where it did not come so far."""

    @property
    def step(self) -> float:
        return statistics.median(self.steps)


def rehearse(
    project: Project, dataset: Dataset, store: Store, *, seconds: float = _SECONDS
) -> Rehearsed:
    """Begin the training of ``project`` and leave it after ``seconds`` of steps.

    Raises the YardError that would have ended the training, which is a reason to rehearse.
    """
    watch = _Watch(seconds)
    try_training(project, dataset, store, watch, proving=Proving(watched=False))
    return watch.seen()


class _Watch:
    """An observer of the events."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ordered = time.time()
        self._started: float | None = None
        self._last: tuple[float, int] | None = None
        self._windows: list[tuple[int, float]] = []
        self._evaluations: list[float] = []
        self._between = 0.0
        """Seconds since the last event of a step that went into evaluations."""

    def __call__(self, event: AnyEvent) -> None:
        if isinstance(event, RunStarted) and self._started is None:
            self._started, self._last = event.time, (event.time, event.step)
        elif isinstance(event, Evaluated) and self._last is not None:
            took = event.time - self._last[0] - self._between
            self._evaluations.append(took)
            self._between += took
        elif isinstance(event, StepDone) and self._last is not None and self._started is not None:
            before, step = self._last
            if event.step > step:
                took = event.time - before - self._between
                self._windows.append((event.step - step, took))
            self._last, self._between = (event.time, event.step), 0.0
            looked = event.time - self._started - sum(self._evaluations)
            enough = looked >= self._seconds and len(self._windows) >= _FEWEST
            if enough or looked >= _LONGEST:
                raise Enough

    def seen(self) -> Rehearsed:
        windows = self._windows
        # The first steps warm up: kernels, memory, and the choice of how batches are made.
        windows = windows[len(windows) // 4 :]
        return Rehearsed(
            start=(self._started or time.time()) - self._ordered,
            steps=tuple(took / count for count, took in together(windows)),
            evaluation=statistics.median(self._evaluations) if self._evaluations else None,
        )


def together(windows: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Neighbours added up to at least ``_WINDOW`` seconds; what is left at the end goes to the last."""
    found: list[tuple[int, float]] = []
    count, took = 0, 0.0
    for more, seconds in windows:
        count, took = count + more, took + seconds
        if took >= _WINDOW:
            found.append((count, took))
            count, took = 0, 0.0
    if not count:
        return found
    if not found:
        return [(count, took)]
    before = found.pop()
    return [*found, (before[0] + count, before[1] + took)]
