"""Files that are whole or absent, whenever the writer is killed."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelyard.store.files import digest_bytes, digest_file, lock, new_folder, write_atomic

WRITE_FOR_EVER = """
from pathlib import Path
from modelyard.store.files import write_atomic
path, turn = Path(sys.argv[1]), 0
write_atomic(path, b"a" * 300_000)
print("ready", flush=True)
while True:
    turn += 1
    write_atomic(path, b"ab"[turn % 2 : turn % 2 + 1] * 300_000)
"""
REPLACE_FOR_EVER = """
from pathlib import Path
from modelyard.store.files import new_folder
path, turn = Path(sys.argv[1]), 0
while True:
    with new_folder(path) as folder:
        for name in "xyz":
            (folder / name).write_text(str(turn) * 1000)
    if turn == 0:
        print("ready", flush=True)
    turn = (turn + 1) % 10
"""


@pytest.mark.parametrize("turn", range(8))
def test_a_killed_writer_leaves_the_old_or_the_new_file(
    tmp_path: Path, turn: int, kill_in_the_middle: Callable[..., None]
) -> None:
    path = tmp_path / "file"
    kill_in_the_middle(WRITE_FOR_EVER, path)
    content = path.read_bytes()
    assert content in (b"a" * 300_000, b"b" * 300_000)


def test_a_write_that_fails_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system does not say where a write found the disk full; the temporary name would help nobody."""

    def refuse(_handle: int, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(tmp_path / "file", b"content")
    assert caught.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("turn", range(12))
def test_a_killed_writer_leaves_the_old_or_the_new_folder(
    tmp_path: Path, turn: int, kill_in_the_middle: Callable[..., None]
) -> None:
    """Also while it replaces one: there is no moment without a folder."""
    path = tmp_path / "folder"
    kill_in_the_middle(REPLACE_FOR_EVER, path)
    contents = {file.name: file.read_text() for file in path.iterdir()}
    assert set(contents) == {"x", "y", "z"}
    assert len(set(contents.values())) == 1


def test_a_failed_block_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with new_folder(path) as folder:
        (folder / "kept").write_text("old")
    with pytest.raises(RuntimeError, match="stop"), new_folder(path) as folder:
        (folder / "half").write_text("new")
        raise RuntimeError("stop")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
    assert (path / "kept").read_text() == "old"


def test_replacing_a_folder_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with new_folder(tmp_path / "folder") as folder:
            (folder / text).mkdir()
            (folder / text / "file").write_text(text)
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["two"]


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "taken", b"a file cannot replace a folder")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_a_lock_is_free_again_when_its_holder_was_killed(
    tmp_path: Path, kill_in_the_middle: Callable[..., None]
) -> None:
    path = tmp_path / "lock"
    hold = """
import time
from pathlib import Path
from modelyard.store.files import lock
with lock(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""
    kill_in_the_middle(hold, path)
    with lock(path):
        pass


def test_digests_are_sha256(tmp_path: Path) -> None:
    empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (tmp_path / "empty").touch()
    assert digest_bytes(b"") == digest_file(tmp_path / "empty") == empty


def test_a_reader_finds_a_folder_at_every_moment_of_its_replacement(tmp_path: Path) -> None:
    """More telling than kills: it looks thousands of times."""
    path = tmp_path / "folder"
    with new_folder(path) as folder:
        (folder / "turn").write_text("0")
    missing, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not path.exists():
                missing.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(100):
        with new_folder(path) as folder:
            (folder / "turn").write_text(str(turn))
    done.set()
    watcher.join()
    assert not missing
