"""The training loop: the one place that knows epochs, evaluation, saving and stopping.

Where each thing happens::

    while step < steps:
        batch = my share of global batch `step`               data.Feed: cursor, split, augmentation
        state, result = backend.step(state, batch, …)         learning rate and seed by `step`
        step += 1
        if a meeting is due:                                  about 4 a second, and before all that follows
            window = meetings.hold()                          one small reduce over all workers
            -> StepDone                                       worker 0
            loss or gradient not finite?                      guard: back to the last checkpoint, and on
                                                              without that batch
            if an evaluation is due:                          every `evaluate_every` epochs, and at the end
                metrics = evaluate(validation)                each worker its share, then one reduce
                -> Evaluated
                better than the best?  patience left?
            if evaluated, or worker 0's clock says so, or someone is asked to stop:
                writer.save()                                 a copy; a thread of each worker writes it
                -> CheckpointSaved                            worker 0, when it is there
            stop, if asked to, out of patience, or out of budget (then with a look at the validation
            split that chooses the result, but leaves no trace in the checkpoint)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from modelyard.backends.base import Backend, Batch, State, StepSettings
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.data.feed import BatchMaker, Feed
from modelyard.spec.records import AnyEvent, CheckpointSaved, Evaluated, Noticed, StepDone
from modelyard.spec.signature import TextInput
from modelyard.spec.training import TrainSection
from modelyard.spec.work import World
from modelyard.store.events import now
from modelyard.tasks.base import Task
from modelyard.training import gauge
from modelyard.training.budget import ENDINGS, Purse
from modelyard.training.checkpoints import Progress
from modelyard.training.clock import Clock
from modelyard.training.evaluation import evaluate
from modelyard.training.gauge import Gauge
from modelyard.training.guard import Broken, Guard, Guarded
from modelyard.training.heartbeat import CHECKPOINT, COMPUTE, DATA, EVALUATE, START, Heart, NoHeart
from modelyard.training.histograms import Sampler
from modelyard.training.judgement import judged
from modelyard.training.meeting import Meetings, Window
from modelyard.training.own_metrics import Metrics
from modelyard.training.saving import Saved, Writer
from modelyard.training.schedules import is_multiple, learning_rate, next_multiple, step_seed
from modelyard.training.trace import Tracer


@dataclass(frozen=True)
class Course:
    """What stays the same from the first step to the last."""

    folder: Path
    """The run's folder."""
    section: TrainSection
    steps: int
    world: World
    backend: Backend
    task: Task
    cursor: Cursor
    train: Split
    validation: Split
    emit: Callable[[AnyEvent], None]
    asked_to_stop: Callable[[], bool]
    purse: Purse = field(default_factory=Purse)
    sampler: Sampler | None = None
    """Worker 0's."""
    heart: Heart = field(default_factory=NoHeart)
    begin: Callable[[], State] | None = None
    """Makes the state from which training began, once more."""
    own_metrics: Metrics = field(default_factory=dict)
    """The user's."""

    @property
    def steps_per_epoch(self) -> float:
        return self.cursor.samples / self.cursor.batch_size


@dataclass(frozen=True)
class Ending:
    """How the loop ended."""

    state: State
    progress: Progress
    reason: str
    """``all epochs``, ``early stopping``, ``interrupted``, or the budget that ended it."""


def run_loop(course: Course, state: State, progress: Progress) -> Ending:
    """Train from ``progress.step`` on; all workers end after the same step.

    Raises TrainingError where the loss or a weight is no longer a finite number and the guard gives up.
    """
    maker = BatchMaker(
        course.train,
        course.cursor,
        rank=course.world.rank,
        size=course.world.size,
        augment=course.section.augment,
    )
    tracer = Tracer(course.backend, course.folder, course.world, wanted=course.section.profile)
    guard, told = _guard(course), _told(course)
    with Feed(maker, start=progress.step) as feed:
        while True:
            course.heart.begin(progress.step)
            with Writer(
                course.folder, course.world, keep=course.section.keep, saved=told
            ) as writer:
                try:
                    ending = _run(course, state, progress, writer, feed, guard, tracer)
                    guard.settle(writer, ending.progress)
                    return ending
                except Broken as broken:
                    course.heart.again(START)
                    found = broken.with_traceback(None)  # it would hold on to the state
                state, progress = guard.back(found, writer, state)


