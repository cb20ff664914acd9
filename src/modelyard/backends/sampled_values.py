"""Which values of weights and gradients a look at a training takes: few, evenly spaced, always the same ones.

A backend whose programs are compiled takes the gradients' values within its one program of a step, behind
a condition: another program for the steps that are looked at would be compiled in the middle of the
training, which takes as long as hundreds of steps, and might round differently.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_TENSORS = 128
_MOST_VALUES = 4096


def places(count: int) -> range:
    """Of ``count`` tensors, those that are looked at: at most 128."""
    return range(0, count, max(1, -(-count // _MOST_TENSORS)))


def stride(size: int) -> int:
    """From one value that is taken to the next, so that a tensor of ``size`` gives at most 4,096."""
    return max(1, -(-size // _MOST_VALUES))


def counts(sizes: Sequence[int]) -> list[int]:
    """How many values are taken of each tensor that is looked at, where all have these sizes."""
    return [-(-sizes[place] // stride(sizes[place])) for place in places(len(sizes))]


def spaced(array: NDArray[Any]) -> NDArray[np.float32]:
    """A copy of what is taken of ``array``, (values,)."""
    values: NDArray[np.float32] = np.array(array.reshape(-1)[:: stride(array.size)], np.float32)
    return values


def taken_of(flat: NDArray[np.float32], sizes: Sequence[int]) -> NDArray[np.float32]:
    """What is taken of the tensors of these sizes that lie one after the other in ``flat``."""
    ends = np.cumsum(sizes)
    parts = [spaced(flat[ends[at] - sizes[at] : ends[at]]) for at in places(len(sizes))]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def named_values(
    names: Sequence[str], weights: Sequence[Any], taken: NDArray[np.float32]
) -> dict[str, NDArray[Any]]:
    """``StepResult.samples``: of ``weights``, and of their gradients, whose values lie in ``taken`` one after the other."""
    found: dict[str, NDArray[Any]] = {}
    start = 0
    for place in places(len(names)):
        values = spaced(np.asarray(weights[place]))
        found[f"weights/{names[place]}"] = values
        found[f"gradients/{names[place]}"] = taken[start : start + values.size]
        start += values.size
    return found
