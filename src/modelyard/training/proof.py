"""Proof that a resume is exact: train a few steps unbroken, and again with a SIGKILL in the middle, and compare.

Everything happens in a scratch folder inside the store, which is removed; only the proof is kept, beside
the run of the same inputs and on its record.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from numpy.typing import NDArray

from modelyard.backends.source import code_digest
from modelyard.data.cursor import Cursor
from modelyard.spec.errors import TrainingError, UsageError
from modelyard.spec.project import Project
from modelyard.spec.records import AnyEvent, Dataset, Proof, Run, RunStarted
from modelyard.store import Store, open_store
from modelyard.store.events import read_events
from modelyard.training import checkpoints
from modelyard.training.inputs import inputs_of, run_id
from modelyard.training.order import EVENTS, PROOF, RUN, timestamp
from modelyard.training.reproduce import compare_weights
from modelyard.training.train import train

Observer = Callable[[AnyEvent], None]
FEWEST_STEPS = 8
"""So that there is a checkpoint before the middle and something to train after it."""


def verify_resume(
    project: Project,
    dataset: Dataset,
    store: Store,
    *,
    steps: int = 20,
    observers: Sequence[Observer] = (),
) -> Proof:
    """Compare ``steps`` steps unbroken with the same steps after a SIGKILL and a resume.

    At the project's number of workers all weights and the optimizer's state must be bit-equal on a
    CPU. From the same checkpoint it is also gone on with another number of workers: each global
    batch must be the same; how far the loss is apart is measured and does not decide, since
    dropout draws other numbers there (a model without it comes out equal but for rounding). Raises UsageError for too few steps, and
    whatever ended a worker.
    """
    if steps < FEWEST_STEPS:
        raise UsageError(
            f"{steps} steps are too few to break off in the middle", f"use --steps {FEWEST_STEPS}"
        )
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=".proof-", dir=store.root))
    try:
        limited = _limited(project, steps)
        whole = _trained(limited, dataset, scratch / "whole", observers)
        broken = _trained(limited, dataset, scratch / "broken", observers, dies_at=steps // 2)
        compared = compare_weights(_state(whole), _state(broken))
        starts = _starts(broken)
        if broken.restarts < 1 or not 0 < starts[-1] < whole.step:
            raise TrainingError(f"the proof proves nothing: its run began at the steps {starts}")
        other = _other_size(project)
        elsewhere = _resumed_elsewhere(
            limited, dataset, scratch / "other", broken, other, observers
        )
        on_cpu = all(worker.device == "cpu" for worker in broken.workers)
        same_order = _same_order(limited, dataset, whole.step, (whole.world_size, other))
        gap = _loss_gap(whole, elsewhere)
        same = compared.same or (not on_cpu and compared.largest_difference < 1e-3)
        proof = Proof(
            created=timestamp(),
            holds=same and same_order,
            steps=whole.step,
            workers=whole.world_size,
            device=broken.workers[0].device,
            killed_at=steps // 2,
            resumed_at=starts[-1],
            tensors=compared.tensors,
            different=compared.different,
            largest_difference=compared.largest_difference,
            other_workers=other,
            same_order=same_order,
            loss_gap=gap,
            seconds=time.monotonic() - began,
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _stamp(project, dataset, store, proof)
    return proof


def _limited(project: Project, steps: int) -> Project:
    """The same training as far as ``steps``, with checkpoints as often as can be."""
    fields = {
        "max_steps": steps,
        "workers": project.train.most_workers,
        "max_time": None,
        "max_cost": None,
        "checkpoint_seconds": 0.001,
        "keep": 1000,
        "max_restarts": 1,
        "profile": False,
    }
    known = {key: value for key, value in fields.items() if key in type(project.train).model_fields}
    return project.model_copy(update={"train": project.train.model_copy(update=known)})


def _trained(
    project: Project,
    dataset: Dataset,
    folder: Path,
    observers: Sequence[Observer],
    dies_at: int | None = None,
) -> Run:
    return train(project, dataset, open_store(folder), observers=observers, dies_at=dies_at)


def _state(run: Run) -> dict[str, NDArray[Any]]:
    """Weights and optimizer state after the last step."""
    folder = checkpoints.folder_of(Path(run.folder), run.step)
    return dict(checkpoints.load(checkpoints.verified(folder))[0].tensors)


def _starts(run: Run) -> list[int]:
    events = read_events(Path(run.folder) / EVENTS)
    return [event.step for event in events if isinstance(event, RunStarted)]


def _other_size(project: Project) -> int:
    """Another number of workers: one instead of many, two instead of one; 0 where there is none."""
    if project.train.most_workers > 1:
        return 1
    return 2 if project.train.batch_size > 1 else 0


def _resumed_elsewhere(
    project: Project,
    dataset: Dataset,
    folder: Path,
    broken: Run,
    workers: int,
    observers: Sequence[Observer],
) -> Run | None:
    """Go on with another number of workers from the checkpoint that the broken run resumed from."""
    if not workers:
        return None
    section = project.train.model_copy(update={"workers": workers})
    other = project.model_copy(update={"train": section})
    store = open_store(folder)
    name = run_id(inputs_of(other, dataset, code_digest(other.root, other.model.build)))
    step = _starts(broken)[-1]
    source = checkpoints.folder_of(Path(broken.folder), step)
    shutil.copytree(source, checkpoints.folder_of(store.run_folder(name), step))
    run = train(other, dataset, store, observers=observers)
    if _starts(run) != [step]:
        raise TrainingError(f"{workers} workers began at the steps {_starts(run)}, not at {step}")
    return run


def _same_order(project: Project, dataset: Dataset, steps: int, sizes: Sequence[int]) -> bool:
    """Whether each step's shares make the same global batch, whatever the number of workers."""
    cursor = Cursor(dataset.splits["train"], project.train.batch_size, project.train.seed)
    for step in range(steps):
        batches = {
            tuple(
                sorted(p for rank in range(size) for p in cursor.share(step, rank, size).tolist())
            )
            for size in sizes
            if size
        }
        if len(batches) != 1:
            return False
    return True


def _loss_gap(whole: Run, elsewhere: Run | None) -> float:
    """Largest difference of a loss on validation or test, relative above 1."""
    if elsewhere is None:
        return 0.0
    return max(
        (
            abs(value - elsewhere.metrics[name]) / max(1.0, abs(value))
            for name, value in whole.metrics.items()
            if name.endswith("/loss")
        ),
        default=0.0,
    )


def _stamp(project: Project, dataset: Dataset, store: Store, proof: Proof) -> None:
    """Beside the run, where a training that is yet to come finds it, and on the record that is there."""
    inputs = inputs_of(project, dataset, code_digest(project.root, project.model.build))
    folder = store.run_folder(run_id(inputs))
    store.write(folder / PROOF, proof)
    run = store.read_or_none(folder / RUN, Run)
    if run is not None:
        store.write(folder / RUN, replace(run, proofs=(proof,)))
