"""Records of a CSV file one by one; a record that is broken is told of and passed over."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from modelyard.spec.errors import DataError

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""How Python's ``surrogateescape`` keeps a byte that is no UTF-8."""


class Record(NamedTuple):
    """One record, or what is wrong with it."""

    line: int
    """From 1: the line on which it ends."""
    cells: list[str]
    problem: str = ""


def read_records(path: Path, delimiter: str, shown: str) -> Iterator[Record]:
    """Every record that is not blank. Raises OSError, and DataError for UTF-16.

    After a record that cannot be read, reading goes on with the line after the one on which it
    began: a quotation mark that is not closed costs its own line and not the rest of the file.
    """
    _refuse_utf16(path, shown)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        while True:
            try:
                yield from _until_broken(lines, delimiter)
                return
            except csv.Error as error:
                yield Record(lines.give_back() or 1, [], str(error))


def _until_broken(lines: "_Lines", delimiter: str) -> Iterator[Record]:
    for cells in csv.reader(lines, delimiter=delimiter, strict=True):
        if cells:
            yield Record(lines.number, cells, lines.problem)
        lines.taken.clear()
        lines.problem = ""


class _Lines:
    """Lines of a file, counted; those of the record that is being read can be given back."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._waiting: list[str] = []
        self.taken: list[str] = []
        self.problem = ""
        """A byte of the current record that is no UTF-8."""
        self.number = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._waiting.pop() if self._waiting else next(self._file)
        self.taken.append(line)
        self.number += 1
        if not line.isascii() and (found := _NOT_UTF8.search(line)):
            self.problem = f"byte 0x{ord(found[0]) - 0xDC00:02x} is not UTF-8"
        return line

    def give_back(self) -> int:
        """Give back all lines of the current record but its first; the number of that one."""
        rest = self.taken[1:]
        self.taken.clear()
        self.problem = ""
        self._waiting += reversed(rest)
        self.number -= len(rest)
        return self.number


def _refuse_utf16(path: Path, shown: str) -> None:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{shown} is UTF-16, not UTF-8", "save the file as UTF-8")
