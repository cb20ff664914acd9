"""A CSV table with a header, one file or a folder of them: columns of numbers, words and truths, and the target."""

import contextlib
import csv
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelyard.data.cells import is_missing
from modelyard.data.place import Place, chosen_names, open_place
from modelyard.data.sources.base import (
    Lost,
    Rows,
    Schema,
    Source,
    object_array,
    refuse_too_many,
)
from modelyard.data.sources.columns import (
    ColumnScan,
    TextInNumbersError,
    missing_finding,
    text_in_numbers,
)
from modelyard.data.sources.csv_lines import Record, read_records
from modelyard.data.sources.mixed import Mixed, open_mixed, own_columns
from modelyard.data.sources.shards import SUFFIXES, unused_files
from modelyard.data.sources.table import (
    CellError,
    Table,
    check_column,
    check_names,
    choose_columns,
)
from modelyard.data.sources.texts import Texts
from modelyard.spec.errors import DataError
from modelyard.spec.records import Finding

_DELIMITERS = ",;\t|"
_SUFFIXES = (".csv", ".tsv", ".txt")
"""Of the files that are taken from a folder; a file that is named itself may have any."""
_CHUNK = 8192
"""Rows that are taken in at a time: the cells of more than these are never in memory as text."""


@dataclass(frozen=True)
class _Chunk:
    """Some rows of a file: the lines of those that could be read, their columns, and why others could not."""

    file: int
    """Place in the list of files."""
    lines: list[int]
    columns: list[tuple[str, ...]]
    lost: dict[int, str]


@dataclass(frozen=True)
class _Scan:
    """What the first reading tells."""

    columns: list[ColumnScan]
    lines: "array[int]"
    """On which each row ends, from 1."""
    starts: list[int]
    """The first row of each file."""
    lost: tuple[Lost, ...]


