"""Small Keras models for the tests."""

import keras
from keras import layers


def cnn(input_shape: tuple[int, ...], outputs: int, channels: int = 8) -> keras.Model:
    """Pictures, channels last as Keras likes them."""
    depth, height, width = input_shape
    return keras.Sequential(
        [
            keras.Input((height, width, depth)),
            layers.Conv2D(channels, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(outputs),
        ]
    )


def odd(input_shape: tuple[int, ...], outputs: int, waits: bool = True) -> keras.Model:
    """Dropout, a batch norm, a penalty on weights, a frozen layer; not built before its first input."""
    frozen = layers.Dense(12)
    frozen.trainable = False
    stack = [
        layers.Flatten(),
        frozen,
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Dense(12, activation="relu", kernel_regularizer="l2"),
        layers.Dropout(0.5),
        layers.Dense(outputs),
    ]
    return keras.Sequential(stack if waits else [keras.Input(input_shape), *stack])


def not_a_model() -> object:
    return keras.layers.Dense(3)


def wide(input_shape: tuple[int, ...], outputs: int) -> keras.Model:
    """Dense layers that are large beside their adapters."""
    stack = [layers.Dense(256, activation="relu"), layers.Dense(256, activation="relu")]
    return keras.Sequential(
        [keras.Input(input_shape), layers.Flatten(), *stack, layers.Dense(outputs)]
    )
