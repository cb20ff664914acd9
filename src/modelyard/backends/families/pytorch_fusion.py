"""PyTorch: the family for samples of several parts: fusion."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from modelyard.backends.families.pytorch_dense import mlp, text_small
from modelyard.backends.families.pytorch_pictures import cnn


class Fusion(nn.Module):
    """See ``fusion``."""

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        width: int,
        outputs: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.last = nn.Sequential(
            nn.Linear(width * len(encoders), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, outputs),
        )

    def forward(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        said = [encoder(parts[name]) for name, encoder in self.encoders.items()]
        found: torch.Tensor = self.last(torch.relu(torch.cat(said, dim=1)))
        return found


def fusion(
    input_shapes: Mapping[str, tuple[int, ...]],
    outputs: int,
    vocabulary: int = 0,
    width: int = 64,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
) -> nn.Module:
    """A picture, a text and columns, of which two suffice: a dict of tensors -> float32 (n, outputs).

    ``image`` float32 (n, c, h, w) goes through a cnn, ``text`` int64 (n, length) through a text-small,
    ``table`` float32 (n, features) through an mlp, each of ``width`` outputs; what they say stands side by
    side before two dense layers (late fusion: Baltrušaitis, Ahuja, Morency 2019).
    """
    encoders: dict[str, nn.Module] = {}
    for name, shape in input_shapes.items():
        if name == "image":
            encoders[name] = cnn(shape, width, channels, hidden)
        elif name == "text":
            encoders[name] = text_small(vocabulary, width, width, width, dropout)
        else:
            encoders[name] = mlp(shape, width, (width,))
    return Fusion(encoders, width, outputs, hidden, dropout)


FAMILIES: dict[str, Callable[..., nn.Module]] = {"fusion": fusion}
