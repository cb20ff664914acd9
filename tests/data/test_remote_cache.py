"""The cache of fetched files: bounded, whole or absent, and safe among threads and processes."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modelyard.data.remote_cache import Cache
from modelyard.spec.errors import DataError


def content(key: str, size: int) -> bytes:
    return (key.encode() * size)[:size]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*/*") if path.is_file()]


def read(cache: Cache, key: str, size: int = 1000, fetched: list[str] | None = None) -> bytes:
    def fetch(path: Path) -> None:
        if fetched is not None:
            fetched.append(key)
        path.write_bytes(content(key, size))

    with cache.hold(key, size, fetch, key) as path:
        return path.read_bytes()


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    cache, fetched = Cache(tmp_path, 3000), list[str]()
    for key in ("aa1", "bb2", "cc3", "aa1", "dd4", "aa1", "bb2"):
        assert read(cache, key, fetched=fetched) == content(key, 1000)
        time.sleep(0.02)
    assert fetched == ["aa1", "bb2", "cc3", "dd4", "bb2"]
    assert sorted(path.name for path in files(tmp_path)) == ["aa1", "bb2", "dd4"]


def test_a_file_in_use_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 2000)
    with cache.hold("aa1", 1000, lambda path: path.write_bytes(b"x"), "a") as path:
        for key in ("bb2", "cc3", "dd4"):
            read(cache, key)
        assert path.read_bytes() == b"x"
    assert len(files(tmp_path)) == 2


def test_a_file_larger_than_the_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="more than the whole cache may hold"):
        read(Cache(tmp_path, 10), "aa1")
    assert files(tmp_path) == []


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fetch(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("the line is dead")

    cache = Cache(tmp_path, 1000)
    with pytest.raises(OSError, match="dead"), cache.hold("aa1", 10, fetch, "a"):
        pass
    assert files(tmp_path) == []


CROWD = """
import random, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_remote_cache import content, read
from modelyard.data.remote_cache import Cache
from concurrent.futures import ThreadPoolExecutor
cache = Cache(Path(sys.argv[1]), 8000)
draw = random.Random(int(sys.argv[2]))
keys = [f"{draw.randrange(12):02d}x" for _ in range(600)]
with ThreadPoolExecutor(3) as pool:
    assert all(found == content(key, 1000) for key, found in zip(keys, pool.map(lambda k: read(cache, k), keys)))
"""


def test_a_crowd_shares_a_small_cache(tmp_path: Path) -> None:
    """Three processes of three threads, twelve files, room for eight: every read is right."""
    here = str(Path(__file__).parent)
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(tmp_path), str(seed), here],
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    for process in crowd:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    read(Cache(tmp_path, 8000), "new")
    assert not [path for path in files(tmp_path) if path.name.startswith(".fetch-")]
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 8000 + 1000 * len(crowd)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from modelyard.data.remote_cache import Cache\n"
        "def fetch(path): path.write_bytes(b'half'); print('half', flush=True); time.sleep(60)\n"
        "with Cache(Path(sys.argv[1]), 5000).hold('aa1', 1000, fetch, 'a'): pass"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"half\n"
    cache = Cache(tmp_path, 5000)
    read(cache, "bb2")
    assert len(files(tmp_path)) == 2  # a fetch that goes on is left alone
    process.kill()
    process.communicate()
    read(Cache(tmp_path, 5000), "cc3")
    assert sorted(path.name for path in files(tmp_path)) == ["bb2", "cc3"]


def test_two_fetches_of_one_file_do_not_change_it_under_a_reader(tmp_path: Path) -> None:
    cache, inside = Cache(tmp_path, 5000), threading.Barrier(2, timeout=20)
    seen: list[int] = []

    def fetch(path: Path) -> None:
        inside.wait()  # both are fetching now
        path.write_bytes(b"same")

    def use() -> None:
        with cache.hold("aa1", 4, fetch, "a") as path:
            seen.append(path.stat().st_ino)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1 and os.listdir(tmp_path / "aa") == ["aa1"]