def _run(
    course: Course,
    state: State,
    progress: Progress,
    writer: Writer,
    feed: Feed,
    guard: Guard,
    tracer: Tracer,
) -> Ending:
    overflows = course.backend.execution(state).precision == "float16"
    meetings = Meetings(course.backend, course.world.rank, overflows=overflows)
    clock = _clock(course, progress)
    meter = Gauge(course.backend.device_usage, lambda: feed.waited)
    ended = _spent_before(course, progress)
    while progress.step < course.steps and not progress.stopped and not ended:
        course.heart.arm()
        meeting = _next_meeting(course, progress.step, meetings.interval)
        meeting = guard.limited(progress.step, tracer.limited(progress.step, meeting))
        steps = _not_skipped(progress, meeting)
        evaluated = is_multiple(meeting, _evaluation_steps(course), course.steps)
        look = evaluated and course.sampler is not None and course.sampler.due()
        with tracer.window():
            state = _run_steps(course, feed, state, progress, steps, meetings, look=look)
        window = meetings.hold(
            stop=course.asked_to_stop(),
            checkpoint=clock.checkpoint_due(),
            ended=course.purse.ended_by(meeting),
            refused=writer.refused(),
            figures=meter.read(),
        )
        progress = clock.after(window, progress, meeting)
        guard.look(window, steps, progress)
        _report(course, clock, window, progress)
        if course.sampler is not None and meetings.samples is not None:
            for words in course.sampler.write(progress.step, meetings.samples):
                course.emit(Noticed(time=now(), attempt=course.world.attempt, message=words))
        if evaluated and len(course.validation):
            with clock.evaluation():
                progress = _judge(course, state, progress)
        unfinished = progress.step < course.steps and not progress.stopped
        ended = window.ended if unfinished else ""
        if evaluated or window.checkpoint or window.stop or ended:
            epoch = course.cursor.epoch(progress.step)
            course.heart.again(CHECKPOINT)
            clock.saved(writer.save(course.backend.view(state), progress, epoch=epoch))
        if window.stop and unfinished:
            return Ending(state, progress, "interrupted")
        meetings.begin_window()
        meter.restart()
    if ended:
        return Ending(state, _last_look(course, state, progress), ended)
    return Ending(state, progress, "early stopping" if progress.stopped else "all epochs")


def _clock(course: Course, progress: Progress) -> Clock:
    return Clock(
        progress,
        course.purse,
        steps=course.steps,
        batch_size=course.cursor.batch_size,
        evaluation_steps=_evaluation_steps(course),
        checkpoint_seconds=course.section.checkpoint_seconds,
    )


def _spent_before(course: Course, progress: Progress) -> str:
    """The budget that earlier attempts used up, as worker 0 knows; never before there is a checkpoint."""
    mine = course.purse.ended_by(progress.step) if progress.step else ""
    place = ENDINGS.index(mine) if course.world.rank == 0 else 0
    agreed: str = ENDINGS[round(float(course.backend.reduce(np.array([place], np.float64))[0]))]
    return agreed if progress.step < course.steps and not progress.stopped else ""


def _last_look(course: Course, state: State, progress: Progress) -> Progress:
    """Where a budget ends between two evaluations, this state may be the best: judge it too.

    The checkpoint is already written and knows nothing of it. With a larger budget training goes
    on as if it had never stopped, with the patience and the best of the unbroken run.
    """
    if is_multiple(progress.step, _evaluation_steps(course), course.steps):
        return progress
    return _judge(course, state, progress) if len(course.validation) else progress


def _guard(course: Course) -> Guard:
    return Guard(
        Guarded(
            folder=course.folder,
            section=course.section,
            steps=course.steps,
            world=course.world,
            backend=course.backend,
            cursor=course.cursor,
            train=course.train,
            emit=course.emit,
            begin=course.begin,
        )
    )


def _not_skipped(progress: Progress, end: int) -> Sequence[int]:
    """The steps from here to ``end - 1`` that are taken."""
    if not progress.skipped:
        return range(progress.step, end)
    return [step for step in range(progress.step, end) if step not in progress.skipped]


