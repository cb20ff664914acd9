"""A .npy file written in chunks is what NumPy itself reads."""

import errno
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.data.npy import ArrayWriter, write_array


@given(
    st.lists(st.integers(0, 5), max_size=5),
    st.lists(st.integers(1, 4), max_size=3),
    st.sampled_from(["uint8", "float32", "int64"]),
)
def test_chunks_make_one_array(tmp_path_factory, chunks, shape, dtype) -> None:
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    parts = [np.random.default_rng(n).integers(0, 9, (n, *shape)) for n in chunks]
    with ArrayWriter(path, dtype, tuple(shape)) as writer:
        for part in parts:
            writer.append(part)
    expected = np.concatenate([np.zeros((0, *shape)), *parts]).astype(dtype)
    got = np.load(path, allow_pickle=False)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected)
    if got.size:
        mapped = np.load(path, mmap_mode="r")
        assert mapped.flags.aligned
        np.testing.assert_array_equal(mapped, expected)


def test_a_file_that_was_not_finished_is_not_readable(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), ArrayWriter(tmp_path / "a", "uint8", ()) as w:
        w.append(np.zeros(3, dtype=np.uint8))
        raise RuntimeError("stop")
    with pytest.raises(ValueError):
        np.load(tmp_path / "a", allow_pickle=False)


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="shape"),
        ArrayWriter(tmp_path / "a", "uint8", (2,)) as writer,
    ):
        writer.append(np.zeros((3, 4), dtype=np.uint8))


def test_a_full_disk_is_an_error_not_a_signal() -> None:
    with (
        pytest.raises(OSError, match="No space left"),
        ArrayWriter(Path("/dev/full"), "uint8", ()) as writer,
    ):
        writer.append(np.zeros(2**20, dtype=np.uint8))


@pytest.mark.parametrize("shape", [(0,), (7,), (0, 3), (4, 3)])
@pytest.mark.parametrize("kind", ["int64", "float32", "bool"])
def test_one_array_at_once_is_the_file_of_numpy(
    tmp_path: Path, shape: tuple[int, ...], kind: str
) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    write_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "theirs.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    write_array(tmp_path / "turned.npy", array.T)
    np.testing.assert_array_equal(np.load(tmp_path / "turned.npy", allow_pickle=False), array.T)


def test_a_full_disk_is_told_by_the_systems_number() -> None:
    """NumPy's own words are "1200 requested and 496 written", which says nothing of a disk."""
    with pytest.raises(OSError) as caught:
        write_array(Path("/dev/full"), np.zeros(2**20))
    assert caught.value.errno == errno.ENOSPC
