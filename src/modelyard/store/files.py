"""Files that are whole or absent: temporary name, flush to disk, rename."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; after a crash at any point it holds the old or the new.

    An OSError names ``path``, also where the system named no file (a write that found the disk full).
    """
    try:
        make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            try:
                write_all(handle, content)
                os.fchmod(handle, 0o644)
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)  # noqa: PTH105
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise


def write_flushed(path: Path, contents: Iterable[bytes | memoryview]) -> str:
    """Write a new file piece by piece, flush it to disk, and return its digest.

    For files of a folder that is published later; a piece is hashed while it is still in the cache.
    """
    digest = hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for content in contents:
            digest.update(content)
            write_all(handle, content)
        os.fsync(handle)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(handle)
    return f"sha256:{digest.hexdigest()}"


def write_all(handle: int, content: bytes | memoryview) -> None:
    """``os.write`` may take a part only: of more than 2 GiB, or where the disk is nearly full."""
    rest = memoryview(content)
    while len(rest):
        rest = rest[os.write(handle, rest) :]


def make_folder(path: Path) -> None:
    """Like ``mkdir -p``; the new names survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that becomes ``path`` when the block ends well.

    Files in it are flushed to disk before the rename. An older ``path`` is replaced in one step
    where the system can swap two names (Linux); elsewhere it is missing for a moment.
    """
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        for entry in temporary.rglob("*"):
            if entry.is_file() or entry.is_dir():
                sync_folder(entry)  # of a file it flushes the content
        publish_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def publish_folder(temporary: Path, path: Path) -> None:
    """Give a folder that lies beside ``path`` that name; what is in it must have been flushed."""
    sync_folder(temporary)
    if not path.exists():
        temporary.rename(path)
    elif _swap(temporary, path):
        sync_folder(path.parent)  # else a power cut could leave the old name and empty its folder
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
        path.rename(old / path.name)
        temporary.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(path.parent)


def _swap(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the system or its file system cannot."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <linux/fs.h>
    if rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def sync_folder(path: Path) -> None:
    """Make renames and new names in ``path`` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (created where missing); freed when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest_bytes(content: bytes) -> str:
    """``sha256:`` and the hex digest of ``content``."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_file(path: Path) -> str:
    """``sha256:`` and the hex digest of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
