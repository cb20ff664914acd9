"""Rows that are fetched before they are touched: only where they are not in memory, and the same batches."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from modelyard.data.cursor import Cursor
from modelyard.data.dataset import Split
from modelyard.data.feed import BatchMaker
from modelyard.data.readahead import Readahead, open_readahead
from modelyard.spec.signature import ImageInput

ROWS, SIDE = 4000, 32
SPEC = ImageInput(height=SIDE, width=SIDE, color="rgb", mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "inputs.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (ROWS, 3, SIDE, SIDE), dtype=np.uint8))
    return path


def mapped(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def chill(path: Path) -> None:
    """Have the file's pages dropped from memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def can_tell(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True


def test_cold_rows_are_fetched_and_then_they_are_warm(path: Path) -> None:
    if not can_tell(path):
        pytest.skip("this file system does not tell what is in memory")
    readahead = open_readahead(path, mapped(path), memory=0)
    assert readahead is not None
    rows = np.random.default_rng(1).permutation(ROWS)[:200]
    chill(path)
    assert readahead.advise(rows)
    deadline = time.monotonic() + 20
    while readahead.advise(rows):  # the disk needs a moment
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_file_that_fits_the_memory_is_left_to_the_system(path: Path) -> None:
    assert open_readahead(path, mapped(path)) is None
    assert open_readahead(path, mapped(path), memory=ROWS * 3 * SIDE * SIDE) is None


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 3)])
def test_batches_are_the_same_with_it(
    path: Path, rank: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several parts of few rows each, and after jumps."""
    monkeypatch.setattr("modelyard.data.feed._PLANNED_BYTES", 300 * 3 * SIDE * SIDE)
    inputs, targets = mapped(path), np.arange(ROWS)
    told: list[int] = []

    class Watched(Readahead):
        def advise(self, rows: np.ndarray) -> bool:
            told.extend(rows.tolist())
            return super().advise(rows)

    plain, ahead = (
        BatchMaker(
            Split(
                spec=SPEC, inputs=inputs, targets=targets, positions=targets, readahead=readahead
            ),
            Cursor(ROWS, 64, 0),
            rank=rank,
            size=size,
        )
        for readahead in (None, Watched(path, ROWS, 3 * SIDE * SIDE))
    )
    for step in (*range(30), 500, 501, 7, *range(8, 20)):
        one, two = plain.make(step), ahead.make(step)
        np.testing.assert_array_equal(one.inputs, two.inputs)
        np.testing.assert_array_equal(one.targets, two.targets)
        assert set(one.targets.tolist()) <= set(told)
