"""A snapshot comes back bit for bit, and a damaged one is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelyard.backends.base import Part, Snapshot
from modelyard.backends.snapshots import (
    NUMBERS,
    OPTIMIZER,
    WEIGHTS,
    read_snapshot,
    read_weights,
    share_of,
    write_shard,
    write_snapshot,
)
from modelyard.spec.errors import StoreError
from modelyard.store.files import digest_file

SNAPSHOT = Snapshot(
    tensors={
        "model.line.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "optimizer.line.weight.exp_avg": np.full((2, 3), 1e-300),
        "optimizer.line.weight.step": np.array(7, dtype=np.int64),
    },
    numbers={"optimizer": "adamw", "best": math.inf, "loss": 0.1 + 0.2, "step": 2**53 + 1},
)

arrays = hnp.arrays(
    dtype=st.sampled_from(["f4", "f8", "f2", "i8", "i4", "u1", "?"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(
        st.from_regex(r"(model|optimizer)\.[a-z.]{1,8}", fullmatch=True), arrays, max_size=4
    )
)
def test_any_arrays_come_back_bit_for_bit(
    tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("snapshot")
    files = write_snapshot(folder, Snapshot(tensors=tensors, numbers={}))
    read = read_snapshot(folder, files).tensors
    assert read.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert read[name].tobytes() == array.tobytes()


def test_transposed_arrays_keep_their_meaning(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3).T
    write_snapshot(tmp_path, Snapshot(tensors={"model.w": array}, numbers={}))
    np.testing.assert_array_equal(read_snapshot(tmp_path).tensors["model.w"], array)


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    write_snapshot(tmp_path, SNAPSHOT)
    assert read_snapshot(tmp_path).numbers == SNAPSHOT.numbers


def test_the_weights_can_be_read_alone(tmp_path: Path) -> None:
    files = write_snapshot(tmp_path, SNAPSHOT)
    (tmp_path / OPTIMIZER).unlink()
    weights = read_weights(tmp_path, files)
    assert list(weights.tensors) == ["model.line.weight"]


@pytest.mark.parametrize("file", [WEIGHTS, OPTIMIZER, NUMBERS])
def test_one_changed_bit_is_noticed(file: str, tmp_path: Path) -> None:
    files = write_snapshot(tmp_path, SNAPSHOT)
    content = bytearray((tmp_path / file).read_bytes())
    content[-2] ^= 1
    (tmp_path / file).write_bytes(content)
    with pytest.raises(StoreError, match="hash differs"):
        read_snapshot(tmp_path, files)


@pytest.mark.parametrize("file", [WEIGHTS, OPTIMIZER, NUMBERS])
def test_a_torn_or_missing_file_is_noticed_even_without_hashes(file: str, tmp_path: Path) -> None:
    write_snapshot(tmp_path, SNAPSHOT)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match="damaged"):
        read_snapshot(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(StoreError, match="it is missing"):
        read_snapshot(tmp_path)


# --- several workers, any layout ---------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Snapshot, list[Snapshot]]:
    """A whole state, and the snapshots of workers that hold some tensors whole and slices of others.

    A slice is a range of some axis, as unequal as it likes; some workers hold none of it, or the
    same as another one.
    """
    size = draw(st.integers(1, 5))
    tensors = draw(
        st.dictionaries(
            st.from_regex(r"(model|optimizer|scaler)\.[ab.]{1,6}", fullmatch=True),
            arrays,
            max_size=5,
        )
    )
    held: list[dict[str, np.ndarray]] = [{} for _ in range(size)]
    parts: list[dict[str, Part]] = [{} for _ in range(size)]
    for name, array in tensors.items():
        if array.ndim == 0 or draw(st.booleans()):
            for rank in range(size):
                held[rank][name] = array
            continue
        axis = draw(st.integers(0, array.ndim - 1))
        cuts = sorted(draw(st.integers(0, array.shape[axis])) for _ in range(size - 1))
        twice = draw(st.booleans())  # hybrid layouts: the last worker repeats the first
        for rank, (low, high) in enumerate(
            zip([0, *cuts], [*cuts, array.shape[axis]], strict=True)
        ):
            place = [slice(None)] * array.ndim
            place[axis] = slice(low, high)
            if twice and rank == size - 1:
                place[axis] = slice(0, high)
            offset = [0] * array.ndim
            offset[axis] = place[axis].start
            held[rank][name] = array[tuple(place)]
            parts[rank][name] = Part(offset=tuple(offset), shape=array.shape)
    numbers = {"optimizer": "adamw"}
    return Snapshot(tensors=tensors, numbers=numbers), [
        Snapshot(tensors=h, parts=p, numbers=numbers) for h, p in zip(held, parts, strict=True)
    ]


def write_all(folder: Path, snapshots: list[Snapshot]) -> dict[str, str]:
    """As so many workers do; returns all files with their hashes."""
    files, size = {}, len(snapshots)
    for rank in reversed(range(size)):
        write_shard(folder, share_of(snapshots[rank], rank, size), rank, size)
    for path in folder.iterdir():
        files[path.name] = digest_file(path)
    return files


@given(layout=layouts())
def test_whatever_the_workers_hold_the_whole_comes_back(
    layout: tuple[Snapshot, list[Snapshot]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Written by N workers, read by any other number: each is given the whole."""
    whole, snapshots = layout
    folder = tmp_path_factory.mktemp("shards")
    files = write_all(folder, snapshots)
    for read in (read_snapshot(folder, files), read_snapshot(folder)):
        assert read.tensors.keys() == whole.tensors.keys()
        assert read.numbers == whole.numbers and read.parts == {}
        for name, array in whole.tensors.items():
            got = read.tensors[name]
            assert (got.dtype, got.shape) == (array.dtype, array.shape)
            assert got.tobytes() == array.tobytes(), name
    weights = read_weights(folder, files).tensors
    assert weights.keys() == {name for name in whole.tensors if name.startswith("model.")}