def _run_steps(
    course: Course,
    feed: Feed,
    state: State,
    progress: Progress,
    steps: Sequence[int],
    meetings: Meetings,
    *,
    look: bool,
) -> State:
    """These steps and nothing else: this is where the time goes."""
    batch_size = course.cursor.batch_size
    step_on, take, mark = course.backend.step, feed.take, course.heart.mark
    for step, settings in zip(steps, _settings(course, progress, steps, look=look), strict=True):
        mark(DATA, step)
        made = take(step)
        mark(COMPUTE, step)
        batch = Batch(
            inputs=made.inputs,
            targets=made.targets,
            global_size=batch_size,
            other_targets=made.other_targets,
            weight=made.weight,
        )
        state, result = step_on(state, batch, settings)
        meetings.add(result)
    return state


def _settings(
    course: Course, progress: Progress, steps: Sequence[int], *, look: bool
) -> list[StepSettings]:
    """All before the first step, as between two steps each call is a slow one."""
    section, rank = course.section, course.world.rank
    last = steps[-1] if steps else None
    return [
        StepSettings(
            learning_rate=_rate(course, progress, step),
            seed=step_seed(section.seed, step, rank),
            clip_norm=section.clip_norm,
            clip_value=section.clip_value,
            measure_norm=step == last,
            sample_values=look and step == last,
        )
        for step in steps
    ]


def _rate(course: Course, progress: Progress, step: int) -> float:
    return learning_rate(
        course.section,
        step,
        course.steps,
        steps_per_epoch=course.steps_per_epoch,
        reductions=progress.reductions,
    )


def _evaluation_steps(course: Course) -> float:
    return course.section.evaluate_every * course.steps_per_epoch


def _next_meeting(course: Course, step: int, interval: int) -> int:
    """At the latest at the next evaluation, at the end of the epoch and at that of the budget."""
    evaluation = next_multiple(step, _evaluation_steps(course), course.steps)
    epoch = next_multiple(step, course.steps_per_epoch, course.steps)
    return min(step + interval, evaluation, epoch, course.purse.last_step(course.steps))


def _report(course: Course, clock: Clock, window: Window, progress: Progress) -> None:
    if course.world.rank == 0 and window.steps:
        used, spec = gauge.usage(window.figures), course.train.spec
        rate = window.steps * course.cursor.batch_size / window.seconds
        course.emit(
            StepDone(
                time=now(),
                attempt=course.world.attempt,
                step=progress.step,
                epoch=course.cursor.epoch(progress.step),
                loss=window.loss,
                learning_rate=_rate(course, progress, progress.step - 1),
                samples_per_second=rate,
                tokens_per_second=rate * spec.length if isinstance(spec, TextInput) else None,
                eta_seconds=clock.eta(progress.step),
                gradient_norm=window.gradient_norm,
                data_wait=used.data_wait,
                memory=used.memory,
                device_memory=used.device_memory,
                cpu=used.cpu,
                device_use=used.device_use,
            )
        )


def _judge(course: Course, state: State, progress: Progress) -> Progress:
    """Evaluate, and compare with the best so far. Every worker comes to the same judgement."""
    statistics, own = evaluate(
        course.backend,
        state,
        course.task,
        course.validation,
        course.world,
        before_batch=partial(course.heart.again, EVALUATE),
        own=course.own_metrics,
    )
    if not np.isfinite(statistics).all():
        raise Broken("the validation loss", progress.step - 1, progress, batch=False)
    metrics = course.task.metrics(statistics) | own
    if course.world.rank == 0:
        course.emit(
            Evaluated(
                time=now(),
                attempt=course.world.attempt,
                step=progress.step,
                epoch=course.cursor.epoch(progress.step),
                split="validation",
                metrics=metrics,
            )
        )
    return judged(course.section, course.task, progress, metrics)


def _told(course: Course) -> Saved:
    """Says that a checkpoint is there, at the moment from which it is."""

    def tell(progress: Progress, seconds: float, blocked: float) -> None:
        course.emit(
            CheckpointSaved(
                time=now(),
                attempt=course.world.attempt,
                step=progress.step,
                best=progress.best_step == progress.step,
                seconds=seconds,
                blocked=blocked,
            )
        )

    return tell
