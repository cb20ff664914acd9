"""Training as its caller sees it: from a project and a dataset to a complete run.

::

    the run of these inputs is complete, for the budget of today? return it
    claim the run; write run.json (running) and order.json
    repeat:  submit the workers, pass their events on until they have ended
             decide:  done        -> run.json (complete)
                      restart     -> again, from the last checkpoint
                      give up     -> run.json (failed), raise the worker's error
                      interrupted -> run.json (interrupted), raise TrainingInterrupted

The parent holds no state that matters: killed at any point, the same command goes on from the last
checkpoint. It imports no framework.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from modelyard.backends import BUILT_IN_MODELS
from modelyard.data.augment import augment_mistakes
from modelyard.data.dataset import asked
from modelyard.spec.cores import available_cores
from modelyard.spec.errors import (
    DataError,
    Mistake,
    ProjectError,
    StoreError,
    UnknownMetric,
    from_os_error,
)
from modelyard.spec.project import Project
from modelyard.spec.records import AnyEvent, Dataset, Proof, Run
from modelyard.spec.start_weights import StartWeights
from modelyard.spec.training import TrainSection
from modelyard.store import Store
from modelyard.store.files import write_atomic
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of
from modelyard.training import budget, checkpoints, memory
from modelyard.training.attempts import Attempts
from modelyard.training.claim import claim_run, wait_for_old_workers
from modelyard.training.crew import crew_of
from modelyard.training.inputs import code_of
from modelyard.training.inputs import inputs_of as inputs_of
from modelyard.training.inputs import run_id as run_id
from modelyard.training.order import (
    ORDER,
    PROOF,
    RESULT,
    RUN,
    Proving,
    Result,
    WorkOrder,
    timestamp,
)
from modelyard.training.own_metrics import check_size
from modelyard.training.schedules import total_steps
from modelyard.training.start_weights import find_start
from modelyard.training.surroundings import command, keep, machine, versions
from modelyard.training.tracking import send_rest, tracked

Observer = Callable[[AnyEvent], None]


def train(
    project: Project,
    dataset: Dataset,
    store: Store,
    *,
    observers: Sequence[Observer] = (),
    poll_seconds: float = 0.1,
    proving: Proving | None = None,
) -> Run:
    """Train ``project`` on ``dataset``, or return the complete run of the same inputs.

    A run that a budget ended goes on where today's budgets allow more.
    ``observers`` are called in this thread with every event. Raises UsageError where another
    command trains the same run, TrainingInterrupted after Ctrl-C or SIGTERM (the same call goes on
    from the last checkpoint), and whatever YardError ended a worker. ``proving`` is for a proof.
    """
    dataset = asked(project, dataset)
    _check(project, dataset)
    inputs = inputs_of(project, dataset, code_of(project))
    identifier = run_id(inputs)
    folder = store.run_folder(identifier)
    if (complete := complete_run(store, identifier, project.train)) is not None:
        send_rest(project, folder)
        return complete
    with claim_run(folder), _signals_as_interrupts():
        # Another command may have finished it since.
        if (complete := complete_run(store, identifier, project.train)) is not None:
            return complete
        wait_for_old_workers(folder)
        order = _order(project, dataset, folder, find_start(project))
        run = _begin(project, dataset, store, order, inputs)
        key = memory.model_key(order, inputs["code"])
        known = memory.recall(store.root, key)
        order = replace(order, spent=run.spent, memory=known, memory_key=key, proving=proving)
        try:
            _set_aside_result(folder, project.train)
            write_atomic(folder / ORDER, order.to_json())
        except OSError as error:
            raise from_os_error(error) from error
        attempts = Attempts(order, run, store, engine=project.train.engine, observers=observers)
        with contextlib.nullcontext() if proving else tracked(project, folder):
            return attempts.run_to_end(poll_seconds)


def complete_run(store: Store, identifier: str, section: TrainSection | None = None) -> Run | None:
    """The run of that id if it is complete and its best checkpoint is still there.

    With ``section``, one that a budget ended counts only if today's budgets would have ended it too.
    """
    run, folder = _record(store, identifier), store.run_folder(identifier)
    if run is None or run.state != "complete" or run.best is None:
        return None
    if section is not None and budget.goes_on(section, run.reason, run.step, run.spent):
        return None
    # The record holds paths; the store may have been moved since.
    best = replace(run.best, folder=str(checkpoints.folder_of(folder, run.best.step)))
    return replace(run, folder=str(folder), best=best) if Path(best.folder).is_dir() else None


def _set_aside_result(folder: Path, section: TrainSection) -> None:
    """Delete the result of a smaller budget: it would be taken for that of the whole training."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        result = Result.from_json((folder / RESULT).read_bytes())
        if budget.goes_on(section, result.reason, result.step, result.spent):
            (folder / RESULT).unlink()


