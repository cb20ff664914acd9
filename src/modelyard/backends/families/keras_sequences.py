"""Keras: families for texts and other sequences: rnn, transformer-encoder, transformer-decoder."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers, ops

from modelyard.backends.families.keras_dense import dense

Tensor = Any
_CELLS: dict[str, Any] = {"rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}
_SMALL = 0.02


class There(layers.Layer):
    """Which positions count, as 1 and 0: tokens (n, length) -> (n, length, 1).

    0 is where a text has ended; of an empty text the first position counts, so that there is one.
    """

    def call(self, tokens: Tensor) -> Tensor:
        first = ops.equal(ops.arange(tokens.shape[1]), 0)
        counted = ops.logical_or(ops.not_equal(tokens, 0), first)
        return ops.expand_dims(ops.cast(counted, "float32"), -1)

    def compute_output_spec(self, tokens: Tensor) -> keras.KerasTensor:
        return keras.KerasTensor((*tokens.shape, 1), "float32")


class LastThere(layers.Layer):
    """What stands at the last position that counts: (n, length, width) -> (n, width)."""

    def call(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        if counted is None:
            return x[:, -1]
        place = ops.sum(counted, axis=1, keepdims=True) - 1.0
        places = ops.reshape(ops.arange(x.shape[1], dtype="float32"), (1, -1, 1))
        return ops.sum(x * ops.cast(ops.equal(places, place), x.dtype), axis=1)


class MeanThere(layers.Layer):
    """The mean over the positions that count: (n, length, width) -> (n, width)."""

    def call(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        if counted is None:
            return ops.mean(x, axis=1)
        weights = ops.cast(counted, x.dtype)
        return ops.sum(x * weights, axis=1) / ops.sum(weights, axis=1)


def _vectors(vocabulary: int, width: int) -> layers.Layer:
    rule = keras.initializers.RandomNormal(stddev=_SMALL)
    return layers.Embedding(vocabulary, width, embeddings_initializer=rule, name="vectors")


def rnn(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabulary: int = 0,
    kind: str = "lstm",
    width: int = 64,
    layers: int = 1,
    dropout: float = 0.0,
) -> keras.Model:
    """A recurrent network, judged by its last position that counts.

    int64 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs). Cells: "rnn" with
    tanh (Elman 1990), "lstm" (Hochreiter, Schmidhuber 1997; with a forget gate), "gru" (Cho et al. 2014; the reset gate
    acts after the product). Tokens' vectors begin normal with deviation 0.02, kernels by Glorot's rule (uniform),
    recurrent kernels orthogonal, biases 0, an LSTM's forget gate 1 (Jozefowicz et al. 2015): Keras' own rules.
    """
    given = keras.Input(input_shape, dtype="int64" if vocabulary else "float32")
    x, counted = given, None
    if vocabulary:
        counted, x = There()(given), _vectors(vocabulary, width)(given)
    for place in range(layers):
        x = keras.layers.Dropout(dropout)(x) if place else x
        x = _CELLS[kind](width, return_sequences=True, name=f"cells_{place}")(x)
    # What comes after the end of a text cannot change what was said before it.
    x = keras.layers.Dropout(dropout)(LastThere()(x, counted))
    return keras.Model(given, dense(outputs, width, name="last")(x))


class Positions(layers.Layer):
    """Adds a learned vector to each position: (n, length, width) -> the same shape."""

    def build(self, input_shape: Sequence[int | None]) -> None:
        rule = keras.initializers.RandomNormal(stddev=_SMALL)
        self.vectors = self.add_weight(
            shape=tuple(input_shape[1:]), initializer=rule, name="vectors"
        )

    def call(self, x: Tensor) -> Tensor:
        return x + ops.cast(self.vectors, x.dtype)


class Attention(layers.Layer):
    """Several heads of self-attention: (n, length, width) -> the same shape.

    ``inner`` gives queries, keys and values one after the other, each head by head.
    """

    def __init__(self, width: int, heads: int, *, causal: bool, name: str) -> None:
        super().__init__(name=name)
        self.inner = dense(3 * width, width, name="inner")
        self.outer = dense(width, width, name="outer")
        self._width, self._heads, self._causal = width, heads, causal

    def build(self, x_shape: Sequence[int | None], counted_shape: Any = None) -> None:
        self.inner.build(x_shape)
        self.outer.build(x_shape)

    def call(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        length, depth = x.shape[1], self._width // self._heads
        split = ops.reshape(self.inner(x), (-1, length, 3, self._heads, depth))
        query, key, value = split[:, :, 0], split[:, :, 1], split[:, :, 2]
        scores = ops.einsum("nqhd,nkhd->nhqk", query * depth**-0.5, key)
        if self._causal:  # positions after the end are seen by such positions only
            places = ops.arange(length)
            seen = ops.expand_dims(places, 1) >= ops.expand_dims(places, 0)
            scores = ops.where(seen, scores, ops.cast(-1e30, scores.dtype))
        elif counted is not None:
            seen = ops.reshape(counted, (-1, 1, 1, length)) > 0.5
            scores = ops.where(seen, scores, ops.cast(-1e30, scores.dtype))
        found = ops.einsum("nhqk,nkhd->nqhd", ops.softmax(scores), value)
        return self.outer(ops.reshape(found, (-1, length, self._width)))


def _norm(name: str) -> layers.Layer:
    return layers.LayerNormalization(epsilon=1e-5, name=name)


def _gelu(x: Tensor) -> Tensor:
    return keras.activations.gelu(x, approximate=False)


def _transformer(
    input_shape: tuple[int, ...],
    vocabulary: int,
    outputs: int,
    width: int,
    heads: int,
    blocks: int,
    hidden: int,
    dropout: float,
    *,
    causal: bool,
) -> keras.Model:
    given = keras.Input(input_shape, dtype="int64" if vocabulary else "float32")
    counted = There()(given) if vocabulary else None
    vectors = (
        _vectors(vocabulary, width) if vocabulary else dense(width, input_shape[1], name="vectors")
    )
    x = layers.Dropout(dropout)(Positions(name="positions")(vectors(given)))
    for place in range(blocks):
        name = f"blocks_{place}"
        attention = Attention(width, heads, causal=causal, name=f"{name}_attention")
        inner = attention(_norm(f"{name}_attention_norm")(x), counted)
        x = layers.Add()([x, layers.Dropout(dropout)(inner)])
        wide, narrow = (
            dense(hidden, width, _gelu, f"{name}_wide"),
            dense(width, hidden, name=f"{name}_narrow"),
        )
        inner = narrow(wide(_norm(f"{name}_dense_norm")(x)))
        x = layers.Add()([x, layers.Dropout(dropout)(inner)])
    x = (LastThere() if causal else MeanThere())(_norm("norm")(x), counted)
    return keras.Model(given, dense(outputs, width, name="last")(x))


def transformer_encoder(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabulary: int = 0,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
    dropout: float = 0.1,
) -> keras.Model:
    """A Transformer whose positions all see each other (Vaswani et al. 2017), then the mean over them.

    int64 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs). Where a text has
    ended (token 0), nothing is seen nor counted. Norms come before attention and dense layers, and once more
    at the end, with epsilon 1e-5; the dense layers have GELU by the error function; positions are learned. Tokens' vectors
    and positions begin normal with deviation 0.02.
    """
    return _transformer(
        input_shape, vocabulary, outputs, width, heads, layers, hidden, dropout, causal=False
    )


def transformer_decoder(
    input_shape: tuple[int, ...],
    outputs: int,
    vocabulary: int = 0,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
    dropout: float = 0.1,
) -> keras.Model:
    """As ``transformer_encoder``, but a position sees none after it, and the last that counts is judged.

    int64 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs).
    """
    return _transformer(
        input_shape, vocabulary, outputs, width, heads, layers, hidden, dropout, causal=True
    )


FAMILIES: dict[str, Callable[..., keras.Model]] = {
    "rnn": rnn,
    "transformer-encoder": transformer_encoder,
    "transformer-decoder": transformer_decoder,
}
