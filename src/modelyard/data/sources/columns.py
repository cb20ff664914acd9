"""Columns of cells: what kind each is, judged on all its rows, and its values in raw form."""

from array import array
from collections.abc import Sequence
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


class ColumnScan:
    """Looks at every cell of a column once; keeps counts and a few examples, not the cells."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = self.missing = self.numbers = 0
        self.distinct: set[str] = set()
        """Up to three words, in lower case: enough to tell constant and boolean columns."""
        self.texts: list[tuple[int, str]] = []
        """The first cells that are no numbers, with their row."""
        self._not_truth: list[tuple[int, str]] = []

    def see(self, cells: Sequence[Any], first_row: int) -> None:
        """Take in the next cells; ``first_row`` is the row of the first of them."""
        self.rows += len(cells)
        if len(self.distinct) < 3:
            words = {str(cell).strip().lower() for cell in cells if not is_missing(cell)}
            self.distinct |= set(sorted(words)[:3])
        if numbers_of(cells) is not None:
            self.numbers += len(cells)
            return
        for place, cell in enumerate(cells):
            self._see_one(cell, first_row + place)

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


class ColumnValues:
    """A column in raw form, grown chunk by chunk: 8 bytes a number, 4 a word."""

    def __init__(self, name: str, kind: ColumnKind) -> None:
        self.name, self.kind = name, kind
        self._numbers = array("d")
        self._codes = array("i")
        self._words: dict[str, int] = {}

    def add(self, cells: Sequence[Any]) -> None:
        """Raises ValueError for a cell that does not fit the kind."""
        if self.kind == "categorical":
            words = self._words
            texts = map(word, cells)
            self._codes.extend(
                -1 if text is None else words.setdefault(text, len(words)) for text in texts
            )
        elif self.kind == "boolean":
            self._numbers.extend(map(truth, cells))
        else:
            self._numbers.extend(numbers_of(cells) or map(number, cells))

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self._words)

    @property
    def values(self) -> NDArray[Any]:
        if self.kind == "categorical":
            return np.array(self._codes, dtype=np.int32)
        return np.array(self._numbers, dtype=np.float64)

    @property
    def is_identifier(self) -> bool:
        """Every word occurs once: it names the row and says nothing about another one."""
        present = sum(code >= 0 for code in self._codes)
        return self.kind == "categorical" and present >= 20 and len(self._words) == present


def numbers_of(cells: Sequence[Any]) -> list[float] | None:
    """All cells as floats where every one is a plain number, in one go; None otherwise."""
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
