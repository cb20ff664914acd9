"""Models for the JAX backend's tests: Flax NNX modules and plain functions."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Net(nnx.Module):
    """Convolution, pooling, two dense layers: (n, c, h, w) -> (n, outputs)."""

    def __init__(
        self, shape: tuple[int, ...], outputs: int, channels: int, hidden: int, rngs: nnx.Rngs
    ) -> None:
        depth, height, width = shape
        self.kernel = nnx.Conv(depth, channels, (3, 3), rngs=rngs)
        self.first = nnx.Linear(channels * (height // 2) * (width // 2), hidden, rngs=rngs)
        self.last = nnx.Linear(hidden, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.kernel(jnp.transpose(x, (0, 2, 3, 1))))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.last(nnx.relu(self.first(x.reshape(x.shape[0], -1))))


def build(
    input_shape: tuple[int, ...],
    outputs: int,
    channels: int = 4,
    hidden: int = 8,
    seed: int = 0,
) -> nnx.Module:
    return Net(input_shape, outputs, channels, hidden, nnx.Rngs(seed))


def functions(
    input_shape: tuple[int, ...], outputs: int, hidden: int = 16
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A multi-layer perceptron without a library."""
    width = math.prod(input_shape)

    def dense(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
        kernel = jax.random.normal(key, (inputs, outputs)) * math.sqrt(2 / inputs)
        return {"kernel": kernel, "bias": jnp.zeros(outputs)}

    def init(key: jax.Array) -> Any:
        first, last = jax.random.split(key)
        return {"first": dense(first, width, hidden), "last": dense(last, hidden, outputs)}

    def apply(parameters: Any, inputs: jax.Array) -> jax.Array:
        first, last = parameters["first"], parameters["last"]
        x = jax.nn.relu(inputs.reshape(inputs.shape[0], -1) @ first["kernel"] + first["bias"])
        return x @ last["kernel"] + last["bias"]

    return init, apply
