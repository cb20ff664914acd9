"""The built-in models take any shape of input."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.backends.pytorch import PyTorch
from modelyard.backends.pytorch_models import MODELS, cnn_small
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import TextInput
from modelyard.spec.work import World
from modelyard.tasks.signature import signature_of


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 9, 50), (1, 64, 100)])
def test_cnn_small_takes_any_image(shape: tuple[int, ...]) -> None:
    model = MODELS["cnn-small"](input_shape=shape, outputs=5)
    assert model(torch.zeros(2, *shape)).shape == (2, 5)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.mark.parametrize("shape", [(4,), (3, 5), (1, 8, 8)])
def test_mlp_takes_any_input(shape: tuple[int, ...]) -> None:
    model = MODELS["mlp"](input_shape=shape, outputs=2, hidden=[7], dropout=0.1)
    assert model(torch.zeros(3, *shape)).shape == (3, 2)


@pytest.mark.parametrize("shape", [(4,), (3, 2, 8)])
def test_cnn_small_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least 4 pixels"):
        cnn_small(input_shape=shape, outputs=2)


def test_text_small_takes_tokens_and_passes_over_what_is_not_there() -> None:
    model = MODELS["text-small"](input_shape=(6,), outputs=3, vocabulary=9).eval()
    short, long = torch.tensor([[4, 2, 0, 0, 0, 0]]), torch.tensor([[4, 2, 4, 2, 4, 2]])
    torch.testing.assert_close(model(short), model(long))
    assert model(torch.zeros(1, 6, dtype=torch.int64)).isfinite().all()
    with pytest.raises(ValueError, match="takes texts"):
        MODELS["text-small"](input_shape=(4,), outputs=2)


def test_a_model_of_tokens_is_begun_trained_and_exported(tmp_path: Path) -> None:
    """Whole numbers all the way: what tries the model must not hand it floats."""
    task = TaskSpec(type="classification", target="label", loss="cross-entropy", classes=("a", "b"))
    signature = signature_of(TextInput(length=6, tokens="bytes"), task)
    backend, model = PyTorch(), MODELS["text-small"](input_shape=(6,), outputs=2, vocabulary=257)
    tokens = np.random.default_rng(0).integers(0, 257, (8, 6))
    batch = Batch(inputs=tokens, targets=np.arange(8) % 2, global_size=8)
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        state = backend.begin(model, task, OptimizerSettings(name="adamw"), signature)
        state, result = backend.step(state, batch, StepSettings(learning_rate=0.1, seed=0))
        assert np.isfinite(float(result.loss))
        backend.export(state, tmp_path / "model.onnx", signature)
    taken = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type
    assert taken.elem_type == onnx.TensorProto.INT64


def test_cnn_small_halves_before_relu_and_trains_to_the_same_bits() -> None:
    """The faster order of two layers changes no bit of what is learned."""
    inputs, targets = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    learned = []
    for usual in (False, True):
        torch.manual_seed(0)
        model = cnn_small((3, 16, 16), 4)
        assert isinstance(model, nn.Sequential)
        if usual:
            for place in (1, 4):
                model[place], model[place + 1] = model[place + 1], model[place]
                assert isinstance(model[place], nn.ReLU)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        learned.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*learned, strict=True))
