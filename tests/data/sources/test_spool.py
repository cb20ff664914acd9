"""The spool gives back what was put in, in memory or on disk, and leaves nothing behind."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.data.sources import spool as module
from modelyard.data.sources.spool import Spool


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.integers(0, 40), max_size=8),
    st.integers(0, 4),
    st.sampled_from([0, 500, 10**6]),
    st.data(),
)
def test_slices_are_what_was_appended(
    tmp_path: Path, lengths: list[int], width: int, limit: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "IN_MEMORY", limit)
        spool = Spool(width, tmp_path / "deep" / "scratch")
        whole = np.random.default_rng(1).normal(size=(sum(lengths), width))
        start = 0
        for length in lengths:
            spool.append(whole[start : start + length])
            start += length
            first = data.draw(st.integers(0, start))
            last = data.draw(st.integers(first, start + 5))
            np.testing.assert_array_equal(spool.read(first, last), whole[:start][first:last])
    assert len(spool) == len(whole)
    assert list(tmp_path.rglob("*.*")) == []  # a file without a name


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows have shape"):
        Spool(3, tmp_path).append(np.zeros((2, 2)))
