"""Tables in one file or a folder of shards, read from start to end in blocks, whatever their format."""

import json
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.place import Place, chosen_names, open_place
from modelyard.data.sources.base import (
    ColumnKind,
    Lost,
    Rows,
    Schema,
    Source,
    object_array,
    refuse_too_many,
)
from modelyard.data.sources.columns import (
    Cells,
    ColumnScan,
    TextInNumbersError,
    left_out,
    missing_finding,
    text_in_numbers,
)
from modelyard.data.sources.mixed import Mixed, open_mixed, own_columns
from modelyard.data.sources.table import (
    CellError,
    Choice,
    Table,
    check_column,
    check_names,
    choose_columns,
)
from modelyard.data.sources.texts import Texts
from modelyard.spec.errors import DataError
from modelyard.spec.project import DataSection
from modelyard.spec.records import Finding

BLOCK = 8192
"""Rows that are taken in at a time."""
SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".arrows": "arrow",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl",
    ".csv": "csv",
    ".npz": "npz",
    ".npy": "npz",
    ".png": "images",
    ".jpg": "images",
    ".jpeg": "images",
}
"""Suffix -> the source that reads it."""


@dataclass(frozen=True)
class Block:
    """The next rows of a shard; where ``why`` is set, rows that cannot be read."""

    rows: int
    columns: Mapping[str, Cells] = field(default_factory=dict)
    targets: Sequence[Any] = ()
    lines: Sequence[int] = ()
    """In formats of lines, the line of each row, from 1."""
    why: str = ""


