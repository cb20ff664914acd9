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


class Rich(nnx.Module):
    """Batch norm and dropout: (n, features) -> (n, outputs)."""

    def __init__(self, features: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(features, rngs=rngs)
        self.first = nnx.Linear(features, 32, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(32, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.drop(nnx.relu(self.first(self.norm(x)))))


def rich(input_shape: tuple[int, ...], outputs: int, seed: int = 0) -> nnx.Module:
    return Rich(math.prod(input_shape), outputs, nnx.Rngs(seed))


class Encoder(nnx.Module):
    """A Transformer encoder's layer over tokens: (n, length) -> (n, outputs)."""

    def __init__(self, vocabulary: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.vectors = nnx.Embed(vocabulary, 16, rngs=rngs)
        self.before, self.after = nnx.LayerNorm(16, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)
        self.last = nnx.Linear(16, outputs, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.vectors(tokens)
        x = x + self.attention(self.before(x))
        x = x + self.narrow(nnx.gelu(self.wide(self.after(x))))
        return self.last(x.mean(axis=1))


class Recurrent(nnx.Module):
    """An LSTM: (n, steps, features) -> (n, outputs)."""

    def __init__(self, features: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.loop = nnx.RNN(nnx.LSTMCell(features, 8, rngs=rngs))
        self.last = nnx.Linear(8, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.loop(x)[:, -1])


class Pooled(nnx.Module):
    """What else pictures go through: strides, groups, mean pooling, group norm, other activations."""

    def __init__(self, outputs: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 8, (3, 3), strides=2, padding="SAME", rngs=rngs)
        self.deep = nnx.Conv(8, 8, (3, 3), feature_group_count=8, padding="VALID", rngs=rngs)
        self.norm = nnx.GroupNorm(8, 4, rngs=rngs)
        self.last = nnx.Linear(8, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.silu(self.first(jnp.transpose(x, (0, 2, 3, 1))))
        x = nnx.avg_pool(self.norm(self.deep(x)), (2, 2), (2, 2), padding="SAME")
        x = jnp.concatenate([nnx.softplus(x[..., :4]), nnx.elu(x[..., 4:])], axis=-1)
        return self.last(jnp.clip(x, -2.0, 2.0).max(axis=(1, 2)))
