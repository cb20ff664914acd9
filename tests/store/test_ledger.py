"""The ledger: rows are only added, and a changed one is found."""

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from modelyard.spec.errors import DiskFull, StoreError
from modelyard.store import Store, ledger

RECORD_MANY = """
from pathlib import Path
from modelyard.store import Store, ledger
for number in range(25):
    ledger.record(Store(Path(sys.argv[1])), "noted", sys.argv[2], {"number": number})
"""
RECORD_FOR_EVER = """
from pathlib import Path
from modelyard.store import Store, ledger
print("ready", flush=True)
while True:
    ledger.record(Store(Path(sys.argv[1])), "noted", "x", {})
"""


def change(store: Store, statement: str) -> None:
    with closing(sqlite3.connect(store.ledger)) as database, database:
        database.executescript(statement)


def test_rows_come_back_newest_first_and_by_kind_and_subject(store: Store) -> None:
    assert ledger.entries(store) == []
    written = [
        ledger.record(store, "version-added", "digits:1", {"digest": "sha256:é", "n": [1, None]}),
        ledger.record(store, "alias-set", "digits:latest"),
        ledger.record(store, "version-added", "other:1"),
    ]
    assert ledger.entries(store) == written[::-1]
    assert ledger.entries(store, kind="version-added") == [written[2], written[0]]
    assert ledger.entries(store, subject="digits:1") == [written[0]]
    assert ledger.entries(store, limit=1) == [written[2]]
    assert written[0].detail == {"digest": "sha256:é", "n": [1, None]}
    assert "@" in written[0].actor


def test_each_row_carries_the_hash_of_the_one_before(store: Store) -> None:
    first, second = (ledger.record(store, "noted", name) for name in "ab")
    assert (first.number, second.number) == (1, 2)
    assert first.previous == "0" * 64
    assert second.previous == first.hash
    assert ledger.verify_chain(store) == 2


@pytest.mark.parametrize("statement", ["UPDATE entries SET kind = 'x'", "DELETE FROM entries"])
def test_rows_cannot_be_changed_by_mistake(store: Store, statement: str) -> None:
    ledger.record(store, "noted", "a")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        change(store, statement)
    assert ledger.verify_chain(store) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET detail = '{\"number\":9}' WHERE number = 2",
        "UPDATE entries SET time = time + 1 WHERE number = 2",
        "UPDATE entries SET actor = 'someone@else' WHERE number = 2",
        "DELETE FROM entries WHERE number = 2",
        "UPDATE entries SET number = 20 WHERE number = 2",
    ],
)
def test_a_row_changed_on_purpose_is_found(store: Store, statement: str) -> None:
    for number in range(3):
        ledger.record(store, "noted", "a", {"number": number})
    change(store, f"DROP TRIGGER entries_never_change; DROP TRIGGER entries_never_go; {statement};")
    with pytest.raises(StoreError, match=r"row (2|3|20) of the ledger does not follow"):
        ledger.verify_chain(store)


def test_processes_that_write_at_the_same_time_keep_one_chain(
    store: Store, run_together: Callable[..., None]
) -> None:
    """The file does not exist yet: they race to make it as well."""
    run_together(RECORD_MANY, [(store.root, name) for name in "abcd"])
    assert ledger.verify_chain(store) == 100
    for name in "abcd":
        rows = ledger.entries(store, subject=name)
        assert [row.detail["number"] for row in rows] == list(range(24, -1, -1))


@pytest.mark.parametrize("turn", range(5))
def test_a_killed_writer_leaves_a_whole_chain(
    store: Store, turn: int, kill_in_the_middle: Callable[..., None]
) -> None:
    kill_in_the_middle(RECORD_FOR_EVER, store.root, within=0.1)
    count = ledger.verify_chain(store)
    ledger.record(store, "noted", "after")
    assert ledger.verify_chain(store) == count + 1


def test_a_file_that_is_no_ledger_is_told(store: Store) -> None:
    store.ledger.write_bytes(b"not a database " * 100)
    with pytest.raises(StoreError, match=r"ledger\.sqlite: file is not a database") as caught:
        ledger.record(store, "noted", "a")
    assert "move that file away" in caught.value.mend


def test_a_folder_without_write_permission_is_told(
    store: Store, without_permission: Callable[..., str]
) -> None:
    store.root.chmod(0o500)
    code = """
from pathlib import Path
from modelyard.spec.errors import DiskFull, StoreError
from modelyard.store import Store, ledger
try:
    ledger.record(Store(Path(sys.argv[1])), "noted", "a")
except StoreError as error:
    print(error)
"""
    told = without_permission(code, store.root)
    store.root.chmod(0o700)
    assert str(store.ledger) in told
    assert "mend: change the owner or mode of that folder" in told


@pytest.mark.parametrize("free", [0, 4, 8, 12, 24, 36, 44])
def test_a_full_disk_is_told_as_such(tmp_path: Path, free: int) -> None:
    """Of the files that SQLite keeps beside its own it only says "disk I/O error"."""
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip("no permission to mount a small disk")
    try:
        store = Store(tmp_path)
        (tmp_path / "rest").write_bytes(bytes((256 - free) * 1024))
        with pytest.raises(DiskFull, match=r"ledger.* could not be written; .* are free"):
            ledger.record(store, "noted", "x", {})
        (tmp_path / "rest").unlink()
        assert ledger.record(store, "noted", "x", {}).number == 1
        assert ledger.verify_chain(store) == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
