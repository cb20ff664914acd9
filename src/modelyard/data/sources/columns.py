"""Columns of cells: what kind each is, judged on all its rows, and its values in raw form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.cells import FALSE, TRUE, is_missing, number, truth, word
from modelyard.data.sources.base import ColumnKind
from modelyard.spec.errors import DataError
from modelyard.spec.records import Finding

_MOSTLY_NUMBERS = 0.8
"""From this share of numbers on, the other cells look like slips of the pen."""
_EXAMPLES = 5
MAX_WORDS = 100_000
"""Different words of a column that are told apart: what keeps a table of any length in bounded memory."""


@dataclass(frozen=True)
class TypedCells:
    """Cells of a column whose kind its file declares, as Parquet and Arrow do."""

    kind: ColumnKind
    values: NDArray[Any]
    """(n,) as in ``Rows``: float64 with NaN, or for categorical places in ``words`` with -1."""
    words: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)


Cells = Sequence[Any] | TypedCells


class ColumnScan:
    """Looks at every cell of a column once; keeps counts and a few examples, not the cells."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = self.missing = self.numbers = 0
        self.distinct: set[str] = set()
        """Up to three words, in lower case: enough to tell constant and boolean columns."""
        self.texts: list[tuple[int, str]] = []
        """The first cells that are no numbers, with their row."""
        self.typed: ColumnKind | None = None

    def see(self, cells: Cells, first_row: int) -> None:
        """Take in the next cells; ``first_row`` is the row of the first of them."""
        self.rows += len(cells)
        if isinstance(cells, TypedCells):
            self._see_typed(cells)
            return
        if len(self.distinct) < 3:
            words = {str(cell).strip().lower() for cell in cells if not is_missing(cell)}
            self.distinct |= set(sorted(words)[:3])
        if numbers_of(cells) is not None:
            self.numbers += len(cells)
            return
        for place, cell in enumerate(cells):
            self._see_one(cell, first_row + place)

    def skip(self, rows: int) -> None:
        """Take in rows that have no cell in this column."""
        self.rows += rows
        self.missing += rows

    def _see_typed(self, cells: TypedCells) -> None:
        self.typed = cells.kind
        known = cells.values >= 0 if cells.kind == "categorical" else ~np.isnan(cells.values)
        present = cells.values[known]
        self.missing += len(cells) - len(present)
        if cells.kind != "categorical":
            self.numbers += len(present)
        if len(present) and len(self.distinct) < 3:
            ends = (present.min(), present.max())  # these tell a constant from other columns
            self.distinct |= {cells.words[e] if cells.words else str(e) for e in ends}

    def _see_one(self, cell: Any, row: int) -> None:
        if is_missing(cell):
            self.missing += 1
            return
        try:
            number(cell)
            self.numbers += 1
        except ValueError:
            if len(self.texts) < _EXAMPLES:
                self.texts.append((row, str(cell)))

    @property
    def present(self) -> int:
        return self.rows - self.missing

    @property
    def constant(self) -> bool:
        return self.present == 0 or (len(self.distinct) == 1 and self.missing == 0)

    def kind(self, declared: str | None) -> ColumnKind:
        """The declared kind or the guess. Raises DataError for text in a numeric column.

        ``texts`` are cells by row here; the source adds the line numbers.
        """
        if declared == "categorical":
            return "categorical"
        if self.typed:
            return self.typed
        if declared == "boolean" or (declared is None and self._looks_boolean()):
            return "boolean"
        if self.numbers == self.present and self.present:
            return "numeric"
        if declared == "numeric" or self.numbers >= _MOSTLY_NUMBERS * self.present:
            raise TextInNumbersError(self)
        return "categorical"

    def _looks_boolean(self) -> bool:
        return (
            len(self.distinct) == 2
            and len(self.distinct & TRUE) == 1
            and len(self.distinct & FALSE) == 1
        )


class TextInNumbersError(Exception):
    """A numeric column holds text; the source turns it into a DataError with line numbers."""

    def __init__(self, scan: ColumnScan) -> None:
        super().__init__(scan.name)
        self.scan = scan


