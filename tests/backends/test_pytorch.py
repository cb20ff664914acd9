"""The PyTorch backend keeps the contract, and what is special about PyTorch."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modelyard.backends import pytorch_workers
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.backends.contract import BackendContract, Case, read_result, run_workers
from modelyard.backends.pytorch import PyTorch
from modelyard.data.preprocess import finish
from modelyard.spec.errors import ExportError, ModelError, TrainingError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import ImageInput, Signature, Tensor
from modelyard.spec.work import World

REGRESSION = TaskSpec(type="regression", target="y", loss="mean-squared-error")
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 4)),),
    outputs=(Tensor(name="value", dtype="float32", shape=(None, 1)),),
)
SGD = OptimizerSettings(name="sgd", momentum=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestContract(BackendContract):
    case = Case(
        backend="pytorch",
        build="cnn-small",
        args={"channels": [4], "hidden": 8},
        root=str(Path(__file__).parent / "models"),
        wrong_build="blocks:build",
    )


def batch(count: int = 8, seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(count, 4)).astype(np.float32)
    return Batch(inputs=inputs, targets=inputs.sum(axis=1), global_size=count)


def begin(model: nn.Module, optimizer: OptimizerSettings = SGD) -> tuple[PyTorch, Any]:
    backend = PyTorch()
    return backend, backend.begin(model, REGRESSION, optimizer, SIGNATURE)


def test_a_step_is_gradient_descent_on_the_mean_loss() -> None:
    model = nn.Linear(4, 1)
    weight = model.weight.detach().clone()
    given = batch()
    inputs, targets = torch.from_numpy(given.inputs), torch.from_numpy(given.targets)
    expected = ((model(inputs).flatten() - targets) ** 2).mean()
    (gradient,) = torch.autograd.grad(expected, [model.weight])
    backend, state = begin(model)
    _, result = backend.step(state, given, StepSettings(learning_rate=0.1, seed=0, clip_norm=1e9))
    assert float(result.loss) == pytest.approx(float(expected.detach()))
    torch.testing.assert_close(model.weight.detach(), weight - 0.1 * gradient)
    assert float(result.gradient_norm) >= float(gradient.norm()) - 1e-6


def test_weight_decay_leaves_biases_and_norms_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    _, state = begin(model, OptimizerSettings(name="adamw", weight_decay=0.5))
    decays = {
        id(p): group["weight_decay"]
        for group in state.optimizer.param_groups
        for p in group["params"]
    }
    assert {name: decays[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.5, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.5, "2.bias": 0.0
    }  # fmt: skip


def test_dropout_is_drawn_from_the_step_seed_alone() -> None:
    def loss(seed: int, noise: int) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1))
        backend, state = begin(model)
        torch.manual_seed(noise)
        _, result = backend.step(state, batch(), StepSettings(learning_rate=0.1, seed=seed))
        return float(result.loss)

    assert loss(5, noise=1) == loss(5, noise=2) != loss(6, noise=1)


def test_evaluation_leaves_dropout_and_batch_norm_as_in_service_and_returns_to_training() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    backend, state = begin(model)
    assert int(model[1].num_batches_tracked) == 0  # the check of the shapes is no training
    first = backend.evaluate(state, batch().inputs)
    np.testing.assert_array_equal(first, backend.evaluate(state, batch().inputs))
    assert model.training and int(model[1].num_batches_tracked) == 0


def test_read_only_and_strided_arrays_are_taken_without_a_warning() -> None:
    backend, state = begin(nn.Linear(4, 1))
    given = batch(16)
    given.inputs.setflags(write=False)
    share = Batch(inputs=given.inputs[::2], targets=given.targets[::2], global_size=8)
    backend.step(state, share, StepSettings(learning_rate=0.1, seed=0))
    assert backend.evaluate(state, given.inputs).shape == (16, 1)


def test_a_model_part_without_gradient_is_fine() -> None:
    """Such as a frozen backbone, or a head that this task does not use."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.used, self.unused = nn.Linear(4, 1), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(self.frozen(x))

    model = Headed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backend, state = begin(model)
    state, _ = backend.step(state, batch(), StepSettings(learning_rate=0.1, seed=0))
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"used.weight", "used.bias"}
    assert backend.restore(state, backend.snapshot(state)) is state


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.line(x), x


class _Double(_Pair):
    def forward(self, x: torch.Tensor) -> Any:
        return self.line(x).double()


