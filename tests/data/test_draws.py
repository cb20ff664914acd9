"""Random numbers by counter: the published generator's numbers, evenly spread, each reached at once."""

import numpy as np

from modelyard.data.draws import normal, number, pieces, sample_keys, uniform


def test_they_are_the_numbers_of_splitmix64() -> None:
    """For the state 1234567, as its authors' C program prints them."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [number(1234567, place) for place in range(5)] == expected
    floats = uniform(np.array([1234567], np.uint64), 0, 5)[0]
    assert floats.tolist() == [(value >> 11) * 2.0**-53 for value in expected]


def test_a_number_is_reached_without_those_before_it() -> None:
    keys = sample_keys(3, np.array([0, 1]), np.array([5, 5]))
    together = uniform(keys, 0, 12)
    for place in range(12):
        np.testing.assert_array_equal(uniform(keys, place)[:, 0], together[:, place])
    np.testing.assert_array_equal(normal(keys, 0, 9)[:, 4:8], normal(keys, 1, 4))


def test_seed_epoch_and_sample_have_streams_of_their_own() -> None:
    """Neighbours too, and where two of the three change places."""
    found = set()
    for seed in range(20):
        for epoch in range(20):
            samples = np.arange(20)
            found |= set(sample_keys(seed, np.full(20, epoch), samples).tolist())
    assert len(found) == 20**3


def test_they_are_spread_as_they_say() -> None:
    keys = sample_keys(0, np.zeros(2000, np.int64), np.arange(2000))
    floats = uniform(keys, 0, 50)
    assert floats.min() >= 0 and floats.max() < 1
    counts, _ = np.histogram(floats, bins=20, range=(0, 1))
    assert abs(counts - 5000).max() < 5 * 5000**0.5
    assert abs(np.corrcoef(floats[:, 0], floats[:, 1])[0, 1]) < 0.1
    bell = normal(keys, 2**32, 51)
    assert bell.shape == (2000, 51) and bell.dtype == np.float32
    assert abs(bell.mean()) < 0.01 and abs(bell.std() - 1) < 0.01
    assert abs((np.abs(bell) < 1).mean() - 0.6827) < 0.01
    assert pieces(keys, 0, 3).shape == (2000, 3) and pieces(keys, 0, 3).max() > 2**15
