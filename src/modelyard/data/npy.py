"""Writes ``.npy`` files: one at once, or chunk by chunk where its length is known only at the end."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

_HEADER = 256
"""Bytes before the data: room for any length, and a multiple of 64 so that the data is aligned."""


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """The file that ``np.save`` makes, but for a full disk: there NumPy's OSError lacks the system's number."""
    whole = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        file.write(whole.data)


class ArrayWriter:
    """Appends rows to one file.

    Written with plain ``write`` calls, not through a memory map: on a full disk a map kills the
    process with SIGBUS, a write raises OSError.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self._dtype, self._shape, self._rows = np.dtype(dtype), shape, 0
        self._file = path.open("wb")
        self._file.write(b"\0" * _HEADER)

    def append(self, rows: NDArray[np.generic]) -> None:
        """(n, *shape), cast to the file's dtype."""
        if rows.shape[1:] != self._shape:
            raise ValueError(f"rows have shape {rows.shape[1:]}, the file {self._shape}")
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self._rows += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._file.seek(0)
                self._file.write(self._header())
        finally:
            self._file.close()

    def _header(self) -> bytes:
        """Format version 1.0: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html."""
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._rows, *self._shape),
        }
        start = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
        return start + repr(description).encode("latin1").ljust(_HEADER - 11) + b"\n"
