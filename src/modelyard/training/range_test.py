"""The learning-rate range test, as a worker does it: one step with each rate, from small to large, until the loss flies off.

Smith, *Cyclical Learning Rates for Training Neural Networks* (WACV 2017), with rates that grow exponentially
and a smoothed loss, as fast.ai does it (Gugger, *How do you find a good learning rate*, 2018).
"""

import math
from collections.abc import Sequence

import numpy as np

from modelyard.backends.base import Batch, State, StepSettings
from modelyard.data.feed import BatchMaker, Feed
from modelyard.spec.records import RunFinished, StepDone
from modelyard.store.events import now
from modelyard.training.heartbeat import COMPUTE, DATA
from modelyard.training.loop import Course
from modelyard.training.schedules import step_seed

RANGE_TEST = "range test"
"""State of the event that ends it."""
SMOOTHING = 0.9
"""Share of the past in the smoothed loss; fast.ai's 0.98 lags by half of a hundred steps."""
_FLOWN_OFF = 4.0
_FEWEST = 10


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential moving average, corrected for its beginning with nothing, as Adam's are."""
    found, average = [], 0.0
    for count, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.append(average / (1 - SMOOTHING**count))
    return found


def has_flown_off(losses: Sequence[float]) -> bool:
    """The last loss is no finite number, or the smoothed one four times the lowest that there was."""
    if not math.isfinite(losses[-1]):
        return True
    smooth = smoothed(losses)
    return len(losses) >= _FEWEST and smooth[-1] > _FLOWN_OFF * min(smooth)


def try_rates(course: Course, state: State, rates: Sequence[float]) -> None:
    """Each step's loss is an event (of worker 0); the last event is a RunFinished. Every worker must call it."""
    section, world = course.section, course.world
    maker = BatchMaker(
        course.train, course.cursor, rank=world.rank, size=world.size, augment=section.augment
    )
    losses: list[float] = []
    course.heart.begin(0)
    with Feed(maker) as feed:
        for step, rate in enumerate(rates):
            course.heart.arm()
            course.heart.mark(DATA, step)
            made = feed.take(step)
            course.heart.mark(COMPUTE, step)
            batch = Batch(
                inputs=made.inputs,
                targets=made.targets,
                global_size=course.cursor.batch_size,
                other_targets=made.other_targets,
                weight=made.weight,
            )
            settings = StepSettings(
                learning_rate=rate,
                seed=step_seed(section.seed, step, world.rank),
                clip_norm=section.clip_norm,
                clip_value=section.clip_value,
            )
            state, result = course.backend.step(state, batch, settings)
            losses.append(float(course.backend.reduce(np.array([float(result.loss)]))[0]))
            if math.isfinite(losses[-1]):
                _tell(course, step, rate, losses[-1])
            if has_flown_off(losses) or course.asked_to_stop():
                break
    if world.rank == 0:
        course.emit(RunFinished(time=now(), state=RANGE_TEST, step=len(losses), seconds=0.0))


def _tell(course: Course, step: int, rate: float, loss: float) -> None:
    if course.world.rank == 0:
        course.emit(
            StepDone(
                time=now(),
                step=step + 1,
                epoch=course.cursor.epoch(step + 1),
                loss=loss,
                learning_rate=rate,
                samples_per_second=0.0,
                eta_seconds=0.0,
            )
        )
