"""Keras: the family for samples of several parts: fusion. Pictures are channels last; the backend turns samples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import layers

from modelyard.backends.families.keras_dense import dense, mlp, text_small
from modelyard.backends.families.keras_pictures import cnn


def fusion(
    input_shapes: Mapping[str, tuple[int, ...]],
    outputs: int,
    vocabulary: int = 0,
    width: int = 64,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
) -> keras.Model:
    """A picture, a text and columns, of which two suffice: a dict of tensors -> float32 (n, outputs).

    ``image`` float32 (n, h, w, c) goes through a cnn, ``text`` int64 (n, length) through a text-small,
    ``table`` float32 (n, features) through an mlp, each of ``width`` outputs; what they say stands side by
    side before two dense layers (late fusion: Baltrušaitis, Ahuja, Morency 2019).
    """
    given: dict[str, Any] = {}
    said = []
    for name, shape in input_shapes.items():
        if name == "image":
            depth, height, across = shape
            given[name] = keras.Input((height, across, depth), name=name)
            encoder = cnn(shape, width, channels, hidden)
        elif name == "text":
            given[name] = keras.Input(shape, dtype="int64", name=name)
            encoder = text_small(shape, vocabulary, width, width, width, dropout)
        else:
            given[name] = keras.Input(shape, name=name)
            encoder = mlp(shape, width, (width,))
        said.append(encoder(given[name]))
    x = layers.ReLU()(layers.Concatenate()(said))
    x = dense(hidden, width * len(said), "relu", "first")(x)
    return keras.Model(given, dense(outputs, hidden, name="last")(layers.Dropout(dropout)(x)))


FAMILIES: dict[str, Callable[..., keras.Model]] = {"fusion": fusion}
