"""Who changed what and when: rows that are only added, each carrying the hash of the one before."""

import getpass
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from modelyard.spec.disk import has_less
from modelyard.spec.errors import DiskFull, StoreError, YardError, from_os_error, no_room
from modelyard.spec.records import Record
from modelyard.store.files import lock
from modelyard.store.store import Store

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    number   INTEGER PRIMARY KEY,
    time     REAL NOT NULL,
    actor    TEXT NOT NULL,
    kind     TEXT NOT NULL,
    subject  TEXT NOT NULL,
    detail   TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash     TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS entries_never_change BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS entries_never_go BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_FIRST = "0" * 64
_SHARED_MEMORY_BYTES = 2**16
"""SQLite takes 32 KiB at once for the file `-shm`."""
_COLUMNS = "number, time, actor, kind, subject, detail, previous, hash"


class Entry(Record, frozen=True, kw_only=True):
    """One row of the ledger."""

    number: int
    time: float
    """Seconds since 1970."""
    actor: str
    """``user@host`` of the process that wrote it."""
    kind: str
    """``version-added``, ``alias-set``, ``alias-removed``, …"""
    subject: str
    """What it is about, e.g. ``digits:3``."""
    detail: dict[str, Any] = {}
    previous: str
    """Hash of the row before; 64 zeros in the first."""
    hash: str
    """SHA-256 of all the other fields."""


@contextmanager
def connection(store: Store) -> Iterator[sqlite3.Connection]:
    """The store's SQLite file (WAL, waits up to 30 s for another writer), in autocommit mode.

    Other tables may live in the same file; keep their transactions short. Raises StoreError for
    any error of SQLite.
    """
    try:
        with closing(sqlite3.connect(store.ledger, timeout=30, isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            yield database
    except sqlite3.Error as error:
        raise _from_sqlite(store, error) from error


def record(store: Store, kind: str, subject: str, detail: dict[str, Any] | None = None) -> Entry:
    """Add one row. ``detail`` is JSON-able. Raises StoreError."""
    # The lock's queue is fair; SQLite alone lets a busy writer starve the others.
    with _alone(store), _entries(store) as database:
        database.execute("BEGIN IMMEDIATE")  # the last hash must not change before ours is in
        number, previous = database.execute(
            "SELECT number, hash FROM entries ORDER BY number DESC LIMIT 1"
        ).fetchone() or (0, _FIRST)
        row = (
            number + 1,
            time.time(),
            _actor(),
            kind,
            subject,
            msgspec.json.encode(detail or {}, order="sorted").decode(),
            previous,
        )
        whole = (*row, _hash(row))
        database.execute(f"INSERT INTO entries ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?)", whole)  # noqa: S608
        database.execute("COMMIT")
    return _entry(whole)


def entries(
    store: Store, kind: str | None = None, subject: str | None = None, limit: int = 100
) -> list[Entry]:
    """The newest ``limit`` rows, newest first; none where nothing was ever recorded."""
    if not store.ledger.exists():
        return []
    with _entries(store) as database:
        rows = database.execute(
            f"SELECT {_COLUMNS} FROM entries WHERE (?1 IS NULL OR kind = ?1)"  # noqa: S608
            " AND (?2 IS NULL OR subject = ?2) ORDER BY number DESC LIMIT ?3",
            (kind, subject, limit),
        ).fetchall()
    return [_entry(row) for row in rows]


def verify_chain(store: Store) -> int:
    """Check every row against its hash and against the row before; returns how many there are.

    Raises StoreError naming the first row that does not fit. A chain cannot show that its *newest*
    rows were cut off: keep the last hash elsewhere where that matters.
    """
    count, previous = 0, _FIRST
    if not store.ledger.exists():
        return 0
    with _entries(store) as database:
        for row in database.execute(f"SELECT {_COLUMNS} FROM entries ORDER BY number"):  # noqa: S608
            if (row[0], row[-2], row[-1]) != (count + 1, previous, _hash(row[:-1])):
                raise StoreError(
                    f"{store.ledger}: row {row[0]} of the ledger does not follow from the row before",
                    "someone changed the file: compare it with a backup",
                )
            count, previous = row[0], row[-1]
    return count


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    try:
        with lock(store.ledger.with_suffix(".lock")):
            yield
    except OSError as error:
        error.filename = str(store.ledger)
        raise from_os_error(error) from error


@contextmanager
def _entries(store: Store) -> Iterator[sqlite3.Connection]:
    with connection(store) as database:
        known = "SELECT 1 FROM sqlite_master WHERE name = 'entries_never_go'"
        if not database.execute(known).fetchone():
            database.executescript(f"BEGIN IMMEDIATE;{_TABLES}COMMIT;")
        yield database


def _entry(row: tuple[Any, ...]) -> Entry:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Entry(**values | {"detail": msgspec.json.decode(values["detail"])})


def _hash(row: tuple[Any, ...]) -> str:
    return hashlib.sha256(msgspec.json.encode(row)).hexdigest()


def _actor() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def without_room(error: sqlite3.Error, file: Path) -> DiskFull | None:
    """Where SQLite found no room for ``file``; None for all else.

    It says "full" only of the table itself; of the files beside it (`-wal`, `-shm`) it says "disk I/O error".
    """
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    if code == sqlite3.SQLITE_FULL or (
        code == sqlite3.SQLITE_IOERR and has_less(file, _SHARED_MEMORY_BYTES)
    ):
        return no_room(file)
    return None


def _from_sqlite(store: Store, error: sqlite3.Error) -> YardError:
    if full := without_room(error, store.ledger):
        return full
    text = str(error)
    mend = "see `yard doctor` for the state of the store"
    if "readonly" in text or "unable to open" in text:
        mend = f"change the owner or mode of {store.root}, or choose another store with `store.url`"
    elif "locked" in text:
        mend = "another command holds it: wait for it to end, then run this one again"
    elif "not a database" in text or "malformed" in text:
        mend = "move that file away; a new one is begun (models and runs are not in it)"
    return StoreError(f"{store.ledger}: {text}", mend)
