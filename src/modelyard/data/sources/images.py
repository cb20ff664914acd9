"""A folder of image files, one folder per class."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from modelyard.data.decoding import Decoding
from modelyard.data.image_file import decode_image
from modelyard.data.place import Place, is_junk, open_place
from modelyard.data.sources.base import (
    Rows,
    Schema,
    Source,
    located,
    natural_order,
    object_array,
    unfitted_image,
)
from modelyard.spec.errors import DataError
from modelyard.spec.records import Finding
from modelyard.spec.signature import ImageInput
from modelyard.spec.urls import is_url, local_path

_SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})


class Images(Source):
    """``path/<class>/…/<file>``: the first folder's name is the label; hidden files are passed over."""

    def files(self) -> Sequence[Path]:
        return [file for file, _ in self._listing if isinstance(file, Path)]

    def stamps(self) -> Sequence[str]:
        return self._place.stamps()

    def code(self) -> Mapping[str, Path]:
        return {}

    def schema(self) -> Schema:
        return Schema("image", shape=self._spec.shape)

    def __len__(self) -> int:
        return len(self._listing)

    def targets(self) -> NDArray[np.object_]:
        return object_array([label for _, label in self._listing])

    def rows(self, start: int, stop: int) -> Rows:
        """Decoded by processes (data/decoders.py), unless the pictures are few or fetched one by one."""
        if self._remote:
            return self._fetched(start, stop)
        return Rows(*self._decoding.pixels(start, stop))

    def _fetched(self, start: int, stop: int) -> Rows:
        """On several threads, which wait for the network most of the time."""
        files = [file for file, _ in self._listing[start:stop]]
        pixels = np.zeros((len(files), *self._spec.shape), dtype=np.uint8)
        unreadable: dict[int, str] = {}

        def read(place: int) -> None:
            try:
                pixels[place] = decode_image(self._spec, self._content(files[place]))
            except DataError as error:
                unreadable[place] = error.what
            except OSError as error:
                unreadable[place] = error.strerror or str(error)

        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            list(pool.map(read, range(len(files))))
        return Rows(pixels, dict(sorted(unreadable.items())))

    def natural(self, row: int) -> tuple[str, bytes]:
        file = self._listing[row][0]
        try:
            return PurePath(file).suffix.lower() or ".image", self._content(file)
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}") from error

    def name(self, row: int) -> str:
        file = self._listing[row][0]
        return str(file.relative_to(self._folder)) if isinstance(file, Path) else file

    def findings(self) -> tuple[Finding, ...]:
        if self._remote:
            loose = [name for name in self._place.names if "/" not in name]
        else:
            loose = [entry.name for entry in _entries(self._folder) if not entry.is_dir()]
        if not loose:
            return ()
        return (
            Finding(
                kind="unused",
                severity="note",
                message=f"{len(loose)} files beside the class folders are not used",
                examples=tuple(sorted(loose)[:5]),
            ),
        )

    def _content(self, file: Path | str) -> bytes:
        if isinstance(file, Path):
            return file.read_bytes()
        with self._place.local(file) as path:
            return path.read_bytes()

    @property
    def _remote(self) -> bool:
        return is_url(local_path(self.data.path))

    @cached_property
    def _decoding(self) -> Decoding:
        return Decoding(self._spec, [str(file) for file, _ in self._listing])

    @cached_property
    def _place(self) -> Place:
        return open_place(self.root, self.data, self.scratch, self.say)

    @cached_property
    def _folder(self) -> Path:
        return located(self.root, self.data, folder=True)

    @cached_property
    def _spec(self) -> ImageInput:
        return unfitted_image(self.data)

    @cached_property
    def _listing(self) -> Sequence[tuple[Path | str, str]]:
        """Every file with its label, classes in natural order."""
        if self._remote:
            named = [(name, name.partition("/")[0]) for name in self._place.names if "/" in name]
            self._check_classes(sorted({label for _, label in named}), self._place.shown)
            return sorted(named, key=lambda item: (natural_order(item[1]), item[0]))
        classes = sorted(
            (entry.name for entry in _entries(self._folder) if entry.is_dir()), key=natural_order
        )
        self._check_classes(classes, str(self._folder))
        listing: list[tuple[Path | str, str]] = []
        empty = []
        for label in classes:
            files = [Path(name) for name in sorted(_files(f"{self._folder}{os.sep}{label}"))]
            listing += [(file, label) for file in files]
            empty += [] if files else [label]
        if empty:
            names = ", ".join(repr(label) for label in empty[:5])
            raise DataError(
                f"empty class folder{'s' if len(empty) > 1 else ''}: {names} in {self._folder} "
                f"hold{'s' if len(empty) == 1 else ''} no image",
                "put images into it, or delete the folder",
            )
        return listing

    def _check_classes(self, classes: Sequence[str], shown: str) -> None:
        if not classes:
            raise DataError(
                f"no class folders in {shown}",
                "make one folder per class and put its images into it; the folder's name is the label",
            )
        if {name.lower() for name in classes} <= _SPLIT_NAMES:
            raise DataError(
                f"{shown} holds {', '.join(classes)}: splits, where one folder per class is expected",
                "put all images of a class into one folder; yard splits them itself",
            )
        for name in classes:
            if not name.isprintable():
                raise DataError(
                    f"the class folder {name!r} in {shown} has a name that cannot be printed",
                    "rename it",
                )


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """What lies in a folder, without hidden files. Raises DataError."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not is_junk(entry.name)]
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}", "mend its mode or owner"
        ) from error


def _files(folder: str) -> list[str]:
    """All files in a folder and the folders in it; a broken link counts, so that it is named."""
    found: list[str] = []
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            found += _files(entry.path)
        elif not entry.is_dir():
            found.append(entry.path)
    return found
