"""PyTorch: families for pictures: cnn, resnet."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

LARGEST = 8
"""Pixels a side that go into the dense layer of a cnn, so that it stays small for large pictures."""


def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
) -> nn.Module:
    """Convolutions and two dense layers: float32 (n, c, h, w) -> float32 (n, outputs).

    Each of ``channels`` is one 3x3 convolution, ReLU and halving of height and width. What is larger than
    8 pixels a side then is averaged in windows of ⌈side / 8⌉ pixels, without overlap.
    """
    depth, height, width = input_shape
    layers: list[nn.Module] = []
    for features in channels:
        # The largest of four and then ReLU: bit by bit what ReLU and then the largest gives, forwards and
        # backwards, with a quarter of the numbers to go through.
        layers += [nn.Conv2d(depth, features, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()]
        depth, height, width = features, height // 2, width // 2
    window = (-(-height // LARGEST), -(-width // LARGEST))
    if window != (1, 1):
        height, width = height // window[0], width // window[1]
        layers.append(nn.AvgPool2d(window))
    layers += [nn.Flatten(), nn.Linear(depth * height * width, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(hidden, outputs))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a short cut: (n, before, h, w) -> (n, after, ⌈h/stride⌉, ⌈w/stride⌉)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first, self.first_norm = _convolution(before, after, 3, stride), _norm(after)
        self.second, self.second_norm = _convolution(after, after, 3, 1), _norm(after)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.short = nn.Sequential(_convolution(before, after, 1, stride), _norm(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.short(x))


def resnet(
    input_shape: tuple[int, ...],
    outputs: int,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """A residual network for small pictures (He et al. 2016): float32 (n, c, h, w) -> float32 (n, outputs).

    A 3x3 convolution, then a stage of ``blocks`` residual blocks for each of ``widths``; each stage but the
    first halves height and width (rounded up). The mean over all pixels goes into the last layer.
    Convolutions have no bias and begin normal with variance 2 / (outputs · kernel size); batch norms have momentum 0.1
    and epsilon 1e-5.
    """
    before = widths[0]
    layers = [_convolution(input_shape[0], before, 3, 1), _norm(before), nn.ReLU()]
    for stage, after in enumerate(widths):
        for block in range(blocks):
            layers.append(Residual(before, after, 2 if stage and not block else 1))
            before = after
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(before, outputs))


def _convolution(before: int, after: int, size: int, stride: int) -> nn.Module:
    layer = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _norm(features: int) -> nn.Module:
    return nn.BatchNorm2d(features)


FAMILIES: dict[str, Callable[..., nn.Module]] = {"cnn": cnn, "resnet": resnet}