@given(sizes=st.lists(st.integers(0, 2000), min_size=1, max_size=30), workers=st.integers(1, 8))
def test_whole_tensors_are_dealt_once_and_evenly(sizes: list[int], workers: int) -> None:
    tensors = {f"model.{i}": np.zeros(n, np.uint8) for i, n in enumerate(sizes)}
    snapshot = Snapshot(tensors=tensors, numbers={})
    shares = [share_of(snapshot, rank, workers).tensors for rank in range(workers)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    loads = [sum(array.nbytes for array in share.values()) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)


def two_halves() -> list[Snapshot]:
    rows = np.arange(8.0).reshape(4, 2)
    return [
        Snapshot(
            tensors={"model.w": rows[2 * rank : 2 * rank + 2], "optimizer.s": np.ones(3)},
            parts={"model.w": Part(offset=(2 * rank, 0), shape=(4, 2))},
            numbers={},
        )
        for rank in (0, 1)
    ]


@pytest.mark.parametrize("missing", ["shard-0.json", "shard-1.json", "model-1-of-2.safetensors"])
@pytest.mark.parametrize("with_hashes", [True, False])
def test_a_missing_shard_is_noticed(missing: str, with_hashes: bool, tmp_path: Path) -> None:
    files = write_all(tmp_path, two_halves())
    (tmp_path / missing).unlink()
    with pytest.raises(StoreError, match="it is missing"):
        read_snapshot(tmp_path, files if with_hashes else None)


def test_a_worker_that_kept_its_slice_back_is_noticed(tmp_path: Path) -> None:
    first, _ = two_halves()
    write_all(tmp_path, [first, Snapshot(tensors={}, numbers={})])
    with pytest.raises(StoreError, match=r"a piece of model\.w is missing"):
        read_snapshot(tmp_path)


def test_a_worker_whose_slice_overlaps_does_not_hide_a_gap(tmp_path: Path) -> None:
    first, _ = two_halves()
    write_all(tmp_path, [first, first, first])
    with pytest.raises(StoreError, match=r"a piece of model\.w is missing"):
        read_snapshot(tmp_path)


def test_a_failed_shard_leaves_nothing_behind(tmp_path: Path) -> None:
    def refuse(name: str, part: np.ndarray) -> None:
        if name == "optimizer.line.weight.exp_avg":
            raise RuntimeError(name)

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, SNAPSHOT, 0, 1, refuse)
    assert list(tmp_path.iterdir()) == []
