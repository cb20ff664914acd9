"""Rows of several kinds of columns: in place of a ``Table``, with a picture's file, a text, or both beside it."""

import base64
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelyard.data.place import Place
from modelyard.data.sources.base import Rows, Schema, object_array
from modelyard.data.sources.columns import Cells, ColumnScan
from modelyard.data.sources.table import Choice, Table
from modelyard.data.sources.texts import Texts
from modelyard.spec.errors import DataError, nearest
from modelyard.spec.project import DataSection
from modelyard.spec.records import Finding
from modelyard.spec.urls import is_url, local_path

NO_PICTURE = "it names no picture"


class Pictures:
    """A column of file names, relative to the folder that holds the table and its pictures."""

    def __init__(self, column: str, place: Place, scratch: Path) -> None:
        self._names = Texts(column, scratch, "data.image")
        self.append, self.append_lost = self._names.append, self._names.append_lost
        self._folder = Path(place.shown)
        self._known = frozenset(place.names)

    def files(self, start: int, stop: int) -> tuple[list[str], dict[int, str]]:
        """The path of each row's file, and place -> why, where there is none: its path is empty.

        Only files that are listed count: their bytes are in the dataset's identity, and none lies
        outside of the folder.
        """
        paths: list[str] = []
        missing: dict[int, str] = {}
        for place, name in enumerate(self._names.read(start, stop)):
            plain = posixpath.normpath(name.strip()) if name.strip() else ""
            if plain in self._known:
                paths.append(str(self._folder / plain))
                continue
            paths.append("")
            missing[place] = self._why(name, plain) if plain else NO_PICTURE
        return paths, missing

    def _why(self, name: str, plain: str) -> str:
        if plain.startswith(("/", "..")):
            return f"{name!r} is not in {self._folder}: pictures lie beside the table or in folders there"
        close = nearest(plain, list(self._known)) if len(self._known) < 10_000 else None
        return f"there is no {name!r} in {self._folder}" + (
            f"; did you mean {close!r}?" if close else ""
        )


class Mixed:
    """Grown chunk by chunk, then finished; as a ``Table`` is."""

    def __init__(
        self, data: DataSection, table: Table, pictures: Pictures | None, texts: Texts | None
    ) -> None:
        self._data, self._table, self._pictures, self._texts = data, table, pictures, texts
        self.schema = Schema("mixed", image=data.image, text=data.text)

    @property
    def names(self) -> list[str]:
        """Of the columns that ``append`` wants."""
        return [*filter(None, (self._data.image, self._data.text)), *self._table.names]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self._table.findings

    def append(self, columns: Mapping[str, Cells], rows: int) -> None:
        """Take in the next rows. Raises CellError, DataError."""
        for column in (self._pictures, self._texts, self._table):
            if column is not None:
                column.append(columns, rows)

    def append_lost(self, rows: int) -> None:
        """Rows that cannot be read."""
        for column in (self._pictures, self._texts, self._table):
            if column is not None:
                column.append_lost(rows)

    def finish(self, declared: Mapping[str, str], scans: Sequence[ColumnScan] = ()) -> None:
        """Raises DataError where the text is all that is left."""
        self._table.finish(declared, scans)
        columns = self._table.schema.columns
        self.schema = Schema("mixed", columns=columns, image=self._data.image, text=self._data.text)
        if bool(self._pictures) + bool(self._texts) + bool(columns) < 2:
            alone = "text" if self._texts else "picture"
            raise DataError(
                f"beside the {alone} no column is left to learn from: all are constant, identifiers or ignored",
                "look at the file and at [data.columns]"
                + ("" if self._pictures else "; data.fuse = false learns from the text alone"),
            )

    def rows(self, start: int, stop: int) -> Rows:
        values = self._table.rows(start, stop).values
        assert isinstance(values, dict)
        unreadable: dict[int, str] = {}
        if self._pictures is not None:
            paths, unreadable = self._pictures.files(start, stop)
            values[self._data.image] = object_array(paths)
        if self._texts is not None:
            values[self._data.text] = object_array(self._texts.read(start, stop))
        return Rows(values, unreadable)

    def natural(self, row: int) -> dict[str, Any]:
        """As a caller of the service would write it. Raises DataError for a picture that cannot be read."""
        found: dict[str, Any] = {}
        if self._pictures is not None:
            path = self._pictures.files(row, row + 1)[0][0]
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}") from error
            found[self._data.image] = base64.b64encode(content).decode()
        if self._texts is not None:
            found[self._data.text] = self._texts.read(row, row + 1)[0]
        return found | self._table.natural(row)


def own_columns(data: DataSection) -> dict[str, str]:
    """Field -> the column that it names; these are in no table."""
    named = {"data.image": data.image, "data.text": data.text}
    return {field: column for field, column in named.items() if column}


def open_mixed(data: DataSection, choice: Choice, place: Place, scratch: Path) -> Mixed:
    """To be filled from the table at ``place``. Raises DataError."""
    if data.image and is_url(local_path(data.path)):
        raise DataError(
            "data.image: pictures beside a table are read from this machine only",
            "copy the table and its pictures into a folder, and name that in data.path",
        )
    if data.image and place.single:
        raise DataError(
            f"data.path: {place.shown} is a file; with data.image the folder is named",
            "name the folder that holds the table and its pictures; all files in it belong to the data",
        )
    return Mixed(
        data,
        Table(choice, scratch, alone=False),
        Pictures(data.image, place, scratch) if data.image else None,
        Texts(data.text, scratch) if data.text else None,
    )
