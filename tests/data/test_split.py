"""Splits: the asked shares of every class, never the same content in two of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from modelyard.data.split import SPLITS, rejoin, split
from modelyard.spec.errors import DataError


@st.composite
def labelled(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Class numbers and content digests, with repeated contents and conflicting labels."""
    size = draw(st.integers(1, 80))
    strata = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    contents = draw(st.lists(st.integers(0, size * 2), min_size=size, max_size=size))
    return np.array(strata, dtype=np.int64), np.array(contents, dtype=np.uint64)


shares = st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.4]), st.sampled_from([0.0, 0.1, 0.3, 0.5]))


@given(labelled(), shares, st.integers(-5, 2**70))
def test_all_samples_once_and_equal_ones_together(data, share, seed) -> None:
    strata, digests = data
    parts = split(strata, digests, validation=share[0], test=share[1], seed=seed)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(strata)))
    contents = [set(digests[parts[name]].tolist()) for name in SPLITS]
    assert not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])
    assert all((np.diff(part) > 0).all() for part in parts.values())


@given(labelled(), shares, st.integers(0, 9))
def test_every_class_is_in_train(data, share, seed) -> None:
    strata, digests = data
    parts = split(strata, digests, validation=share[0], test=share[1], seed=seed)
    assert set(strata[parts["train"]].tolist()) == set(strata.tolist())


@given(st.lists(st.integers(1, 6), min_size=3, max_size=30), shares, st.integers(0, 9))
def test_a_class_with_three_groups_or_more_is_in_every_wanted_split(sizes, share, seed) -> None:
    """Groups of any size, all of one class."""
    digests = np.repeat(np.arange(len(sizes)), sizes).astype(np.uint64)
    strata = np.zeros(len(digests), dtype=np.int64)
    parts = split(strata, digests, validation=share[0], test=share[1], seed=seed)
    wanted = ["train", *(name for name, s in zip(SPLITS[1:], share, strict=True) if s)]
    assert [name for name in SPLITS if len(parts[name])] == wanted


@given(st.lists(st.integers(3, 200), min_size=1, max_size=6), st.integers(0, 99))
def test_classes_keep_their_shares(counts, seed) -> None:
    strata = np.repeat(np.arange(len(counts)), counts)
    parts = split(
        strata, np.arange(len(strata), dtype=np.uint64), validation=0.15, test=0.2, seed=seed
    )
    for number, count in enumerate(counts):
        for name, share in (("validation", 0.15), ("test", 0.2)):
            got = int((strata[parts[name]] == number).sum())
            assert abs(got - max(1, share * count)) <= 1


@given(labelled(), st.randoms(use_true_random=False))
def test_the_order_of_the_files_does_not_matter(data, random) -> None:
    strata, digests = data
    strata = (digests % 3).astype(np.int64)  # a label that the content decides
    order = np.array(random.sample(range(len(strata)), len(strata)))
    plain = split(strata, digests, validation=0.2, test=0.2, seed=1)
    mixed = split(strata[order], digests[order], validation=0.2, test=0.2, seed=1)
    for name in SPLITS:
        assert sorted(digests[plain[name]]) == sorted(digests[order][mixed[name]])


def test_another_seed_gives_another_split() -> None:
    strata, digests = np.zeros(100, dtype=np.int64), np.arange(100, dtype=np.uint64)
    tests = {
        tuple(split(strata, digests, validation=0, test=0.2, seed=seed)["test"])
        for seed in (0, 0, 1, 2)
    }
    assert len(tests) == 3


def test_rejoin_gives_equal_samples_to_the_first_split_that_holds_one() -> None:
    parts = {
        "train": np.array([0, 1]),
        "validation": np.array([2, 3]),
        "test": np.array([4, 5, 6]),
    }
    digests = np.array([7, 1, 2, 3, 7, 3, 4], dtype=np.uint64)
    joined = rejoin(parts, digests)
    assert {name: part.tolist() for name, part in joined.items()} == {
        "train": [0, 1, 4],
        "validation": [2, 3, 5],
        "test": [6],
    }


def test_shares_must_leave_something_for_training() -> None:
    with pytest.raises(DataError, match="leave nothing for training"):
        split(
            np.zeros(3, dtype=np.int64),
            np.arange(3, dtype=np.uint64),
            validation=0.5,
            test=0.5,
            seed=0,
        )
