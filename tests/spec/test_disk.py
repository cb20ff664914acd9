"""How much room is left, in words: of real file systems."""

import re
import subprocess
from pathlib import Path

import pytest

from modelyard.spec.disk import has_less, room_at, size_in_words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 kB"), (4096, "4 kB"), (1_250_000, "1.2 MB"), (3e9, "3.0 GB"), (2.5e12, "2.5 TB")],
)
def test_sizes(count: int, words: str) -> None:
    assert size_in_words(count) == words


def test_the_room_where_a_file_will_lie(tmp_path: Path) -> None:
    words = room_at(tmp_path / "not" / "there" / "yet")
    found = re.fullmatch(r"\S+ [kMGT]B of \S+ [kMGT]B are free on the file system at (/.*)", words)
    assert found and Path(found[1]).is_mount() and tmp_path.is_relative_to(found[1])
    assert has_less(tmp_path / "not" / "there", 2**60)
    assert not has_less(tmp_path, 1)


def test_a_disk_may_have_bytes_but_no_more_files(tmp_path: Path) -> None:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=2", "tmpfs", str(tmp_path)],
        capture_output=True,
    )
    if made.returncode != 0:
        pytest.skip("no permission to mount a small disk")
    try:
        assert "inodes" not in room_at(tmp_path)
        (tmp_path / "the last one").touch()
        words = f"1.0 MB of 1.0 MB are free on the file system at {tmp_path}, but no more files"
        assert room_at(tmp_path / "x").startswith(words)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
