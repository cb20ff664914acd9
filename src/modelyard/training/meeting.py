"""Meetings: the few steps at which all workers exchange what each one knows.

Between two meetings a worker only steps: no clock decides anything, no loss is read, nothing is sent
but gradients. At a meeting one reduce of a handful of numbers says, to everyone alike, what the mean
loss was, whether someone was asked to stop, whether worker 0's clock wants a checkpoint or finds a
budget used up, and when to meet again: after about a quarter of a second by worker 0's measure. So a stop takes at most that
long, and workers never disagree.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from modelyard.backends.base import Backend, StepResult
from modelyard.training.budget import ENDINGS

SECONDS_BETWEEN = 0.25
_FASTEST_GROWTH = 4


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """What a meeting agreed on; the same on all workers, but for ``seconds``."""

    steps: int
    loss: float
    """Mean over the steps since the last meeting."""
    gradient_norm: float | None
    stop: bool
    checkpoint: bool
    ended: str = ""
    """The budget that worker 0 found used up."""
    figures: tuple[float, ...] = ()
    """The rows that the workers brought, added up."""
    seconds: float
    """Between the meetings, by this worker's clock."""
    broken_after: int | None = None
    """The first step of the window (from 0) whose loss is not a finite number."""
    bad_gradient: bool = False
    """The gradient of the last step is not one."""
    bad_weights: bool = False
    """Nor is a weight of the state that was last to be saved."""


class Meetings:
    """Collects results between meetings and holds them."""

    def __init__(self, backend: Backend, rank: int, *, overflows: bool = False) -> None:
        """``overflows``: gradients are scaled up until they overflow now and then, which is no fault."""
        self._backend = backend
        self._overflows = overflows
        self._rank = rank
        self._losses: list[Any] = []
        self._norm: Any = None
        self._began = time.perf_counter()
        self.samples: dict[str, Any] | None = None
        """Of weights and gradients at the last step, where they were asked for."""
        self.interval = 1
        """Steps until the next meeting, unless something else calls for one before."""

    def add(self, result: StepResult) -> None:
        self._losses.append(result.loss)
        self._norm = result.gradient_norm
        self.samples = result.samples

    def begin_window(self) -> None:
        """Leave out of the measure what was not stepping: an evaluation, a checkpoint."""
        self._began = time.perf_counter()
        self.samples = None

    def hold(
        self,
        *,
        stop: bool,
        checkpoint: bool,
        ended: str = "",
        refused: bool = False,
        figures: Sequence[float] = (),
    ) -> Window:
        """Every worker must call it after the same step, with as many ``figures``.

        ``refused``: this worker found a bad weight in what it was to save.
        """
        count = len(self._losses)
        local = [float(loss) for loss in self._losses]  # waits until the device is done
        seconds = time.perf_counter() - self._began
        mine = self._rank == 0
        norm = None if self._norm is None else float(self._norm)
        bad = norm is not None and not math.isfinite(norm) and not self._overflows
        loss, stops, checkpoints, ending, interval, gradients, weights, *sums = (
            self._backend.reduce(
                np.array(
                    [
                        sum(local),
                        stop,
                        mine and checkpoint,
                        mine * ENDINGS.index(ended),
                        mine * self._next(count, seconds),
                        bad,
                        refused,
                        *figures,
                    ],
                    dtype=np.float64,
                )
            )
        )
        broken = None if math.isfinite(loss) else self._first_broken(local)
        self._losses, self._norm, self.interval = [], None, int(interval)
        return Window(
            steps=count,
            loss=float(loss) / max(count, 1),
            gradient_norm=norm,
            stop=stops > 0,
            checkpoint=checkpoints > 0,
            ended=ENDINGS[round(float(ending))],
            figures=tuple(map(float, sums)),
            seconds=seconds,
            broken_after=broken,
            bad_gradient=gradients > 0,
            bad_weights=weights > 0,
        )

    def _next(self, count: int, seconds: float) -> int:
        ideal = int(SECONDS_BETWEEN * count / max(seconds, 1e-9))
        return max(1, min(ideal, _FASTEST_GROWTH * self.interval))

    def _first_broken(self, local: list[float]) -> int:
        # A sum can overflow where no single share did: the last step is named then.
        flags = self._backend.reduce(np.array([not math.isfinite(v) for v in local], np.float64))
        return int(np.argmax(flags > 0)) if flags.any() else len(local) - 1
