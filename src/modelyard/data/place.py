"""Where data lies: a file or a folder on this machine, or (data/remote.py) behind a URL."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from modelyard.data.sources.base import located, natural_order
from modelyard.spec.errors import DataError, nearest
from modelyard.spec.project import DataSection
from modelyard.spec.urls import is_url, local_path

JUNK = frozenset({"thumbs.db", "desktop.ini"})


class Place(ABC):
    """Files by relative name, ``/`` between folders; hidden ones are passed over."""

    shown: str
    """The folder, file or URL as it may be printed."""
    single: bool
    """Whether the place is one file and not a folder."""
    names: Sequence[str]
    """In natural order: ``part-2`` before ``part-10``."""

    @abstractmethod
    def local(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """The file on this machine, which stays while the block lasts. Raises DataError."""

    @abstractmethod
    def paths(self) -> Sequence[Path]:
        """All files, where they lie on this machine; empty for a remote place."""

    @abstractmethod
    def stamps(self) -> Sequence[str]:
        """What the content is, as the remote store tells; empty for a local place."""

    def walk(self, names: Sequence[str]) -> Iterator[tuple[str, Path]]:
        """Each file in turn; a remote place fetches the next ones meanwhile."""
        for name in names:
            with self.local(name) as path:
                yield name, path

    def where(self, name: str) -> str:
        """One of the files, as it may be printed."""
        return self.shown if self.single else f"{self.shown.rstrip('/')}/{name}"


class LocalPlace(Place):
    """A file or a folder of this machine's file system."""

    def __init__(self, path: Path) -> None:
        self._path, self.shown, self.single = path, str(path), path.is_file()

    @cached_property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        if self.single:
            return [self._path.name]
        found = _below(str(self._path))
        return sorted((os.path.relpath(file, self._path) for file in found), key=natural_order)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self._file(name)

    def paths(self) -> Sequence[Path]:
        return [self._file(name) for name in self.names]

    def stamps(self) -> Sequence[str]:
        return ()

    def _file(self, name: str) -> Path:
        return self._path if self.single else self._path / name


def open_place(root: Path, data: DataSection, scratch: Path, say: Callable[[str], None]) -> Place:
    """Where ``data.path`` leads; copies of remote files go below ``scratch``.

    Raises DataError, MissingExtraError.
    """
    if is_url(local_path(data.path)):
        from modelyard.data.remote import RemotePlace

        return RemotePlace(data.path, scratch / "remote", int(data.cache_gb * 1e9), say)
    return LocalPlace(located(root, data, folder=None))


def chosen_names(
    place: Place, data: DataSection, suffixes: Sequence[str], others: dict[str, str]
) -> list[str]:
    """The files with one of ``suffixes``; ``others`` maps suffixes to the sources that read them.

    Raises DataError where there is none, with what was probably meant.
    """
    chosen = [name for name in place.names if name.lower().endswith(tuple(suffixes))]
    if chosen:
        return chosen
    if not place.names:
        raise DataError(
            f"{place.shown} is an empty folder",
            f"put {' or '.join(suffixes)} files into it, or mend data.path",
        )
    name = place.names[0]
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a name in a store is no Path
    known = f"the source {data.source!r} reads {', '.join(suffixes)}"
    if suffix in others:
        hint, mend = "", f'set data.source = "{others[suffix]}"'
    else:
        close = nearest(suffix, [*suffixes, *others])
        hint, mend = f"; did you mean {close!r}?" if close else "", f"rename the file: {known}"
    where = place.where(name) if place.single else f"{place.shown}: {name}"
    raise DataError(f"{where} ends in {suffix or 'no suffix'!r}; {known}{hint}", mend)


def _below(folder: str) -> list[str]:
    """All files in a folder and the folders in it."""
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_junk(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found += _below(entry.path)
                elif not entry.is_dir():
                    found.append(entry.path)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be read: {error.strerror}", "mend its mode or owner"
        ) from error
    return found


def is_junk(name: str) -> bool:
    """Files that systems leave in folders; Spark's ``_SUCCESS`` marks are of this kind too."""
    return name.startswith((".", "__MACOSX", "_SUCCESS")) or name.lower() in JUNK
