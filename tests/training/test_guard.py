"""A loss, gradient or weight that is no finite number: back, without that batch, and exactly so."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modelyard.backends import open_backend
from modelyard.backends.base import Batch, OptimizerSettings, Snapshot, StepSettings
from modelyard.backends.source import build_model
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split, open_split, prepare
from modelyard.spec.errors import TrainingError
from modelyard.spec.records import (
    AnyEvent,
    CheckpointSaved,
    Noticed,
    StepDone,
    TaskSpec,
    WentBack,
    WorkerLost,
)
from modelyard.spec.signature import TensorInput
from modelyard.spec.training import TrainSection
from modelyard.spec.work import World
from modelyard.store import open_store
from modelyard.store.events import read_events
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of
from modelyard.training import checkpoints
from modelyard.training.checkpoints import Progress
from modelyard.training.loop import Course, Ending, run_loop
from modelyard.training.progress import describe
from modelyard.training.schedules import learning_rate, step_seed
from modelyard.training.train import train

SAMPLES, FEATURES, BATCH, STEPS = 96, 8, 8, 36
TASK = TaskSpec(type="regression", target="y", loss="mean-squared-error")
INPUT = TensorInput(shape=(FEATURES,))
SIGNATURE = signature_of(INPUT, TASK)
CURSOR = Cursor(SAMPLES, BATCH, 0)


class Overflowing(nn.Module):
    """Squares what it is given: 1e38 becomes infinity, and the loss is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x * x - 0.5)


class Rooted(nn.Module):
    """The length of a row's vector; of a zero vector it is 0, and its gradient is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(2, 4)
        self.layer = nn.Linear(FEATURES, 1)
        with torch.no_grad():
            self.rows.weight[1] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = self.rows((x[:, 0] > 100).long()).square().sum(1, keepdim=True).sqrt()
        return self.layer(x.clamp(-1, 1)) + length


def data(bad_step: int | None = None, value: float = 1e38, place: int = 0) -> Split:
    """Rows and a linear answer; one sample of ``bad_step``'s batch (of the first epoch) holds ``value``."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(SAMPLES, FEATURES)).astype(np.float32)
    targets = inputs.sum(1).astype(np.float32)
    if bad_step is not None:
        inputs[CURSOR.indices(bad_step)[place], 0] = value
    return Split(spec=INPUT, inputs=inputs, targets=targets, positions=np.arange(SAMPLES))


class Training:
    """A course in this process, with its events; every run of it begins with the same weights."""

    def __init__(
        self, folder: Path, split: Split, build: Callable[[], nn.Module] = Overflowing, **train: Any
    ) -> None:
        self.backend, self.events = open_backend("pytorch"), list[AnyEvent]()
        self.build = build
        fields = {"batch_size": BATCH, "evaluate_every": 0.5, "keep": 99, **train}
        self.course = Course(
            folder=folder,
            section=TrainSection.model_validate(fields),
            steps=STEPS,
            world=World(rank=0, size=1, rendezvous=""),
            backend=self.backend,
            task=open_task(TASK),
            cursor=CURSOR,
            train=split,
            validation=replace(split, positions=np.arange(0)),
            emit=self.events.append,
            asked_to_stop=lambda: False,
            begin=self.begin,
        )

    def begin(self) -> Any:
        torch.manual_seed(7)
        model = self.build()
        return self.backend.begin(model, TASK, OptimizerSettings(name="adamw"), SIGNATURE, INPUT)

    def run(self, progress: Progress | None = None, state: Any = None) -> Ending:
        state = self.begin() if state is None else state
        return run_loop(self.course, state, progress or Progress())

    def went_back(self) -> list[tuple[int, int, int | None]]:
        found = [event for event in self.events if isinstance(event, WentBack)]
        return [(event.step, event.fault, event.skipped) for event in found]


def assert_same(one: Snapshot, two: Snapshot) -> None:
    assert one.tensors.keys() == two.tensors.keys()
    for name, array in one.tensors.items():
        assert np.array_equal(array, two.tensors[name]), name


PICTURES = Path(__file__).parents[1] / "backends" / "models"


