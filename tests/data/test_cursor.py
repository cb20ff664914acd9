"""The order of samples: the same for any number of workers, every sample once an epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.data.cursor import Cursor

cursors = st.builds(
    Cursor,
    samples=st.integers(1, 60),
    batch_size=st.integers(1, 150),
    seed=st.integers(-(2**63), 2**64),
)


@given(cursors, st.integers(0, 5))
def test_every_epoch_takes_every_sample_exactly_once(cursor: Cursor, epoch: int) -> None:
    steps = -(-cursor.samples * (epoch + 1) // cursor.batch_size)
    stream = np.concatenate([cursor.indices(step) for step in range(steps)])
    taken = stream[epoch * cursor.samples : (epoch + 1) * cursor.samples]
    assert sorted(taken.tolist()) == list(range(cursor.samples))


@given(cursors, st.integers(0, 200), st.integers(1, 9))
def test_the_shares_of_any_number_of_workers_are_the_batch(
    cursor: Cursor, step: int, size: int
) -> None:
    shares = [cursor.share(step, rank, size) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(shares), cursor.indices(step))
    expected = np.array_split(cursor.indices(step), size)
    assert [len(share) for share in shares] == [len(part) for part in expected]


@given(cursors, st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_a_step_is_the_same_wherever_one_comes_from(cursor: Cursor, steps: list[int]) -> None:
    jumping = {step: cursor.indices(step).tolist() for step in steps}
    walking = {step: cursor.indices(step).tolist() for step in range(max(steps) + 1)}
    assert jumping == {step: walking[step] for step in jumping}
    assert all(len(batch) == cursor.batch_size for batch in walking.values())


def test_a_batch_may_hold_the_data_many_times() -> None:
    batch = Cursor(samples=3, batch_size=10, seed=0).indices(0)
    assert np.bincount(batch, minlength=3).tolist() in ([3, 3, 4], [3, 4, 3], [4, 3, 3])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    cursor = Cursor(samples=1000, batch_size=1000, seed=0)
    assert (cursor.indices(0) != cursor.indices(1)).any()
    assert (cursor.indices(0) != Cursor(1000, 1000, seed=1).indices(0)).any()
    assert cursor.indices(0).dtype == np.int64


def test_what_a_caller_does_to_a_batch_does_not_change_the_next_call() -> None:
    cursor = Cursor(samples=8, batch_size=8, seed=3)
    before = cursor.indices(0).tolist()
    cursor.indices(0)[:] = 0
    assert cursor.indices(0).tolist() == before


def test_it_counts_epochs() -> None:
    cursor = Cursor(samples=10, batch_size=4, seed=0)
    assert [cursor.epoch(step) for step in (0, 5, 6)] == [0.0, 2.0, 2.4]


@pytest.mark.parametrize(("samples", "batch"), [(0, 1), (1, 0)])
def test_nothing_to_take_is_refused(samples: int, batch: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        Cursor(samples, batch, seed=0)
    with pytest.raises(ValueError, match="no worker 2"):
        Cursor(1, 1, 0).share(0, 2, 2)
