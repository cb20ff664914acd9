"""Samples in raw form on their way into a prepared dataset: fitted, encoded and profiled by kind."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.data import profile
from modelyard.data.digest import digest_values
from modelyard.data.npy import ArrayWriter
from modelyard.data.preprocess import finish
from modelyard.data.profile import FeatureProfile
from modelyard.data.sources.base import Rows, Schema, Source, unfitted_image
from modelyard.data.table_fit import TableFit, Values
from modelyard.data.table_row import category_numbers, check_finite, encode_column, one_hot
from modelyard.spec.project import DataSection
from modelyard.spec.signature import (
    CategoricalColumn,
    Column,
    ImageInput,
    NaturalInput,
    TableInput,
    TensorInput,
)

_CHUNK_BYTES = 32 * 1024 * 1024
_SAY = 200_000
"""Rows of a table between two words of progress."""
_MAX_TENSOR_PROFILES = 200
_SMALLEST_STD = 1e-6
Say = Callable[[str], None]
Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Read:
    """What came of reading the source once."""

    rows: Positions
    """Row in the source of each sample that could be read."""
    digests: NDArray[np.uint64]
    """(n,) of each sample's raw form."""
    unreadable: dict[int, str]
    """Row in the source -> why."""


class Raw(Protocol):
    """What gives samples in raw form: a source, or one part of what a source gives."""

    def rows(self, start: int, stop: int) -> Rows:
        """See ``Source``."""
        ...


class Material(ABC):
    """One kind of sample. First ``read``; then, once the splits are known, ``fit`` and the rest."""

    def __init__(self, source: Raw, schema: Schema, data: DataSection, folder: Path) -> None:
        self.source, self.schema, self.data = source, schema, data
        self.path = folder / "inputs.npy"

    @abstractmethod
    def read(self, rows: Positions, say: Say) -> Read:
        """Read these rows of the source."""

    @abstractmethod
    def fit(self, train: Positions) -> NaturalInput:
        """The input's description, fitted on these positions only."""

    @abstractmethod
    def write(self, spec: NaturalInput) -> NDArray[np.uint64]:
        """Make sure that inputs.npy is there; digests (n,) of its rows."""

    @abstractmethod
    def features(self, train: Positions) -> tuple[FeatureProfile, ...]:
        """Profiles of these positions."""


class StackedMaterial(Material):
    """Images and tensors: the raw form is the stored form, and goes to the file as it is read."""

    dtype: str

    def read(self, rows: Positions, say: Say) -> Read:
        sample = int(np.prod(self.schema.shape)) * np.dtype(self.dtype).itemsize
        digests, kept = [], []
        unreadable: dict[int, str] = {}
        with ArrayWriter(self.path, self.dtype, self.schema.shape) as writer:
            for start, stop in chunks(len(rows), sample):
                chunk = take(self.source, rows[start:stop])
                assert not isinstance(chunk.values, dict)
                good = np.setdiff1d(np.arange(stop - start), list(chunk.unreadable))
                unreadable |= {int(rows[start + i]): why for i, why in chunk.unreadable.items()}
                values = chunk.values[good]
                writer.append(values)
                digests.append(digest_values(values))
                kept.append(rows[start:stop][good])
                say(f"read {stop} of {len(rows)} samples")
        self._digests = np.concatenate(digests)
        return Read(np.concatenate(kept), self._digests, unreadable)

    def write(self, spec: NaturalInput) -> NDArray[np.uint64]:
        return self._digests

    def _train_chunks(self, train: Positions) -> Iterator[NDArray[Any]]:
        stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
        for start, stop in chunks(len(train), int(stored[:1].nbytes)):
            yield np.asarray(stored[train[start:stop]])


class ImageMaterial(StackedMaterial):
    dtype = "uint8"

    def fit(self, train: Positions) -> ImageInput:
        self._counts = profile.ImageCounts(self.schema.shape[0])
        for chunk in self._train_chunks(train):
            self._counts.add(chunk)
        mean, std = self._counts.moments()
        usable = tuple(value if value > _SMALLEST_STD else 1.0 for value in std)
        return msgspec.structs.replace(unfitted_image(self.data), mean=mean, std=usable)

    def features(self, train: Positions) -> tuple[FeatureProfile, ...]:
        return (self._counts.profile("image"),)


