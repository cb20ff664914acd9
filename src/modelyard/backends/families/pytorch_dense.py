"""PyTorch: families made of dense layers alone: mlp, text-small, two-tower."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from modelyard.backends.families import tower_places


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    hidden: Sequence[int] = (64, 64),
    dropout: float = 0.0,
) -> nn.Module:
    """Dense layers with ReLU: float32 (n, ...) -> float32 (n, outputs); any input is flattened first."""
    sizes = (math.prod(input_shape), *hidden)
    return nn.Sequential(nn.Flatten(), *_stack(sizes, dropout), nn.Linear(sizes[-1], outputs))


def _stack(sizes: Sequence[int], dropout: float | None = None) -> list[nn.Module]:
    """A dense layer and ReLU for each size but the first, which is that of the input."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
        if dropout is not None:
            layers.append(nn.Dropout(dropout))
    return layers


class MeanOfWords(nn.Module):
    """Vectors of tokens, averaged over those that are there: int64 (n, length) -> (n, width)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(vocabulary, width, padding_idx=0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        there = (tokens != 0).unsqueeze(-1).to(torch.float32)
        total = (self.vectors(tokens) * there).sum(dim=1)
        mean: torch.Tensor = total / there.sum(dim=1).clamp(min=1.0)
        return mean


def text_small(
    vocabulary: int,
    outputs: int,
    width: int = 64,
    hidden: int = 64,
    dropout: float = 0.1,
) -> nn.Module:
    """The mean of the words' vectors and two dense layers: int64 (n, length) -> float32 (n, outputs).

    Vectors begin normal with deviation 1.
    """
    return nn.Sequential(
        MeanOfWords(vocabulary, width),
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, outputs),
    )


class TwoTower(nn.Module):
    """See ``two_tower``."""

    left_places: torch.Tensor
    right_places: torch.Tensor

    def __init__(
        self,
        places: tuple[list[int], list[int]],
        outputs: int,
        hidden: Sequence[int],
        width: int,
    ) -> None:
        super().__init__()
        for side, its in zip(("left", "right"), places, strict=True):
            self.register_buffer(f"{side}_places", torch.tensor(its), persistent=False)
        sizes = [(len(its), *hidden) for its in places]
        self.left = nn.Sequential(*_stack(sizes[0]), nn.Linear(sizes[0][-1], width))
        self.right = nn.Sequential(*_stack(sizes[1]), nn.Linear(sizes[1][-1], outputs * width))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.left(x.index_select(1, self.left_places)).unsqueeze(1)
        right = self.right(x.index_select(1, self.right_places)).unflatten(1, (-1, self._width))
        found: torch.Tensor = (left * right).sum(dim=-1) / math.sqrt(self._width) + self.bias
        return found


def two_tower(
    columns: tuple[tuple[str, int], ...],
    outputs: int,
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    hidden: Sequence[int] = (64,),
    width: int = 32,
) -> nn.Module:
    """Two groups of a table's columns, a tower for each: float32 (n, features) -> float32 (n, outputs).

    The left tower gives one vector of ``width`` numbers, the right one a vector for each output; an output
    is their product / √width, plus a bias. Of a column of words, a tower's first layer is a table of vectors,
    one a word, so that two columns of identifiers are a matrix factorisation with hidden layers
    (Covington, Adams, Sargin 2016; Yi et al. 2019).
    """
    places = tower_places(columns, tuple(left), tuple(right))
    return TwoTower(places, outputs, hidden, width)


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "text-small": text_small,
    "two-tower": two_tower,
}
