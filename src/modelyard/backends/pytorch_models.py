"""The built-in PyTorch models: small, for any shape, readable as examples."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from modelyard.spec.signature import Signature


def cnn_small(
    input_shape: tuple[int, ...],
    outputs: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
) -> nn.Module:
    """Convolutions and two dense layers: (n, c, h, w) -> (n, outputs), for h and w from 8 on.

    Each of ``channels`` is one 3x3 convolution, ReLU and halving of height and width; what is left
    is averaged down to 8x8 at most, so that the dense layer stays small for large images.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 2 ** len(channels):
        raise ValueError(
            f"cnn-small takes images (channels, height, width) of at least {2 ** len(channels)} pixels a side, not {input_shape}"
        )
    depth, height, width = input_shape
    layers: list[nn.Module] = []
    for features in channels:
        # The largest of four and then ReLU: bit by bit what ReLU and then the largest gives, forwards and
        # backwards, with a quarter of the numbers to go through.
        layers += [nn.Conv2d(depth, features, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        depth, height, width = features, height // 2, width // 2
    if max(height, width) > 8:
        height, width = min(height, 8), min(width, 8)
        layers.append(nn.AdaptiveAvgPool2d((height, width)))
    layers += [nn.Flatten(), nn.Linear(depth * height * width, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(hidden, outputs))


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    hidden: Sequence[int] = (64, 64),
    dropout: float = 0.0,
) -> nn.Module:
    """Dense layers with ReLU: (n, ...) -> (n, outputs); any input is flattened first."""
    width = math.prod(input_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class _MeanOfWords(nn.Module):
    """Vectors of tokens, averaged over those that are there; 0 stands for none."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width, padding_idx=0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        there = (tokens != 0).unsqueeze(-1).to(torch.float32)
        total = (self.vectors(tokens) * there).sum(dim=1)
        mean: torch.Tensor = total / there.sum(dim=1).clamp(min=1.0)
        return mean


def text_small(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabulary: int = 0,
    width: int = 64,
    hidden: int = 64,
    dropout: float = 0.1,
) -> nn.Module:
    """The mean of the words' vectors and two dense layers: (n, length) -> (n, outputs)."""
    if not vocabulary:
        raise ValueError(f"text-small takes texts, not an input of shape {input_shape}")
    return nn.Sequential(
        _MeanOfWords(vocabulary, width),
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs),
    )


def input_type(signature: Signature) -> torch.dtype:
    """Of the tensor that the model takes."""
    return torch.int64 if signature.inputs[0].dtype == "int64" else torch.float32


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn-small": cnn_small,
    "mlp": mlp,
    "text-small": text_small,
}
