"""The training data's profile: numbers that NumPy gives as well, and that JSON keeps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelyard.data import profile
from modelyard.data.profile import ImageCounts, Profile

values = st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), max_size=80)


@given(values)
def test_numbers(numbers: list[float]) -> None:
    column = np.array(numbers, dtype=np.float64)
    got = profile.numeric("x", column)
    present = column[~np.isnan(column)]
    assert (got.count, got.missing) == (len(present), len(column) - len(present))
    assert sum(got.counts) == got.count
    if got.count:
        assert (got.min, got.max) == (present.min(), present.max()) == (got.edges[0], got.edges[-1])
        assert np.isclose(got.mean, present.mean()) and np.isclose(got.std, present.std())
        assert len(got.edges) == len(got.counts) + 1 <= profile.BINS + 1
        assert list(got.edges) == sorted(got.edges)


def test_bins_hold_about_as_many() -> None:
    got = profile.numeric("x", np.random.default_rng(0).lognormal(size=2100))
    assert len(got.counts) == 21 and set(got.counts) == {100}


def test_words() -> None:
    words = [f"w{i}" for i in range(120)]
    codes = np.array([0] * 5 + [1] * 3 + [-1] * 2 + list(range(2, 120)))
    got = profile.categorical("c", codes, words)
    assert (got.count, got.missing, got.other) == (126, 2, 20)
    assert list(got.counts)[:2] == ["w0", "w1"] and got.counts["w0"] == 5
    assert sum(got.counts.values()) + got.other == got.count


@given(arrays(np.uint8, (5, 3, 4, 2)))
def test_images(images: np.ndarray) -> None:
    counts = ImageCounts(3)
    counts.add(images[:2])
    counts.add(images[2:])
    got = counts.profile("image")
    scaled = images / 255
    np.testing.assert_allclose(got.mean, scaled.mean(axis=(0, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(got.std, scaled.std(axis=(0, 2, 3)), atol=1e-7)
    assert got.count == sum(got.brightness) == 5
    assert [sum(channel) for channel in got.pixels] == [40] * 3


def test_a_profile_is_the_same_after_json() -> None:
    whole = Profile(
        samples=3,
        features=(
            profile.numeric("x", np.array([0.1, np.nan, 3])),
            profile.categorical("c", np.array([0, 1, -1]), ["a", "b"]),
            ImageCounts(1).profile("image"),
        ),
        target=profile.categorical("y", np.array([0, 1, 1]), ["n", "p"]),
    )
    assert Profile.from_json(whole.to_json()) == whole
