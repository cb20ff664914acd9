"""What is special about the families in PyTorch: any shape of input, training from whole numbers, bits that stay."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.backends.families.pytorch_dense import mlp, text_small
from modelyard.backends.families.pytorch_pictures import cnn, resnet
from modelyard.backends.families.pytorch_sequences import (
    rnn,
    transformer_decoder,
    transformer_encoder,
)
from modelyard.backends.pytorch import PyTorch
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import TextInput
from modelyard.spec.work import World
from modelyard.tasks.signature import signature_of


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 9, 50), (1, 64, 100)])
def test_pictures_may_have_any_size(shape: tuple[int, ...]) -> None:
    for model in (cnn(shape, 5), resnet(shape, 5)):
        assert model(torch.zeros(2, *shape)).shape == (2, 5)
        assert sum(p.numel() for p in model.parameters()) < 1_000_000


@pytest.mark.parametrize("shape", [(4,), (3, 5), (1, 8, 8)])
def test_mlp_takes_any_input(shape: tuple[int, ...]) -> None:
    model = mlp(shape, 2, hidden=[7], dropout=0.1)
    assert model(torch.zeros(3, *shape)).shape == (3, 2)


def test_a_resnet_18_is_one_of_them() -> None:
    """With a head for ten classes, as it is known for pictures of 32 x 32."""
    model = resnet((3, 32, 32), 10, widths=[64, 128, 256, 512], blocks=2)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


def test_what_comes_after_the_end_of_a_text_does_not_count() -> None:
    """And an empty text has an answer."""
    torch.manual_seed(0)
    short, long = torch.tensor([[4, 2, 7, 0]]), torch.tensor([[4, 2, 7, 0, 0, 0, 0, 0]])
    functions = (
        lambda length: text_small(9, 3),
        lambda length: rnn((length,), 3, 9),
        lambda length: transformer_encoder((length,), 3, 9),
        lambda length: transformer_decoder((length,), 3, 9),
    )
    for function in functions:
        model, shorter = function(8).eval(), function(4).eval()
        weights = {
            key: value[:4] if key == "positions" else value
            for key, value in model.state_dict().items()
        }
        shorter.load_state_dict(weights)
        torch.testing.assert_close(shorter(short), model(long))
        assert model(torch.zeros(1, 8, dtype=torch.int64)).isfinite().all()


def test_a_decoder_sees_nothing_that_comes_later() -> None:
    torch.manual_seed(0)
    model = transformer_decoder(input_shape=(6,), outputs=3, vocabulary=9).eval()
    seen: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda *given: seen.append(given[2]))
    model(torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 8, 8, 8]]))
    torch.testing.assert_close(seen[0][0, :3], seen[0][1, :3])
    assert not torch.allclose(seen[0][0, 3:], seen[0][1, 3:])


def test_a_model_of_tokens_is_begun_trained_and_exported(tmp_path: Path) -> None:
    """Whole numbers all the way: what tries the model must not hand it floats."""
    task = TaskSpec(type="classification", target="label", loss="cross-entropy", classes=("a", "b"))
    signature = signature_of(TextInput(length=6, tokens="bytes"), task)
    backend, model = PyTorch(), text_small(vocabulary=257, outputs=2)
    tokens = np.random.default_rng(0).integers(0, 257, (8, 6))
    batch = Batch(inputs=tokens, targets=np.arange(8) % 2, global_size=8)
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        state = backend.begin(model, task, OptimizerSettings(name="adamw"), signature)
        state, result = backend.step(state, batch, StepSettings(learning_rate=0.1, seed=0))
        assert np.isfinite(float(result.loss))
        backend.export(state, tmp_path / "model.onnx", signature)
    taken = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type
    assert taken.elem_type == onnx.TensorProto.INT64


def test_a_cnn_halves_before_relu_and_trains_to_the_same_bits() -> None:
    """The faster order of two layers changes no bit of what is learned."""
    inputs, targets = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    learned = []
    for usual in (False, True):
        torch.manual_seed(0)
        model = cnn((3, 16, 16), 4)
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
