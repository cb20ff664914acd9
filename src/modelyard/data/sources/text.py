"""A folder of text files, one folder per class."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelyard.data.place import Place, open_place
from modelyard.data.sources.base import Rows, Schema, Source, object_array
from modelyard.data.sources.texts import NO_TEXT
from modelyard.data.text import text_of
from modelyard.spec.errors import DataError
from modelyard.spec.records import Finding


class Text(Source):
    """``path/<class>/…/<file>.txt`` in UTF-8: the first folder's name is the label.

    Texts that stand in a table (CSV, JSON Lines, Parquet, Arrow) come by ``data.text`` instead.
    """

    def files(self) -> Sequence[Path]:
        return self._place.paths()

    def stamps(self) -> Sequence[str]:
        return self._place.stamps()

    def code(self) -> Mapping[str, Path]:
        return {}

    def schema(self) -> Schema:
        return Schema("text")

    def __len__(self) -> int:
        return len(self._names)

    def targets(self) -> NDArray[np.object_]:
        return object_array([name.partition("/")[0] for name in self._names])

    def rows(self, start: int, stop: int) -> Rows:
        texts: list[str] = []
        unreadable: dict[int, str] = {}
        for place, name in enumerate(self._names[start:stop]):
            try:
                text, why = self._read(name), NO_TEXT
            except DataError as error:
                text, why = "", error.what
            texts.append(text)
            if not text.strip():
                unreadable[place] = why
        return Rows(object_array(texts), unreadable)

    def natural(self, row: int) -> tuple[str, bytes]:
        content = json.dumps({"text": self._read(self._names[row])}, ensure_ascii=False)
        return ".json", content.encode()

    def name(self, row: int) -> str:
        return self._names[row]

    def findings(self) -> tuple[Finding, ...]:
        others = sorted({*self._place.names} - {*self._names})
        if not others:
            return ()
        message = f"{len(others)} files that are no .txt or in no class folder are not used"
        return (
            Finding(kind="unused", severity="note", message=message, examples=tuple(others[:5])),
        )

    @cached_property
    def _place(self) -> Place:
        return open_place(self.root, self.data, self.scratch, self.say)

    @cached_property
    def _names(self) -> list[str]:
        names = [
            name for name in self._place.names if name.lower().endswith(".txt") and "/" in name
        ]
        if not names:
            raise DataError(
                f"no text files in folders in {self._place.shown}",
                "make one folder per class with .txt files in it; for a table of texts set "
                'data.source = "csv" (or "jsonl", "parquet") and data.text to its column',
            )
        return names

    def _read(self, name: str) -> str:
        try:
            with self._place.local(name) as path:
                return text_of(path.read_bytes())
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error.strerror}", "mend its mode") from error
