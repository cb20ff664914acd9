"""The model: a small convolutional network in plain PyTorch. Change it as you like.

`yard` calls `build` with the shape of one sample and the number of values to return per sample.
Keyword arguments can be set in yard.toml, for example: [model] args = { width = 16 }
"""

import math

import torch
from torch import nn


def build(
    input_shape: tuple[int, ...], outputs: int, width: int = 32, dropout: float = 0.3
) -> nn.Module:
    """A network from (batch, channels, height, width) to (batch, outputs), for pictures of any size from 4 × 4."""
    channels, height, image_width = input_shape
    # Each block halves the picture, until its shorter side is 4 to 7 pixels.
    blocks = max(1, int(math.log2(min(height, image_width) / 4)))
    layers: list[nn.Module] = [Jitter()]
    for block in range(blocks):
        filters = min(width * 2**block, 128)
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    pixels = (height // 2**blocks) * (image_width // 2**blocks)
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(channels * pixels, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, outputs),  # no softmax: the loss and the service add it
    )


class Jitter(nn.Module):
    """Moves a batch of pictures by up to one pixel while training, so that the place of the ink matters less.

    It is switched off for validation, test and in the service.
    """

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return pictures
        height, width = pictures.shape[-2:]
        down, right = torch.randint(0, 3, (2,)).tolist()
        padded = nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
        return padded[..., down : down + height, right : right + width]
