"""JAX (Flax NNX): families for texts and other sequences: rnn, transformer-encoder, transformer-decoder."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from modelyard.backends.families.jax_dense import dense

_GATES = {"rnn": 1, "lstm": 4, "gru": 3}
_SMALL = 0.02


def there(tokens: jax.Array) -> jax.Array:
    """Which positions count: int32 (n, length) -> bool (n, length).

    0 is where a text has ended; of an empty text the first position counts, so that there is one.
    """
    return (tokens != 0) | (jnp.arange(tokens.shape[1]) == 0)


def last_there(x: jax.Array, counted: jax.Array | None) -> jax.Array:
    """What stands at the last position that counts: (n, length, width) -> (n, width)."""
    if counted is None:
        return x[:, -1]
    place = counted.astype(jnp.int32).sum(axis=1, keepdims=True) - 1
    chosen = jnp.arange(x.shape[1]) == place
    return (x * chosen[..., None].astype(x.dtype)).sum(axis=1)


class Cells(nnx.Module):
    """A recurrent layer: (n, time, before) -> (n, time, width). What depends on the input alone is one product."""

    def __init__(self, kind: str, before: int, width: int, rngs: nnx.Rngs) -> None:
        size = _GATES[kind] * width
        glorot, orthogonal = nnx.initializers.glorot_uniform(), nnx.initializers.orthogonal()
        self.inner = nnx.Param(glorot(rngs.params(), (before, size), jnp.float32))
        self.again = nnx.Param(orthogonal(rngs.params(), (width, size), jnp.float32))
        bias = jnp.zeros(size)
        if kind == "lstm":
            bias = bias.at[width : 2 * width].set(1.0)
        self.bias = nnx.Param(bias)
        if kind == "gru":
            self.again_bias = nnx.Param(jnp.zeros(size))
        self._kind, self._width = kind, width

    def __call__(self, x: jax.Array) -> jax.Array:
        given = jnp.swapaxes(x @ self.inner[...] + self.bias[...], 0, 1)
        again = self.again[...]
        again_bias = self.again_bias[...] if self._kind == "gru" else None
        steps = {"rnn": _rnn_step, "lstm": _lstm_step, "gru": _gru_step}
        # Of zeros that depend on the batch by the input alone: so the model is written for any batch.
        nothing = jnp.zeros_like(given[0, :, : self._width])

        def step(state: Any, now: jax.Array) -> tuple[Any, jax.Array]:
            return steps[self._kind](state, now, again, again_bias)

        begin = (nothing, nothing) if self._kind == "lstm" else nothing
        return jnp.swapaxes(jax.lax.scan(step, begin, given)[1], 0, 1)


def _rnn_step(state: Any, now: jax.Array, again: jax.Array, _: Any) -> tuple[Any, jax.Array]:
    state = jnp.tanh(now + state @ again)
    return state, state


def _lstm_step(state: Any, now: jax.Array, again: jax.Array, _: Any) -> tuple[Any, jax.Array]:
    """Gates in the order of PyTorch and Keras: input, forget, cell, output."""
    said, kept = state
    enter, forget, new, out = jnp.split(now + said @ again, 4, axis=-1)
    kept = nnx.sigmoid(forget) * kept + nnx.sigmoid(enter) * jnp.tanh(new)
    said = nnx.sigmoid(out) * jnp.tanh(kept)
    return (said, kept), said


def _gru_step(state: Any, now: jax.Array, again: jax.Array, bias: Any) -> tuple[Any, jax.Array]:
    """Gates in the order of PyTorch: reset, update, new; the update gate says how much stays."""
    before = jnp.split(state @ again + bias, 3, axis=-1)
    reset, update, new = jnp.split(now, 3, axis=-1)
    stay = nnx.sigmoid(update + before[1])
    new = jnp.tanh(new + nnx.sigmoid(reset + before[0]) * before[2])
    state = (1.0 - stay) * new + stay * state
    return state, state


class Recurrent(nnx.Module):
    """See ``rnn``."""

    def __init__(
        self,
        features: int,
        vocabulary: int,
        outputs: int,
        kind: str,
        width: int,
        layers: int,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self._tokens = bool(vocabulary)
        if vocabulary:
            self.vectors = _vectors(vocabulary, width, rngs)
        sizes = (width if vocabulary else features, *[width] * layers)
        self.cells = nnx.List([Cells(kind, before, width, rngs) for before in sizes[:-1]])
        self.drop, self.last = nnx.Dropout(dropout, rngs=rngs), dense(width, outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        counted = None
        if self._tokens:
            counted, x = there(x), self.vectors(x)
        for place, cells in enumerate(self.cells):
            x = cells(self.drop(x) if place else x)
        # What comes after the end of a text cannot change what was said before it.
        found: jax.Array = self.last(self.drop(last_there(x, counted)))
        return found


def _vectors(vocabulary: int, width: int, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(vocabulary, width, embedding_init=nnx.initializers.normal(_SMALL), rngs=rngs)


def rnn(
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    vocabulary: int = 0,
    kind: str = "lstm",
    width: int = 64,
    layers: int = 1,
    dropout: float = 0.0,
) -> nnx.Module:
    """A recurrent network, judged by its last position that counts.

    int32 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs). Cells: "rnn" with
    tanh (Elman 1990), "lstm" (Hochreiter, Schmidhuber 1997; with a forget gate), "gru" (Cho et al. 2014; the reset gate
    acts after the product). Tokens' vectors begin normal with deviation 0.02, kernels by Glorot's rule (uniform),
    recurrent kernels orthogonal, biases 0, an LSTM's forget gate 1 (Jozefowicz et al. 2015).
    """
    features = 0 if vocabulary else input_shape[1]
    return Recurrent(features, vocabulary, outputs, kind, width, layers, dropout, nnx.Rngs(seed))


class Attention(nnx.Module):
    """Several heads of self-attention: (n, length, width) -> the same shape.

    ``inner`` gives queries, keys and values one after the other, each head by head.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, *, causal: bool) -> None:
        self.inner, self.outer = dense(width, 3 * width, rngs), dense(width, width, rngs)
        self._heads, self._causal = heads, causal

    def __call__(self, x: jax.Array, counted: jax.Array | None) -> jax.Array:
        length, width = x.shape[1:]
        depth = width // self._heads
        split = self.inner(x).reshape(-1, length, 3, self._heads, depth)
        query, key, value = split[:, :, 0], split[:, :, 1], split[:, :, 2]
        scores = jnp.einsum("nqhd,nkhd->nhqk", query * depth**-0.5, key)
        if self._causal:  # positions after the end are seen by such positions only
            places = jnp.arange(length)
            scores = jnp.where(places[:, None] >= places[None, :], scores, -1e30)
        elif counted is not None:
            scores = jnp.where(counted[:, None, None, :], scores, -1e30)
        found = jnp.einsum("nhqk,nkhd->nqhd", nnx.softmax(scores), value)
        gathered: jax.Array = self.outer(found.reshape(-1, length, width))
        return gathered


