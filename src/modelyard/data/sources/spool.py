"""Rows of numbers on their way from a source: small ones stay in memory, large ones go to disk."""

import io
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

IN_MEMORY = 32 * 1024 * 1024
"""Bytes up to which no file is made."""


class Spool:
    """Appended once from start to end, then read by slices.

    The file has no name: whatever ends the process, nothing is left behind. It is read with plain
    reads and not mapped, so that a table of any size costs one slice of memory.
    """

    def __init__(self, width: int, folder: Path) -> None:
        self._width, self._folder = width, folder
        self._file: IO[bytes] = io.BytesIO()
        self._on_disk = False
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def append(self, rows: NDArray[np.float64]) -> None:
        """float64 (n, width). Raises OSError where the disk is full."""
        content = np.ascontiguousarray(rows, dtype=np.float64)
        if content.shape[1:] != (self._width,):
            raise ValueError(f"rows have shape {content.shape}, the spool (…, {self._width})")
        size = self._rows * self._width * 8
        if not self._on_disk and size + content.nbytes > IN_MEMORY:
            self._move_to_disk()
        self._file.seek(size)
        self._file.write(content.data)
        self._rows += len(content)

    def read(self, start: int, stop: int) -> NDArray[np.float64]:
        """Rows ``start`` to ``stop``: float64 (n, width), read-only."""
        start, stop = max(0, start), min(stop, self._rows)
        count = max(0, stop - start)
        self._file.seek(start * self._width * 8)
        content = self._file.read(count * self._width * 8)
        return np.frombuffer(content, dtype=np.float64).reshape(count, self._width)

    def _move_to_disk(self) -> None:
        assert isinstance(self._file, io.BytesIO)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it lives as long as the spool
        file.write(self._file.getbuffer())
        self._file, self._on_disk = file, True

    def __del__(self) -> None:
        self._file.close()
