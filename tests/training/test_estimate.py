"""What a training will take: the arithmetic, and a measurement that a real training bears out."""

from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend
from modelyard.backends.base import OptimizerSettings
from modelyard.backends.source import build_model
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import open_split
from modelyard.spec.work import World
from modelyard.tasks.signature import signature_of
from modelyard.training.budget import STEPS, TIME, Limits
from modelyard.training.estimate import Measured, available_bytes, estimate, measure, words

MEASURED = Measured(
    step_seconds=0.01, evaluation_seconds=0.001, weights=1_000_000, gradients=1_000_000, optimizer=2_000_000,
    activations=5_000_000, process=300_000_000,
)  # fmt: skip


def test_steps_and_looks_add_up() -> None:
    found = estimate(
        MEASURED, steps=1000, evaluations=10, validation=100, test=50, workers=2,
        limits=Limits(price=36.0),
    )  # fmt: skip
    assert found.seconds == pytest.approx(1000 * 0.01 + (100 * 11 + 50) * 0.001 / 2)
    assert found.memory == 600_000_000
    assert found.cost == pytest.approx(found.seconds * 2 * 0.01)
    text = words(MEASURED, found, 2)
    assert "about 11 s for 1,000 steps of 10 ms, cost 0.21" in text
    assert "300 MB of memory a worker (weights 1.0 MB, gradients 1.0 MB, optimizer 2.0 MB" in text


def test_a_budget_that_will_end_it_is_told() -> None:
    def ended(**limits: Any) -> str:
        return estimate(
            MEASURED, steps=100, evaluations=1, validation=0, test=0, workers=1,
            limits=Limits(**limits),
        ).ended  # fmt: skip

    assert ended() == "" and ended(steps=100) == "" and ended(seconds=60) == ""
    assert ended(steps=99) == STEPS and ended(seconds=0.5) == TIME


def test_a_real_model_is_measured(place: Any) -> None:
    project = place.project()
    dataset = place.dataset(project)
    signature = signature_of(dataset.input, dataset.task)
    backend, split = open_backend("pytorch"), open_split(dataset, "train")

    def begin() -> object:
        model = build_model(place.root, "model:build", {"width": 4096}, signature, dataset.task)
        settings = OptimizerSettings(name="adamw")
        return backend.begin(model, dataset.task, settings, signature, dataset.input)

    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        found = measure(
            backend, begin, split, Cursor(len(split), 64, 0), workers=2, rate=0.01, clip_norm=None
        )
    numbers = 64 * 4096 + 4096 + 4096 * 10 + 10
    assert found.weights == 4 * numbers
    assert 8 * numbers <= found.optimizer <= 8 * numbers + 100  # two moments, and step counters
    assert found.gradients == found.weights
    assert (
        32 * 4096 * 4 <= found.activations < 20 * 32 * 4096 * 4
    )  # of the half batch of two workers
    assert 0 < found.step_seconds < 5 and 0 < found.evaluation_seconds < 1
    assert found.process > np.prod((64, 4096)) * 4 and found.device is None


def test_the_system_says_what_is_free() -> None:
    free = available_bytes()
    assert free is None or free > 10_000_000
