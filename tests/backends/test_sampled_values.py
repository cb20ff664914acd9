"""A look takes few values, evenly spaced, and gives each gradient the name of its weight."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelyard.backends.sampled_values import (
    counts,
    named_values,
    places,
    spaced,
    stride,
    taken_of,
)

SIZES = st.lists(st.integers(1, 20_000), min_size=1, max_size=5)


@given(st.integers(0, 5_000))
def test_at_most_128_tensors_from_the_first_on(count: int) -> None:
    found = places(count)
    assert len(found) <= 128 and list(found)[:1] == [0][:count]
    assert len(found) == count or count > 128


@given(st.integers(1, 10**9))
def test_at_most_4096_values_of_a_tensor(size: int) -> None:
    assert -(-size // stride(size)) <= 4096 and (stride(size) == 1) == (size <= 4096)


@given(SIZES)
def test_values_from_one_flat_array_are_those_of_its_pieces(sizes: list[int]) -> None:
    flat = np.arange(sum(sizes), dtype=np.float32)
    pieces = np.split(flat, np.cumsum(sizes)[:-1])
    taken = taken_of(flat, sizes)
    assert len(taken) == sum(counts(sizes))
    names = [f"layer{place}" for place in range(len(sizes))]
    found = named_values(names, pieces, taken)
    for name, piece in zip(names, pieces, strict=True):
        np.testing.assert_array_equal(found[f"weights/{name}"], spaced(piece))
        np.testing.assert_array_equal(found[f"gradients/{name}"], spaced(piece))


def test_what_was_taken_stays_when_the_weights_change() -> None:
    weights = np.zeros((3, 4), np.float32)
    found = named_values(["kernel"], [weights], np.ones(12, np.float32))
    weights += 1
    assert not found["weights/kernel"].any() and found["gradients/kernel"].all()
