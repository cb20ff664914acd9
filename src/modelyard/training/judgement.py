"""What an evaluation changes: the best checkpoint, the patience of early stopping, a plateau's learning rate.

All that it must remember lies in ``Progress``, and so in every checkpoint: a resumed training stops, or
reduces its rate, at the same evaluation as the unbroken one.
"""

import math

from msgspec.structs import replace

from modelyard.spec.training import TrainSection
from modelyard.tasks.base import Task
from modelyard.training.checkpoints import Progress, ranked


def judged(
    section: TrainSection, task: Task, progress: Progress, metrics: dict[str, float]
) -> Progress:
    """``progress`` after an evaluation: a new best one, or less patience left; early stopping and plateau."""
    value, old = metrics[section.metric], progress.best_value
    gain = math.inf
    if old is not None:
        gain = value - old if task.higher_is_better(section.metric) else old - value
    stopping = section.early_stopping
    stale = 0 if gain > (stopping.min_delta if stopping else 0.0) else progress.stale + 1
    higher = task.higher_is_better(section.metric)
    progress = ranked(progress, value, keep=section.keep_best, higher_is_better=higher)
    progress = after_plateau(section, progress, value, higher_is_better=higher)
    return replace(
        progress,
        metrics=metrics,
        stale=stale,
        stopped=stopping is not None and stale >= stopping.patience,
    )


def after_plateau(
    section: TrainSection, progress: Progress, value: float, *, higher_is_better: bool
) -> Progress:
    """``progress`` after ``value`` of ``train.metric`` was measured.

    As Keras' ReduceLROnPlateau: after ``patience`` evaluations in a row without an improvement of
    more than ``min_delta`` there is one more reduction, and the count begins anew.
    """
    schedule = section.schedule
    if schedule.name != "plateau":
        return progress
    best = progress.plateau_best
    gain = 0.0 if best is None else (value - best if higher_is_better else best - value)
    if best is None or gain > schedule.said("min_delta"):
        return replace(progress, plateau_best=value, plateau_stale=0)
    stale = progress.plateau_stale + 1
    if stale < schedule.said("patience"):
        return replace(progress, plateau_stale=stale)
    return replace(progress, plateau_stale=0, reductions=progress.reductions + 1)
