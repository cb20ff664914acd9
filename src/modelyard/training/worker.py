"""One training worker: ``python -m modelyard.training.worker RUN_FOLDER``, started by an engine.

It reads ``order.json`` and the environment (RANK, WORLD_SIZE, MODELYARD_RENDEZVOUS,
MODELYARD_ATTEMPT), joins the others, goes on from the newest whole checkpoint, runs the loop, and at
the end evaluates the best checkpoint; worker 0 writes ``result.json``. Exit codes: 0 done, 75 asked
to stop and stopped, 1 failed with the reason in ``failure-<rank>.json``, 74 failed with not even room
for that.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from modelyard.backends import open_backend, recognise
from modelyard.backends.base import Backend, State
from modelyard.backends.preload import backend_in_code
from modelyard.backends.source import own_loss, own_metrics
from modelyard.backends.start_weights import start_model
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import open_split
from modelyard.spec.errors import StoreError
from modelyard.spec.parent import end_with_parent
from modelyard.spec.records import AnyEvent, Checkpoint, Noticed, RunStarted, WorkerJoined
from modelyard.spec.start_weights import Started
from modelyard.spec.work import World
from modelyard.store.events import EventLog, now, read_events
from modelyard.store.files import write_atomic
from modelyard.tasks import open_task
from modelyard.tasks.own_loss import OwnLoss
from modelyard.training import budget, checkpoints
from modelyard.training.checkpoints import Progress
from modelyard.training.claim import hold_as_worker
from modelyard.training.evaluation import evaluate
from modelyard.training.execution import execution_for, keep_execution, read_execution
from modelyard.training.heartbeat import EVALUATE, FINISH, START, DoomedHeart, Heart
from modelyard.training.histograms import Sampler
from modelyard.training.last_words import leave_word
from modelyard.training.loop import Course, Ending, run_loop
from modelyard.training.optimizer import check_known, optimizer_settings
from modelyard.training.order import EVENTS, RESULT, Result, WorkOrder, attempt_folder, read_order
from modelyard.training.range_test import try_rates
from modelyard.training.recovery import INTERRUPTED_EXIT
from modelyard.training.signals import listen_for_signals
from modelyard.training.start_weights import keep_started
from modelyard.training.witness import taken_file, watched


def main(run_folder: str) -> int:
    """Run one worker to its end and return its exit code."""
    began = time.monotonic()
    folder, world = Path(run_folder), world_from_environment()
    asked_to_stop = listen_for_signals()
    end_with_parent()
    try:
        hold_as_worker(folder)
        return _work(read_order(folder), world, asked_to_stop, began)
    except Exception as error:  # noqa: BLE001  whatever it is, the parent must be told
        return leave_word(folder, world, error)


def world_from_environment() -> World:
    """This worker's place, as the engine wrote it into the environment."""
    return World(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        rendezvous=os.environ.get("MODELYARD_RENDEZVOUS", ""),
        attempt=int(os.environ.get("MODELYARD_ATTEMPT", "0")),
    )


def _work(order: WorkOrder, world: World, asked_to_stop: Callable[[], bool], began: float) -> int:
    with contextlib.ExitStack() as stack:
        heart = _heart(order, world)
        stack.callback(heart.close)
        # Where no backend is named and the code leaves it open, the model tells which one it is for.
        named = order.backend or backend_in_code(Path(order.root), order.build)
        backend = open_backend(named or recognise(order.fresh_model()))
        backend.before_exchange = heart.exchange
        device = stack.enter_context(
            backend.join(world, device=order.section.device, threads=order.threads)
        )
        log = EventLog(Path(order.folder) / EVENTS)
        stack.callback(log.close)
        log.append(
            WorkerJoined(
                time=now(),
                attempt=world.attempt,
                rank=world.rank,
                pid=os.getpid(),
                host=socket.gethostname(),
                device=device,
                start_seconds=time.monotonic() - began,
            )
        )
        check_known(backend, order.section)
        loss = own_loss(Path(order.root), order.task)
        model, started, still = _first_model(order, backend)
        backend = _watched(order, world, backend, heart, still=still)
        state = _begin(order, world, backend, model, loss)
        if world.rank == 0:
            _tell_execution(order, world, backend, state, log.append, started)
        course = _course(order, world, backend, log.append, asked_to_stop, began)
        if loss is not None:
            course.task.own_loss = loss.on(backend.differentiate)
        course = replace(
            course, heart=heart, begin=partial(_begun_anew, order, world, backend, loss)
        )
        if order.proving is not None and order.proving.rates:
            try_rates(course, state, order.proving.rates)
            return 0
        state, progress = _restored(course, state)
        ending = run_loop(course, state, progress)
        if ending.reason == "interrupted":
            return INTERRUPTED_EXIT
        _finish(order, course, ending)
    return 0


