"""How values are spread: counted, kept, read back."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelyard.training.histograms import FILE, Sampler, read, summarise


@given(st.lists(st.floats(width=32), max_size=200))
def test_every_finite_value_is_counted_once(values: list[float]) -> None:
    array = np.array(values, np.float32)
    finite = array[np.isfinite(array)]
    found = summarise(array)
    if not len(finite):
        assert found is None
        return
    assert found is not None and sum(found.counts) == len(finite)
    assert found.edges[0] <= finite.min() and len(found.edges) == len(found.counts) + 1
    assert all(low < high for low, high in zip(found.edges, found.edges[1:], strict=False))


def test_lines_are_read_as_they_come_and_torn_ones_are_left_out(tmp_path: Path) -> None:
    assert read(tmp_path / FILE) == ([], 0)
    sampler = Sampler(tmp_path)
    assert sampler.due()
    sampler.write(3, {"weights/a": np.arange(10.0), "gradients/a": np.array([np.nan])})
    (first,), position = read(tmp_path / FILE)
    assert first.step == 3 and first.tensors.keys() == {"weights/a"}
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"time": 1, "st')  # its writer was killed here
    assert read(tmp_path / FILE, position)[0] == []
    sampler.write(4, {"weights/a": np.zeros(3)})
    later, _ = read(tmp_path / FILE, position)
    assert [spread.step for spread in later] == [4]
    assert sampler.due()  # the first looks may come soon
    sampler.write(5, {"weights/a": np.zeros(3)})
    assert not sampler.due()
