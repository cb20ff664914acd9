"""The gradient watch on real networks: a deep sigmoid stack, one that is scaled too high, dead ReLUs, and healthy ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from modelyard.backends import open_backend
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.spec.records import AnyEvent, Noticed, TaskSpec
from modelyard.spec.signature import TensorInput
from modelyard.spec.training import TrainSection
from modelyard.spec.work import World
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of
from modelyard.training.checkpoints import Progress
from modelyard.training.gradient_watch import LOOKS, GradientWatch
from modelyard.training.histograms import Sampler
from modelyard.training.loop import Course, run_loop

DIGITS = load_digits()
IMAGES, LABELS = (DIGITS.data / 16).astype(np.float32), DIGITS.target.astype(np.int64)
TASK = TaskSpec(
    type="classification", target="digit", loss="cross-entropy", classes=tuple("0123456789")
)
INPUT = TensorInput(shape=(64,))


def stack(depth: int, activation: Callable[[], nn.Module], scale: float = 1.0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(64, 32), activation()]
    for _ in range(depth):
        layers += [nn.Linear(32, 32), activation()]
    layers.append(nn.Linear(32, 10))
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                layer.weight *= scale
    return nn.Sequential(*layers)


def looks(model: nn.Module, count: int = LOOKS, rate: float = 1e-3) -> list[str]:
    """What the watch says of ``count`` looks, ten steps apart."""
    backend, watch, told = open_backend("pytorch"), GradientWatch(), list[str]()
    signature = signature_of(INPUT, TASK)
    state = backend.begin(model, TASK, OptimizerSettings(name="adamw"), signature, INPUT)
    random = np.random.default_rng(0)
    for step in range(1, 10 * count + 1):
        chosen = random.integers(0, len(LABELS), 64)
        batch = Batch(inputs=IMAGES[chosen], targets=LABELS[chosen], global_size=64)
        look = step % 10 == 0
        settings = StepSettings(learning_rate=rate, seed=step, sample_values=look)
        state, result = backend.step(state, batch, settings)
        if look:
            told += watch.look(result.samples or {})
    return told


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


def test_a_deep_sigmoid_stack_loses_its_gradients() -> None:
    (words,) = looks(stack(12, nn.Sigmoid))
    assert words.startswith("gradients vanish in 0.weight (") and "in 26.weight they are" in words
    assert "try ReLU or GELU in place of sigmoid" in words


def test_weights_that_are_scaled_too_high_let_them_explode() -> None:
    (words,) = looks(stack(8, nn.ReLU, scale=4.0), rate=1e-6)
    assert words.startswith("gradients explode in ") and "train.clip_norm = 1.0" in words
    assert ".weight (" in words


def test_units_that_nothing_turns_on_are_named() -> None:
    model = stack(1, nn.ReLU)
    with torch.no_grad():
        model[2].bias[:30] = -100.0
    (words,) = looks(model)
    assert words.startswith("dead units: 2.bias (97 % get no gradient)")


class Detached(nn.Module):
    """Forward leaves one part out, and lets no gradient into another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(32, 10)
        self.frozen = nn.Linear(64, 32).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).detach() + self.frozen(x))


def test_what_no_gradient_reaches_is_named_but_for_what_is_frozen() -> None:
    (words,) = looks(Detached())
    assert words.startswith("no gradient reaches first.weight (") and "1 more" in words
    assert "unused.weight" in words and "frozen" not in words


@pytest.mark.parametrize(
    "build",
    [
        lambda: stack(2, nn.ReLU),
        lambda: stack(6, nn.GELU),
        lambda: nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Tanh(), nn.Linear(32, 10)),
        lambda: nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                              nn.Flatten(), nn.Linear(288, 10)),
    ],
    ids=["relu", "gelu", "norm", "cnn"],
)  # fmt: skip
def test_healthy_networks_are_left_alone(build: Callable[[], nn.Module]) -> None:
    assert looks(build(), count=8, rate=3e-3) == []


def test_one_bad_look_is_none() -> None:
    watch = GradientWatch()
    sick = {"weights/a": np.ones(4), "gradients/a": np.full(4, 99.0)}
    well = {"weights/a": np.ones(4), "gradients/a": np.full(4, 0.1)}
    for samples in (sick, sick, well, sick, sick, well):
        assert watch.look(samples) == []
    told = [watch.look(sick) for _ in range(9)]
    assert [len(words) for words in told] == [0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_a_training_says_so_at_its_evaluations(tmp_path: Path) -> None:
    backend, events = open_backend("pytorch"), list[AnyEvent]()
    signature = signature_of(INPUT, TASK)
    model = stack(12, nn.Sigmoid)
    state: Any = backend.begin(model, TASK, OptimizerSettings(name="adamw"), signature, INPUT)
    split = Split(spec=INPUT, inputs=IMAGES, targets=LABELS, positions=np.arange(1500))
    course = Course(
        folder=tmp_path,
        section=TrainSection(evaluate_every=0.1),
        steps=40,
        world=World(rank=0, size=1, rendezvous=""),
        backend=backend,
        task=open_task(TASK),
        cursor=Cursor(1500, 32, 0),
        train=split,
        validation=replace(split, positions=np.arange(1500, 1797)),
        emit=events.append,
        asked_to_stop=lambda: False,
        sampler=Sampler(tmp_path),
    )
    run_loop(course, state, Progress())
    (notice,) = [event.message for event in events if isinstance(event, Noticed)]
    assert notice.startswith("gradients vanish in 0.weight (")