def _first_model(order: WorkOrder, backend: Backend) -> tuple[object, Started | None, bool]:
    """The model before its first step, what of it came from weights, and whether it is held still; the same each time."""
    backend.seed(order.seed)
    model, started = order.fresh_model(), None
    if order.start is not None:
        model, started = start_model(backend, model, order.signature, order.start)
    asked = order.proving is not None and order.proving.still
    return model, started, asked and backend.hold_still(model)


def _begin(
    order: WorkOrder, world: World, backend: Backend, model: object, loss: OwnLoss | None
) -> State:
    execution = execution_for(order, backend, world)
    optimizer = optimizer_settings(order.section, execution, order.start)
    return backend.begin(model, order.task, optimizer, order.signature, order.dataset.input, loss)


def _begun_anew(order: WorkOrder, world: World, backend: Backend, loss: OwnLoss | None) -> State:
    """The very state that training began with: the guard's way back where there is no checkpoint."""
    return _begin(order, world, backend, _first_model(order, backend)[0], loss)


def _watched(
    order: WorkOrder, world: World, backend: Backend, heart: Heart, *, still: bool
) -> Backend:
    """In a proof: with a witness, who knows whether the model is held still."""
    if order.proving is None or not order.proving.watched:
        return backend
    file = taken_file(Path(order.folder), world.attempt, world.rank)
    return watched(backend, file, lambda: heart.step, still=still, tries=order.proving.still)


def _heart(order: WorkOrder, world: World) -> Heart:
    folder = Path(order.folder)
    place, seconds = attempt_folder(folder, world.attempt), order.section.hang_seconds
    dies_at = order.proving.dies_at if order.proving else None
    if dies_at is None or world.attempt or world.rank != world.size - 1:
        return Heart(place, world.rank, seconds)

    def ready() -> bool:
        return checkpoints.latest(folder)[0] is not None

    return DoomedHeart(place, world.rank, seconds, dies_at=dies_at, ready=ready)


def _tell_execution(
    order: WorkOrder,
    world: World,
    backend: Backend,
    state: State,
    emit: Callable[[AnyEvent], None],
    started: Started | None,
) -> None:
    """Keep the choices for later attempts, and tell people once what they should know of them."""
    known = read_execution(Path(order.folder)) is not None
    keep_execution(Path(order.folder), backend, state)
    notes = backend.notes(state)
    if started is not None:
        keep_started(Path(order.folder), started)
        notes = (started.words, *notes)
    for message in () if known else notes:
        emit(Noticed(time=now(), attempt=world.attempt, message=message))


def _course(
    order: WorkOrder,
    world: World,
    backend: Backend,
    emit: Callable[[AnyEvent], None],
    asked_to_stop: Callable[[], bool],
    began: float,
) -> Course:
    train = open_split(order.dataset, "train", workers=world.size)
    return Course(
        folder=Path(order.folder),
        section=order.section,
        steps=order.steps,
        world=world,
        backend=backend,
        task=open_task(order.task),
        cursor=Cursor(len(train), order.section.batch_size, order.seed),
        train=train,
        validation=train.other(order.dataset, "validation"),
        emit=emit,
        asked_to_stop=asked_to_stop,
        purse=_purse(order, world, began),
        sampler=Sampler(Path(order.folder)) if world.rank == 0 else None,
        own_metrics=own_metrics(Path(order.root), order.task),
    )


def _purse(order: WorkOrder, world: World, began: float) -> budget.Purse:
    """Worker 0 adds up what earlier attempts took; the others are told what follows from it."""
    before = order.spent
    if world.rank == 0:
        events = read_events(Path(order.folder) / EVENTS)
        before = budget.larger(before, budget.spent_in(events, without=world.attempt))
    limits = budget.limits_of(order.section)
    return budget.Purse(limits=limits, before=before, workers=world.size, began=began)