@pytest.mark.parametrize(
    ("name", "build"), [("keras", "keras_models:cnn"), ("jax", "jax_nets:build")]
)
def test_in_other_frameworks_too(name: str, build: str, tmp_path: Path) -> None:
    """From the beginning, which is made anew, and from a checkpoint; against a training without that batch."""
    pytest.importorskip(name)
    task = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b"))
    spec = TensorInput(shape=(1, 8, 8))
    signature, random = signature_of(spec, task), np.random.default_rng(0)
    inputs = random.normal(size=(SAMPLES, 1, 8, 8)).astype(np.float32)
    inputs[CURSOR.indices(4)[0]] = 1e38
    targets = (inputs[:, 0, 0, 0] > 0).astype(np.int64)
    split = Split(spec=spec, inputs=inputs, targets=targets, positions=np.arange(SAMPLES))
    finals = []
    bad = tuple(step for step in range(24) if _holds(split, step))
    assert len(bad) == 2 and bad[0] == 4
    for place, skipped in (("guarded", ()), ("without", bad)):
        training = Training(tmp_path / place, split)
        backend = open_backend(name)

        def begin(backend: Any = backend) -> Any:
            backend.seed(7)
            model = build_model(PICTURES, build, {}, signature, task, seed=7)
            return backend.begin(
                model, task, OptimizerSettings(name="adamw", ema=0.9), signature, spec
            )

        training.course = replace(
            training.course, backend=backend, task=open_task(task), steps=24, begin=begin
        )
        ending = training.run(Progress(skipped=skipped), begin())
        assert ending.progress.skipped == bad and bool(training.went_back()) == (not skipped)
        finals.append(backend.snapshot(ending.state))
    assert_same(*finals)


@pytest.mark.parametrize(("bad", "back_to"), [(3, 0), (8, 6)], ids=["no-checkpoint", "checkpoint"])
def test_what_follows_equals_a_training_without_that_batch(
    tmp_path: Path, bad: int, back_to: int
) -> None:
    split = data(bad)
    guarded = Training(tmp_path / "guarded", split, max_skips=9)
    ending = guarded.run()
    again = [step for step in range(STEPS) if _holds(split, step)]
    assert ending.progress.skipped == tuple(again) and len(again) == 3
    assert guarded.went_back()[0][0] == back_to and ending.progress.step == STEPS

    without = Training(tmp_path / "without", split)
    expected = without.run(Progress(skipped=tuple(again)))
    assert not without.went_back()
    assert_same(guarded.backend.snapshot(ending.state), without.backend.snapshot(expected.state))

    by_hand = Training(tmp_path / "hand", split)
    state, section = by_hand.begin(), by_hand.course.section
    for step in (step for step in range(STEPS) if step not in again):
        inputs, targets = split.stored(CURSOR.indices(step))
        state, _ = by_hand.backend.step(
            state,
            Batch(inputs=inputs, targets=targets, global_size=BATCH),
            StepSettings(learning_rate=learning_rate(section, step, STEPS), seed=step_seed(0, step, 0)),
        )  # fmt: skip
    assert_same(guarded.backend.snapshot(ending.state), by_hand.backend.snapshot(state))


def _holds(split: Split, step: int) -> bool:
    return bool(np.abs(split.stored(CURSOR.indices(step))[0]).max() > 100)


def test_it_says_so_and_what_to_look_at(tmp_path: Path) -> None:
    training = Training(tmp_path, data(8), max_skips=9)
    training.run()
    told = [describe(event) for event in training.events if isinstance(event, WentBack)]
    sample = int(CURSOR.indices(8)[0])
    assert (
        f"step 9: the loss was not a finite number; the largest value in it is 1e+38, of sample {sample}; "
        "back to step 6, and on without that step's batch"
    ) in told
    steps = [event for event in training.events if isinstance(event, StepDone)]
    assert all(np.isfinite(event.loss) for event in steps)


def test_a_gradient_that_is_no_number_is_found_though_every_loss_is_one(tmp_path: Path) -> None:
    """Step 9 spoils a weight that no other step needs: only the checkpoint's writer sees it at first."""
    split = data(9, value=1000.0)
    training = Training(tmp_path, split, Rooted, max_skips=9, evaluate_every=1)
    training.course = replace(training.course, steps=12)
    ending = training.run()
    assert ending.progress.skipped == (9,)
    assert training.went_back()[-1][1:] == (9, 9)
    final = training.backend.snapshot(ending.state)
    assert all(np.isfinite(array).all() for array in final.tensors.values())
    saved = [event.step for event in training.events if isinstance(event, CheckpointSaved)]
    for step in saved:
        kept, _ = checkpoints.load(checkpoints.found(checkpoints.folder_of(tmp_path, step)))
        assert all(np.isfinite(array).all() for array in kept.tensors.values())


def test_where_weights_are_the_cause_it_is_an_error_at_once(tmp_path: Path) -> None:
    """Each batch has a bad sample: the second one that the same weights cannot take is the last."""
    split = data()
    split.inputs[:, 0] = 1e38
    training = Training(tmp_path, split)
    with pytest.raises(TrainingError, match=r"at step 1 .*batch of the step before") as caught:
        training.run()
    assert training.went_back() == [(0, 0, 0)]
    assert "train.optimizer.lr" in caught.value.mend


