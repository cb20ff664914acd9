"""A table in raw form: the columns that the model gets, and those that it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.data.sources.base import ColumnKind, ColumnSchema, Rows, Schema
from modelyard.data.sources.columns import (
    MAX_WORDS,
    Cells,
    ColumnCoder,
    ColumnScan,
    TypedCells,
    left_out,
)
from modelyard.data.sources.spool import Spool
from modelyard.spec.errors import DataError, did_you_mean
from modelyard.spec.records import Finding


@dataclass(frozen=True)
class Choice:
    """Which columns are taken in and as what."""

    kinds: tuple[tuple[str, ColumnKind], ...]
    findings: tuple[Finding, ...]


def choose_columns(scans: Sequence[ColumnScan], declared: Mapping[str, str]) -> Choice:
    """Leave out what is ignored or constant; judge the rest. Raises TextInNumbersError."""
    kinds: list[tuple[str, ColumnKind]] = []
    findings: list[Finding] = []
    for scan in scans:
        wish = declared.get(scan.name)
        if wish == "ignore":
            continue
        if scan.constant:
            findings.append(_constant(scan))
            continue
        kinds.append((scan.name, scan.kind(wish)))
    return Choice(tuple(kinds), tuple(findings))


def check_names(names: Sequence[str], target: str, declared: Mapping[str, str], shown: str) -> None:
    """Refuse a target or a declared column that ``names`` lacks. Raises DataError with what is near."""
    listed = ", ".join(map(repr, names[:30])) + (" …" if len(names) > 30 else "")
    if target not in names:
        hint = did_you_mean(target, names)
        raise DataError(
            f"{shown} has no target column {target!r}{hint}",
            f"set data.target to one of its columns: {listed}",
        )
    for name in declared:
        if name not in names:
            hint = did_you_mean(name, names)
            raise DataError(
                f"[data.columns] names {name!r}, which {shown} does not have{hint}",
                f"its columns are {listed}",
            )


def check_column(field: str, column: str, names: Sequence[str], shown: str) -> None:
    """Refuse a ``data.text`` or ``data.image`` that ``names`` lacks. Raises DataError with what is near."""
    if column in names:
        return
    hint = did_you_mean(column, names)
    raise DataError(
        f"{field} names {column!r}, which {shown} does not have{hint}",
        f"its columns are {', '.join(map(repr, names[:30]))}",
    )


class Table:
    """Grown chunk by chunk, then finished; its values lie in a spool, so it may be of any length."""

    def __init__(self, choice: Choice, scratch: Path, *, alone: bool = True) -> None:
        """``alone``: a table that has no column at all is refused."""
        self.findings, self._alone = choice.findings, alone
        self.schema = Schema("table")
        self._coders = [ColumnCoder(name, kind) for name, kind in choice.kinds]
        self._spool = Spool(len(self._coders), scratch)
        self._places: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """Of the columns that ``append`` wants."""
        return [coder.name for coder in self._coders]

    def append(self, columns: Mapping[str, Cells], rows: int) -> None:
        """Take in the next ``rows`` rows of every chosen column. Raises CellError."""
        values = np.empty((rows, len(self._coders)), dtype=np.float64)
        for place, coder in enumerate(self._coders):
            try:
                values[:, place] = coder.code(columns[coder.name])
            except ValueError as error:
                raise CellError(coder, columns[coder.name], error) from error
        self._spool.append(values)

    def append_lost(self, rows: int) -> None:
        """Rows that cannot be read: nothing in any column."""
        nothing = [-1.0 if coder.kind == "categorical" else np.nan for coder in self._coders]
        step = max(1, 2**20 // max(1, len(nothing)))
        for start in range(0, rows, step):
            self._spool.append(np.tile(nothing, (min(step, rows - start), 1)))

    def finish(self, declared: Mapping[str, str], scans: Sequence[ColumnScan] = ()) -> None:
        """Leave out identifiers that nobody declared, and what ``scans`` found constant.

        Raises DataError where no column is left.
        """
        constant = {scan.name: scan for scan in scans if scan.constant}
        columns = []
        for place, coder in enumerate(self._coders):
            finding = (
                _constant(constant[coder.name])
                if coder.name in constant
                else _wordy(coder, declared)
            )
            if finding:
                self.findings = (*self.findings, finding)
            if finding and (coder.name in constant or coder.name not in declared):
                continue
            columns.append(ColumnSchema(coder.name, coder.kind, coder.words))
            self._places[coder.name] = place
        if not columns and self._alone:
            raise DataError(
                "no column is left to learn from: all are the target, constant, identifiers or ignored",
                "look at the file and at [data.columns]",
            )
        self.schema = Schema("table", columns=tuple(columns))

    def rows(self, start: int, stop: int) -> Rows:
        values = self._spool.read(start, stop)
        return Rows(
            {
                column.name: values[:, self._places[column.name]].astype(
                    np.int32 if column.kind == "categorical" else np.float64
                )
                for column in self.schema.columns
            }
        )

    def natural(self, row: int) -> dict[str, Any]:
        """``{column: value}`` as a caller of the service would write it."""
        values = self._spool.read(row, row + 1)[0]
        return {
            column.name: _natural(column, values[self._places[column.name]])
            for column in self.schema.columns
        }


class CellError(Exception):
    """A cell does not fit its column; the source tells where it stands by ``where``."""

    def __init__(self, coder: ColumnCoder, cells: Cells, reason: ValueError) -> None:
        super().__init__(f"column {coder.name!r}: {reason}")
        self._coder, self._cells = coder, cells

    def where(self) -> int:
        """The place of the first such cell among those that were appended."""
        if isinstance(self._cells, TypedCells):
            return int(np.flatnonzero(np.isinf(self._cells.values))[0])
        alone = ColumnCoder(self._coder.name, self._coder.kind)
        for place, cell in enumerate(self._cells):
            try:
                alone.code([cell])
            except ValueError:
                return place
        return 0

    def as_data_error(self, name: str) -> DataError:
        """``name`` is where the cell stands."""
        return DataError(f"{name}: {self}", "mend the cell, or set another kind in [data.columns]")


def _constant(scan: ColumnScan) -> Finding:
    why = "it has no value at all" if not scan.present else "it is the same in every row"
    return left_out("constant", scan.name, why)


def _wordy(coder: ColumnCoder, declared: Mapping[str, str]) -> Finding | None:
    """What is to be said of a column with very many words; it is left out unless it is declared."""
    if coder.overflowed and coder.name in declared:
        return Finding(
            kind="identifier",
            severity="warning",
            message=f"column {coder.name!r} has more than {MAX_WORDS} different words: "
            "those that come later count as unknown",
        )
    if coder.name in declared or not (coder.overflowed or coder.is_identifier):
        return None
    why = (
        f"it has more than {MAX_WORDS} different words"
        if coder.overflowed
        else "every row has its own word, as an identifier has"
    )
    mend = 'set its kind to "categorical" in [data.columns] to keep it'
    return left_out("identifier", coder.name, f"{why}; {mend}")


def _natural(column: ColumnSchema, value: Any) -> Any:
    if column.kind == "categorical":
        return column.words[int(value)] if value >= 0 else None
    if np.isnan(value):
        return None
    if column.kind == "boolean":
        return bool(value)
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)
