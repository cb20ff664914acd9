"""Rows are copied as indexing would copy them, into memory that belongs to the batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from modelyard.data.gather import gather


@given(
    array_shapes(min_dims=1, max_dims=4, max_side=12),
    st.sampled_from(["uint8", "float32", "int64"]),
    st.booleans(),
    st.data(),
)
def test_it_is_indexing(
    shape: tuple[int, ...], dtype: str, wide: bool, data: st.DataObject
) -> None:
    if wide:  # rows that are worth care
        shape = (*shape, 1024)
    array = (np.arange(np.prod(shape)) * 7919).astype(dtype).reshape(shape)
    rows = np.array(data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=20)), dtype=np.int64)
    if data.draw(st.booleans()):
        rows = np.arange(*sorted(data.draw(st.tuples(*[st.integers(0, shape[0])] * 2))))
    batch = gather(array, rows)
    np.testing.assert_array_equal(batch, array[rows])
    assert batch.dtype == array.dtype
    assert batch.flags.writeable and batch.flags.c_contiguous
    assert not np.shares_memory(batch, array)


def test_rows_of_what_is_no_plain_block_of_memory() -> None:
    array = np.arange(6 * 2048, dtype=np.int64).reshape(6, 2048)[:, ::2]
    rows = np.array([4, 0, 4])
    np.testing.assert_array_equal(gather(array, rows), array[rows])


@pytest.mark.parametrize("rows", [[3, 1, 2], [1, 2, 3]])
def test_a_batch_of_pictures_is_aligned_and_never_taken_back(rows: list[int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (9, 3, 256, 256), dtype=np.uint8)
    pictures.setflags(write=False)
    held = [gather(pictures, np.array(rows)) for _ in range(5)]
    assert all(batch.ctypes.data % 64 == 0 for batch in held)
    held[0][:] = 0
    for batch in held[1:]:
        np.testing.assert_array_equal(batch, pictures[rows])
