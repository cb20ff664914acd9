"""Models that make an exchange between workers hard: double weights, buffers that change, parts unused."""

from typing import Any

import torch
from torch import nn


class Mixed(nn.Module):
    """Weights of two kinds."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(size, 8).double()
        self.last = nn.Linear(8, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x.flatten(1).double())).float())


class Counting(nn.Module):
    """A buffer that forward changes, differently on each worker, and a constant one; a part unused."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(size), nn.Linear(size, outputs)
        self.unused = nn.Linear(3, 3)
        self.register_buffer("largest", torch.zeros(1))
        self.register_buffer("constant", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.training:
            self.largest += x.max().detach()
        return self.last(self.norm(x))


def build(kind: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    size = 1
    for axis in input_shape:
        size *= axis
    kinds: dict[str, Any] = {"mixed": Mixed, "counting": Counting}
    return kinds[kind](size, outputs)
