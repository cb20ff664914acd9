"""Image files as they came, one behind the other in one file, decoded anew each time they are asked for.

For pictures whose pixels would not fit the disk (``data.keep = "files"``). The folder holds ``inputs.bin``
with the files' bytes, and ``places.npy``, int64 (n, 2): the first byte of each and how many there are.
Processes decode (data/decoders.py); who knows what comes next says so with ``begin``, and they work
on it while the step computes.
"""

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from modelyard.data.decoders import Decoders, Slice
from modelyard.spec.cores import available_cores
from modelyard.spec.errors import StoreError, from_os_error
from modelyard.spec.signature import ImageInput

PACK, PLACES = "inputs.bin", "places.npy"
_MOST_PROCESSES = 64
Rows = NDArray[np.int64]


class PackWriter:
    """A context in which files are appended to the pack of ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / PACK).open("wb", buffering=0)
        self._end = 0

    def append(self, contents: Sequence[bytes]) -> Rows:
        """Their places, (n, 2); they can be read at once."""
        lengths = np.array([len(content) for content in contents], np.int64)
        places = np.stack([self._end + np.cumsum(lengths) - lengths, lengths], 1)
        left = memoryview(b"".join(contents))
        while left:  # a write of an unbuffered file may be short
            left = left[self._file.write(left) :]
        self._end += int(lengths.sum())
        return places

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class PackedPictures:
    """Like an array of pixels, uint8 (n, channels, height, width), whose rows are decoded when they are taken."""

    dtype = np.dtype(np.uint8)

    def __init__(self, spec: ImageInput, folder: Path, places: Rows, workers: int = 1) -> None:
        """``places``: (n, 2), as ``PackWriter`` gave them; ``workers`` take pictures and share the cores."""
        self._spec, self._file, self._places = spec, folder / PACK, places
        self.shape = (len(places), *spec.shape)
        self._processes = min(max(1, available_cores() // workers), _MOST_PROCESSES)
        self._started: Decoders | None = None
        self._begun: dict[bytes, Slice] = {}
        self._starting = threading.Lock()

    def __len__(self) -> int:
        return len(self._places)

    def begin(self, rows: Rows) -> None:
        """These will be asked for, in this form: decode them meanwhile. What was begun waits in memory."""
        key = rows.tobytes()
        if key not in self._begun:
            self._begun[key] = self._decoders.begin(self._files(rows))

    def take(self, rows: Rows) -> NDArray[np.uint8]:
        """(n, c, h, w), the caller's own. Raises StoreError where the pack is damaged."""
        begun = self._begun.pop(rows.tobytes(), None)
        if begun is None:
            begun = self._decoders.begin(self._files(rows))
        pixels, unreadable = self._decoders.result(begun)
        for place, why in unreadable.items():
            raise StoreError(
                f"{self._file} is damaged: sample {int(rows[place])} is {why}",
                f"delete {self._file.parent}; it is made again",
            )
        return pixels

    def forget(self) -> None:
        """What was begun and not taken will not be asked for."""
        while self._begun:
            self._decoders.drop(self._begun.popitem()[1])

    def close(self) -> None:
        """End the processes; they are started again where more is taken."""
        self.forget()
        with self._starting:
            if self._started is not None:
                self._started.close()
                self._started = None

    @property
    def _decoders(self) -> Decoders:
        """A thread that works ahead and an evaluation may both be the first to need them."""
        with self._starting:
            if self._started is None:
                self._started = Decoders(self._spec, self._processes, pack=self._file)
                weakref.finalize(self, self._started.close)  # where nobody closes
            return self._started

    def _files(self, rows: Rows) -> list[tuple[int, int]]:
        return [(first, length) for first, length in self._places[rows].tolist()]


def open_packed(spec: ImageInput, folder: Path, places: Rows, workers: int) -> PackedPictures:
    """Raises StoreError where the pack is shorter than its places say."""
    end = int(places.sum(axis=1).max()) if len(places) else 0
    try:
        size = os.stat(folder / PACK).st_size  # noqa: PTH116
    except OSError as error:
        raise from_os_error(error) from error
    if size < end:
        raise StoreError(
            f"{folder / PACK} is damaged: it has {size} bytes where {end} are expected",
            f"delete {folder}; it is made again",
        )
    return PackedPictures(spec, folder, places, workers)
