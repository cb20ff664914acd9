"""Samples of several parts: how these lie side by side in a row of bytes, and how a model gets them by name.

From the prepared file to the door of the model such a batch is one array, uint8 (n, bytes of a row), as
any other batch is one array: cursors, feeds, micro-batches, exchanges and digests need not know of
parts. Only what encodes, what calls a model and what speaks with a caller takes it apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.signature import (
    ImageInput,
    MixedInput,
    NaturalInput,
    Signature,
    TableInput,
    TextInput,
)


@dataclass(frozen=True)
class Part:
    """One tensor of a sample, in its place in the row."""

    name: str
    dtype: str
    """As it lies in the row."""
    shape: tuple[int, ...]
    """Of one sample."""
    start: int
    """First byte."""
    integers: bool = False
    """The model takes whole numbers (tokens), not float32."""
    scale: tuple[float, ...] = ()
    """Of pictures as they are stored: for each channel, model form is ``stored * scale + shift``."""
    shift: tuple[float, ...] = ()

    @property
    def stop(self) -> int:
        """The byte after the last one."""
        return self.start + math.prod(self.shape) * np.dtype(self.dtype).itemsize


def stored_parts(spec: MixedInput) -> tuple[Part, ...]:
    """Rows in stored form: tokens int32, columns float32, pixels uint8."""
    parts = spec.parts
    made = _laid({name: (_dtype(part, stored=True), part.shape) for name, part in parts.items()})
    pictures = {name: part for name, part in parts.items() if isinstance(part, ImageInput)}
    return tuple(
        replace(part, scale=pictures[part.name].scale, shift=pictures[part.name].shift)
        if part.name in pictures
        else part
        for part in made
    )


def finished_parts(spec: MixedInput) -> tuple[Part, ...]:
    """Rows in model form: tokens int64, all else float32."""
    parts = spec.parts.items()
    return _laid({name: (_dtype(part, stored=False), part.shape) for name, part in parts})


def model_parts(signature: Signature) -> tuple[Part, ...]:
    """As ``finished_parts``, from the tensors alone; none where a model has one input."""
    if len(signature.inputs) == 1:
        return ()
    return _laid(
        {
            tensor.name: (tensor.dtype, tuple(size or 1 for size in tensor.shape[1:]))
            for tensor in signature.inputs
        }
    )


def parts_of(signature: Signature, spec: NaturalInput | None) -> tuple[Part, ...]:
    """Of the rows that a backend is given: stored form where it knows ``spec``, else model form."""
    return stored_parts(spec) if isinstance(spec, MixedInput) else model_parts(signature)


def _dtype(part: ImageInput | TextInput | TableInput, *, stored: bool) -> str:
    if isinstance(part, TextInput):
        return "int32" if stored else "int64"
    return "uint8" if stored and isinstance(part, ImageInput) else "float32"


def _laid(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[Part, ...]:
    """Name -> dtype and shape; wide types first, so that each tensor is aligned in the row."""
    made: list[Part] = []
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name][0]).itemsize, name))
    for name in order:
        dtype, shape = tensors[name]
        start = made[-1].stop if made else 0
        made.append(Part(name, dtype, shape, start, integers="int" in dtype and dtype != "uint8"))
    return tuple(made)


def row_bytes(parts: Sequence[Part]) -> int:
    """Length of a row."""
    return max(part.stop for part in parts)


def pack(parts: Sequence[Part], arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Arrays by name, each (n, *shape), cast to the parts' dtypes -> rows (n, bytes)."""
    count = len(arrays[parts[0].name])
    rows = np.empty((count, row_bytes(parts)), np.uint8)
    for part in parts:
        values = np.ascontiguousarray(arrays[part.name], part.dtype)
        rows[:, part.start : part.stop] = values.reshape(count, math.prod(part.shape)).view(
            np.uint8
        )
    return rows


def unpack(parts: Sequence[Part], rows: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Rows (n, bytes) -> arrays by name, each (n, *shape), in memory of their own."""
    return {
        part.name: rows[:, part.start : part.stop]
        .copy()
        .reshape(-1)
        .view(part.dtype)
        .reshape(len(rows), *part.shape)
        for part in parts
    }


def by_name(signature: Signature, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Model form, (n, *shape) or rows of several parts -> the tensors of ``signature``."""
    parts = model_parts(signature)
    if not parts:
        return {signature.inputs[0].name: inputs}
    found = unpack(parts, inputs)
    return {tensor.name: found[tensor.name] for tensor in signature.inputs}


def from_names(signature: Signature, tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The way back from ``by_name``. Raises KeyError for a tensor that is missing."""
    parts = model_parts(signature)
    return pack(parts, tensors) if parts else tensors[signature.inputs[0].name]


def trial_rows(parts: Sequence[Part], count: int) -> NDArray[np.uint8]:
    """Rows that any model takes: grey pixels, columns of one half, the number of some token."""
    values = {"uint8": 127, "int32": 1, "int64": 1}
    return pack(
        parts,
        {part.name: np.full((count, *part.shape), values.get(part.dtype, 0.5)) for part in parts},
    )


def columns_of(spec: NaturalInput | None) -> tuple[tuple[str, int], ...]:
    """Name and number of features of each column of a table, in order; none where there is no table."""
    table = spec.table if isinstance(spec, MixedInput) else spec
    if not isinstance(table, TableInput):
        return ()
    return tuple((column.name, column.width) for column in table.columns)
