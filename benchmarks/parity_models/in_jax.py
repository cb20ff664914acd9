"""The models of ``benchmarks.parity`` in JAX: Flax NNX modules."""

import jax
import jax.numpy as jnp
from flax import nnx

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


class Mlp(nnx.Module):
    """One hidden layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.last = nnx.Linear(24, 48, rngs=rngs), nnx.Linear(48, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jax.nn.relu(self.first(x)))


class Cnn(nnx.Module):
    """Two convolutions with pooling, and a dense layer on all that is left."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 8, (3, 3), padding="SAME", rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), padding="SAME", rngs=rngs)
        self.last = nnx.Linear(16 * 4 * 4, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.transpose(x, (0, 2, 3, 1))
        for layer in (self.first, self.second):
            x = nnx.max_pool(jax.nn.relu(layer(x)), (2, 2), strides=(2, 2))
        return self.last(x.reshape(len(x), -1))


class Transformer(nnx.Module):
    """One encoder block with norms before each part, the mean over all places, a dense layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.words = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.places = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.before = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.between = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.after = nnx.LayerNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, INNER, rngs=rngs)
        self.narrow = nnx.Linear(INNER, WIDTH, rngs=rngs)
        self.last = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.words(tokens) + self.places(jnp.arange(LENGTH))
        x = x + self.attention(self.before(x))
        x = x + self.narrow(jax.nn.relu(self.wide(self.between(x))))
        return self.last(self.after(x).mean(axis=1))


def build(kind: Kind, weights: Weights) -> nnx.Module:
    """The model of that kind with those weights."""
    made = Mlp if kind is MLP else Cnn if kind is CNN else Transformer
    model = made(nnx.Rngs(0))
    for name, array in weights.items():
        layer_name, _, rest = name.partition(".")
        layer = getattr(model, layer_name)
        if layer_name == "attention":
            _attend(layer, rest, array)
        elif isinstance(layer, nnx.LayerNorm):
            _set(layer.scale if rest == "weight" else layer.bias, array)
        elif isinstance(layer, nnx.Embed):
            _set(layer.embedding, array)
        elif rest == "bias":
            _set(layer.bias, array)
        elif array.ndim == 4:
            _set(layer.kernel, array.transpose(2, 3, 1, 0))
        elif kind is CNN:
            turned = array.reshape(CLASSES, 16, 4, 4).transpose(2, 3, 1, 0)
            _set(layer.kernel, turned.reshape(-1, CLASSES))
        else:
            _set(layer.kernel, array.T)
    return model


def _attend(layer: nnx.MultiHeadAttention, name: str, array) -> None:
    """Kernels of query, key and value are (in, heads, size), that of the output (heads, size, out)."""
    size = WIDTH // HEADS
    if name.startswith("out_proj"):
        bias = name.endswith("bias")
        _set(layer.out.bias if bias else layer.out.kernel, array if bias else array.T.reshape(HEADS, size, WIDTH))  # fmt: skip
        return
    for part, inner in enumerate((layer.query, layer.key, layer.value)):
        rows = array[part * WIDTH : (part + 1) * WIDTH]
        if name == "in_proj_bias":
            _set(inner.bias, rows.reshape(HEADS, size))
        else:
            _set(inner.kernel, rows.T.reshape(WIDTH, HEADS, size))


def _set(parameter: nnx.Param, array) -> None:
    assert parameter[...].shape == array.shape, (parameter[...].shape, array.shape)
    parameter[...] = jnp.asarray(array)
