"""Every way to compute PyTorch's steps gives the same training, up to rounding, and resumes exactly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from modelyard.backends.base import (
    Batch,
    Execution,
    OptimizerSettings,
    Part,
    Snapshot,
    StepSettings,
)
from modelyard.backends.contract import Case, read_result, run_workers
from modelyard.backends.pytorch import PyTorch
from modelyard.spec.errors import TrainingError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

CASE = Case(
    backend="pytorch",
    root=str(Path(__file__).parent / "models"),
    build="blocks:build",
    input_shape=(1, 8, 8),
)
TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c"))
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 1, 8, 8)),),
    outputs=(Tensor(name="scores", dtype="float32", shape=(None, 3)),),
)
PLAIN = Execution()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(name: str = "adamw", **execution: Any) -> OptimizerSettings:
    return OptimizerSettings(name=name, weight_decay=0.01, execution=Execution(**execution))


def cnn(norm: bool = False, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(128, 3),
    )


def batch(step: int, count: int = 8) -> Batch:
    generator = np.random.default_rng(step)
    inputs = generator.normal(size=(count, 1, 8, 8)).astype(np.float32)
    return Batch(inputs=inputs, targets=generator.integers(0, 3, count), global_size=count)


def begin(model: nn.Module, optimizer: OptimizerSettings) -> tuple[PyTorch, Any]:
    backend = PyTorch()
    return backend, backend.begin(model, TASK, optimizer, SIGNATURE)


def train(backend: PyTorch, state: Any, steps: range, count: int = 8) -> list[float]:
    losses = []
    for step in steps:
        given = StepSettings(learning_rate=0.01, seed=step, clip_norm=0.5 if step % 2 else None)
        state, result = backend.step(state, batch(step, count), given)
        losses.append(float(result.loss))
    return losses


def close(left: Snapshot, right: Snapshot, limit: float) -> None:
    assert left.tensors.keys() == right.tensors.keys()
    for key, array in left.tensors.items():
        np.testing.assert_allclose(array, right.tensors[key], atol=limit, rtol=0, err_msg=key)


MODES = {
    "channels-first": {"channels_last": False},
    "channels-last": {"channels_last": True},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "micro-batches": {"micro_batch": 3},
    "all": {"precision": "bfloat16", "micro_batch": 2, "channels_last": True},
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_a_resume_is_exact_in_every_mode(mode: dict[str, Any]) -> None:
    """With dropout, batch norm and clipping; and the state of the optimizer lies as its kernels need it."""
    for name in ("sgd", "adamw"):
        backend, state = begin(cnn(norm=True, dropout=0.2), settings(name, **mode))
        train(backend, state, range(3))
        kept = backend.snapshot(state)
        train(backend, state, range(3, 6))
        other, fresh = begin(cnn(norm=True, dropout=0.2), settings(name, **mode))
        other.restore(fresh, kept)
        train(other, fresh, range(3, 6))
        end, again = backend.snapshot(state), other.snapshot(fresh)
        close(end, again, 0.0)
        assert end.numbers == again.numbers


@pytest.mark.parametrize(("mode", "limit"), [("channels-first", 1e-5), ("micro-batches", 1e-5), ("bfloat16", 0.05)])  # fmt: skip
def test_a_mode_changes_the_result_by_rounding_only(mode: str, limit: float) -> None:
    ends = []
    for execution in ({"channels_last": True}, MODES[mode]):
        backend, state = begin(cnn(), settings("sgd", **execution))
        train(backend, state, range(5))
        ends.append(backend.snapshot(state))
    close(ends[0], ends[1], limit)


def test_micro_batches_are_no_larger_than_asked_and_cover_the_share() -> None:
    seen: list[int] = []

    class Counts(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(len(x))
            return super().forward(x.flatten(1))

    backend, state = begin(Counts(64, 3), settings(micro_batch=3))
    train(backend, state, range(1), count=8)
    assert max(seen) <= 3 and sum(seen) == 8 and len(seen) == 3


def test_float16_scales_its_gradients_and_remembers_the_scale() -> None:
    backend, state = begin(cnn(), settings(precision="float16"))
    train(backend, state, range(6))
    numbers = backend.snapshot(state).numbers
    assert 0 < numbers["scale"] <= 65536


def test_evaluation_stays_in_float32() -> None:
    outputs = []
    for execution in ({}, {"precision": "bfloat16"}):
        backend, state = begin(cnn(), settings(**execution))
        outputs.append(backend.evaluate(state, batch(0).inputs))
    np.testing.assert_array_equal(*outputs)


def test_what_cannot_be_had_is_refused_with_what_can() -> None:
    with pytest.raises(TrainingError, match="does not go with") as caught:
        begin(cnn(), settings(precision="float16", parallel="shard"))
    assert "bfloat16" in caught.value.mend


# --- two workers ------------------------------------------------------------------------------


def workers(folder: Path, steps: int = 4, **execution: Any) -> list[Snapshot]:
    optimizer = settings(**execution)
    run_workers(folder, CASE, optimizer, seeds=(0, 1), steps=steps, uneven=True)
    return [read_result(folder, rank, "end") for rank in (0, 1)]


def joined(ends: list[Snapshot]) -> Snapshot:
    """The whole tensors, from the slices that each worker wrote."""
    whole: dict[str, Any] = {}
    for end in ends:
        parts = msgspec.convert(end.numbers.get("parts", {}), dict[str, Part])
        for key, array in end.tensors.items():
            if (part := parts.get(key)) is None:
                whole[key] = array
                continue
            tensor = whole.setdefault(key, np.full(part.shape, np.nan, array.dtype))
            place = tuple(slice(o, o + n) for o, n in zip(part.offset, array.shape, strict=True))
            tensor[place] = array
    return Snapshot(tensors=whole, numbers={"optimizer": "adamw"})


def alone(steps: int = 4, **execution: Any) -> Snapshot:
    from modelyard.backends.contract import _begin, _train

    backend, state = _begin(CASE, settings(**execution), 0)
    _train(backend, state, CASE, range(steps), uneven=True)
    return backend.snapshot(state)


@pytest.mark.parametrize("mode", [{}, {"micro_batch": 1}, {"precision": "bfloat16"}], ids=str)
def test_sharded_workers_do_what_one_does(tmp_path: Path, mode: dict[str, Any]) -> None:
    """Where a batch of 5 is cut into pieces of one, worker 1 makes a pass without a sample."""
    ends = workers(tmp_path, parallel="shard", **mode)
    parts = ends[0].numbers["parts"]
    sliced = [key for key in parts if key.startswith("model.")]
    assert sliced and all(
        ends[0].tensors[key].size < np.prod(parts[key]["shape"]) for key in sliced
    )
    close(joined(ends), alone(**mode), 2e-3 if mode.get("precision") else 2e-5)


@pytest.mark.parametrize("mode", [{"micro_batch": 1}, {"precision": "bfloat16"}], ids=str)
def test_replicated_workers_do_what_one_does(tmp_path: Path, mode: dict[str, Any]) -> None:
    ends = workers(tmp_path, **mode)
    close(ends[0], ends[1], 0.0)
    close(ends[0], alone(**mode), 2e-3 if mode.get("precision") else 2e-5)
