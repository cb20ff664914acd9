"""Random numbers by counter: the same for a sample in an epoch, whoever asks, when and where.

SplitMix64 (Steele, Lea & Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014): number
``i`` of the stream with state ``key`` is ``mix(key + (i + 1) * GAMMA)``. So each number is reached at
once, there is no state to save, and a whole batch is one call. Only integer arithmetic and IEEE
multiplications: the same bits on every machine.
"""

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
_GAMMA = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def sample_keys(seed: int, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> Keys:
    """One stream for each pair of epoch and sample: (n,), (n,) -> uint64 (n,)."""
    keys = np.full(len(samples), number(seed, 0), dtype=np.uint64)
    for part in (epochs, samples):
        keys = _mix((keys ^ part.astype(np.uint64)) + np.uint64(_GAMMA))
    return keys


def number(key: int, draw: int) -> int:
    """Number ``draw`` of one stream, as a plain integer of 64 bits."""
    value = (key + (draw + 1) * _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(keys: Keys, draw: int, count: int = 1) -> NDArray[np.float64]:
    """Numbers ``draw`` to ``draw + count - 1`` of each stream, in [0, 1): (n, count)."""
    return (_words(keys, draw, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def pieces(keys: Keys, draw: int, count: int) -> NDArray[np.uint16]:
    """``count`` evenly spread 16-bit numbers, four to a number of the stream from ``draw`` on: (n, count)."""
    words = _words(keys, draw, -(-count // 4))
    return words.astype("<u8", copy=False).view("<u2")[:, :count]


def normal(keys: Keys, draw: int, count: int) -> NDArray[np.float32]:
    """``count`` normally distributed numbers: (n, count).

    By inverse transform from a table of 65,536 quantiles: no logarithm or cosine, whose last bit
    may differ between machines and between the middle and the end of an array. The tails end at 4.3.
    """
    return _quantiles()[pieces(keys, draw, count)]


def _words(keys: Keys, draw: int, count: int) -> Keys:
    places = np.arange(draw + 1, draw + 1 + count, dtype=np.uint64)
    return _mix(keys[:, None] + places * np.uint64(_GAMMA))


def _mix(words: Keys) -> Keys:
    """SplitMix64's finaliser, in place: arrays of integers wrap around without a warning."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


@lru_cache(maxsize=1)
def _quantiles() -> NDArray[np.float32]:
    """The normal distribution's quantile in the middle of each of 65,536 equal shares."""
    bell = NormalDist()
    upper = np.array([bell.inv_cdf((2**15 + i + 0.5) / 2**16) for i in range(2**15)], np.float32)
    return np.concatenate([-upper[::-1], upper])