def test_too_many_batches_are_an_error_that_names_what_they_share(tmp_path: Path) -> None:
    split = data(3)
    with pytest.raises(TrainingError) as caught:
        Training(tmp_path, split, max_skips=2).run()
    sample = int(CURSOR.indices(3)[0])
    steps = [step + 1 for step in range(STEPS) if _holds(split, step)]
    assert f"the batches of steps {steps[0]}, {steps[1]} were left out before" in caught.value.what
    assert f"sample {sample} of the data is in all" in caught.value.what
    assert "train.max_skips (now 2)" in caught.value.mend


def test_stop_is_an_error_and_takes_nothing_back(tmp_path: Path) -> None:
    training = Training(tmp_path, data(8), on_nan="stop")
    with pytest.raises(
        TrainingError, match=r"not a finite number at step 9 .*checkpoint is of step 6"
    ):
        training.run()
    assert not training.went_back()


def test_a_fault_that_does_not_come_again_leaves_nothing_out(tmp_path: Path) -> None:
    """As a bad memory cell would make it: once."""
    training = Training(tmp_path, data())
    step, count = training.backend.step, []

    def once(state: Any, batch: Batch, settings: StepSettings) -> Any:
        count.append(1)
        state, result = step(state, batch, settings)
        if len(count) == 8:
            with torch.no_grad():
                state.parameters[0].fill_(float("nan"))
        return state, result

    training.backend.step = once  # type: ignore[method-assign]
    ending = training.run()
    assert ending.progress.skipped == () and len(training.went_back()) == 1
    assert any("nothing was wrong" in e.message for e in training.events if isinstance(e, Noticed))
    unbroken = Training(tmp_path / "unbroken", data())
    expected = unbroken.backend.snapshot(unbroken.run().state)
    assert_same(training.backend.snapshot(ending.state), expected)


def test_a_validation_sample_that_breaks_the_loss_is_an_error(tmp_path: Path) -> None:
    training = Training(tmp_path, data())
    bad = data(0)
    training.course = replace(training.course, validation=bad)
    with pytest.raises(TrainingError, match="validation loss was not a finite number at step 6"):
        training.run()


BLANK = """
from sklearn.datasets import load_digits

def load():
    digits = load_digits()
    pictures = (digits.images[:, None] / 16).astype("float32")
    pictures[BLANK] = 0.5
    return pictures, [str(t) for t in digits.target]
"""
STRETCHED = """
import os, signal
from pathlib import Path
import torch
from torch import nn

class Stretched(nn.Module):
    \"\"\"Each picture from black to white: of a picture in one colour that is 0 / 0.\"\"\"
    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, outputs))
        self.passes = 0
    def forward(self, x):
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        self.passes += self.training
        if self.passes == DIES and not (Path(__file__).parent / "died").exists():
            (Path(__file__).parent / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layers((x - low) / (high - low))

def build(outputs):
    return Stretched(outputs)
"""


@pytest.mark.slow
def test_two_workers_go_back_together_and_a_kill_in_the_aftermath_changes_nothing(
    place: Any,
) -> None:
    """A picture in one colour, and a model that stretches contrast; one worker is killed after the return."""
    finals = []
    for dies in (-1, 45):
        folder = place.root / ("killed" if dies > 0 else "whole")
        (place.root / "loader.py").write_text(BLANK.replace("BLANK", "700"))
        (place.root / "model.py").write_text(STRETCHED.replace("DIES", str(dies)))
        project = place.project(workers=2, epochs=2, seed=3, evaluate_every=0.5)
        store = open_store(folder)
        dataset = prepare(project, store)
        train_split = open_split(dataset, "train")
        position = np.flatnonzero(train_split.positions == 700)
        assert len(position), "choose a picture of the training split"
        run = train(project, dataset, store)
        cursor = Cursor(len(train_split), 64, 3)
        held = [step for step in range(run.steps) if position[0] in cursor.indices(step)]
        assert run.state == "complete" and list(run.skipped) == held and len(held) == 2
        assert run.restarts == (dies > 0)
        events = read_events(Path(run.folder) / "events.jsonl")
        found = [
            next((n for n, e in enumerate(events) if isinstance(e, kind)), None)
            for kind in (WentBack, WorkerLost)
        ]
        assert found[0] is not None and (dies < 0 or found[1] > found[0])
        last = checkpoints.folder_of(Path(run.folder), run.steps)
        finals.append(checkpoints.load(checkpoints.found(last)))
    (one, progress), (two, resumed) = finals
    assert progress.skipped == resumed.skipped
    assert_same(one, two)
