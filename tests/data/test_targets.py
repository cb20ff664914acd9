"""Targets: classes in natural order, losses that fit, labels that cannot be used."""

from collections.abc import Sequence

import numpy as np
import pytest

from modelyard.data.sources.base import object_array
from modelyard.data.targets import (
    _class_weights,
    asked_task,
    check_task,
    class_name,
    labelled_rows,
    make_task,
    truth_text,
)
from modelyard.spec.errors import DataError, UsageError
from modelyard.spec.task import TaskSection


def name(row: int) -> str:
    return f"line {row + 2}"


def made(project, values: Sequence[object], task: str = "classification", loss: str = "auto"):
    asked = project(source="csv", task=task, loss=loss)
    return make_task(asked, object_array(values), name)


def test_classes_are_sorted_as_people_sort(project) -> None:
    spec, encoded = made(project, ["10", "2", "b", "a"] * 3)
    assert spec.classes == ("2", "10", "a", "b") and spec.loss == "cross-entropy"
    assert encoded.tolist() == [1, 0, 3, 2] * 3 and encoded.dtype == np.int64
    assert truth_text(spec, encoded[0]) == "10"


@pytest.mark.parametrize(("value", "text"), [(1, "1"), (1.0, "1"), (0.5, "0.5"), (True, "true")])
def test_numbers_are_classes_too(value: object, text: str) -> None:
    assert class_name(value) == text


def test_regression_values(project) -> None:
    spec, encoded = made(project, ["1.5", 2, -3.0], task="regression")
    assert spec.loss == "mean-squared-error" and spec.classes == ()
    assert encoded.tolist() == [1.5, 2.0, -3.0] and encoded.dtype == np.float32
    assert truth_text(spec, encoded[0]) == "1.5"


@pytest.mark.parametrize(
    ("values", "task", "loss", "words"),
    [
        (["a"] * 9, "classification", "auto", "same label 'a'"),
        (["a"] * 9 + ["b"] * 2, "classification", "auto", r"'b' \(2\)"),
        (["a", "b", "c"] * 3, "classification", "binary-cross-entropy", "needs two classes"),
        ([i / 7 for i in range(1001)], "classification", "auto", "1001 different values"),
        ([1, 2, "many", 4], "regression", "auto", "line 4 'many'"),
        ([1, 2, "inf", 4], "regression", "auto", "line 4 'inf'"),
        ([1, 2], "regression", "auto", "too few"),
    ],
)
def test_targets_that_cannot_be_used(project, values, task: str, loss: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        made(project, values, task, loss)


def test_many_numbers_are_likely_a_regression(project) -> None:
    with pytest.raises(DataError) as caught:
        made(project, [i / 7 for i in range(1001)])
    assert "regression" in caught.value.mend


@pytest.mark.parametrize(
    ("task", "loss"), [("regression", "cross-entropy"), ("classification", "mean-squared-error")]
)
def test_a_loss_must_fit_its_task(project, task: str, loss: str) -> None:
    with pytest.raises(UsageError, match="is a loss of a"):
        check_task(project(source="csv", task=task, loss=loss))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"b": 3.0}, (1.0, 3.0, 1.0)),
        ("balanced", (12 / (3 * 6), 12 / (3 * 4), 12 / (3 * 2))),
        ("", ()),
    ],
)
def test_class_weights_stand_in_the_order_of_the_classes(project, weights, expected) -> None:
    asked = project(source="csv")
    asked = asked.model_copy(update={"task": TaskSection(class_weights=weights)})
    assert asked_task(asked, "label", "abc", [6, 4, 2]).class_weights == expected


def test_balanced_weights_leave_the_mean_at_one() -> None:
    """So that the learning rate means what it did without them; a class without samples counts nothing."""
    counts = [70, 0, 20, 10]
    weights = _class_weights("balanced", "abcd", counts)
    assert np.dot(weights, counts) / sum(counts) == pytest.approx(1.0) and weights[1] == 0.0


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"cta": 2.0}, "'cta' is not one of the classes; did you mean 'cat'"),
        ({"cat": 0, "dog": 0}, "counts nothing"),
    ],
)
def test_weights_that_cannot_be_used(weights: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        _class_weights(weights, ("cat", "dog"), None)


def test_an_unknown_task_is_refused(project) -> None:
    with pytest.raises(UsageError, match="did you mean 'classification'"):
        check_task(project(source="csv", task="clasification"))


def test_missing_labels_are_named_or_dropped() -> None:
    targets = object_array(["a", None, "b", None])
    with pytest.raises(DataError, match="2 rows have no label in 'ill': line 3, line 5") as caught:
        labelled_rows(targets, "ill", name, "error")
    assert 'missing_target = "drop"' in caught.value.mend
    assert labelled_rows(targets, "ill", name, "drop").tolist() == [0, 2]
    with pytest.raises(DataError, match="no row has a label"):
        labelled_rows(object_array([None]), "ill", name, "drop")
