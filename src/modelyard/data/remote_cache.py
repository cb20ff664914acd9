"""Copies of remote files on this machine: whole or absent, and no more than a stated size together."""

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from modelyard.spec.errors import DataError
from modelyard.store.files import lock

_FETCHING = ".fetch-"


class Cache:
    """A folder of files by key; those not used for longest make room for new ones.

    A file in use is locked (shared), so that neither this process nor another removes it. A file
    that is being fetched has another name, which is locked too: what a killed process left is found
    by its missing lock and removed.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._guard = threading.Lock()
        self._known: int | None = None
        """Bytes that lie here, as far as this process knows."""

    @contextlib.contextmanager
    def hold(
        self, key: str, size: int, fetch: Callable[[Path], None], shown: str
    ) -> Iterator[Path]:
        """The file of ``key``, fetched where it is missing, kept while the block lasts.

        ``fetch`` writes it to the path that it is given. Raises DataError where it is larger than
        the cache, OSError.
        """
        path = self._folder / key[:2] / key
        while (handle := self._locked(path)) is None:
            self._fetch(path, size, fetch, shown)
        try:
            yield path
        finally:
            os.close(handle)

    def _locked(self, path: Path) -> int | None:
        """A handle that keeps ``path`` from being removed; None where it is missing."""
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(handle, fcntl.LOCK_SH)
        if os.fstat(handle).st_nlink == 0:  # removed between the two
            os.close(handle)
            return None
        os.utime(handle)
        return handle

    def _fetch(self, path: Path, size: int, fetch: Callable[[Path], None], shown: str) -> None:
        if size > self._limit:
            raise DataError(
                f"{shown} has {size / 1e9:.3g} GB, more than the whole cache may hold",
                f"set data.cache_gb to more than {size / 1e9:.3g}",
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        self._make_room(size)
        with self._alone():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=_FETCHING)
            fcntl.flock(handle, fcntl.LOCK_SH)
        temporary = Path(name)
        try:
            fetch(temporary)
            self._make_room(max(0, temporary.stat().st_size - size))
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            _publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)

    def _make_room(self, size: int) -> None:
        """Count ``size`` more bytes; remove files of which nobody holds a lock until they fit."""
        with self._guard:
            if self._known is not None and self._known + size <= self._limit:
                self._known += size
                return
            with self._alone():
                files = sorted(self._files(), key=lambda file: file[0])
                total = sum(length for _, length, _ in files)
                for _, length, path in files:
                    leftover = path.name.startswith(_FETCHING)
                    if (total + size > self._limit or leftover) and _removed(path):
                        total -= length
            self._known = total + size

    def _alone(self) -> AbstractContextManager[None]:
        """Among all threads and processes: a new file is locked before anyone looks for leftovers."""
        return lock(self._folder / "lock")

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Time of the last use, size and path of every file."""
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path


def _publish(temporary: Path, path: Path) -> None:
    """Give the file its name, unless another process was faster: a name in use never changes its file."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        temporary.rename(path)


def _removed(path: Path) -> bool:
    """Remove the file unless someone holds it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink:  # else someone else removed it, and the name may be new again
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