def _restored(course: Course, state: State) -> tuple[State, Progress]:
    """The state of the newest whole checkpoint, the same one on every worker: worker 0 chooses."""
    chosen = -1
    if course.world.rank == 0:
        checkpoints.sweep(course.folder)
        newest, skipped = checkpoints.latest(course.folder)
        for message in skipped:
            course.emit(Noticed(time=now(), attempt=course.world.attempt, message=message))
        chosen = -1 if newest is None else newest.step
    chosen = _from_first(course, chosen)
    progress = Progress()
    if chosen >= 0:
        snapshot, progress = checkpoints.load(
            checkpoints.found(checkpoints.folder_of(course.folder, chosen))
        )
        state = course.backend.restore(state, snapshot)
        progress = _with_whole_best(course, progress)
    if course.world.rank == 0:
        course.emit(
            RunStarted(
                time=now(),
                attempt=course.world.attempt,
                steps=course.steps,
                steps_per_epoch=course.steps_per_epoch,
                world_size=course.world.size,
                step=progress.step,
            )
        )
    return state, progress


def _with_whole_best(course: Course, progress: Progress) -> Progress:
    """Forget the best checkpoints that were lost; the one at hand takes the place of the only one."""
    ranking, lost = checkpoints.ranking_of(progress), 0
    if course.world.rank == 0:
        while lost < len(ranking) and not _is_whole(course.folder, ranking[lost][0]):
            lost += 1
    if lost := _from_first(course, lost):
        value = progress.metrics.get(course.section.metric)
        at_hand = () if value is None else ((progress.step, value),)
        progress = checkpoints.with_ranking(progress, ranking[lost:] or at_hand)
    if course.world.rank == 0:
        checkpoints.name_best(course.folder, progress)
    return progress


def _is_whole(folder: Path, step: int) -> bool:
    try:
        return bool(checkpoints.verified(checkpoints.folder_of(folder, step)))
    except StoreError:
        return False


def _from_first(course: Course, number: int) -> int:
    """Worker 0's number, on every worker; it is also a place where all wait for all."""
    mine = number if course.world.rank == 0 else 0
    agreed = round(float(course.backend.reduce(np.array([mine], np.float64))[0]))
    course.heart.again(START)
    return agreed


def _finish(order: WorkOrder, course: Course, ending: Ending) -> None:
    """Evaluate the best checkpoint on validation and test, and publish the result."""
    if course.world.rank == 0 and ending.reason in budget.ENDINGS:
        checkpoints.name_best(course.folder, ending.progress)
    _from_first(course, 0)  # worker 0 may still be writing the last checkpoint
    course.heart.again(FINISH)
    best = _best(course.folder)
    snapshot, _ = checkpoints.load(best)
    state = course.backend.restore(ending.state, snapshot)
    metrics: dict[str, float] = {}
    confusion: tuple[tuple[int, ...], ...] = ()
    for name in ("validation", "test"):
        split = open_split(order.dataset, name)
        if len(split):
            statistics, own = evaluate(
                course.backend,
                state,
                course.task,
                split,
                course.world,
                before_batch=partial(course.heart.again, EVALUATE),
                own=course.own_metrics,
            )
            measured = course.task.metrics(statistics) | own
            metrics |= {f"{name}/{metric}": value for metric, value in measured.items()}
            confusion = course.task.confusion(statistics) if name == "test" else confusion
    if course.world.rank == 0:
        progress = ending.progress
        result = Result(
            best=best,
            metrics=metrics,
            confusion=confusion,
            backend=course.backend.name,
            step=progress.step,
            seconds=progress.seconds,
            samples_per_second=progress.samples / max(progress.step_seconds, 1e-9),
            reason=ending.reason,
            spent=course.purse.spent(),
        )
        write_atomic(course.folder / RESULT, result.to_json())


def _best(folder: Path) -> Checkpoint:
    found = checkpoints.best(folder) or checkpoints.latest(folder)[0]
    if found is None:
        raise StoreError(
            f"no whole checkpoint is left in {folder}", "run the command again; it trains anew"
        )
    return found


if __name__ == "__main__":
    code = main(sys.argv[1])
    with contextlib.suppress(OSError):  # its log may lie on a full disk, and the code says more
        sys.stdout.flush()
        sys.stderr.flush()
    # Everything is written and flushed. torch's network threads sometimes abort the interpreter's
    # own way out ("terminate called without an active exception"), so it is not taken.
    os._exit(code)
