"""Keras: families for pictures: cnn, resnet. The models' inputs are channels last; the backend turns samples."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from modelyard.backends.families.keras_dense import dense, uniform

Tensor = Any
LARGEST = 8
"""Pixels a side that go into the dense layer of a cnn, so that it stays small for large pictures."""


def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
) -> keras.Model:
    """Convolutions and two dense layers: float32 (n, c, h, w) -> float32 (n, outputs).

    Each of ``channels`` is one 3x3 convolution, ReLU and halving of height and width. What is larger than
    8 pixels a side then is averaged in windows of ⌈side / 8⌉ pixels, without overlap. The dense layer's
    inputs are in the order of samples: channels first.
    """
    depth, height, width = input_shape
    given = keras.Input((height, width, depth))
    x = given
    for place, features in enumerate(channels):
        inputs = 9 * depth
        convolution = layers.Conv2D(
            features,
            3,
            padding="same",
            data_format="channels_last",
            name=f"convolutions_{place}",
            kernel_initializer=uniform(inputs),
            bias_initializer=uniform(inputs),
        )
        x = layers.MaxPooling2D(data_format="channels_last")(convolution(x))
        x = layers.ReLU()(x)
        depth, height, width = features, height // 2, width // 2
    window = (-(-height // LARGEST), -(-width // LARGEST))
    if window != (1, 1):
        height, width = height // window[0], width // window[1]
        x = layers.AveragePooling2D(window, data_format="channels_last")(x)
    x = layers.Flatten(data_format="channels_last")(layers.Permute((3, 1, 2))(x))
    x = layers.Dropout(dropout)(dense(hidden, depth * height * width, "relu", "first")(x))
    return keras.Model(given, dense(outputs, hidden, name="last")(x))


def resnet(
    input_shape: tuple[int, ...],
    outputs: int,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 2,
    dropout: float = 0.0,
) -> keras.Model:
    """A residual network for small pictures (He et al. 2016): float32 (n, c, h, w) -> float32 (n, outputs).

    A 3x3 convolution, then a stage of ``blocks`` residual blocks for each of ``widths``; each stage but the
    first halves height and width (rounded up). The mean over all pixels goes into the last layer.
    Convolutions have no bias and begin normal with variance 2 / (outputs · kernel size); batch norms have momentum 0.9
    (as Keras counts) and epsilon 1e-5.
    """
    depth, height, width = input_shape
    given = keras.Input((height, width, depth))
    before = widths[0]
    x = layers.ReLU()(_normed(given, before, 3, 1, "begin"))
    for stage, after in enumerate(widths):
        for block in range(blocks):
            name = f"blocks_{stage * blocks + block}"
            x = _residual(x, before, after, 2 if stage and not block else 1, name)
            before = after
    x = layers.GlobalAveragePooling2D(data_format="channels_last")(x)
    return keras.Model(given, dense(outputs, before, name="last")(layers.Dropout(dropout)(x)))


def _residual(x: Tensor, before: int, after: int, stride: int, name: str) -> Tensor:
    """Two 3x3 convolutions beside a short cut: (n, h, w, before) -> (n, ⌈h/stride⌉, ⌈w/stride⌉, after)."""
    inner = layers.ReLU()(_normed(x, after, 3, stride, f"{name}_first"))
    inner = _normed(inner, after, 3, 1, f"{name}_second")
    if stride != 1 or before != after:
        x = _normed(x, after, 1, stride, f"{name}_short")
    return layers.ReLU()(layers.Add()([inner, x]))


def _normed(x: Tensor, features: int, size: int, stride: int, name: str) -> Tensor:
    """A convolution and a batch norm.

    There are as many zeros on each side, also where it strides: Keras' "same" is lopsided there.
    """
    if size > 1:
        x = layers.ZeroPadding2D(size // 2, data_format="channels_last")(x)
    rule = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    convolution = layers.Conv2D(
        features,
        size,
        stride,
        use_bias=False,
        name=name,
        data_format="channels_last",
        kernel_initializer=rule,
    )
    norm = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")
    return norm(convolution(x))


FAMILIES: dict[str, Callable[..., keras.Model]] = {"cnn": cnn, "resnet": resnet}
