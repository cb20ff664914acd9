"""The model: a multi-layer perceptron in Keras. Change it as you like.

`yard` calls `build` with the shape of one sample and the number of values to return per sample.
Keyword arguments come from [model] args in yard.toml.
"""

import keras
from keras import layers


def build(
    input_shape: tuple[int, ...], outputs: int, hidden: int = 32, dropout: float = 0.1
) -> keras.Model:
    """A network from (batch, features) to (batch, outputs).

    The features are the table's columns, already filled in and scaled: numbers have mean 0 and standard
    deviation 1, words are one column of 0 and 1 each.
    """
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Dense(hidden, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(hidden, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(outputs),  # one number, in the unit of the target
        ]
    )