class Block(nnx.Module):
    """Attention and two dense layers, each normed before and added to what came in."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        rngs: nnx.Rngs,
        *,
        causal: bool,
    ) -> None:
        self.attention_norm = _norm(width, rngs)
        self.attention = Attention(width, heads, rngs, causal=causal)
        self.dense_norm = _norm(width, rngs)
        self.wide, self.narrow = dense(width, hidden, rngs), dense(hidden, width, rngs)
        self.drop = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array, counted: jax.Array | None) -> jax.Array:
        x = x + self.drop(self.attention(self.attention_norm(x), counted))
        inner = nnx.gelu(self.wide(self.dense_norm(x)), approximate=False)
        return x + self.drop(self.narrow(inner))


def _norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class Transformer(nnx.Module):
    """See ``transformer_encoder``."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        vocabulary: int,
        outputs: int,
        width: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float,
        rngs: nnx.Rngs,
        *,
        causal: bool,
    ) -> None:
        self._tokens, self._causal = bool(vocabulary), causal
        self.vectors = (
            _vectors(vocabulary, width, rngs) if vocabulary else dense(input_shape[1], width, rngs)
        )
        positions = jax.random.normal(rngs.params(), (input_shape[0], width)) * _SMALL
        self.positions = nnx.Param(positions)
        self.blocks = nnx.List(
            [Block(width, heads, hidden, dropout, rngs, causal=causal) for _ in range(layers)]
        )
        self.norm, self.last = _norm(width, rngs), dense(width, outputs, rngs)
        self.drop = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        counted = there(x) if self._tokens else None
        x = self.drop(self.vectors(x) + self.positions[...])
        for block in self.blocks:
            x = block(x, counted)
        x = self.norm(x)
        if self._causal:
            x = last_there(x, counted)
        elif counted is None:
            x = x.mean(axis=1)
        else:
            weights = counted[..., None].astype(x.dtype)
            x = (x * weights).sum(axis=1) / weights.sum(axis=1)
        found: jax.Array = self.last(x)
        return found


def transformer_encoder(
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    vocabulary: int = 0,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
    dropout: float = 0.1,
) -> nnx.Module:
    """A Transformer whose positions all see each other (Vaswani et al. 2017), then the mean over them.

    int32 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs). Where a text has
    ended (token 0), nothing is seen nor counted. Norms come before attention and dense layers, and once more
    at the end, with epsilon 1e-5; the dense layers have GELU by the error function; positions are learned. Tokens' vectors
    and positions begin normal with deviation 0.02.
    """
    sizes = (width, heads, layers, hidden)
    return Transformer(
        input_shape, vocabulary, outputs, *sizes, dropout, nnx.Rngs(seed), causal=False
    )


def transformer_decoder(
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    vocabulary: int = 0,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
    dropout: float = 0.1,
) -> nnx.Module:
    """As ``transformer_encoder``, but a position sees none after it, and the last that counts is judged.

    int32 (n, length) of tokens, or float32 (n, time, features) -> float32 (n, outputs).
    """
    sizes = (width, heads, layers, hidden)
    return Transformer(
        input_shape, vocabulary, outputs, *sizes, dropout, nnx.Rngs(seed), causal=True
    )


FAMILIES: dict[str, Callable[..., nnx.Module]] = {
    "rnn": rnn,
    "transformer-encoder": transformer_encoder,
    "transformer-decoder": transformer_decoder,
}