@pytest.mark.parametrize(
    ("model", "what", "mend"),
    [
        (nn.Linear(4, 3), "gave float32 of shape (2, 3); this task needs float32 of shape (2, 1)", "must have 1 output"),
        (nn.Linear(5, 1), "cannot take an input of shape (2, 4)", "first layers"),
        (_Pair(), "returned a tuple, not one tensor", "return only the tensor"),
        (_Double(), "gave float64", ".float()"),
        (nn.Linear(4, 1).requires_grad_(False), "nothing to train", "unfreeze"),
        ("a string", "returned a str", "return the model"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused(model: Any, what: str, mend: str) -> None:
    with pytest.raises(ModelError) as caught:
        PyTorch().begin(model, REGRESSION, SGD, SIGNATURE)
    assert what in caught.value.what and mend in caught.value.mend


def test_a_lazy_layer_is_given_its_shape_before_the_optimizer_sees_it() -> None:
    model = nn.LazyLinear(1)
    backend, state = begin(model)
    backend.step(state, batch(), StepSettings(learning_rate=0.1, seed=0))
    assert model.weight.shape == (1, 4)


def test_workers_keep_running_statistics_equal_and_bear_unused_parts(tmp_path: Path) -> None:
    """Also the way of several machines: they meet over TCP."""
    (tmp_path / "model.py").write_text(
        """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.line, self.unused = nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(4, 9)

    def forward(self, x):
        return self.line(self.norm(x))

def build():
    return Net()
"""
    )
    case = Case(backend="pytorch", root=str(tmp_path), build="model:build", input_shape=(4,))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_workers(
        tmp_path / "out", case, SGD, seeds=(0, 1), steps=5, rendezvous=f"tcp://127.0.0.1:{port}"
    )
    first, second = (read_result(tmp_path / "out", rank, "end").tensors for rank in (0, 1))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert np.abs(first["model.norm.running_mean"]).max() > 0.1
    assert first["model.norm.num_batches_tracked"] == 5


def test_a_worker_that_does_not_come_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch_workers, "MEETING_SECONDS", 0.2)
    world = World(rank=0, size=3, rendezvous=(tmp_path / "with space" / "meet").as_uri())
    with pytest.raises(TrainingError, match="not there: worker 1, 2 of 3"):
        PyTorch().join(world, device="cpu", threads=1).__enter__()


def test_a_missing_gpu_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    alone = World(rank=0, size=1, rendezvous="")
    with pytest.raises(TrainingError, match="PyTorch sees 0 GPUs"):
        PyTorch().join(alone, device="cuda", threads=1).__enter__()
    with PyTorch().join(alone, device="auto", threads=1) as device:
        assert device == "cpu"


def test_the_threads_are_given_back() -> None:
    with PyTorch().join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


class _Eigen(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squares = x[:, :, None] * x[:, None, :]
        return super().forward(x) + torch.linalg.eigvals(squares).real[:, :1]


class _CountsSamples(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.shape[0] > 3 else 2 * super().forward(x)


class _FixesSamples(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y.reshape(3, 1) if len(x) == 3 else y


class _LooksAtValues(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_Eigen(4, 1), "the operator aten.linalg_eig"),
        (_CountsSamples(4, 1), "different numbers of samples"),
        (_FixesSamples(4, 1), "different numbers of samples"),
        (_LooksAtValues(4, 1), "a branch that depends on the values"),
    ],
)
def test_what_onnx_cannot_express_is_named_in_one_line(
    model: nn.Module, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend, state = begin(model)
    with pytest.raises(ExportError) as caught:
        backend.export(state, tmp_path / "model.onnx", SIGNATURE)
    assert reason in caught.value.what and "\n" not in caught.value.what
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_quiet_and_says_nothing_of_this_machine(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend, state = begin(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 1))
    )
    for name in ("a.onnx", "b.onnx"):
        backend.export(state, tmp_path / name, SIGNATURE)
    assert capfd.readouterr() == ("", "")
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert b"/torch/" not in content and __file__.encode() not in content


def test_pictures_are_finished_on_the_device_as_preparation_would() -> None:
    """Bit for bit on the CPU: a service's answers and a training's are of the same numbers."""
    spec = ImageInput(height=8, width=8, color="rgb", mean=(0.48, 0.45, 0.4), std=(0.22, 0.2, 0.3))
    stored = np.arange(256 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 3, 8, 8)

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            seen.append(inputs.clone())
            return inputs.flatten(1)[:, :1] * self.unused

    seen: list[torch.Tensor] = []
    backend = PyTorch()
    signature = Signature(
        inputs=(Tensor(name="input", dtype="float32", shape=(None, *spec.shape)),),
        outputs=SIGNATURE.outputs,
    )
    state = backend.begin(Same(), REGRESSION, SGD, signature, spec)
    backend.evaluate(state, stored)
    np.testing.assert_array_equal(seen[-1].numpy(), finish(spec, stored))
    bare = backend.begin(Same(), REGRESSION, SGD, signature)
    with pytest.raises(ValueError, match="need the `input`"):
        backend.evaluate(bare, stored)
