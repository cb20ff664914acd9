"""A table in memory: the columns that the model gets, in raw form, and those that it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.sources.base import ColumnKind, ColumnSchema, Rows, Schema
from modelyard.data.sources.columns import ColumnScan, ColumnValues, left_out
from modelyard.spec.errors import DataError
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
            why = "it has no value at all" if not scan.present else "it is the same in every row"
            findings.append(left_out("constant", scan.name, why))
            continue
        kinds.append((scan.name, scan.kind(wish)))
    return Choice(tuple(kinds), tuple(findings))


class Table:
    """Grown column by column, then finished."""

    def __init__(self, growing: Sequence[ColumnValues], findings: tuple[Finding, ...]) -> None:
        self.growing = list(growing)
        self.findings = findings
        self.schema = Schema("table")
        self._values: dict[str, NDArray[Any]] = {}

    def finish(self, declared: Mapping[str, str]) -> None:
        """Leave out identifiers that nobody declared. Raises DataError where no column is left."""
        columns = []
        for column in self.growing:
            if column.is_identifier and column.name not in declared:
                why = (
                    "every row has its own word, as an identifier has; "
                    'set its kind to "categorical" in [data.columns] to keep it'
                )
                self.findings = (*self.findings, left_out("identifier", column.name, why))
                continue
            columns.append(ColumnSchema(column.name, column.kind, column.words))
            self._values[column.name] = column.values
        self.growing = []
        if not columns:
            raise DataError(
                "no column is left to learn from: all are the target, constant, identifiers or ignored",
                "look at the file and at [data.columns]",
            )
        self.schema = Schema("table", columns=tuple(columns))

    def rows(self, start: int, stop: int) -> Rows:
        return Rows({name: values[start:stop] for name, values in self._values.items()})

    def natural(self, row: int) -> dict[str, Any]:
        """``{column: value}`` as a caller of the service would write it."""
        return {
            column.name: _natural(column, self._values[column.name][row])
            for column in self.schema.columns
        }


def _natural(column: ColumnSchema, value: Any) -> Any:
    if column.kind == "categorical":
        return column.words[value] if value >= 0 else None
    if np.isnan(value):
        return None
    if column.kind == "boolean":
        return bool(value)
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)
