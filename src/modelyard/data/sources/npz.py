"""NumPy's files: an .npz with inputs and targets, a folder of such shards, or a folder of .npy files."""

import json
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.place import Place, chosen_names, open_place
from modelyard.data.sources.base import Lost, Rows, Schema, Source, object_array
from modelyard.data.sources.shards import SUFFIXES
from modelyard.data.sources.table import Table
from modelyard.data.sources.whole import finite_rows, label_array, number_array, whole_table
from modelyard.spec.errors import DataError, did_you_mean
from modelyard.spec.records import Finding

_BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError)
_SHAPES = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Shard:
    """Some rows: the arrays of one .npz file, or of all .npy files of a folder."""

    files: Mapping[str, str]
    """Array -> the file that holds it."""
    shapes: _SHAPES

    @property
    def name(self) -> str:
        return next(iter(self.files.values()))


class Npz(Source):
    """The array called ``data.target`` is the target; the others are one tensor, or columns.

    One shard at a time is in memory; ``.npy`` files are mapped. Pickled objects are refused.
    """

    def files(self) -> Sequence[Path]:
        return self._place.paths()

    def stamps(self) -> Sequence[str]:
        return self._place.stamps()

    def code(self) -> Mapping[str, Path]:
        return {}

    def schema(self) -> Schema:
        if isinstance(self._content, Table):
            return self._content.schema
        return Schema("tensor", shape=self._content)

    def __len__(self) -> int:
        return self._starts[-1]

    def targets(self) -> NDArray[np.object_]:
        return self._read_targets[0]

    def rows(self, start: int, stop: int) -> Rows:
        if isinstance(self._content, Table):
            return self._content.rows(start, stop)
        values = np.zeros((stop - start, *self._content), dtype=np.float32)
        unreadable: dict[int, str] = {}
        place = start
        while place < stop:
            number = bisect_right(self._starts, place) - 1
            first, last = self._starts[number], min(stop, self._starts[number + 1])
            part = self._part(number, place - first, last - first)
            assert not isinstance(part.values, dict)
            values[place - start : last - start] = part.values
            unreadable |= {place - start + row: why for row, why in part.unreadable.items()}
            place = last
        return Rows(values, unreadable)

    def natural(self, row: int) -> tuple[str, bytes]:
        if isinstance(self._content, Table):
            value: Any = self._content.natural(row)
            return ".json", json.dumps(value, ensure_ascii=False).encode()
        values = self.rows(row, row + 1).values
        assert not isinstance(values, dict)
        return ".json", json.dumps(values[0].tolist()).encode()

    def name(self, row: int) -> str:
        number = bisect_right(self._starts, row) - 1
        place = f"row {row - self._starts[number]}"
        return f"{self._shards[number].name}, {place}" if len(self._shards) > 1 else place

    def findings(self) -> tuple[Finding, ...]:
        if isinstance(self._content, Table):
            return self._content.findings
        unused = sorted(set(self._shards[0].shapes) - {self.data.target, self._tensor})
        if not unused:
            return ()
        message = f"{len(unused)} arrays beside the inputs and the target are not used"
        return (
            Finding(kind="unused", severity="note", message=message, examples=tuple(unused[:5])),
        )

    def lost(self) -> tuple[Lost, ...]:
        return self._read_targets[1]

    # ------------------------------------------------------------------------------------------

    @cached_property
    def _place(self) -> Place:
        return open_place(self.root, self.data, self.scratch, self.say)

    @cached_property
    def _shards(self) -> list[_Shard]:
        others = {suffix: name for suffix, name in SUFFIXES.items() if name != self.data.source}
        names = chosen_names(self._place, self.data, (".npz", ".npy"), others)
        archives = [name for name in names if name.lower().endswith(".npz")]
        if archives:
            shards = [self._archive(name) for name in archives]
        else:
            files = {PurePosixPath(name).stem: name for name in names}
            shards = [_Shard(files, {array: self._shape(name) for array, name in files.items()})]
        for shard in shards:
            self._check(shard)
        return shards

    def _archive(self, name: str) -> _Shard:
        try:
            with self._place.local(name) as path, zipfile.ZipFile(path) as archive:
                members = [member for member in archive.namelist() if member.endswith(".npy")]
                shapes = {}
                for member in members:
                    with archive.open(member) as file:
                        shapes[member.removesuffix(".npy")] = _header(file)
        except _BROKEN as error:
            raise self._refused(name, error) from error
        return _Shard(dict.fromkeys(shapes, name), shapes)

    def _shape(self, name: str) -> tuple[int, ...]:
        try:
            with self._place.local(name) as path, path.open("rb") as file:
                return _header(file)
        except _BROKEN as error:
            raise self._refused(name, error) from error

    def _check(self, shard: _Shard) -> None:
        """The target is there, and every array has as many rows as it has. Raises DataError."""
        target, shown = self.data.target, self._place.where(shard.name)
        listed = ", ".join(sorted(shard.shapes))
        if target not in shard.shapes:
            hint = did_you_mean(target, shard.shapes)
            raise DataError(
                f"{shown} has no array {target!r} for the target{hint}",
                f"set data.target to one of {listed}"
                if len(shard.shapes) > 1
                else "save inputs and targets as two arrays, for example np.savez(file, x=…, label=…)",
            )
        rows = (shard.shapes[target] or (0,))[0]
        for array, shape in shard.shapes.items():
            if not shape or shape[0] != rows:
                raise DataError(
                    f"{shown}: {array!r} has shape {list(shape)}, the target {target!r} {rows} rows",
                    "save one row for each sample in every array",
                )

    @cached_property
    def _tensor(self) -> str:
        """The array of inputs; empty where all arrays are columns."""
        shapes = self._shards[0].shapes
        others = {name: shape for name, shape in shapes.items() if name != self.data.target}
        deep = [name for name, shape in others.items() if len(shape) > 1]
        if len(deep) > 1 and "inputs" not in deep:
            raise DataError(
                f"{self._place.where(self._shards[0].name)} has several arrays that could be the "
                f"inputs: {', '.join(deep)}",
                'call the one that is meant "inputs"',
            )
        if not others:
            raise DataError(
                f"{self._place.shown} has no array beside the target", "save the inputs beside it"
            )
        return ("inputs" if "inputs" in deep else deep[0]) if deep else ""

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each shard, and the number of all rows."""
        lengths = [shard.shapes[self.data.target][0] for shard in self._shards]
        return [0, *np.cumsum(lengths).tolist()]

    @cached_property
    def _read_targets(self) -> tuple[NDArray[np.object_], tuple[Lost, ...]]:
        parts: list[Any] = []
        lost: list[Lost] = []
        wanted = None if isinstance(self._content, Table) else self._content
        for number, shard in enumerate(self._shards):
            start, stop = self._starts[number], self._starts[number + 1]
            shape = shard.shapes.get(self._tensor, (0,))[1:]
            why = ""
            if wanted is not None and shape != wanted:
                why = f"samples of shape {list(shape)}, in the first file {list(wanted)}"
            try:
                targets = [None] * (stop - start) if why else self._labels(number)
            except _BROKEN as error:
                why, targets = f"the target is damaged: {error}", [None] * (stop - start)
            if why and stop > start:
                lost.append(Lost(start, stop, why))
            parts += targets
        return object_array(parts), tuple(lost)

    @cached_property
    def _content(self) -> Table | tuple[int, ...]:
        """The columns as a table, or the shape of a sample."""
        if self._tensor:
            return self._shards[0].shapes[self._tensor][1:]
        names = [name for name in self._shards[0].shapes if name != self.data.target]
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for number, shard in enumerate(self._shards):
            for name in names:
                if name not in shard.shapes:
                    raise DataError(
                        f"the shards differ: {self._place.where(shard.name)} has no array {name!r}",
                        "write all shards with the same arrays",
                    )
                try:
                    columns[name] += self._array(number, name).tolist()
                except _BROKEN as error:
                    raise self._refused(shard.files[name], error) from error
        return whole_table(columns, len(self), self.data, self._place.shown, self.scratch)

    def _labels(self, number: int) -> list[Any]:
        shown = self._place.where(self._shards[number].name)
        labels: list[Any] = label_array(self._array(number, self.data.target), shown).tolist()
        return labels

    def _part(self, number: int, start: int, stop: int) -> Rows:
        if number != self._opened[0]:
            try:
                shown = self._place.where(self._shards[number].name)
                inputs: Any = number_array(self._array(number, self._tensor), shown)
            except _BROKEN as error:
                inputs = f"the file is damaged: {error}"
            self._opened = (number, inputs)
        inputs = self._opened[1]
        shape: Any = self._content
        if isinstance(inputs, str) or inputs.shape[1:] != shape:
            why = inputs if isinstance(inputs, str) else f"shape {list(inputs.shape[1:])}"
            zeros = np.zeros((stop - start, *shape), dtype=np.float32)
            return Rows(zeros, dict.fromkeys(range(stop - start), why))
        return finite_rows(np.asarray(inputs[start:stop]))

    _opened: tuple[int, Any] = (-1, None)
    """The shard that was read last and its inputs, or why they cannot be read."""

    def _array(self, number: int, array: str) -> NDArray[Any]:
        name = self._shards[number].files[array]
        with self._place.local(name) as path:
            if name.lower().endswith(".npy"):
                mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
                return mapped
            with np.load(path, allow_pickle=False) as archive:
                whole: NDArray[Any] = archive[array]
                return whole

    def _refused(self, name: str, error: Exception) -> DataError:
        if isinstance(error, _PickledError):
            return DataError(
                f"{self._place.where(name)} holds {error}, which would have to be unpickled",
                "save numbers or text: np.asarray(values, dtype=float), or dtype=str",
            )
        return DataError(
            f"{self._place.where(name)} cannot be read: {error}",
            "write or fetch that file again, or move it away: how many rows it held is not known",
        )


class _PickledError(ValueError):
    """An array of Python objects: opening it could run anything."""


def _header(file: IO[bytes]) -> tuple[int, ...]:
    """The shape of an .npy file, without its data."""
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise _PickledError("Python objects")
    return tuple(shape)
