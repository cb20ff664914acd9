"""A CSV table with a header: columns of numbers, words and truths, one of them the target."""

import csv
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelyard.data.cells import is_missing
from modelyard.data.sources.base import Rows, Schema, Source, located, object_array
from modelyard.data.sources.columns import (
    ColumnScan,
    ColumnValues,
    TextInNumbersError,
    missing_finding,
    text_in_numbers,
)
from modelyard.data.sources.table import Table, choose_columns
from modelyard.spec.errors import DataError, nearest
from modelyard.spec.records import Finding

_DELIMITERS = ",;\t|"
_CHUNK = 8192
"""Rows that are taken in at a time: the cells of more than these are never in memory as text."""


class Csv(Source):
    """Read twice: once to judge the columns on all rows, once to take in their values."""

    def files(self) -> Sequence[Path]:
        return [self._path]

    def code(self) -> Mapping[str, Path]:
        return {}

    def schema(self) -> Schema:
        return self._content[0].schema

    def __len__(self) -> int:
        return len(self._scanned[1])

    def targets(self) -> NDArray[np.object_]:
        return self._content[1]

    def rows(self, start: int, stop: int) -> Rows:
        return self._content[0].rows(start, stop)

    def natural(self, row: int) -> tuple[str, bytes]:
        return ".json", json.dumps(self._content[0].natural(row), ensure_ascii=False).encode()

    def name(self, row: int) -> str:
        return f"line {self._scanned[1][row]}"

    def findings(self) -> tuple[Finding, ...]:
        kept = {column.name for column in self.schema().columns}
        gaps = [
            missing_finding(scan.name, scan.missing, scan.rows)
            for scan in self._scanned[0]
            if scan.missing and scan.name in kept
        ]
        return (*self._content[0].findings, *gaps)

    @cached_property
    def _path(self) -> Path:
        return located(self.root, self.data, folder=False)

    @cached_property
    def _dialect(self) -> str:
        """The delimiter."""
        try:
            return sniff(self._path)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        except UnicodeDecodeError as error:
            raise _not_utf8(self._path) from error

    @cached_property
    def _header(self) -> list[str]:
        for _, cells in self._records():
            header = [cell.strip() for cell in cells]
            break
        else:
            raise DataError(
                f"{self._path} is empty", "the first line must hold the names of the columns"
            )
        self._check_header(header)
        return header

    @cached_property
    def _scanned(self) -> tuple[list[ColumnScan], "array[int]"]:
        """First reading: what the columns are, and the line (from 1) on which each row ends."""
        scans = [ColumnScan(name) for name in self._header]
        lines = array("q")
        for chunk_lines, columns in self._chunks():
            for scan, cells in zip(scans, columns, strict=True):
                if scan.name != self.data.target:
                    scan.see(cells, len(lines))
            lines.extend(chunk_lines)
        if not lines:
            raise DataError(f"{self._path} has a header but no rows", "add rows to it")
        return scans, lines

    @cached_property
    def _content(self) -> tuple[Table, NDArray[np.object_]]:
        """Second reading: the values, and the targets."""
        target = self.data.target
        features = [scan for scan in self._scanned[0] if scan.name != target]
        try:
            chosen = choose_columns(features, self.data.columns)
        except TextInNumbersError as error:
            names = [self.name(row) for row, _ in error.scan.texts]
            raise text_in_numbers(error.scan, names) from error
        table = Table([ColumnValues(name, kind) for name, kind in chosen.kinds], chosen.findings)
        places = {name: place for place, name in enumerate(self._header)}
        interned: dict[str, str] = {}
        targets: list[str | None] = []
        first = 0
        for _, columns in self._chunks():
            for column in table.growing:
                self._take_in(column, columns[places[column.name]], first)
            targets += [
                None if is_missing(cell) else interned.setdefault(cell.strip(), cell.strip())
                for cell in columns[places[target]]
            ]
            first += len(columns[0])
        table.finish(self.data.columns)
        return table, object_array(targets)

    def _take_in(self, column: ColumnValues, cells: Sequence[str], first: int) -> None:
        try:
            column.add(cells)
        except ValueError as error:
            for place, cell in enumerate(cells):
                try:
                    ColumnValues(column.name, column.kind).add([cell])
                except ValueError:
                    raise DataError(
                        f"{self.name(first + place)}: column {column.name!r}: {error}",
                        "mend the cell, or set another kind in [data.columns]",
                    ) from error
            raise

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of every record that is not blank. Raises DataError."""
        delimiter = self._dialect
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=delimiter, strict=True)
                for cells in reader:
                    if cells:
                        yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(
                f"{self._path}, line {reader.line_num}: {error}",
                "mend that line; look for a quotation mark that is not closed",
            ) from error
        except UnicodeDecodeError as error:
            raise _not_utf8(self._path) from error
        except OSError as error:
            raise _unreadable(self._path, error) from error

    def _chunks(self) -> Iterator[tuple[list[int], list[tuple[str, ...]]]]:
        """Line numbers and columns of the next rows, until none is left."""
        width = len(self._header)
        records = islice(self._records(), 1, None)
        while chunk := list(islice(records, _CHUNK)):
            for line, cells in chunk:
                if len(cells) != width:
                    raise DataError(
                        f"{self._path}, line {line}: {len(cells)} cells where the header has {width}",
                        'mend that line; a cell that holds the delimiter must stand in quotation marks ("…")',
                    )
            yield (
                [line for line, _ in chunk],
                list(zip(*(cells for _, cells in chunk), strict=True)),
            )

    def _check_header(self, header: Sequence[str]) -> None:
        listed = ", ".join(map(repr, header[:30])) + (" …" if len(header) > 30 else "")
        doubled = sorted({name for name in header if header.count(name) > 1})
        if doubled:
            raise DataError(
                f"{self._path}: the header has {doubled[0]!r} twice",
                "give every column its own name",
            )
        target = self.data.target
        if target not in header:
            close = nearest(target, header)
            hint = f"; did you mean {close!r}?" if close else ""
            raise DataError(
                f"{self._path} has no target column {target!r}{hint}",
                f"set data.target to one of its columns: {listed}",
            )
        for name in self.data.columns:
            if name not in header:
                close = nearest(name, header)
                hint = f"; did you mean {close!r}?" if close else ""
                raise DataError(
                    f"[data.columns] names {name!r}, which {self._path} does not have{hint}",
                    f"its columns are {listed}",
                )


def sniff(path: Path) -> str:
    """The delimiter that cuts the first 50 records most evenly, then into most cells."""
    best, score = ",", (0.0, 1)
    for delimiter in _DELIMITERS:
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                sample = list(islice((r for r in csv.reader(file, delimiter=delimiter) if r), 50))
            except csv.Error:
                continue
        width = len(sample[0]) if sample else 0
        even = sum(len(record) == width for record in sample) / max(len(sample), 1)
        if width > 1 and (even, width) > score:
            best, score = delimiter, (even, width)
    return best


def _not_utf8(path: Path) -> DataError:
    """Find the line that cannot be decoded."""
    mend = "save the file as UTF-8"
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            if line == 1 and content.startswith((b"\xff\xfe", b"\xfe\xff")):
                return DataError(f"{path} is UTF-16, not UTF-8", mend)
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                return DataError(
                    f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8", mend
                )
    return DataError(f"{path} is not UTF-8", mend)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be read: {error.strerror}", "mend its mode or owner")
