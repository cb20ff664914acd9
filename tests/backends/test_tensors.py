"""Tensor files: what other readers of safetensors see, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelyard.backends.tensors import DTYPES, map_tensors, write_tensors
from modelyard.spec.errors import StoreError
from modelyard.store.files import digest_file

numbers = hnp.arrays(
    dtype=st.sampled_from([code for name, code in DTYPES.items() if name != "C64"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@given(tensors=st.dictionaries(st.text("abc.é", min_size=1, max_size=6), numbers, max_size=5))
def test_the_safetensors_library_reads_what_is_written_and_the_reverse(
    tensors: dict[str, np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "ours"
    assert write_tensors(path, tensors) == digest_file(path)
    theirs = path.with_name("theirs")
    safetensors.numpy.save_file(tensors, theirs)
    for read in (safetensors.numpy.load_file(path), map_tensors(path), map_tensors(theirs)):
        assert read.keys() == tensors.keys()
        for name, array in tensors.items():
            assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
            assert read[name].tobytes() == array.tobytes()


def test_big_endian_and_transposed_arrays_keep_their_numbers(tmp_path: Path) -> None:
    big, turned = np.arange(6, dtype=">f4"), np.arange(6.0).reshape(2, 3).T
    write_tensors(tmp_path / "file", {"big": big, "turned": turned})
    read = map_tensors(tmp_path / "file")
    np.testing.assert_array_equal(read["big"], big)
    np.testing.assert_array_equal(read["turned"], turned)


def test_a_large_tensor_is_looked_at_part_by_part_and_one_look_can_end_it(tmp_path: Path) -> None:
    large, seen = np.arange(3_000_000, dtype=np.float32), []
    write_tensors(tmp_path / "file", {"large": large}, lambda name, part: seen.append(part.copy()))
    assert len(seen) == 3
    np.testing.assert_array_equal(np.concatenate(seen), large)

    def refuse(name: str, part: np.ndarray[Any, Any]) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match="large"):
        write_tensors(tmp_path / "other", {"large": large}, refuse)


def test_what_cannot_be_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="complex128"):
        write_tensors(tmp_path / "file", {"a": np.zeros(2, np.complex128)})


@pytest.mark.parametrize("keep", [0, 4, 8, 20, 60, -1])
def test_a_torn_file_is_refused(tmp_path: Path, keep: int) -> None:
    write_tensors(tmp_path / "file", {"a": np.zeros(3)})
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(content[:keep])
    with pytest.raises(StoreError, match="damaged"):
        map_tensors(tmp_path / "file")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F128", "shape": [1], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F64", "shape": [3], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F64", "shape": [9], "data_offsets": [0, 72]}},
        {"a": {"shape": [1]}},
        [],
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(StoreError, match="damaged"):
        map_tensors(tmp_path / "file")