class ShardedTable(Source):
    """What the formats share. A format whose files declare their kinds is read once, others twice."""

    def files(self) -> Sequence[Path]:
        return self._place.paths()

    def stamps(self) -> Sequence[str]:
        return self._place.stamps()

    def code(self) -> Mapping[str, Path]:
        return {}

    def schema(self) -> Schema:
        return self._content.table.schema

    def __len__(self) -> int:
        return len(self._content.targets)

    def targets(self) -> NDArray[np.object_]:
        return self._content.targets

    def rows(self, start: int, stop: int) -> Rows:
        rows = self._content.table.rows(start, stop)
        unreadable = dict(rows.unreadable)
        for one in self._content.reading.lost:
            first, last = max(one.start, start), min(one.stop, stop)
            unreadable |= {row - start: one.why for row in range(first, last)}
        return Rows(rows.values, unreadable)

    def natural(self, row: int) -> tuple[str, bytes]:
        content = json.dumps(self._content.table.natural(row), ensure_ascii=False)
        return ".json", content.encode()

    def name(self, row: int) -> str:
        return self._content.reading.name(row)

    def lost(self) -> tuple[Lost, ...]:
        return tuple(self._content.reading.lost)

    def findings(self) -> tuple[Finding, ...]:
        content = self._content
        kept = {column.name for column in content.table.schema.columns}
        gaps = [
            missing_finding(scan.name, scan.missing, scan.rows)
            for scan in content.scans
            if scan.missing and scan.name in kept
        ]
        return (*unused_files(self._place, self._names, self.data), *content.table.findings, *gaps)

    # --- what a format does -------------------------------------------------------------------

    @property
    @abstractmethod
    def suffixes(self) -> Sequence[str]:
        """In lower case, with their dots."""

    @abstractmethod
    def kinds(self, path: Path, shown: str) -> dict[str, ColumnKind | str] | None:
        """Column -> its kind, or in brackets why it has none; None where the format declares none."""

    @abstractmethod
    def blocks(self, path: Path, shown: str, plain: Sequence[str]) -> Iterator[Block]:
        """The shard's rows; the columns in ``plain`` as Python values and not as ``TypedCells``."""

    # ------------------------------------------------------------------------------------------

    @cached_property
    def _place(self) -> Place:
        return open_place(self.root, self.data, self.scratch, self.say)

    @cached_property
    def _names(self) -> list[str]:
        others = {suffix: name for suffix, name in SUFFIXES.items() if name != self.data.source}
        return chosen_names(self._place, self.data, self.suffixes, others)

    @cached_property
    def _content(self) -> "_Content":
        with self._place.local(self._names[0]) as path:
            kinds = self.kinds(path, self._place.where(self._names[0]))
        if self.data.mixed:
            return self._read_plain(kinds or {}, list(own_columns(self.data).values()))
        if self.data.text:
            return self._read_texts(kinds or {})
        return self._read_typed(kinds) if kinds is not None else self._read_plain({})

    def _read_typed(self, kinds: Mapping[str, str]) -> "_Content":
        """Everything in one reading, unless a column is declared to be of another kind than it has."""
        target, declared = self.data.target, self.data.columns
        check_names(list(kinds), target, declared, self._place.shown)
        if kinds[target].startswith("("):
            raise DataError(
                f"{self._place.shown}: the target {target!r} holds {kinds[target][1:-1]}",
                "a target is text, a number or a truth; choose another data.target",
            )
        taken = {
            name: kind
            for name, kind in kinds.items()
            if name != target and declared.get(name) != "ignore"
        }
        odd = [n for n, kind in taken.items() if declared.get(n) not in (None, kind)]
        if odd:
            return self._read_plain(kinds, odd)
        findings = [
            left_out("unused", name, f"it holds {kind[1:-1]}, which is no number, word or truth")
            for name, kind in taken.items()
            if kind.startswith("(")
        ]
        usable = {name: kind for name, kind in taken.items() if not kind.startswith("(")}
        scans = {name: ColumnScan(name) for name in usable}
        choice = Choice(tuple(usable.items()), tuple(findings))  # type: ignore[arg-type]
        return self._fill(Table(choice, self.scratch), kinds, (), scans, list(scans.values()))

    def _read_texts(self, kinds: Mapping[str, str]) -> "_Content":
        """One column is the whole input: nothing else is judged."""
        column = self.data.text
        if kinds:
            check_names(list(kinds), self.data.target, {}, self._place.shown)
            names = [name for name in kinds if name != self.data.target]
            check_column("data.text", column, names, self._place.shown)
            if kinds[column] != "categorical":
                raise DataError(
                    f"column {column!r} of {self._place.shown} holds {kinds[column].strip('()')} and no text",
                    "look at data.text; without it the columns are read as a table",
                )
        content = self._fill(Texts(column, self.scratch), kinds, [column], {}, [])
        if not kinds:
            names = sorted(content.reading.columns)
            check_column("data.text", column, names, self._place.shown)
        return content

    def _read_plain(self, kinds: Mapping[str, str], plain: Sequence[str] = ()) -> "_Content":
        """Two readings: the first judges the columns."""
        target, own = self.data.target, own_columns(self.data)
        scans: dict[str, ColumnScan] = {}
        reading = self._reading()
        for block in reading.blocks(self, kinds, plain):
            for name, cells in block.columns.items():
                if name not in scans:
                    scans[name] = ColumnScan(name)
                    scans[name].skip(reading.rows - sum(map(len, reading.lost)))
                scans[name].see(cells, reading.rows)
            for name in scans.keys() - block.columns.keys():
                scans[name].skip(block.rows if not block.why else 0)
        self._refuse(reading)
        names = [*scans, *(name for name in kinds if name not in scans)]
        check_names(
            [*names, *([target] if reading.has_target else [])],
            target,
            self.data.columns,
            self._place.shown,
        )
        for named, column in own.items():
            check_column(named, column, [n for n in names if n != target], self._place.shown)
        others = (target, *own.values())
        features = [scan for scan in scans.values() if scan.name not in others]
        try:
            chosen = choose_columns(features, self.data.columns)
        except TextInNumbersError as error:
            places = [reading.name(row) for row, _ in error.scan.texts]
            raise text_in_numbers(error.scan, places) from error
        filled: Table | Mixed = (
            open_mixed(self.data, chosen, self._place, self.scratch)
            if self.data.mixed
            else Table(chosen, self.scratch)
        )
        return self._fill(filled, kinds, plain, {}, features)

    def _fill(
        self,
        table: Table | Texts | Mixed,
        kinds: Mapping[str, str],
        plain: Sequence[str],
        scans: Mapping[str, ColumnScan],
        features: Sequence[ColumnScan],
    ) -> "_Content":
        """The reading that takes the values in; ``scans`` still want to see them."""
        reading, targets = self._reading(), list[Any]()
        for block in reading.blocks(self, kinds, plain):
            if block.why:
                table.append_lost(block.rows)
                targets += [None] * block.rows
                continue
            absent = [None] * block.rows
            columns = {name: block.columns.get(name, absent) for name in table.names}
            for name, scan in scans.items():
                scan.see(columns[name], reading.rows)
            try:
                table.append(columns, block.rows)
            except CellError as error:
                raise error.as_data_error(reading.name(reading.rows + error.where())) from error
            targets += block.targets
        self._refuse(reading)
        if not targets:
            raise DataError(f"{self._place.shown} has no rows", "add rows, or mend data.path")
        table.finish(self.data.columns, list(scans.values()))
        return _Content(table, object_array(targets), reading, features)

    def _reading(self) -> "_Reading":
        return _Reading(self._place, self._names)

    def _refuse(self, reading: "_Reading") -> None:
        refuse_too_many(
            reading.lost,
            reading.rows,
            self.data.max_unreadable,
            reading.name,
            "write or fetch the files again, or delete what is broken",
        )


