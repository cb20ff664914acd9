"""The models of ``benchmarks.training_work`` in Keras: the same layers, channels last."""

from typing import Any

import keras
from keras import layers

from benchmarks.training_work import CLASSES, WORKS


class Places(layers.Layer):
    """Adds a learned vector to each place."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, x: Any) -> Any:
        return x + self.table


def build(work: str) -> Any:
    """``cnn``: (n, 32, 32, 3), ``mlp``: (n, 32), ``transformer``: (n, 64, 32) -> (n, 10)."""
    keras.utils.set_random_seed(0)
    return {"cnn": cnn, "mlp": mlp, "transformer": transformer}[work]()


def mlp() -> Any:
    hidden = [layers.Dense(128, activation="relu"), layers.Dense(64, activation="relu")]
    return keras.Sequential([keras.Input(WORKS["mlp"].shape), *hidden, layers.Dense(CLASSES)])


def cnn() -> Any:
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(CLASSES),
        ]
    )


def transformer() -> Any:
    inputs = keras.Input(WORKS["transformer"].shape)
    x = Places()(layers.Dense(128)(inputs))
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.MultiHeadAttention(4, 32)(y, y)
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = x + layers.Dense(128)(layers.Dense(512, activation="gelu")(y))
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))