class TensorMaterial(StackedMaterial):
    dtype = "float32"

    def fit(self, train: Positions) -> TensorInput:
        """One mean and one standard deviation for all numbers, in two passes for exactness."""
        count, total = 0, 0.0
        for chunk in self._train_chunks(train):
            count += chunk.size
            total += float(chunk.sum(dtype=np.float64))
        mean = total / count
        squares = sum(
            float(np.square(chunk.astype(np.float64) - mean).sum())
            for chunk in self._train_chunks(train)
        )
        std = float(np.float32(np.sqrt(squares / count)))
        usable = np.isfinite(std) and std > 0
        return TensorInput(shape=self.schema.shape, mean=mean, std=std if usable else 1.0)

    def features(self, train: Positions) -> tuple[FeatureProfile, ...]:
        stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
        size = int(np.prod(self.schema.shape))
        # A million numbers say enough about a distribution.
        some = stored[train[:: max(1, len(train) * size // 2**20)]]
        whole = profile.numeric("values", some.ravel())
        if len(self.schema.shape) != 1 or size > _MAX_TENSOR_PROFILES:
            return (whole,)
        return (whole, *(profile.numeric(str(i), some[:, i]) for i in range(size)))


class TableMaterial(Material):
    """Rows of a table; what a model gets is known only after fitting, so the source is read in passes."""

    def read(self, rows: Positions, say: Say) -> Read:
        digests, kept = [], []
        unreadable: dict[int, str] = {}
        for start, stop in chunks(len(rows), 8 * len(self.schema.columns)):
            chunk = take(self.source, rows[start:stop])
            assert isinstance(chunk.values, dict)
            good = np.setdiff1d(np.arange(stop - start), list(chunk.unreadable))
            unreadable |= {int(rows[start + i]): why for i, why in chunk.unreadable.items()}
            digests.append(digest_values(np.stack([*chunk.values.values()], 1)[good]))
            kept.append(rows[start:stop][good])
            if stop == len(rows) or start // _SAY != stop // _SAY:
                say(f"read {stop} of {len(rows)} rows")
        self._rows = np.concatenate(kept)
        return Read(self._rows, np.concatenate(digests), unreadable)

    def fit(self, train: Positions) -> TableInput:
        rows = self._rows[train]
        self._fitted = TableFit(self.schema.columns, lambda: self._values(rows), len(rows))
        return TableInput(columns=self._fitted.columns())

    def write(self, spec: NaturalInput) -> NDArray[np.uint64]:
        assert isinstance(spec, TableInput)
        encoders = [self._encoder(column) for column in spec.columns]
        digests = []
        with ArrayWriter(self.path, "float32", spec.shape) as writer:
            for values in self._values(self._rows, 4 * spec.shape[0]):
                features = np.concatenate([encode(values) for encode in encoders], axis=1)
                check_finite(spec, features)
                writer.append(finish(spec, features))
                digests.append(digest_values(features))
        return np.concatenate(digests)

    def features(self, train: Positions) -> tuple[FeatureProfile, ...]:
        return self._fitted.profiles()

    def _values(self, rows: Positions, row_bytes: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
        """One pass over these rows of the source."""
        for start, stop in chunks(len(rows), max(row_bytes, 8 * len(self.schema.columns))):
            values = take(self.source, rows[start:stop]).values
            assert isinstance(values, dict)
            yield values

    def _encoder(self, column: Column) -> Callable[[Values], NDArray[np.float32]]:
        name = column.name
        if not isinstance(column, CategoricalColumn):
            return lambda values: encode_column(column, values[name])
        words = next(schema.words for schema in self.schema.columns if schema.name == name)
        # Each word is looked up once, by the code that looks up a single row's word in the service.
        numbers = np.append(category_numbers(column, words), -1)
        return lambda values: one_hot(column, numbers[values[name]])


def open_material(source: Source, data: DataSection, folder: Path) -> Material:
    """The material of the source's kind of sample; arrays go into ``folder``."""
    schema = source.schema()
    kinds: dict[str, type[Material]] = {
        "image": ImageMaterial,
        "tensor": TensorMaterial,
        "table": TableMaterial,
    }
    if schema.kind == "text":
        from modelyard.data.text_material import TextMaterial

        kinds["text"] = TextMaterial
    if schema.kind == "mixed":
        from modelyard.data.mixed_material import MixedMaterial

        kinds["mixed"] = MixedMaterial
    if schema.kind == "image" and data.keep == "files":
        from modelyard.data.packed_material import PackedImageMaterial

        kinds["image"] = PackedImageMaterial
    return kinds[schema.kind](source, schema, data, folder)


def take(source: Raw, rows: Positions) -> Rows:
    """These rows (sorted) of the source; a slice of it where they follow one another."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    chunk = source.rows(first, last)
    if last - first == len(rows):
        return chunk
    places = rows - first
    back = {int(place): new for new, place in enumerate(places)} if chunk.unreadable else {}
    unreadable = {back[place]: why for place, why in chunk.unreadable.items() if place in back}
    if isinstance(chunk.values, dict):
        return Rows({name: values[places] for name, values in chunk.values.items()}, unreadable)
    return Rows(chunk.values[places], unreadable)


def chunks(length: int, sample_bytes: int) -> Iterator[tuple[int, int]]:
    """Slices of about ``_CHUNK_BYTES``."""
    step = max(1, min(4096, _CHUNK_BYTES // max(1, sample_bytes)))
    for start in range(0, length, step):
        yield start, min(start + step, length)
