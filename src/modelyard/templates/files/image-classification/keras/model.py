"""The model: a small convolutional network in Keras. Change it as you like.

`yard` calls `build` with the shape of one sample and the number of values to return per sample.
Keyword arguments can be set in yard.toml, for example: [model] args = { width = 16 }
"""

import math

import keras
from keras import layers, ops


def build(
    input_shape: tuple[int, ...], outputs: int, width: int = 32, dropout: float = 0.3
) -> keras.Model:
    """A network from (batch, height, width, channels) to (batch, outputs), for pictures of any size from 4 × 4.

    Samples have their channels first; what the model wants, its Input says.
    """
    channels, height, image_width = input_shape
    stack = [keras.Input((height, image_width, channels)), Jitter()]
    # Each block halves the picture, until its shorter side is 4 to 7 pixels.
    for block in range(max(1, int(math.log2(min(height, image_width) / 4)))):
        filters = min(width * 2**block, 128)
        stack += [
            layers.Conv2D(filters, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
        ]
    stack += [
        layers.Flatten(),
        layers.Dropout(dropout),
        layers.Dense(4 * width, activation="relu"),
        layers.Dense(outputs),  # no softmax: the loss and the service add it
    ]
    return keras.Sequential(stack)


class Jitter(layers.Layer):
    """Moves a batch of pictures by up to one pixel while training, so that the place of the ink matters less.

    It is switched off for validation, test and in the service.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers = keras.random.SeedGenerator(0)  # set anew for each step by `yard`

    def call(self, pictures, training=False):
        if not training:
            return pictures
        down, right = ops.unstack(keras.random.randint((2,), 0, 3, seed=self.numbers))
        padded = ops.pad(pictures, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="symmetric")
        return ops.slice(padded, (0, down, right, 0), ops.shape(pictures))
