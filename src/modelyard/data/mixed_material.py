"""Samples of several parts on their way into a prepared dataset: each part as it would go alone, then side by side."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.data.decoding import Decoding
from modelyard.data.digest import digest_values
from modelyard.data.material import (
    ImageMaterial,
    Material,
    Positions,
    Raw,
    Read,
    Say,
    TableMaterial,
    chunks,
)
from modelyard.data.npy import ArrayWriter
from modelyard.data.profile import FeatureProfile
from modelyard.data.sources.base import Rows, Schema, unfitted_image
from modelyard.data.text_material import TextMaterial
from modelyard.spec.project import DataSection
from modelyard.spec.signature import (
    ImageInput,
    MixedInput,
    NaturalInput,
    TableInput,
    TextInput,
)
from modelyard.tasks.parts import pack, row_bytes, stored_parts


class _Columns:
    """Of the rows that a source gives, one part; what the other parts lack is no matter here."""

    def __init__(self, source: Raw, part: Callable[[dict[str, NDArray[Any]]], Any]) -> None:
        self._source, self._part = source, part

    def rows(self, start: int, stop: int) -> Rows:
        values = self._source.rows(start, stop).values
        assert isinstance(values, dict)
        return Rows(self._part(values))


class _Pictures:
    """The pictures of a source's rows, decoded."""

    def __init__(self, source: Raw, data: DataSection, length: int) -> None:
        self._source, self._column = source, data.image
        files: list[str] = []
        for start, stop in chunks(length, 0):
            files += self._values(start, stop)[0]
        self._decoding = Decoding(unfitted_image(data), files)

    def rows(self, start: int, stop: int) -> Rows:
        pixels, unreadable = self._decoding.pixels(start, stop)
        return Rows(pixels, unreadable | self._values(start, stop)[1])

    def _values(self, start: int, stop: int) -> tuple[Sequence[str], dict[int, str]]:
        rows = self._source.rows(start, stop)
        assert isinstance(rows.values, dict)
        return rows.values[self._column].tolist(), rows.unreadable


class MixedMaterial(Material):
    """The parts' own files lie in a folder of their own until they are written side by side."""

    def __init__(self, source: Raw, schema: Schema, data: DataSection, folder: Path) -> None:
        super().__init__(source, schema, data, folder)
        self._folder = folder / "parts"
        self._parts: dict[str, Material] = {}

    def read(self, rows: Positions, say: Say) -> Read:
        unreadable: dict[int, str] = {}
        digests = []
        for name, material in self._open(int(rows[-1]) + 1).items():
            # The picture comes first: it alone can be unreadable.
            read = material.read(rows, say)
            rows, unreadable = read.rows, unreadable | read.unreadable
            digests.append(read.digests)
            self._parts[name] = material
        return Read(rows, digest_values(np.stack(digests, axis=1)), unreadable)

    def fit(self, train: Positions) -> MixedInput:
        image, text, table = (
            self._parts[name].fit(train) if name in self._parts else None
            for name in ("image", "text", "table")
        )
        assert isinstance(image, ImageInput | None)
        assert isinstance(text, TextInput | None)
        assert isinstance(table, TableInput | None)
        return MixedInput(
            image=image,
            text=text,
            table=table,
            image_column=self.schema.image,
            text_column=self.schema.text,
        )

    def write(self, spec: NaturalInput) -> NDArray[np.uint64]:
        assert isinstance(spec, MixedInput)
        for name, part in spec.parts.items():
            self._parts[name].write(part)
        stored = {
            name: np.load(material.path, mmap_mode="r", allow_pickle=False)
            for name, material in self._parts.items()
        }
        parts, digests = stored_parts(spec), []
        with ArrayWriter(self.path, "uint8", (row_bytes(parts),)) as writer:
            for start, stop in chunks(len(next(iter(stored.values()))), row_bytes(parts)):
                rows = pack(parts, {name: array[start:stop] for name, array in stored.items()})
                writer.append(rows)
                digests.append(digest_values(rows))
        return np.concatenate(digests)

    def features(self, train: Positions) -> tuple[FeatureProfile, ...]:
        """Under the names of the columns. The parts' own files are needed no more."""
        found: list[FeatureProfile] = []
        for part, material in self._parts.items():
            for profile in material.features(train):
                names = {"image": self.schema.image, "text": f"{self.schema.text} {profile.name}"}
                found.append(msgspec.structs.replace(profile, name=names.get(part, profile.name)))
        shutil.rmtree(self._folder)
        return tuple(found)

    def _open(self, length: int) -> dict[str, Material]:
        """The material of each part, for ``length`` rows of the source."""
        schema, data = self.schema, self.data
        found: dict[str, Material] = {}
        if schema.image:
            shape = unfitted_image(data).shape
            pictures = _Pictures(self.source, data, length)
            image = Schema("image", shape=shape)
            found["image"] = ImageMaterial(pictures, image, data, self._own("image"))
        if schema.text:
            texts = _Columns(self.source, lambda values: values[schema.text])
            found["text"] = TextMaterial(texts, Schema("text"), data, self._own("text"))
        if schema.columns:
            names = [column.name for column in schema.columns]
            rows = _Columns(self.source, lambda values: {name: values[name] for name in names})
            table = Schema("table", columns=schema.columns)
            found["table"] = TableMaterial(rows, table, data, self._own("table"))
        return found

    def _own(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir(parents=True)
        return folder
