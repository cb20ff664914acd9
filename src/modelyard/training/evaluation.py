"""Evaluating a split: each worker takes its contiguous share, the statistics are added up."""

import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import Backend, State
from modelyard.data.dataset import Split
from modelyard.spec.work import World
from modelyard.tasks.base import Task

LARGEST_BATCH = 256


def evaluate(
    backend: Backend, state: State, task: Task, split: Split, world: World
) -> NDArray[np.float64]:
    """Summed statistics of the whole split, the same on every worker. Every worker must call it."""
    start, end = share(len(split), world.rank, world.size)
    nothing = task.statistics(np.zeros((0, task.output_size), np.float32), split.targets[:0])
    total = np.zeros_like(nothing)
    for first in range(start, end, LARGEST_BATCH):
        inputs, targets = split.stored(np.arange(first, min(first + LARGEST_BATCH, end)))
        total += task.statistics(backend.evaluate(state, inputs), targets)
    return backend.reduce(total)


def share(samples: int, rank: int, size: int) -> tuple[int, int]:
    """First and one past the last sample of worker ``rank``; lengths differ by at most one."""
    return samples * rank // size, samples * (rank + 1) // size
