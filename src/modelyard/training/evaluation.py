"""Evaluating a split: each worker takes its contiguous share, the statistics are added up."""

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import Backend, State
from modelyard.data.dataset import Split
from modelyard.spec.work import World
from modelyard.tasks.base import Task
from modelyard.training.own_metrics import Metrics, measure_own


def _nothing() -> None:
    """Nobody wants to know."""


def evaluate(
    backend: Backend,
    state: State,
    task: Task,
    split: Split,
    world: World,
    *,
    before_batch: Callable[[], None] = _nothing,
    own: Metrics = MappingProxyType({}),
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Summed statistics of the whole split and the user's ``own`` metrics, the same on every worker.

    Every worker must call it. All make the same number of calls, since one may be an exchange: of
    sharded weights. A worker that has no sample left repeats one and does not count it.
    """
    start, end = share(len(split), world.rank, world.size)
    most = backend.evaluation_batch
    nothing = task.statistics(np.zeros((0, task.output_size), np.float32), split.targets[:0])
    total, kept = np.zeros_like(nothing), list[NDArray[np.float32]]()
    for first in range(start, start + -(-len(split) // world.size), most):
        before_batch()
        positions = np.arange(first, min(first + most, end))
        inputs, targets = split.stored(positions if len(positions) else np.zeros(1, np.int64))
        outputs = backend.evaluate(state, inputs)
        if len(positions):
            total += task.statistics(outputs, targets)
            if own:
                kept.append(outputs)
    total = backend.reduce(total)
    if not own or not np.isfinite(total).all():
        return total, {}
    before_batch()
    return total, measure_own(backend, own, split, kept, start, task.output_size, world)


def share(samples: int, rank: int, size: int) -> tuple[int, int]:
    """First and one past the last sample of worker ``rank``; lengths differ by at most one."""
    return samples * rank // size, samples * (rank + 1) // size