class Csv(Source):
    """Read twice: once to judge the columns on all rows, once to take in their values."""

    def files(self) -> Sequence[Path]:
        return self._place.paths()

    def stamps(self) -> Sequence[str]:
        return self._place.stamps()

    def code(self) -> Mapping[str, Path]:
        return {}

    def schema(self) -> Schema:
        return self._content[0].schema

    def __len__(self) -> int:
        return len(self._scanned.lines)

    def targets(self) -> NDArray[np.object_]:
        return self._content[1]

    def rows(self, start: int, stop: int) -> Rows:
        return self._content[0].rows(start, stop)

    def natural(self, row: int) -> tuple[str, bytes]:
        return ".json", json.dumps(self._content[0].natural(row), ensure_ascii=False).encode()

    def name(self, row: int) -> str:
        return self._where(self._scanned.starts, self._scanned.lines, row)

    def lost(self) -> tuple[Lost, ...]:
        return self._scanned.lost

    def findings(self) -> tuple[Finding, ...]:
        kept = {column.name for column in self.schema().columns}
        gaps = [
            missing_finding(scan.name, scan.missing, scan.rows)
            for scan in self._scanned.columns
            if scan.missing and scan.name in kept
        ]
        return (
            *unused_files(self._place, self._names, self.data),
            *self._content[0].findings,
            *gaps,
        )

    @cached_property
    def _place(self) -> Place:
        return open_place(self.root, self.data, self.scratch, self.say)

    @cached_property
    def _names(self) -> Sequence[str]:
        if self._place.single:
            return self._place.names
        others = {suffix: name for suffix, name in SUFFIXES.items() if name != "csv"}
        return chosen_names(self._place, self.data, _SUFFIXES, others)

    @property
    def _shown(self) -> str:
        return self._place.shown

    def _where(self, starts: Sequence[int], lines: "array[int]", row: int) -> str:
        line = f"line {lines[row]}"
        if self._place.single:
            return line
        return f"{self._names[bisect_right(starts, row) - 1]}, {line}"

    @cached_property
    def _header(self) -> list[str]:
        with self._refusing(0), self._place.local(self._names[0]) as path:
            header = self._header_of(0, self._records(0, path))
        check_names(header, self.data.target, self.data.columns, self._shown)
        return header

    def _header_of(self, file: int, records: Iterator[Record]) -> list[str]:
        shown = self._place.where(self._names[file])
        record = next(records, None)
        if record is None:
            raise DataError(
                f"{shown} is empty", "the first line must hold the names of the columns"
            )
        if record.problem:
            raise DataError(f"{shown}, line {record.line}: {record.problem}", "mend the header")
        header = [cell.strip() for cell in record.cells]
        doubled = sorted({name for name in header if header.count(name) > 1})
        if doubled:
            raise DataError(
                f"{shown}: the header has {doubled[0]!r} twice", "give every column its own name"
            )
        return header

    @cached_property
    def _scanned(self) -> _Scan:
        """First reading: what the columns are, and where the rows stand."""
        scans = [ColumnScan(name) for name in self._header]
        lines = array("q")
        starts: list[int] = []
        lost: list[Lost] = []
        unseen = {self.data.target, *own_columns(self.data).values()}
        for chunk in self._chunks():
            starts += [len(lines)] * (chunk.file + 1 - len(starts))
            for scan, cells in zip(scans, chunk.columns, strict=True):
                if scan.name not in unseen:
                    scan.see(cells, len(lines))
            lines.extend(chunk.lines)
            lost += [
                Lost(len(lines) + i, len(lines) + i + 1, why)
                for i, why in enumerate(chunk.lost.values())
            ]
            lines.extend(chunk.lost)
        if not lines:
            raise DataError(f"{self._shown} has a header but no rows", "add rows to it")
        starts += [len(lines)] * (len(self._names) - len(starts))
        refuse_too_many(
            lost,
            len(lines),
            self.data.max_unreadable,
            lambda row: self._where(starts, lines, row),
            'mend those lines (a cell that holds the delimiter must stand in quotation marks: "…")',
        )
        return _Scan(scans, lines, starts, tuple(lost))

    @cached_property
    def _content(self) -> tuple[Table | Texts | Mixed, NDArray[np.object_]]:
        """Second reading: the values, and the targets."""
        target = self.data.target
        table = self._empty()
        interned: dict[str, str] = {}
        targets: list[str | None] = []
        for chunk in self._chunks():
            columns = dict(zip(self._header, chunk.columns, strict=True))
            try:
                table.append(columns, len(chunk.lines))
            except CellError as error:
                raise error.as_data_error(self.name(len(targets) + error.where())) from error
            targets += [
                None if is_missing(cell) else interned.setdefault(cell.strip(), cell.strip())
                for cell in columns[target]
            ]
            table.append_lost(len(chunk.lost))
            targets += [None] * len(chunk.lost)
        table.finish(self.data.columns)
        return table, object_array(targets)

    def _empty(self) -> Table | Texts | Mixed:
        """What the second reading fills."""
        own = own_columns(self.data)
        names = [name for name in self._header if name != self.data.target]
        for field, column in own.items():
            check_column(field, column, names, self._shown)
        if own and not self.data.mixed:
            return Texts(self.data.text, self.scratch)
        others = (self.data.target, *own.values())
        features = [scan for scan in self._scanned.columns if scan.name not in others]
        try:
            chosen = choose_columns(features, self.data.columns)
            if self.data.mixed:
                return open_mixed(self.data, chosen, self._place, self.scratch)
            return Table(chosen, self.scratch)
        except TextInNumbersError as error:
            names = [self.name(row) for row, _ in error.scan.texts]
            raise text_in_numbers(error.scan, names) from error

    def _records(self, file: int, path: Path) -> Iterator[Record]:
        """The header's is one of them."""
        return read_records(path, sniff(path), self._place.where(self._names[file]))

    @contextlib.contextmanager
    def _refusing(self, file: int) -> Iterator[None]:
        """Tells of a file that cannot be read. Raises DataError."""
        try:
            yield
        except OSError as error:
            shown = self._place.where(self._names[file])
            raise DataError(
                f"{shown} cannot be read: {error.strerror}", "mend its mode or owner"
            ) from error

    def _chunks(self) -> Iterator[_Chunk]:
        """The next rows, until none is left."""
        for file, (_, path) in enumerate(self._place.walk(self._names)):
            with self._refusing(file):
                records = self._records(file, path)
                self._check_same(file, self._header_of(file, records))
                yield from self._chunks_of(file, records)

    def _check_same(self, file: int, header: list[str]) -> None:
        if header == self._header:
            return
        first, shown = (self._place.where(self._names[place]) for place in (0, file))
        for name in [*self._header, *header]:
            if name not in header or name not in self._header:
                has, lacks = (first, shown) if name in self._header else (shown, first)
                raise DataError(
                    f"the files differ: {has} has a column {name!r}, {lacks} has none",
                    "write all files with the same columns, or move those that do not belong here",
                )
        raise DataError(
            f"the files differ: the columns of {shown} are in another order than those of {first}",
            "write all files with the same columns in the same order",
        )

    def _chunks_of(self, file: int, records: Iterator[Record]) -> Iterator[_Chunk]:
        """Of one file; in each chunk the broken ones come after the others."""
        width = len(self._header)
        while chunk := list(islice(records, _CHUNK)):
            whole = [
                record for record in chunk if not record.problem and len(record.cells) == width
            ]
            cells = zip(*(record.cells for record in whole), strict=True)
            lost = {
                record.line: record.problem
                or f"{len(record.cells)} cells where the header has {width}"
                for record in chunk
                if record.problem or len(record.cells) != width
            }
            yield _Chunk(
                file,
                [record.line for record in whole],
                list(cells) if whole else [()] * width,
                lost,
            )


def sniff(path: Path) -> str:
    """The delimiter that cuts the first 50 records most evenly, then into most cells."""
    best, score = ",", (0.0, 1)
    for delimiter in _DELIMITERS:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            try:
                sample = list(islice((r for r in csv.reader(file, delimiter=delimiter) if r), 50))
            except csv.Error:
                continue
        width = len(sample[0]) if sample else 0
        even = sum(len(record) == width for record in sample) / max(len(sample), 1)
        if width > 1 and (even, width) > score:
            best, score = delimiter, (even, width)
    return best
