"""One short stretch of a training under the framework's profiler, with ``train.profile = true``."""

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path

from modelyard.backends.base import Backend
from modelyard.spec.work import World

FOLDER = "profile"
ENDING = ".pt.trace.json"
"""TensorBoard's plugin for profiles knows traces by it; Perfetto and Chrome open them as they are."""
_WINDOW = 3
_MOST_STEPS = 10


class Tracer:
    """Traces worker 0's third window of an attempt, when all is warm; at most ten steps of it."""

    def __init__(self, backend: Backend, folder: Path, world: World, *, wanted: bool) -> None:
        self._backend = backend
        self._path = folder / FOLDER / f"attempt-{world.attempt}.rank-{world.rank}{ENDING}"
        self._wanted = wanted and world.rank == 0
        self._limits = wanted
        self._windows = 0

    def limited(self, start: int, end: int) -> int:
        """Where the window that begins now ends: the same on all workers, whoever traces."""
        self._windows += 1
        due = self._limits and self._windows == _WINDOW
        return min(end, start + _MOST_STEPS) if due else end

    def window(self) -> AbstractContextManager[None]:
        """Around the steps of the window that ``limited`` has begun."""
        if self._wanted and self._windows == _WINDOW:
            return self._backend.profile(self._path)
        return contextlib.nullcontext()