def _record(store: Store, identifier: str) -> Run | None:
    """A damaged record counts as none: the checkpoints beside it are what matters."""
    with contextlib.suppress(StoreError):
        return store.read_or_none(store.run_folder(identifier) / RUN, Run)
    return None


def _check(project: Project, dataset: Dataset) -> None:
    """Refuse before any process is started what no worker could do."""
    section, mistakes = project.train, []
    if section.most_workers > section.batch_size:
        mistakes.append(
            Mistake(
                where="train.workers",
                problem=f"{section.most_workers} workers cannot share a batch of {section.batch_size}",
                expected=f"at most {section.batch_size}, so that each has a sample",
                source="yard.toml",
            )
        )
    try:
        open_task(dataset.task).higher_is_better(section.metric)
    except UnknownMetric as error:
        known = f"one of {', '.join(error.known)}"
        mistakes.append(
            Mistake("train.metric", error.problem, known, error.suggestion, "yard.toml")
        )
    classes = bool(dataset.task.classes)
    mistakes += augment_mistakes(section.augment, dataset.input, classes=classes)
    if mistakes:
        raise ProjectError(mistakes, "change yard.toml, or override it on the command line")
    if dataset.task.metrics:
        output_size = open_task(dataset.task).output_size
        check_size(max(dataset.splits[n] for n in ("validation", "test")), output_size)
    if not dataset.splits.get("train"):
        raise DataError(
            "the training split is empty", "lower data.split.validation and data.split.test"
        )


def _order(
    project: Project, dataset: Dataset, folder: Path, start: StartWeights | None
) -> WorkOrder:
    section = project.train
    return WorkOrder(
        run=folder.name,
        root=str(project.root.resolve()),
        build=project.model.full_name,
        args=project.model.args,
        train=section.model_dump(mode="json"),
        dataset=dataset,
        signature=signature_of(dataset.input, dataset.task),
        task=dataset.task,
        backend=BUILT_IN_MODELS.get(project.model.full_name, ""),
        steps=total_steps(section.epochs, dataset.splits["train"], section.batch_size),
        folder=str(folder),
        seed=section.seed,
        threads=max(1, available_cores() // crew_of(section).size),
        start=start,
    )


def _begin(
    project: Project, dataset: Dataset, store: Store, order: WorkOrder, inputs: dict[str, str]
) -> Run:
    """The run's record in state ``running``; one that was begun before keeps its past."""
    folder = Path(order.folder)
    before = _record(store, folder.name)
    run = before or Run(
        id=folder.name,
        project=project.name,
        state="running",
        created=timestamp(),
        folder=order.folder,
        dataset=dataset.id,
        inputs=inputs,
        backend=order.backend,
        engine=project.train.engine,
    )
    newest, _ = checkpoints.latest(folder)
    run = replace(
        run,
        state="running",
        finished=None,
        error="",
        folder=order.folder,
        engine=project.train.engine,
        world_size=crew_of(project.train).size,
        proofs=_proofs(store, folder),
        seed=project.train.seed,
        machine=machine(),
        versions=versions(),
        command=command(),
        code=keep(folder, project),
        step=newest.step if newest else 0,
        steps=order.steps,
    )
    store.write(folder / RUN, run)
    return run


def _proofs(store: Store, folder: Path) -> tuple[Proof, ...]:
    """What was proven before there was a record."""
    with contextlib.suppress(StoreError):
        if proof := store.read_or_none(folder / PROOF, Proof):
            return (proof,)
    return ()


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """SIGTERM counts as Ctrl-C, so that `kill` and a container's stop take a checkpoint as well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
