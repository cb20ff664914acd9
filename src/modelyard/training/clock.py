"""One worker's times: of checkpoints, of stepping alone, of what the budget leaves, of what is to come."""

import contextlib
import time
from collections.abc import Iterator

from msgspec.structs import replace

from modelyard.training.budget import Purse
from modelyard.training.checkpoints import Progress
from modelyard.training.meeting import Window
from modelyard.training.pace import Pace


class Clock:
    """Begun with the attempt's first step. Only worker 0's decides anything."""

    def __init__(
        self,
        progress: Progress,
        purse: Purse,
        *,
        steps: int,
        batch_size: int,
        evaluation_steps: float,
        checkpoint_seconds: float,
    ) -> None:
        self._began = self._saved = time.perf_counter()
        self._before = progress.seconds
        self._purse = purse
        self._steps = purse.last_step(steps)
        self._batch_size = batch_size
        self._evaluation_steps = evaluation_steps
        self._checkpoint_seconds = checkpoint_seconds
        self._pace = Pace()

    def checkpoint_due(self) -> bool:
        return time.perf_counter() - self._saved >= self._checkpoint_seconds

    def saved(self, seconds: float) -> None:
        """A checkpoint held training up for ``seconds``."""
        self._saved = time.perf_counter()
        self._pace.waited(seconds)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._pace.evaluated(time.perf_counter() - began)

    def after(self, window: Window, progress: Progress, step: int) -> Progress:
        self._pace.stepped(window.steps, window.seconds)
        return replace(
            progress,
            step=step,
            seconds=self._before + time.perf_counter() - self._began,
            step_seconds=progress.step_seconds + window.seconds,
            samples=progress.samples + window.steps * self._batch_size,
        )

    def eta(self, step: int) -> float:
        """Seconds left: at the pace of this attempt so far, or until the budget ends it."""
        left = self._pace.left(step, self._steps, self._evaluation_steps)
        budget = self._purse.seconds_left()
        return left if budget is None else min(left, budget)
