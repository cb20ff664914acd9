"""The field's first example in Keras: two convolutions with pooling, two dense layers, on 32 × 32 × 3 pictures."""

import keras
from keras import layers


def build(outputs: int) -> keras.Model:
    """(n, 32, 32, 3) -> (n, 10); samples lie as (3, 32, 32), and are turned as the Input says."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(outputs),
        ]
    )