class ColumnCoder:
    """Turns the cells of one column into raw form; keeps its words, at most ``MAX_WORDS``."""

    def __init__(self, name: str, kind: ColumnKind) -> None:
        self.name, self.kind = name, kind
        self.overflowed = False
        """There were more words; those count as missing."""
        self._present = 0
        self._words: dict[str, int] = {}

    def code(self, cells: Cells) -> NDArray[np.float64]:
        """float64 (n,), NaN or (categorical) -1 where missing. Raises ValueError for a cell that does not fit."""
        if self.kind == "categorical":
            return self._code_words(cells)
        if isinstance(cells, TypedCells):
            infinite = np.isinf(cells.values)
            if infinite.any():
                raise ValueError(f"{cells.values[infinite][0]} is not a finite number")
            numbers: NDArray[np.float64] = cells.values.astype(np.float64, copy=False)
            return numbers
        if self.kind == "boolean":
            return np.fromiter(map(truth, cells), dtype=np.float64, count=len(cells))
        return np.array(numbers_of(cells) or [*map(number, cells)], dtype=np.float64)

    def _code_words(self, cells: Cells) -> NDArray[np.float64]:
        if isinstance(cells, TypedCells):
            own = np.array([*map(self._place, cells.words), -1], dtype=np.float64)
            codes: NDArray[np.float64] = own[cells.values]
        else:
            places = (self._place(word(cell)) for cell in cells)
            codes = np.fromiter(places, dtype=np.float64, count=len(cells))
        self._present += int((codes >= 0).sum())
        return codes

    def _place(self, text: str | None) -> int:
        if text is None:
            return -1
        place = self._words.get(text)
        if place is not None:
            return place
        if len(self._words) >= MAX_WORDS:
            self.overflowed = True
            return -1
        self._words[text] = len(self._words)
        return len(self._words) - 1

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._words)

    @property
    def is_identifier(self) -> bool:
        """Every word occurs once: it names the row and says nothing about another one."""
        return (
            self.kind == "categorical" and self._present >= 20 and len(self._words) == self._present
        )


def numbers_of(cells: Sequence[Any]) -> list[float] | None:
    """All cells as floats where every one is a plain number, in one go; None otherwise."""
    if set(map(type, cells)) <= {int, float}:  # JSON has numbers
        try:
            numbers = np.array(cells, dtype=np.float64)
        except OverflowError:
            return None
        return numbers.tolist() if np.isfinite(numbers).all() else None
    try:
        values = list(map(float, cells))
        text = "".join(cells)
    except (ValueError, TypeError, OverflowError):
        return None
    # nan and inf parse as floats, underscores too: those cells go the slow way.
    return None if "_" in text or "n" in text.lower() else values


def text_in_numbers(scan: ColumnScan, names: Sequence[str]) -> DataError:
    """The error for a numeric column with text, ``names`` telling where each example stands."""
    shown = ", ".join(f"{name} {text!r}" for name, (_, text) in zip(names, scan.texts, strict=True))
    others = scan.present - scan.numbers
    return DataError(
        f"text in a numeric column: {scan.name!r} has {others} cell{'s' if others != 1 else ''} that "
        f"{'are' if others != 1 else 'is'} no number: {shown}{' …' if others > len(names) else ''}",
        f"mend the cells (empty means missing), or set [data.columns] {toml_key(scan.name)} = "
        '"categorical" (or "ignore")',
    )


def toml_key(name: str) -> str:
    """A column's name as a key of the project file."""
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isascii() and bare.isalnum() else f'"{name}"'


def missing_finding(name: str, missing: int, rows: int) -> Finding:
    """Cells without a value."""
    share = missing / max(rows, 1)
    return Finding(
        kind="missing",
        severity="warning" if share > 0.5 else "note",
        message=f"column {name!r}: {missing} of {rows} values are missing ({share:.1%})",
    )


def left_out(kind: str, name: str, why: str) -> Finding:
    """A column that the model does not get."""
    return Finding(kind=kind, severity="warning", message=f"column {name!r} is left out: {why}")
