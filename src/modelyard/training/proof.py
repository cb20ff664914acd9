"""Proof that a resume is exact: train a few steps unbroken, and again with a SIGKILL in the middle, and compare.

What the steps were given is not computed again but written down by the workers as it happens
(``witness.py``). Everything happens in a scratch folder inside the store, which is removed; only the
proof is kept, beside the run of the same inputs and on its record.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from numpy.typing import NDArray

from modelyard.engines.forerunner import kept
from modelyard.spec.errors import TrainingError, UsageError
from modelyard.spec.project import Project
from modelyard.spec.records import AnyEvent, Dataset, Noticed, Proof, Run, RunStarted
from modelyard.store import Store, open_store
from modelyard.store.events import now, read_events
from modelyard.training import checkpoints
from modelyard.training.execution import EXECUTION
from modelyard.training.inputs import code_of, inputs_of, run_id
from modelyard.training.order import EVENTS, PROOF, RUN, Proving, timestamp
from modelyard.training.reproduce import compare_weights
from modelyard.training.train import train
from modelyard.training.witness import Taken, seen

Observer = Callable[[AnyEvent], None]
FEWEST_STEPS = 8
"""So that there is a checkpoint before the middle and something to train after it."""
_ALLOWED, _ALLOWED_LOW = 1e-3, 5e-2
"""What rounding may make of a loss within a few dozen steps: in float32, and in 16 bits."""
_SMALL_LOSS = 1e-2
"""Below it a difference is not taken relative to the loss: that of a model that is all right is nothing."""


_TOLD = {
    "whole": "1 of 4: the training unbroken",
    "broken": "2 of 4: the same, with a worker killed in the middle",
    "here": "3 of 4: from the checkpoint of 2, the model held still",
    "there": "4 of 4: the same with another number of workers",
}


class _Loss(msgspec.Struct, frozen=True, kw_only=True):
    """How the loss compares with another number of workers."""

    workers: int = 0
    same_order: bool = True
    gap: float = 0.0
    allowed: float = _ALLOWED
    decides: bool = True
    still: bool = False

    @property
    def fits(self) -> bool:
        return self.gap <= self.allowed or not self.decides


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
    CPU, and each step must have been given the same samples. From the same checkpoint it is also gone
    on with another number of workers: each global batch must be the same, and the loss of each step
    within rounding. For that the model is held still, so that nothing depends on which worker has
    which samples. Raises UsageError for too few steps, and whatever ended a worker.
    """
    if steps < FEWEST_STEPS:
        raise UsageError(
            f"{steps} steps are too few to break off in the middle", f"use --steps {FEWEST_STEPS}"
        )
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix=".proof-", dir=store.root))
    try:
        with kept(2):  # with other workers each may have another number of threads
            proof = _Rehearsals(_limited(project, steps), dataset, scratch, observers).proof(steps)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    proof = replace(proof, seconds=time.monotonic() - began)
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


