"""Which samples a step takes: an endless stream of seeded permutations, cut into global batches."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Cursor:
    """The order of samples, the same for every framework and any number of workers.

    The stream is permutation 0, permutation 1, … of all samples, one an epoch; step ``s`` is its
    slice ``[s * batch_size, (s + 1) * batch_size)``. So a batch may straddle two epochs (or many,
    where it is larger than the data), none is ragged, and the whole state is the step.
    """

    samples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 1 or self.batch_size < 1:
            raise ValueError(
                f"a cursor needs at least one sample and a batch of at least one, not {self.samples} and {self.batch_size}"
            )

    def indices(self, step: int) -> Indices:
        """Positions in the split that global step ``step`` (from 0) takes: int64 (batch_size,)."""
        return self._slice(step * self.batch_size, self.batch_size)

    def share(self, step: int, rank: int, size: int) -> Indices:
        """The part of ``indices(step)`` for worker ``rank`` of ``size``, as ``np.array_split`` cuts.

        Shares are contiguous, together they are the batch, and their lengths differ by at most one.
        """
        if not 0 <= rank < size:
            raise ValueError(f"there is no worker {rank} among {size}")
        base, larger = divmod(self.batch_size, size)
        start = rank * base + min(rank, larger)
        return self._slice(step * self.batch_size + start, base + (rank < larger))

    def epoch(self, step: int) -> float:
        """Passes over the samples that are complete before ``step`` begins."""
        return step * self.batch_size / self.samples

    def _slice(self, start: int, length: int) -> Indices:
        """``length`` entries of the endless stream from entry ``start`` on."""
        parts = []
        while length > 0:
            epoch, offset = divmod(start, self.samples)
            part = _permutation(self.samples, self.seed, epoch)[offset : offset + length]
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@lru_cache(maxsize=4)
def _permutation(samples: int, seed: int, epoch: int) -> Indices:
    """Order of one epoch. Philox is counter-based: any epoch is reached without those before it."""
    generator = np.random.Generator(
        np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64))
    )
    order = generator.permutation(samples)
    order.setflags(write=False)
    return order
