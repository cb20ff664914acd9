"""A small model with repeated blocks, as transformers have them: what sharding gathers one by one."""

import torch
from torch import nn


class Blocks(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(2)
        )
        self.last = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def build(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    size = 1
    for axis in input_shape:
        size *= axis
    return Blocks(size, outputs)
