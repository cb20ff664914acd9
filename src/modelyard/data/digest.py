"""What the content of files, of the user's code and of samples is, as short digests."""

import ast
import errno
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import DataError, StoreError, YardError, from_os_error
from modelyard.store.ledger import without_room

_TABLE = """CREATE TABLE IF NOT EXISTS file_digests (
    path TEXT PRIMARY KEY,
    size INTEGER, modified INTEGER, changed INTEGER, inode INTEGER, sha256 TEXT
) WITHOUT ROWID"""
_GRAIN, _COARSE_GRAIN = 100_000_000, 2_000_000_000
"""Nanoseconds in which a file may change twice with one time stamp; some file systems count seconds."""

Stamp = tuple[int, int, int, int]
"""Size, times of the last write and of the last change of any kind in ns, inode.

While they stay, so does the content: the time of change cannot be set back, as that of writing can.
"""


def file_digests(files: Sequence[Path], ledger: Path) -> list[str]:
    """SHA-256 of each file, in hex; read from ``ledger`` where the file has not changed since.

    Raises DataError for a file that cannot be read, StoreError where the ledger cannot be used.
    """
    now = time.time_ns()
    stamps = [_stamp(file) for file in files]
    names = [os.fsdecode(file) for file in files]
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(ledger, timeout=60)) as database, database:
            database.execute(_TABLE)
            known = _known(database, names)
            changed = [i for i, name in enumerate(names) if known.get(name, ((),))[0] != stamps[i]]
            with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) + 2)) as pool:
                fresh = list(pool.map(_hash, [files[i] for i in changed]))
            digests = [known[name][1] if name in known else "" for name in names]
            for i, digest in zip(changed, fresh, strict=True):
                digests[i] = digest
            lasting = [i for i in changed if _is_settled(stamps[i], now)]
            database.executemany(
                "INSERT OR REPLACE INTO file_digests VALUES (?, ?, ?, ?, ?, ?)",
                [(names[i], *stamps[i], digests[i]) for i in lasting],
            )
    except sqlite3.Error as error:
        raise _ledger_error(error, ledger) from error
    except OSError as error:
        raise from_os_error(error) from error
    return digests


def _ledger_error(error: sqlite3.Error, ledger: Path) -> YardError:
    """SQLite's codes (https://sqlite.org/rescode.html) as what the operating system would have said."""
    if full := without_room(error, ledger):
        return full
    numbers = {
        sqlite3.SQLITE_READONLY: errno.EACCES,
        sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    }
    # The low byte is the primary code.
    if number := numbers.get(getattr(error, "sqlite_errorcode", 0) & 0xFF):
        return from_os_error(OSError(number, os.strerror(number), str(ledger)))
    return StoreError(
        f"{ledger} cannot be used: {error}",
        "if it is damaged, delete it: what it holds of files is computed again",
    )


def _known(
    database: sqlite3.Connection, names: Sequence[str]
) -> dict[str, tuple[tuple[int, ...], str]]:
    if not names:
        return {}
    # One range query: sources list files of one folder, and asking per file costs more.
    rows = database.execute(
        "SELECT * FROM file_digests WHERE path BETWEEN ? AND ?",
        (min(names), max(names)),
    )
    return {path: (tuple(stamp), digest) for path, *stamp, digest in rows}


def _stamp(file: Path) -> Stamp:
    try:
        status = os.stat(file)  # noqa: PTH116 - a third faster than Path.stat on 100k files
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", "mend its path or mode"
        ) from error
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _is_settled(stamp: Stamp, now: int) -> bool:
    """Whether another change would give another stamp; otherwise the digest is not kept."""
    latest = max(stamp[1], stamp[2])
    return latest < now - (_GRAIN if latest % 1_000_000_000 else _COARSE_GRAIN)


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}", "mend its path or mode"
        ) from error


def digest_values(rows: NDArray[Any]) -> NDArray[np.uint64]:
    """One 64-bit digest for each row of (n, …): equal content, equal digest."""
    # Adding zero makes -0.0 the same as 0.0.
    values = rows + rows.dtype.type(0) if rows.dtype.kind == "f" else rows
    table = np.ascontiguousarray(values).reshape(len(rows), -1)
    width = table.shape[1] * table.itemsize
    content = table.tobytes()
    digests = b"".join(
        hashlib.blake2b(content[start : start + width], digest_size=8).digest()
        for start in range(0, len(content), width or 1)
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def digest_texts(texts: Iterable[str]) -> str:
    """One digest for several texts: 16 hex characters."""
    content = hashlib.sha256()
    for text in texts:
        content.update(f"{len(text)}:{text}".encode("utf-8", "surrogateescape"))
    return content.hexdigest()[:16]


# --- the user's code -------------------------------------------------------------------------


def code_files(root: Path, module: str) -> dict[str, Path]:
    """Module name -> file, for ``module`` and every module under ``root`` that it imports.

    Found by reading import statements, nothing is executed. Raises DataError where ``module`` is
    not under ``root`` or a file is no valid Python.
    """
    found: dict[str, Path] = {}
    waiting = [module]
    if _module_file(root, module) is None:
        raise DataError(
            f"no module {module!r} under {root}", f"write {module.replace('.', '/')}.py there"
        )
    while waiting:
        name = waiting.pop()
        file = _module_file(root, name)
        if name in found or file is None:
            continue
        found[name] = file
        waiting += _imports(name, file)
        waiting += [name.rpartition(".")[0]] if "." in name else []
    return dict(sorted(found.items()))


def code_digest(root: Path, module: str, ledger: Path) -> str:
    """Digest of the content of ``code_files``: touching a file does not change it."""
    files = code_files(root, module)
    digests = file_digests(list(files.values()), ledger)
    return digest_texts(f"{name}={digest}" for name, digest in zip(files, digests, strict=True))


def _module_file(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split(".")) if name else root
    for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if name and file.is_file():
            return file
    return None


def _imports(name: str, file: Path) -> list[str]:
    """Every name that might be a module; those that are not under the root are passed over later."""
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise DataError(f"{file}{line}: not valid Python: {error}") from error
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".") if node.level else []
            base = base[: len(base) - node.level + 1] if node.level else base
            stem = ".".join([part for part in [*base, node.module or ""] if part])
            names += [stem, *(f"{stem}.{alias.name}".strip(".") for alias in node.names)]
    return names
