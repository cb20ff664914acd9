"""The model: a multi-layer perceptron in JAX (Flax NNX). Change it as you like.

`yard` calls `build` with the shape of one sample, the number of values to return per sample and the
training's seed. Keyword arguments come from [model] args in yard.toml.
"""

from flax import nnx


def build(
    input_shape: tuple[int, ...], outputs: int, seed: int, hidden: int = 32, dropout: float = 0.3
) -> nnx.Module:
    """A network from (batch, features) to (batch, outputs).

    The features are the table's columns, already filled in and scaled: numbers have mean 0 and standard
    deviation 1, words are one column of 0 and 1 each.
    """
    (features,) = input_shape
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(
        nnx.Linear(features, hidden, rngs=rngs),
        nnx.relu,
        nnx.Dropout(dropout, rngs=rngs),
        nnx.Linear(hidden, hidden, rngs=rngs),
        nnx.relu,
        nnx.Dropout(dropout, rngs=rngs),
        nnx.Linear(hidden, outputs, rngs=rngs),  # no softmax: the loss and the service add it
    )
