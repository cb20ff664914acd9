"""Recorded steps are autograd's, bit for bit; whatever could differ from step to step is not recorded."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
from modelyard.backends.families.pytorch_dense import mlp
from modelyard.backends.families.pytorch_pictures import cnn
from modelyard.backends.pytorch import PyTorch
from modelyard.backends.pytorch_recorded import recordable
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

CLASSES = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c"))
TWO = TaskSpec(type="classification", target="y", loss="binary-cross-entropy", classes=("a", "b"))
NUMBER = TaskSpec(type="regression", target="y", loss="mean-squared-error")
ADAMW = OptimizerSettings(name="adamw", execution=Execution(linear="blas"))


def stack() -> nn.Module:
    layers = (
        nn.Linear(6, 16),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Sequential(nn.Linear(16, 8), nn.Tanh()),
    )
    return nn.Sequential(*layers, nn.Linear(8, 8), nn.SiLU(), nn.Identity(), nn.Linear(8, 1))


def sequence() -> nn.Module:
    """Dense layers over more than one axis, with and without an offset."""
    layers = (
        nn.Linear(6, 8),
        nn.LayerNorm(8),
        nn.LeakyReLU(),
        nn.Linear(8, 4, bias=False),
        nn.Sigmoid(),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], TaskSpec]] = {
    "mlp": (lambda: mlp((6,), 3, hidden=(16, 8)), (6,), CLASSES),
    "cnn": (lambda: cnn((3, 16, 16), 3, channels=(4, 8), hidden=8), (3, 16, 16), CLASSES),
    "sequence": (sequence, (5, 6), CLASSES),
    "binary": (stack, (6,), TWO),
    "regression": (stack, (6,), NUMBER),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def begin(name: str) -> tuple[PyTorch, Any]:
    build, shape, task = CASES[name]
    signature = Signature(
        inputs=(Tensor(name="input", dtype="float32", shape=(None, *shape)),),
        outputs=(
            Tensor(name="output", dtype="float32", shape=(None, 3 if task is CLASSES else 1)),
        ),
    )
    torch.manual_seed(0)
    backend = PyTorch()
    return backend, backend.begin(build(), task, ADAMW, signature)


def batch(name: str, step: int, count: int, size: int, *, blend: bool) -> Batch:
    _, shape, task = CASES[name]
    generator = np.random.default_rng(step)
    inputs = generator.normal(size=(count, *shape)).astype(np.float32)

    def targets() -> np.ndarray[Any, Any]:
        if task is NUMBER:
            return generator.normal(size=count).astype(np.float32)
        return generator.integers(0, len(task.classes), count)

    more = {"other_targets": targets(), "weight": generator.random(count, np.float32)}
    return Batch(inputs=inputs, targets=targets(), global_size=size, **(more if blend else {}))


def train(name: str, *, recorded: bool) -> tuple[list[float], list[torch.Tensor]]:
    """Shares of several sizes, blends of two labels, clipping and a restored state among the steps."""
    backend, state = begin(name)
    assert state.recorded is not None
    state.recorded = state.recorded if recorded else None
    losses, kept = [], None
    for step in range(24):
        share = batch(name, step, *((5, 8) if step % 5 == 3 else (8, 8)), blend=step % 7 == 6)
        settings = StepSettings(
            learning_rate=0.01, seed=step, clip_norm=0.1 if step % 3 else None, measure_norm=True
        )
        state, result = backend.step(state, share, settings)
        losses += [float(result.loss), float(result.gradient_norm)]
        if step == 9:
            kept = backend.snapshot(state)
        if step == 15:
            assert kept is not None
            state = backend.restore(state, kept)
    return losses, [parameter.detach() for parameter in state.parameters]


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_training_is_the_same_bit_for_bit(name: str) -> None:
    losses, weights = train(name, recorded=True)
    expected, others = train(name, recorded=False)
    assert losses == expected
    assert all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))


class _Own(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].register_forward_hook(lambda *_: None)
    return model


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model[0].weight.requires_grad_(False)
    return model


def _parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        lambda: nn.Sequential(nn.Linear(4, 4), _Own(), nn.Linear(4, 1)),
        lambda: nn.Sequential(nn.Linear(4, 4).double(), nn.Linear(4, 1).double()),
        _hooked,
        _frozen,
        _parametrized,
    ],
)
def test_what_may_differ_from_step_to_step_is_not_recorded(build: Callable[[], nn.Module]) -> None:
    model = build()
    trained = tuple(p for p in model.parameters() if p.requires_grad)
    assert not recordable(model, trained, Execution())


@pytest.mark.parametrize(
    "execution",
    [
        Execution(precision="bfloat16"),
        Execution(compile=True),
        Execution(micro_batch=4),
        Execution(parallel="shard"),
        Execution(linear="onednn"),
        Execution(linear="mixed"),
    ],
)
def test_other_ways_of_computing_are_not_recorded(execution: Execution) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    assert recordable(model, tuple(model.parameters()), Execution())
    assert not recordable(model, tuple(model.parameters()), execution)


def test_each_size_of_a_share_has_its_recording_and_few_are_kept() -> None:
    backend, state = begin("mlp")
    for count in range(1, 20):
        _, result = backend.step(
            state,
            batch("mlp", count, count, 32, blend=False),
            StepSettings(learning_rate=0.01, seed=0),
        )
        assert np.isfinite(float(result.loss))
    assert 0 < len(state.recorded._kept) <= 8
