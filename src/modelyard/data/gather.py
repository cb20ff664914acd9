"""Rows of a large array, copied into a batch at nearly the speed of memory."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LINE = 64
"""Bytes of a cache line: processors copy whole lines fastest."""
_WORTH_IT = 1024
"""Bytes of a row from which care pays: below, NumPy's calls take longer than the copy."""
_LARGE = 2**18
"""Bytes of a batch from which aligning it pays."""


def gather(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """``array[rows]`` in memory of its own, whole, writeable and aligned; every row must be in range.

    Memory is fresh each time: a batch may still be in use (on its way to a device, or ahead of the
    step) when the next one is made. The allocator gives back what the batch before last let go of.
    """
    if array.strides[0] < _WORTH_IT or not array.flags.c_contiguous:
        return array.take(rows, axis=0)
    shape = (len(rows), *array.shape[1:])
    size = math.prod(shape) * array.itemsize
    batch = _aligned(shape, array.dtype, size) if size >= _LARGE else np.empty(shape, array.dtype)
    if _follow_one_another(rows):
        np.copyto(batch, array[rows[0] : rows[0] + len(rows)])
    else:
        # Any other mode collects the rows in a second buffer first.
        array.take(rows, 0, batch, "clip")
    return batch


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    """Not initialised. Malloc aligns to 16 bytes, which costs a gather of pictures a tenth and more."""
    memory = np.empty(size + _LINE, dtype=np.uint8)
    start = -memory.__array_interface__["data"][0] % _LINE
    return np.ndarray(shape, dtype, memory, start)


def _follow_one_another(rows: NDArray[np.int64]) -> bool:
    """Between two steps every call of NumPy is a slow one: most rows are told by two of them."""
    if not len(rows) or rows.item(-1) - rows.item(0) != len(rows) - 1:
        return False
    return bool((rows[1:] - rows[:-1] == 1).all())
