"""Choosing by measuring: what is chosen is really the faster one, and nothing else is touched."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn

from modelyard.backends import pytorch_tune
from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
from modelyard.backends.contract import Case, read_result, run_workers
from modelyard.backends.pytorch import PyTorch
from modelyard.backends.pytorch_precision import half_precision
from modelyard.backends.pytorch_tune import Subject, _times, settle
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)
TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c"))
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 3, 16, 16)),),
    outputs=(Tensor(name="scores", dtype="float32", shape=(None, 3)),),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(numbers: Sequence[float]) -> list[float]:
    return list(numbers)


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(1024, 3),
    )


def subject(model: nn.Module) -> Subject:
    return Subject(
        model=model,
        call=model,
        shape=(3, 16, 16),
        dtype=torch.float32,
        device=torch.device("cpu"),
        reduce=alone,
    )


def test_what_is_not_left_open_is_not_measured() -> None:
    model = cnn()
    wanted = Execution(precision="bfloat16", compile=True, samples=4)
    chosen, said = settle(wanted, subject(model))
    assert not said and chosen.precision == "bfloat16" and chosen.channels_last is True
    line = nn.Linear(4, 3)
    chosen, _ = settle(Execution(), subject(line))
    assert chosen.channels_last is False  # no convolution gains from it


def test_measuring_leaves_weights_statistics_and_random_numbers_as_they_were() -> None:
    model = cnn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    chosen, said = settle(Execution(precision="auto", compile="auto", samples=8), subject(model))
    assert torch.equal(torch.rand(3), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "auto" not in (chosen.precision, chosen.compile, chosen.channels_last)
    assert "less than a minute" in said[-1]  # a short training is not compiled
    assert any("ms a step, against" in words for words in said)


@pytest.mark.parametrize(
    ("last", "half", "wanted"),
    [
        (0.5, 0.5, (True, "bfloat16")),
        (0.5, 2.0, (True, "float32")),
        (2.0, 2.0, (False, "float32")),
        (0.99, 0.99, (False, "float32")),  # so little is not worth other rounding
    ],
)
def test_the_chosen_one_is_the_faster_one(
    monkeypatch: pytest.MonkeyPatch, last: float, half: float, wanted: tuple[bool, str]
) -> None:
    """By given times: on a busy machine those that are measured say nothing about the choice."""

    def times(candidates: Sequence[Execution], _: Subject) -> list[float]:
        return [
            0.01
            * (last if one.channels_last is True else 1.0)
            * (half if one.precision == "bfloat16" else 1.0)
            for one in candidates
        ]

    monkeypatch.setattr(pytorch_tune, "_times", times)
    monkeypatch.setattr(pytorch_tune, "half_precision", lambda _: "bfloat16")
    chosen, _ = settle(Execution(precision="auto", samples=16), subject(cnn()))
    assert (chosen.channels_last, chosen.precision) == wanted


def test_what_cannot_be_compiled_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real passes of both."""

    def broken(_: nn.Module) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(pytorch_tune, "compiled", lambda _: broken)
    plain = Execution(channels_last=False, samples=16)
    first, second = _times([plain, replace(plain, compile=True)], subject(cnn()))
    assert 0 < first < float("inf") == second


def test_sharded_weights_are_not_measured_whole() -> None:
    chosen, said = settle(
        Execution(precision="auto", compile="auto", parallel="shard"), subject(cnn())
    )
    half = half_precision(torch.device("cpu")) or "float32"
    assert not said and (chosen.precision, chosen.compile) == (half, False)


def train(optimizer: OptimizerSettings, steps: range, kept: object = None) -> tuple[object, object]:
    backend = PyTorch()
    state = backend.begin(cnn(), TASK, optimizer, SIGNATURE)
    if kept is not None:
        state = backend.restore(state, kept)  # type: ignore[arg-type]
    snapshots = []
    for step in steps:
        generator = np.random.default_rng(step)
        inputs = generator.normal(size=(6, 3, 16, 16)).astype(np.float32)
        batch = Batch(inputs=inputs, targets=np.arange(6) % 3, global_size=6)
        state, _ = backend.step(state, batch, StepSettings(learning_rate=0.01, seed=step))
        snapshots.append(backend.snapshot(state))
    return snapshots[1], snapshots[-1]


@needs_compiler
@pytest.mark.slow
def test_a_compiled_training_is_the_same_up_to_rounding_and_resumes_exactly() -> None:
    """With pieces of two sizes: each shape is compiled by itself, so the order of shapes is no matter."""
    execution = Execution(compile=True, micro_batch=4, samples=6)
    optimizer = OptimizerSettings(name="adamw", execution=execution)
    middle, end = train(optimizer, range(4))
    _, again = train(optimizer, range(2, 4), middle)
    for name, array in end.tensors.items():  # type: ignore[attr-defined]
        np.testing.assert_array_equal(array, again.tensors[name], err_msg=name)  # type: ignore[attr-defined]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_compiled_workers_do_what_eager_ones_do(tmp_path: Path, parallel: str) -> None:
    case = Case(backend="pytorch", root=str(Path(__file__).parent / "models"), build="blocks:build")
    ends = []
    for name, compiled in (("eager", False), ("compiled", True)):
        execution = Execution(compile=compiled, parallel=parallel, samples=4)  # type: ignore[arg-type]
        settings = OptimizerSettings(name="sgd", execution=execution)
        run_workers(tmp_path / name, case, settings, seeds=(0, 0), steps=3)
        ends.append(read_result(tmp_path / name, 0, "end").tensors)
    for name, array in ends[0].items():
        np.testing.assert_allclose(array, ends[1][name], atol=1e-5, err_msg=name)
