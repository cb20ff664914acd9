"""Which samples a step takes: an endless stream of seeded permutations, cut into global batches.

The order of an epoch is one of two, chosen by the number of samples alone. Both rest on nothing but
Philox's words, which NumPy promises never to change, and integer arithmetic: no version of NumPy
shuffles a training in another way.

- Up to 2^17 samples: all are sorted by a random key each, so every order is as likely as any other.
- Above, a format-preserving permutation that is computed where it is asked for and kept nowhere: the
  generalised Feistel cipher of Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA
  2002), over a grid of about sqrt(n) by sqrt(n) places, walking on past the few that are too many.
  Mitchell et al., "Bandwidth-Optimal Random Shuffling for GPUs" (ACM TOPC 2022), shuffle the same way.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Words = NDArray[np.uint64]

_SORTED_BITS = 17
"""Up to 2 to the power of this many samples an epoch's order is kept: 1 MiB at most."""
_LONGEST_BITS = 62
_ROUNDS = 8
_AHEAD = 8192
"""About how many places of the stream are computed at once: NumPy's calls cost more than the arithmetic."""
_HALF = np.uint64(32)
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))
"""Odd multipliers: of SplitMix64's step and of its first mixing."""


@dataclass(frozen=True)
class Cursor:
    """The order of samples, the same for every framework and any number of workers.

    The stream is permutation 0, permutation 1, … of all samples, one an epoch; step ``s`` is its
    slice ``[s * batch_size, (s + 1) * batch_size)``. So a batch may straddle two epochs (or many,
    where it is larger than the data), none is ragged, and the whole state is the step. The number
    of workers is asked for at each step, and may be another one each time.
    """

    samples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch_size < 1:
            raise ValueError(
                f"a cursor needs at least one sample and a batch of at least one, not {self.samples} and {self.batch_size}"
            )
        if self.samples > 2**_LONGEST_BITS:
            raise ValueError(
                f"a cursor takes at most 2^{_LONGEST_BITS} samples, not {self.samples}"
            )

    def indices(self, step: int) -> Indices:
        """Positions in the split that global step ``step`` (from 0) takes: int64 (batch_size,)."""
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, size: int) -> Indices:
        """The part of ``indices(step)`` for worker ``rank`` of ``size``, as ``np.array_split`` cuts.

        Shares are contiguous, together they are the batch, and their lengths differ by at most one.
        The caller must not write to it.
        """
        if not 0 <= rank < size:
            raise ValueError(f"there is no worker {rank} among {size}")
        base, larger = divmod(self.batch_size, size)
        first = rank * base + min(rank, larger)
        length = base + (rank < larger)
        if self.samples <= 2**_SORTED_BITS:
            return _sorted_slice(self.samples, self.seed, step * self.batch_size + first, length)
        steps = max(1, _AHEAD // max(1, length))
        block, place = divmod(step, steps)
        taken: Indices = _ahead(self, first, length, block * steps, steps)[place]
        return taken

    def epoch(self, step: int) -> float:
        """Passes over the samples that are complete before ``step`` begins."""
        return step * self.batch_size / self.samples


def _sorted_slice(samples: int, seed: int, start: int, length: int) -> Indices:
    """``length`` places of the endless stream from place ``start`` on."""
    epoch, offset = divmod(start, samples)
    part = _sorted_order(samples, seed, epoch)[offset : offset + length]
    if len(part) == length:
        return part
    parts = [part]
    length -= len(part)
    while length > 0:
        epoch += 1
        parts.append(_sorted_order(samples, seed, epoch)[:length])
        length -= len(parts[-1])
    return _fixed(np.concatenate(parts))


@lru_cache(maxsize=4)
def _sorted_order(samples: int, seed: int, epoch: int) -> Indices:
    """The samples in the order of 47 random bits each; equal ones (unlikely) in their own order."""
    keys = _words(seed, epoch, samples)
    low = np.uint64(2**_SORTED_BITS - 1)
    keys &= ~low
    keys |= np.arange(samples, dtype=np.uint64)
    keys.sort()  # all differ, so every way of sorting gives the same
    keys &= low
    return _fixed(keys.view(np.int64))


@lru_cache(maxsize=4)
def _ahead(cursor: Cursor, first: int, length: int, start: int, steps: int) -> Indices:
    """What a share takes in ``steps`` steps from ``start`` on: (steps, length)."""
    batches = np.arange(start, start + steps, dtype=np.int64) * cursor.batch_size + first
    places = (batches[:, None] + np.arange(length, dtype=np.int64)).ravel()
    epochs, places = np.divmod(places, cursor.samples)
    result = np.empty(len(places), dtype=np.int64)
    begin = 0
    while begin < len(places):  # both grow along the array: an epoch is a slice
        epoch = int(epochs[begin])
        end = int(np.searchsorted(epochs, epoch, side="right"))
        keys = _words(cursor.seed, epoch, _ROUNDS)
        result[begin:end] = permuted(places[begin:end], cursor.samples, keys)
        begin = end
    return _fixed(result.reshape(steps, length))


def permuted(places: Indices, samples: int, keys: Words) -> Indices:
    """Where a permutation of ``range(samples)``, chosen by ``keys`` (one a round), takes ``places``."""
    rows = math.isqrt(samples - 1) + 1
    columns = -(-samples // rows)
    moved = _moved(places.astype(np.uint64), rows, columns, keys)
    outside = np.flatnonzero(moved >= samples)
    while len(outside):  # of the grid's places fewer than ``rows`` are too many
        moved[outside] = _moved(moved[outside], rows, columns, keys)
        outside = outside[moved[outside] >= samples]
    return moved.view(np.int64)


def _moved(places: Words, rows: int, columns: int, keys: Words) -> Words:
    """A permutation of ``range(rows * columns)``: each round adds to one half a hash of the other."""
    row, column = np.divmod(places, np.uint64(columns))
    for number, key in enumerate(keys):
        if number % 2:
            row = _added(row, column, key, np.uint64(rows))
        else:
            column = _added(column, row, key, np.uint64(columns))
    row *= np.uint64(columns)
    row += column
    return row


def _added(half: Words, other: Words, key: np.uint64, modulus: np.uint64) -> Words:
    """``(half + hash of other) mod modulus``; in place, as this is where the time goes."""
    hashed = other ^ key
    hashed *= _MIX[0]
    hashed ^= hashed >> _HALF
    hashed *= _MIX[1]
    hashed >>= _HALF
    hashed *= modulus  # 32 random bits to a number below the modulus, without a division
    hashed >>= _HALF
    hashed += half
    below: Words = np.minimum(hashed, hashed - modulus)  # less than zero is a huge number here
    return below


def _words(seed: int, epoch: int, count: int) -> Words:
    """Random words of an epoch. Philox is counter-based: no epoch needs those before it."""
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    words: Words = np.random.Philox(key=key).random_raw(count)
    return words


def _fixed(indices: Indices) -> Indices:
    indices.setflags(write=False)
    return indices
