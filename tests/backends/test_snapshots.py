"""A snapshot comes back bit for bit, and a damaged one is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelyard.backends.base import Snapshot
from modelyard.backends.snapshots import (
    NUMBERS,
    OPTIMIZER,
    WEIGHTS,
    read_snapshot,
    read_weights,
    write_snapshot,
)
from modelyard.spec.errors import StoreError

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
