"""The quality report: each finding on data that has it, and none on data that has not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.data import quality


def name(position: int) -> str:
    return f"row {position}"


def repeated(digests: list[int], targets: list[float]) -> dict[str, quality.Finding]:
    found = quality.repeated(np.array(digests, dtype=np.uint64), np.array(targets), name)
    return {finding.kind: finding for finding in found}


def test_duplicates_are_counted_and_named() -> None:
    found = repeated([5, 1, 5, 2, 5, 2, 3], [0, 0, 0, 1, 0, 1, 0])
    assert set(found) == {"duplicate"}
    assert "3 samples repeat another one" in found["duplicate"].message
    assert set(found["duplicate"].examples) == {"row 3 = row 5", "row 0 = row 2 = row 4"}


def test_equal_content_with_different_targets_is_a_conflict() -> None:
    found = repeated([5, 1, 5, 2], [0, 0, 1, 1])
    assert "2 samples have the same content" in found["conflict"].message
    assert found["conflict"].severity == "warning"
    assert repeated([1, 2, 3], [0, 0, 1]) == {}


def test_leaks_are_looked_for() -> None:
    digests = np.array([1, 2, 3, 3], dtype=np.uint64)
    parts = {"train": np.array([0, 1]), "validation": np.array([2]), "test": np.array([3])}
    assert quality.leaks(digests, parts)[0].severity == "error"
    parts = {"train": np.array([0, 1]), "validation": np.array([2, 3]), "test": np.array([], int)}
    assert quality.leaks(digests, parts)[0].severity == "note"


def kinds(counts: dict[str, int]) -> list[str]:
    targets = np.repeat(np.arange(len(counts)), list(counts.values()))
    return [finding.kind for finding in quality.classes(tuple(counts), targets)]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"benign": 50, "malignant": 40}, []),
        ({"healthy": 1000, "ill": 99}, ["imbalance"]),
        ({"left": 50, "right": 9}, ["small-class"]),
        ({"benign": 50, "Benign": 40}, ["typo"]),
        ({"new york": 50, "newyork": 40}, ["typo"]),
        ({"benign": 300, "beningn": 28}, ["imbalance", "typo"]),
        ({"malignant": 300, "maligannt": 29}, ["imbalance", "typo"]),
        ({"benign": 50, "beningn": 40}, []),
        ({"0": 500, "8": 45, "10": 45}, ["imbalance"]),
        ({"cat": 200, "car": 19}, ["imbalance"]),
        ({"type 1": 200, "type 2": 19}, ["imbalance"]),
    ],
)
def test_classes(counts: dict[str, int], expected: list[str]) -> None:
    assert kinds(counts) == expected


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_edit_distance_is_a_distance(a: str, b: str) -> None:
    distance = quality.edit_distance(a, b, 6)
    assert distance == quality.edit_distance(b, a, 6) <= max(len(a), len(b))
    assert (distance == 0) == (a == b)
    assert min(quality.edit_distance(a, b, 1), 2) == min(distance, 2)


def test_edits_of_each_kind() -> None:
    for word in ("bengn", "benignn", "bemign", "beinng", "bening"):
        assert 1 <= quality.edit_distance(word, "benign", 2) <= 2
    assert quality.edit_distance("bening", "benign", 2) == 1


def test_what_was_left_out_is_said() -> None:
    assert quality.unreadable(0, []) == () and quality.unlabelled(0) == ()
    found = quality.unreadable(7, [f"{i}.png: broken" for i in range(7)])[0]
    assert found.message.startswith("7 samples") and len(found.examples) == 5
    assert "3 rows without a label" in quality.unlabelled(3)[0].message