def unused_files(place: Place, names: Sequence[str], data: DataSection) -> tuple[Finding, ...]:
    """What is to be said of files in a folder that have none of the source's suffixes.

    Beside a column of pictures files are looked for by its cells, and nothing is said of the others.
    """
    others = [] if data.image else sorted({*place.names} - {*names})
    if not others:
        return ()
    message = f"{len(others)} other files in {place.shown} are not used"
    return (Finding(kind="unused", severity="note", message=message, examples=tuple(others[:5])),)


class _Reading:
    """One walk over all shards: how far it is, and where each row stands."""

    def __init__(self, place: Place, names: Sequence[str]) -> None:
        self._place, self._names = place, names
        self.rows = 0
        """Before the block that was given last."""
        self.lost: list[Lost] = []
        self.has_target = False
        self.columns: set[str] = set()
        self._starts: list[int] = []
        self._lines = array("q")

    def blocks(
        self, source: ShardedTable, kinds: Mapping[str, str], plain: Sequence[str]
    ) -> Iterator[Block]:
        for name, path in self._place.walk(self._names):
            shown = self._place.where(name)
            if kinds:
                _check_same(
                    kinds, source.kinds(path, shown) or {}, shown, self._place.where(self._names[0])
                )
            self._starts.append(self.rows)
            for block in source.blocks(path, shown, plain):
                self._lines.extend(block.lines)
                self.columns |= block.columns.keys()
                if block.why:
                    self.lost.append(Lost(self.rows, self.rows + block.rows, block.why))
                self.has_target |= any(target is not None for target in block.targets)
                yield block
                self.rows += block.rows

    def name(self, row: int) -> str:
        shard = bisect_right(self._starts, row) - 1
        place = f"line {self._lines[row]}" if self._lines else f"row {row - self._starts[shard]}"
        return place if self._place.single else f"{self._names[shard]}, {place}"


@dataclass(frozen=True)
class _Content:
    table: Table | Texts | Mixed
    targets: NDArray[np.object_]
    reading: _Reading
    scans: Sequence[ColumnScan]
    """Of the columns that could be inputs."""


def _check_same(kinds: Mapping[str, str], own: Mapping[str, str], shown: str, first: str) -> None:
    """Refuse a shard whose columns differ from the first one's, naming column and file."""
    for name in [*kinds, *own]:
        if name not in own or name not in kinds:
            has, lacks = (first, shown) if name in kinds else (shown, first)
            raise DataError(
                f"the shards differ: {has} has a column {name!r}, {lacks} has none",
                "write all shards with the same columns, or move those that do not belong here",
            )
        if own[name] != kinds[name]:
            raise DataError(
                f"the shards differ: column {name!r} is {kinds[name].strip('()')} in {first}, "
                f"{own[name].strip('()')} in {shown}",
                "write all shards with the same types",
            )
