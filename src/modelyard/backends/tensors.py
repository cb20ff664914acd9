"""Files of tensors (safetensors): written in a stream, read through a memory map; no pickle.

A file is eight bytes with the length of its header, the header (JSON: name to dtype, shape and place)
and the bytes of all tensors without a gap. Any tool that knows the format reads them.
"""

import json
import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import StoreError, from_os_error
from modelyard.store.files import write_flushed

Array = NDArray[Any]
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "C64": "<c8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {value: key for key, value in DTYPES.items()}
_BFLOAT16 = "BF16"
_CHUNK_BYTES = 4 * 1024 * 1024
_LONGEST_HEADER = 100_000_000


def dtype_name(array: Array) -> str:
    """``F32``, … Raises StoreError for a dtype that these files do not have."""
    stored = array.dtype.newbyteorder("<").str
    if stored not in _NAMES:
        raise StoreError(
            f"an array of dtype {array.dtype} cannot be kept in a checkpoint",
            f"these can: {', '.join(np.dtype(kept).name for kept in _NAMES)}",
        )
    return _NAMES[stored]


def write_tensors(
    path: Path,
    tensors: Mapping[str, Array],
    look: Callable[[str, Array], None] | None = None,
) -> str:
    """Write a new file, flush it to disk and return its ``sha256:…``.

    ``look`` sees each tensor's name and each part of it before that is written; what it raises ends
    the writing. Raises OSError for a full disk.
    """
    # Wide numbers first: each then lies where a multiple of its own width begins.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, place = {}, 0
    for name in names:
        array, begin = tensors[name], place
        place += array.nbytes
        header[name] = {
            "dtype": dtype_name(array),
            "shape": list(array.shape),
            "data_offsets": [begin, place],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def contents() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in names:
            for chunk in _chunks(tensors[name]):
                if look is not None:
                    look(name, chunk)
                yield chunk.view(np.uint8).data

    return write_flushed(path, contents())


def _chunks(array: Array) -> Iterator[Array]:
    little = array.dtype.newbyteorder("<")
    flat = np.asarray(array, dtype=little, order="C").reshape(-1)
    count = max(1, _CHUNK_BYTES // little.itemsize)
    for start in range(0, flat.size, count):
        yield flat[start : start + count]


def map_tensors(path: Path) -> dict[str, Array]:
    """Every tensor of a file, read-only; bytes come from the disk when they are looked at.

    Raises StoreError where the file is missing, torn or no such file.
    """
    try:
        return open_tensors(path)
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    except OSError as error:
        raise from_os_error(error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def open_tensors(path: Path) -> dict[str, Array]:
    """The same of a file that need not be ours; bfloat16, which NumPy lacks, becomes float32.

    Raises OSError, or ValueError, KeyError, TypeError or AttributeError for one that is torn or of
    another format.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        return _views(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _views(mapped: mmap.mmap) -> dict[str, Array]:
    length = int.from_bytes(mapped[:8], "little")
    if len(mapped) < 8 or length > min(len(mapped) - 8, _LONGEST_HEADER):
        raise ValueError("the header is not all there")
    header = json.loads(mapped[8 : 8 + length])
    header.pop("__metadata__", None)
    views, end = {}, 0
    for name, entry in header.items():
        dtype, shape = np.dtype(_stored(name, entry["dtype"])), tuple(entry["shape"])
        begin, stop = entry["data_offsets"]
        count = (stop - begin) // dtype.itemsize
        flat = np.frombuffer(mapped, dtype, count, 8 + length + begin) if count else np.empty(0)
        flat = flat.astype(dtype, copy=False)
        if entry["dtype"] == _BFLOAT16:  # the upper half of a float32
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        views[name] = flat.reshape(shape)
        end = max(end, stop)
    if 8 + length + end != len(mapped):
        raise ValueError(f"{len(mapped)} bytes where {8 + length + end} were written")
    return views


def _stored(name: str, dtype: str) -> str:
    if dtype == _BFLOAT16:
        return DTYPES["U16"]
    if dtype not in DTYPES:
        raise ValueError(f"{name} has the number format {dtype}, which is not read here")
    return DTYPES[dtype]


def damaged(path: Path, why: str) -> StoreError:
    return StoreError(
        f"the checkpoint file {path} is damaged: {why}",
        f"delete the folder {path.parent}; training goes on from an older checkpoint",
    )
