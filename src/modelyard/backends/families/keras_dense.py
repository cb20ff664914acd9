"""Keras: families made of dense layers alone (mlp, text-small, two-tower), and the dense layer of all families."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers, ops

from modelyard.backends.families import tower_places

Tensor = Any


def dense(units: int, inputs: int, activation: Any = None, name: str | None = None) -> layers.Layer:
    """A dense layer whose kernel and bias begin uniform in ±1/√inputs."""
    return layers.Dense(
        units,
        activation=activation,
        name=name,
        kernel_initializer=uniform(inputs),
        bias_initializer=uniform(inputs),
    )


def uniform(inputs: int) -> Any:
    """One for each weight: an initializer gives the same numbers each time that it is asked."""
    bound = 1 / math.sqrt(inputs)
    return keras.initializers.RandomUniform(-bound, bound)


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    hidden: Sequence[int] = (64, 64),
    dropout: float = 0.0,
) -> keras.Model:
    """Dense layers with ReLU: float32 (n, ...) -> float32 (n, outputs); any input is flattened first."""
    given = keras.Input(input_shape)
    if len(input_shape) == 3:  # as samples are, whatever the order that Keras likes
        channels, height, width = input_shape
        given = keras.Input((height, width, channels))
        x = layers.Permute((3, 1, 2))(given)
    else:
        x = given
    x = layers.Flatten()(x) if len(input_shape) > 1 else x
    width = math.prod(input_shape)
    for place, size in enumerate(hidden):
        x = layers.Dropout(dropout)(dense(size, width, "relu", f"layers_{place}")(x))
        width = size
    return keras.Model(given, dense(outputs, width, name="last")(x))


class MeanOfWords(layers.Layer):
    """Vectors of tokens, averaged over those that are there: (n, length) -> (n, width)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vectors = layers.Embedding(
            vocabulary, width, embeddings_initializer=keras.initializers.RandomNormal(stddev=1.0)
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.vectors.build(input_shape)

    def call(self, tokens: Tensor) -> Tensor:
        vectors = self.vectors(tokens)
        there = ops.expand_dims(ops.cast(ops.not_equal(tokens, 0), vectors.dtype), -1)
        return ops.sum(vectors * there, axis=1) / ops.maximum(ops.sum(there, axis=1), 1.0)


def text_small(
    input_shape: tuple[int, ...],
    vocabulary: int,
    outputs: int,
    width: int = 64,
    hidden: int = 64,
    dropout: float = 0.1,
) -> keras.Model:
    """The mean of the words' vectors and two dense layers: int64 (n, length) -> float32 (n, outputs).

    Vectors begin normal with deviation 1.
    """
    given = keras.Input(input_shape, dtype="int64")
    x = dense(hidden, width, "relu", "first")(MeanOfWords(vocabulary, width)(given))
    return keras.Model(given, dense(outputs, hidden, name="last")(layers.Dropout(dropout)(x)))


class Columns(layers.Layer):
    """Some features of each row: (n, features) -> (n, places)."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__()
        self._places = list(places)

    def call(self, x: Tensor) -> Tensor:
        return ops.take(x, self._places, axis=1)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (shape[0], len(self._places))


class Product(layers.Layer):
    """(n, width) and (n, outputs · width) -> (n, outputs): products / √width, plus a bias."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self._outputs, self._width = outputs, width

    def build(self, input_shape: Any) -> None:
        self.bias = self.add_weight(shape=(self._outputs,), initializer="zeros", name="bias")

    def call(self, both: Sequence[Tensor]) -> Tensor:
        left, right = both
        right = ops.reshape(right, (-1, self._outputs, self._width))
        found = ops.sum(ops.expand_dims(left, 1) * right, axis=-1)
        return found / math.sqrt(self._width) + self.bias


def two_tower(
    columns: tuple[tuple[str, int], ...],
    outputs: int,
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    hidden: Sequence[int] = (64,),
    width: int = 32,
) -> keras.Model:
    """Two groups of a table's columns, a tower for each: float32 (n, features) -> float32 (n, outputs).

    The left tower gives one vector of ``width`` numbers, the right one a vector for each output; an output
    is their product / √width, plus a bias (Covington, Adams, Sargin 2016; Yi et al. 2019).
    """
    given = keras.Input((sum(features for _, features in columns),))
    sides = []
    places = tower_places(columns, tuple(left), tuple(right))
    ends = ("left", width), ("right", outputs * width)
    for its, (side, last) in zip(places, ends, strict=True):
        x, before = Columns(its)(given), len(its)
        for place, size in enumerate(hidden):
            x, before = dense(size, before, "relu", f"{side}_{place}")(x), size
        sides.append(dense(last, before, name=f"{side}_last")(x))
    return keras.Model(given, Product(outputs, width)(sides))


FAMILIES: dict[str, Callable[..., keras.Model]] = {
    "mlp": mlp,
    "text-small": text_small,
    "two-tower": two_tower,
}