class _Rehearsals:
    """The trainings that are compared, each in a store of its own below ``scratch``."""

    def __init__(
        self, project: Project, dataset: Dataset, scratch: Path, observers: Sequence[Observer]
    ) -> None:
        self._project, self._dataset = project, dataset
        self._scratch, self._observers = scratch, observers

    def proof(self, steps: int) -> Proof:
        whole = self._train("whole", Proving())
        broken = self._train("broken", Proving(dies_at=steps // 2), like=whole)
        starts = _starts(broken)
        if broken.restarts < 1 or not 0 < starts[-1] < whole.step:
            raise TrainingError(f"the proof proves nothing: its run began at the steps {starts}")
        compared = compare_weights(_state(whole), _state(broken))
        on_cpu = all(worker.device == "cpu" for worker in broken.workers)
        expected = _seen(whole)
        if expected.keys() != set(range(whole.step)):
            raise TrainingError(
                "the proof proves nothing: not every step of the unbroken run was seen"
            )
        loss = self._elsewhere(broken, expected)
        same_order = _same_order(expected, _seen(broken)) and loss.same_order
        same = compared.same or (not on_cpu and compared.largest_difference < 1e-3)
        return Proof(
            created=timestamp(),
            holds=same and same_order and loss.fits,
            steps=whole.step,
            workers=whole.world_size,
            device=broken.workers[0].device,
            killed_at=steps // 2,
            resumed_at=starts[-1],
            tensors=compared.tensors,
            different=compared.different,
            largest_difference=compared.largest_difference,
            other_workers=loss.workers,
            same_order=same_order,
            batches_seen=len(expected),
            loss_gap=loss.gap,
            loss_allowed=loss.allowed,
            loss_decides=loss.decides,
            held_still=loss.still,
        )

    def _elsewhere(self, broken: Run, expected: dict[int, Taken]) -> _Loss:
        """Go on from the checkpoint that the broken run resumed from, here and with other workers."""
        workers = _other_size(self._project)
        if not workers:
            return _Loss()
        still = Proving(still=True)
        here = _seen(self._train("here", still, like=broken, resumed=True))
        there = _seen(self._train("there", still, like=broken, resumed=True, workers=workers))
        rest = {step: taken for step, taken in expected.items() if step >= _starts(broken)[-1]}
        gap, held = (
            _gap(here, there),
            all(taken.still for taken in (*here.values(), *there.values())),
        )
        return _Loss(
            workers=workers,
            same_order=_same_order(rest, here) and _same_order(rest, there),
            gap=gap,
            allowed=_ALLOWED if broken.execution.get("precision") == "float32" else _ALLOWED_LOW,
            decides=held and not any(taken.draws for taken in (*here.values(), *there.values())),
            still=_gap(rest, here) > 0,
        )

    def _train(
        self,
        name: str,
        proving: Proving,
        *,
        like: Run | None = None,
        resumed: bool = False,
        workers: int | None = None,
    ) -> Run:
        """``like`` another run computes (what is measured may come out otherwise each time), or from where it resumed."""
        project, store = self._project, open_store(self._scratch / name)
        for observer in self._observers:
            observer(Noticed(time=now(), attempt=0, message=_TOLD[name]))
        if workers is not None:
            section = project.train.model_copy(update={"workers": workers})
            project = project.model_copy(update={"train": section})
        if like is not None:
            code = code_of(project)
            folder = store.run_folder(run_id(inputs_of(project, self._dataset, code)))
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(like.folder) / EXECUTION, folder / EXECUTION)
            if resumed:
                step = _starts(like)[-1]
                source = checkpoints.folder_of(Path(like.folder), step)
                shutil.copytree(source, checkpoints.folder_of(folder, step))
        run = train(project, self._dataset, store, observers=self._observers, proving=proving)
        if like is not None and resumed and _starts(run) != _starts(like)[-1:]:
            raise TrainingError(
                f"{run.world_size} workers began at the steps {_starts(run)}, not at {_starts(like)[-1]}"
            )
        return run


def _state(run: Run) -> dict[str, NDArray[Any]]:
    """Weights and optimizer state after the last step."""
    folder = checkpoints.folder_of(Path(run.folder), run.step)
    return dict(checkpoints.load(checkpoints.verified(folder))[0].tensors)


def _starts(run: Run) -> list[int]:
    events = read_events(Path(run.folder) / EVENTS)
    return [event.step for event in events if isinstance(event, RunStarted)]


def _seen(run: Run) -> dict[int, Taken]:
    return seen(Path(run.folder), read_events(Path(run.folder) / EVENTS))


def _other_size(project: Project) -> int:
    """Another number of workers: one instead of many, two instead of one; 0 where there is none."""
    if project.train.most_workers > 1:
        return 1
    return 2 if project.train.batch_size > 1 else 0


def _same_order(expected: dict[int, Taken], found: dict[int, Taken]) -> bool:
    """Whether every step was given the same samples, and none is missing or too many."""
    return {step: taken.samples for step, taken in expected.items()} == {
        step: taken.samples for step, taken in found.items()
    }


def _gap(first: dict[int, Taken], second: dict[int, Taken]) -> float:
    """Largest difference of a step's loss, relative but for very small ones."""
    return max(
        (
            abs(first[step].loss - second[step].loss) / max(_SMALL_LOSS, abs(first[step].loss))
            for step in first.keys() & second.keys()
        ),
        default=0.0,
    )


def _stamp(project: Project, dataset: Dataset, store: Store, proof: Proof) -> None:
    """Beside the run, where a training that is yet to come finds it, and on the record that is there."""
    inputs = inputs_of(project, dataset, code_of(project))
    folder = store.run_folder(run_id(inputs))
    store.write(folder / PROOF, proof)
    run = store.read_or_none(folder / RUN, Run)
    if run is not None:
        store.write(folder / RUN, replace(run, proofs=(proof,)))
