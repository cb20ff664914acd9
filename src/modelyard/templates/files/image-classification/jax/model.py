"""The model: a small convolutional network in JAX (Flax NNX). Change it as you like.

`yard` calls `build` with the shape of one sample, the number of values to return per sample and the
training's seed. Keyword arguments can be set in yard.toml, for example: [model] args = { width = 16 }
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx


def build(
    input_shape: tuple[int, ...], outputs: int, seed: int, width: int = 32, dropout: float = 0.3
) -> nnx.Module:
    """A network from (batch, channels, height, width) to (batch, outputs), for pictures of any size from 4 × 4."""
    return Network(input_shape, outputs, width, dropout, nnx.Rngs(seed))


class Network(nnx.Module):
    def __init__(
        self, shape: tuple[int, ...], outputs: int, width: int, dropout: float, rngs: nnx.Rngs
    ) -> None:
        channels, height, image_width = shape
        # Each block halves the picture, until its shorter side is 4 to 7 pixels.
        blocks = max(1, int(math.log2(min(height, image_width) / 4)))
        self.jitter = Jitter(rngs)
        kernels = []
        for block in range(blocks):
            filters = min(width * 2**block, 128)
            kernels.append(nnx.Conv(channels, filters, (3, 3), rngs=rngs))
            channels = filters
        self.kernels = nnx.List(kernels)
        pixels = (height // 2**blocks) * (image_width // 2**blocks)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.first = nnx.Linear(channels * pixels, 4 * width, rngs=rngs)
        self.last = nnx.Linear(4 * width, outputs, rngs=rngs)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = self.jitter(jnp.transpose(pictures, (0, 2, 3, 1)))  # Flax has the channels last
        for kernel in self.kernels:
            x = nnx.max_pool(nnx.relu(kernel(x)), (2, 2), (2, 2))
        x = self.dropout(x.reshape(x.shape[0], -1))
        return self.last(nnx.relu(self.first(x)))  # no softmax: the loss and the service add it


class Jitter(nnx.Module):
    """Moves a batch of pictures by up to one pixel while training, so that the place of the ink matters less.

    It is switched off for validation, test and in the service.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.rngs = rngs.dropout.fork()
        self.deterministic = False  # Flax sets it to True outside of training

    def __call__(self, pictures: jax.Array) -> jax.Array:
        if self.deterministic:
            return pictures
        down, right = jax.random.randint(self.rngs(), (2,), 0, 3)
        padded = jnp.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        return jax.lax.dynamic_slice(padded, (0, down, right, 0), pictures.shape)
