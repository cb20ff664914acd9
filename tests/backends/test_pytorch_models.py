"""The built-in models take any shape of input."""

import pytest
import torch

from modelyard.backends.pytorch_models import MODELS, cnn_small


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
