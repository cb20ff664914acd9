"""The models of ``benchmarks.parity`` in Keras, on whichever framework it stands."""

from typing import Any

import keras
import numpy as np
from keras import layers, ops

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


def _cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="second"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(CLASSES, name="last"),
        ]
    )


def _mlp() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((24,)),
            layers.Dense(48, "relu", name="first"),
            layers.Dense(CLASSES, name="last"),
        ]
    )


class Places(layers.Layer):
    """Adds a vector for each place of a sequence."""

    def build(self, shape: Any) -> None:
        self.vectors = self.add_weight(shape=(LENGTH, WIDTH), name="vectors")

    def call(self, x: Any) -> Any:
        return x + self.vectors


def _transformer() -> keras.Model:
    tokens = keras.Input((LENGTH,), dtype="int64")
    x = Places(name="places")(layers.Embedding(VOCABULARY, WIDTH, name="words")(tokens))
    seen = layers.LayerNormalization(epsilon=EPSILON, name="before")(x)
    attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name="attention")
    x = layers.Add()([x, attention(seen, seen)])
    inner = layers.LayerNormalization(epsilon=EPSILON, name="between")(x)
    inner = layers.Dense(WIDTH, name="narrow")(layers.Dense(INNER, "relu", name="wide")(inner))
    x = layers.LayerNormalization(epsilon=EPSILON, name="after")(layers.Add()([x, inner]))
    return keras.Model(tokens, layers.Dense(CLASSES, name="last")(ops.mean(x, axis=1)))


def build(kind: Kind, weights: Weights) -> keras.Model:
    """The model of that kind with those weights."""
    model = _mlp() if kind is MLP else _cnn() if kind is CNN else _transformer()
    names = dict.fromkeys(name.partition(".")[0] for name in weights)
    for name in names:
        mine = {
            k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")
        }
        given = _attention(mine) if name == "attention" else _turned(kind, name, mine)
        model.get_layer(name).set_weights(given)
    return model


def _turned(kind: Kind, name: str, mine: Weights) -> list[np.ndarray]:
    weight = mine["weight"]
    if weight.ndim == 4:
        weight = weight.transpose(2, 3, 1, 0)
    elif kind is CNN and name == "last":
        weight = weight.reshape(CLASSES, 16, 4, 4).transpose(2, 3, 1, 0).reshape(-1, CLASSES)
    elif weight.ndim == 2 and name not in ("words", "places"):
        weight = weight.T
    return [weight, *([mine["bias"]] if "bias" in mine else [])]


def _attention(mine: Weights) -> list[np.ndarray]:
    """Kernels of query, key and value (in, heads, size), then that of the output (heads, size, out)."""
    found: list[np.ndarray] = []
    size = WIDTH // HEADS
    for part in range(3):
        rows = slice(part * WIDTH, (part + 1) * WIDTH)
        found.append(mine["in_proj_weight"][rows].T.reshape(WIDTH, HEADS, size))
        found.append(mine["in_proj_bias"][rows].reshape(HEADS, size))
    output = mine["out_proj.weight"].T.reshape(HEADS, size, WIDTH)
    return [*found, output, mine["out_proj.bias"]]
