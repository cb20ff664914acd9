"""A column of texts on its way from a source: kept on disk, read by slices."""

import tempfile
from array import array
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from modelyard.data.cells import is_missing
from modelyard.data.sources.base import Rows, Schema, object_array
from modelyard.data.sources.columns import Cells, ColumnScan, TypedCells
from modelyard.spec.errors import DataError
from modelyard.spec.records import Finding

NO_TEXT = "it has no text"


class Texts:
    """In place of a ``Table`` where ``data.text`` names a column: that one is the whole input."""

    def __init__(self, column: str, scratch: Path, field: str = "data.text") -> None:
        self.names, self._field = [column], field
        self.schema = Schema("text")
        self.findings: tuple[Finding, ...] = ()
        scratch.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - as long as this
        self._ends = array("q", [0])
        """Where each text ends in the file; one that is missing has no byte."""

    def append(self, columns: Mapping[str, Cells], rows: int) -> None:
        """Take in the next rows. Raises DataError for a column that holds no texts."""
        cells = columns[self.names[0]]
        assert not isinstance(cells, TypedCells)
        for cell in cells:
            if not is_missing(cell) and not isinstance(cell, str):
                raise DataError(
                    f"column {self.names[0]!r} holds a {type(cell).__name__} and no text: {str(cell)[:60]!r}",
                    f"look at {self._field}; without it the columns are read as a table",
                )
            content = b"" if cell is None else cell.encode("utf-8", "replace")
            self._file.write(content)
            self._ends.append(self._ends[-1] + len(content))

    def append_lost(self, rows: int) -> None:
        """Rows that cannot be read."""
        self._ends.extend([self._ends[-1]] * rows)

    def finish(self, declared: Mapping[str, str], scans: Sequence[ColumnScan] = ()) -> None:
        """Nothing is left out of a text."""

    def rows(self, start: int, stop: int) -> Rows:
        texts = self.read(start, stop)
        blank = [place for place, text in enumerate(texts) if not text.strip()]
        return Rows(object_array(texts), dict.fromkeys(blank, NO_TEXT))

    def read(self, start: int, stop: int) -> list[str]:
        """The texts themselves; "" where one is missing."""
        ends = self._ends[start : stop + 1]
        self._file.seek(ends[0])
        content = self._file.read(ends[-1] - ends[0])
        return [
            content[first - ends[0] : last - ends[0]].decode() for first, last in pairwise(ends)
        ]

    def natural(self, row: int) -> dict[str, Any]:
        return {"text": self.read(row, row + 1)[0]}

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
