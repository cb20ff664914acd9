"""The models of ``benchmarks.parity`` in PyTorch, whose names and layouts the weights have."""

import torch
from torch import nn

from benchmarks.parity_models import (
    CLASSES,
    CNN,
    EPSILON,
    HEADS,
    INNER,
    LENGTH,
    MLP,
    VOCABULARY,
    WIDTH,
    Kind,
    Weights,
)


class Mlp(nn.Module):
    """One hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(24, 48), nn.Linear(48, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)))


class Cnn(nn.Module):
    """Two convolutions with pooling, and a dense layer on all that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.last = nn.Linear(16 * 4 * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            x = nn.functional.max_pool2d(torch.relu(layer(x)), 2)
        return self.last(x.flatten(1))


class Transformer(nn.Module):
    """One encoder block with norms before each part, the mean over all places, a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.before, self.between, self.after = (nn.LayerNorm(WIDTH, EPSILON) for _ in range(3))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.wide, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places.weight
        seen = self.before(x)
        x = x + self.attention(seen, seen, seen, need_weights=False)[0]
        x = x + self.narrow(torch.relu(self.wide(self.between(x))))
        return self.last(self.after(x).mean(dim=1))


def build(kind: Kind, weights: Weights) -> nn.Module:
    """The model of that kind with those weights."""
    model = Mlp() if kind is MLP else Cnn() if kind is CNN else Transformer()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model
