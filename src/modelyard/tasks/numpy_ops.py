"""The maths of losses in NumPy: what a task's metrics are computed with, and what every backend's must agree with."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class NumpyOps:
    """``tasks.base.Ops`` in the precision of its arguments."""

    def log_softmax(self, x: Array) -> Array:
        shifted = x - x.max(axis=-1, keepdims=True)
        result: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return result

    def log_sigmoid(self, x: Array) -> Array:
        result: Array = -np.logaddexp(0.0, -x)
        return result

    def take(self, x: Array, index: Array) -> Array:
        result: Array = x[np.arange(len(index)), index]
        return result

    def lookup(self, values: Sequence[float], index: Array) -> Array:
        result: Array = np.asarray(values, np.float64)[index]
        return result

    def square(self, x: Array) -> Array:
        result: Array = x * x
        return result

    def exp(self, x: Array) -> Array:
        result: Array = np.exp(x)
        return result

    def power(self, x: Array, exponent: float) -> Array:
        result: Array = np.power(x, exponent)
        return result

    def absolute(self, x: Array) -> Array:
        result: Array = np.abs(x)
        return result

    def minimum(self, x: Array, limit: float) -> Array:
        result: Array = np.minimum(x, limit)
        return result

    def mean_last(self, x: Array) -> Array:
        result: Array = x.mean(axis=-1)
        return result

    def reshape(self, x: Array, shape: tuple[int, ...]) -> Array:
        return x.reshape(shape)
