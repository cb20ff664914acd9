"""JAX (Flax NNX): families made of dense layers alone (mlp, text-small, two-tower), and the dense layer of all families."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx

from modelyard.backends.families import tower_places


def dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer whose kernel and bias begin uniform in ±1/√inputs."""
    rule = uniform(inputs)
    return nnx.Linear(inputs, outputs, kernel_init=rule, bias_init=rule, rngs=rngs)


def uniform(inputs: int) -> Callable[..., jax.Array]:
    """Draws in ±1/√inputs."""
    bound = 1 / math.sqrt(inputs)

    def draw(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


class Mlp(nnx.Module):
    """Dense layers with ReLU between them; whatever comes in is flattened."""

    def __init__(
        self, sizes: Sequence[int], dropout: float, rngs: nnx.Rngs, *, flatten: bool = False
    ) -> None:
        pairs = pairwise(sizes)
        self.layers = nnx.List([dense(before, after, rngs) for before, after in pairs])
        self.drop = nnx.Dropout(dropout, rngs=rngs)
        self._flatten = flatten

    def __call__(self, x: jax.Array) -> jax.Array:
        if self._flatten:
            x = x.reshape(x.shape[0], -1)
        for layer in self.layers[:-1]:
            x = self.drop(nnx.relu(layer(x)))
        found: jax.Array = self.layers[-1](x)
        return found


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    hidden: Sequence[int] = (64, 64),
    dropout: float = 0.0,
) -> nnx.Module:
    """Dense layers with ReLU: float32 (n, ...) -> float32 (n, outputs); any input is flattened first."""
    sizes = (math.prod(input_shape), *hidden, outputs)
    return Mlp(sizes, dropout, nnx.Rngs(seed), flatten=True)


class MeanOfWords(nnx.Module):
    """Vectors of tokens, averaged over those that are there, and two dense layers."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        hidden: int,
        outputs: int,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        rule = nnx.initializers.normal(1.0)
        self.vectors = nnx.Embed(vocabulary, width, embedding_init=rule, rngs=rngs)
        self.first, self.last = dense(width, hidden, rngs), dense(hidden, outputs, rngs)
        self.drop = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        there = (tokens != 0)[..., None].astype(jnp.float32)
        mean = (self.vectors(tokens) * there).sum(axis=1) / jnp.maximum(there.sum(axis=1), 1.0)
        found: jax.Array = self.last(self.drop(nnx.relu(self.first(mean))))
        return found


def text_small(
    vocabulary: int,
    outputs: int,
    seed: int,
    width: int = 64,
    hidden: int = 64,
    dropout: float = 0.1,
) -> nnx.Module:
    """The mean of the words' vectors and two dense layers: int32 (n, length) -> float32 (n, outputs).

    Vectors begin normal with deviation 1.
    """
    return MeanOfWords(vocabulary, width, hidden, outputs, dropout, nnx.Rngs(seed))


class TwoTower(nnx.Module):
    """See ``two_tower``."""

    def __init__(
        self,
        places: tuple[list[int], list[int]],
        outputs: int,
        hidden: Sequence[int],
        width: int,
        rngs: nnx.Rngs,
    ) -> None:
        self._left_places, self._right_places = (tuple(its) for its in places)
        self.left = Mlp((len(places[0]), *hidden, width), 0.0, rngs)
        self.right = Mlp((len(places[1]), *hidden, outputs * width), 0.0, rngs)
        self.bias = nnx.Param(jnp.zeros(outputs))
        self._outputs, self._width = outputs, width

    def __call__(self, x: jax.Array) -> jax.Array:
        left = self.left(x[:, jnp.array(self._left_places)])[:, None, :]
        right = self.right(x[:, jnp.array(self._right_places)])
        right = right.reshape(-1, self._outputs, self._width)
        return (left * right).sum(axis=-1) / math.sqrt(self._width) + self.bias[...]


def two_tower(
    columns: tuple[tuple[str, int], ...],
    outputs: int,
    seed: int,
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    hidden: Sequence[int] = (64,),
    width: int = 32,
) -> nnx.Module:
    """Two groups of a table's columns, a tower for each: float32 (n, features) -> float32 (n, outputs).

    The left tower gives one vector of ``width`` numbers, the right one a vector for each output; an output
    is their product / √width, plus a bias (Covington, Adams, Sargin 2016; Yi et al. 2019).
    """
    places = tower_places(columns, tuple(left), tuple(right))
    return TwoTower(places, outputs, hidden, width, nnx.Rngs(seed))


FAMILIES: dict[str, Callable[..., nnx.Module]] = {
    "mlp": mlp,
    "text-small": text_small,
    "two-tower": two_tower,
}
