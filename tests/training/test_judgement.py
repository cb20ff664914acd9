"""The plateau's decisions are those of the frameworks, and survive a checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.spec.records import StepDone
from modelyard.spec.training import TrainSection
from modelyard.store.events import read_events
from modelyard.training import checkpoints
from modelyard.training.checkpoints import Progress
from modelyard.training.judgement import after_plateau
from modelyard.training.order import EVENTS
from modelyard.training.schedules import learning_rate
from modelyard.training.train import train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""


def section(**schedule: Any) -> TrainSection:
    whole = {"name": "plateau", "warmup": 0.0, **schedule}
    return TrainSection.model_validate({"optimizer": {"lr": 0.4}, "schedule": whole})


def walk(chosen: TrainSection, values: list[float], *, higher: bool = False) -> list[float]:
    """The rate after each evaluation; the state goes through JSON each time, as in a checkpoint."""
    progress, rates = Progress(), []
    for value in values:
        progress = after_plateau(chosen, progress, value, higher_is_better=higher)
        progress = Progress.from_json(progress.to_json())
        rates.append(learning_rate(chosen, 50, 100, reductions=progress.reductions))
    return rates


def test_by_hand() -> None:
    chosen = section(factor=0.5, patience=2)
    values = [1.0, 0.9, 0.95, 0.9, 0.9, 0.9, 0.8, 0.85]
    assert walk(chosen, values) == pytest.approx([0.4, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("higher", [False, True])
def test_as_torch_does(higher: bool) -> None:
    """Whose patience is one less: it counts the evaluations that are forgiven."""
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    values = (np.linspace(1, 0.5, 60) + generator.normal(0, 0.2, 60)).tolist()
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.4)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max" if higher else "min",
        factor=0.5,
        patience=3,
        threshold=0.05,
        threshold_mode="abs",
        min_lr=0.4 * 0.02,
        eps=0.0,
    )
    wanted = []
    for value in values:
        theirs.step(value)
        wanted.append(optimizer.param_groups[0]["lr"])
    chosen = section(factor=0.5, patience=4, min_delta=0.05, floor=0.02)
    assert walk(chosen, values, higher=higher) == pytest.approx(wanted)
    assert len(set(wanted)) > 3


def test_other_schedules_remember_nothing() -> None:
    chosen = TrainSection.model_validate({"schedule": {"name": "cosine"}})
    progress = Progress(step=7)
    assert after_plateau(chosen, progress, 0.3, higher_is_better=False) is progress


def test_a_checkpoint_of_before_has_none() -> None:
    old = Progress.from_json(b'{"step": 12, "stale": 1, "best_value": 0.5, "best_step": 9}')
    assert (old.reductions, old.plateau_best, old.plateau_stale) == (0, None, 0)


@pytest.mark.slow
def test_a_resumed_training_reduces_when_the_unbroken_one_does(place: Place) -> None:
    """No evaluation counts as better here: the rate is halved at every second one, also over an interruption."""
    plateau = {"name": "plateau", "factor": 0.5, "patience": 2, "min_delta": 100.0, "warmup": 0.0}
    project = place.project(epochs=6, schedule=plateau, keep=99)
    whole = train(project, place.dataset(project), place.store)
    folder, per_epoch = Path(whole.folder), whole.steps // 6
    rates = {
        e.step: e.learning_rate for e in read_events(folder / EVENTS) if isinstance(e, StepDone)
    }
    seen = [rates[step] for step in sorted(rates)]
    assert [seen[0] * 0.5**k for k in range(3)] == pytest.approx(list(dict.fromkeys(seen)))
    unbroken, end = checkpoints.load(checkpoints.found(checkpoints.folder_of(folder, whole.steps)))
    assert end.reductions == 2 and end.plateau_stale == 1
    for file in ("run.json", "result.json"):
        (folder / file).unlink()
    for path in (folder / "checkpoints").iterdir():
        if path.is_dir() and int(path.name[5:]) > 2.5 * per_epoch:  # one evaluation after the best
            shutil.rmtree(path)
    newest, _ = checkpoints.latest(folder)
    assert newest is not None and checkpoints.load(newest)[1].plateau_stale == 1
    resumed = train(project, place.dataset(project), place.store)
    assert resumed.id == whole.id
    again, progress = checkpoints.load(
        checkpoints.found(checkpoints.folder_of(folder, whole.steps))
    )
    assert progress.reductions == 2
    for name, array in unbroken.tensors.items():
        assert (array == again.tensors[name]).all(), name
