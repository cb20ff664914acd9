"""A Keras variable's value as a NumPy array, whatever framework holds it."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


def as_array(value: Any) -> NDArray[Any]:
    if hasattr(
        value, "read_value"
    ):  # NumPy 2 does not like how TensorFlow's variables turn into arrays
        value = value.read_value()
    return np.array(keras.ops.convert_to_numpy(value))
