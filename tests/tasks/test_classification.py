"""Classification: its losses against torch, its metrics against scikit-learn."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from modelyard.spec.errors import DataError
from modelyard.spec.records import TaskSpec
from modelyard.tasks import open_task
from modelyard.tasks.base import Task
from modelyard.tasks.contract import NumpyOps, TaskContract

ANIMALS = ("cat", "dog", "fox", "owl")


def classification(classes: tuple[str, ...] = ANIMALS, loss: str = "cross-entropy") -> Task:
    return open_task(TaskSpec(type="classification", target="animal", loss=loss, classes=classes))


class TestManyClasses(TaskContract):
    task = classification()
    values = ANIMALS


class TestTwoClassesOnOneOutput(TaskContract):
    task = classification(("no", "yes"), "binary-cross-entropy")
    values = ("yes", "no")


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_cross_entropy_is_torchs(scale: float) -> None:
    random = np.random.default_rng(0)
    outputs, targets = scale * random.standard_normal((64, 4)), random.integers(0, 4, 64)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(outputs), torch.from_numpy(targets), reduction="none"
    )
    mine = classification().loss(NumpyOps(), outputs, targets)
    np.testing.assert_allclose(mine, expected.numpy(), rtol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 500.0])
def test_binary_cross_entropy_is_torchs(scale: float) -> None:
    random = np.random.default_rng(0)
    outputs, targets = scale * random.standard_normal((64, 1)), random.integers(0, 2, 64)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(outputs[:, 0]), torch.from_numpy(targets).double(), reduction="none"
    )
    task = classification(("no", "yes"), "binary-cross-entropy")
    np.testing.assert_allclose(
        task.loss(NumpyOps(), outputs, targets), expected.numpy(), rtol=1e-9, atol=1e-20
    )


def test_cross_entropy_by_hand() -> None:
    """Two equal logits: the true class has probability 1/2, so the loss is ln 2."""
    task = classification(("a", "b"))
    losses = task.loss(NumpyOps(), np.zeros((1, 2)), np.array([1]))
    assert losses[0] == pytest.approx(np.log(2))


def as_outputs(predicted: NDArray[np.int64], classes: int) -> NDArray[np.float32]:
    """Logits whose largest is the predicted class."""
    return np.eye(classes, dtype=np.float32)[predicted]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_metrics_are_scikit_learns(data: st.DataObject) -> None:
    """Classes that never occur, that are never predicted, and single samples included."""
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
    true, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    task = classification()
    statistics = task.statistics(as_outputs(predicted, 4), true)
    mine = task.metrics(statistics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn tells of classes that do not occur
        balanced = sklearn_metrics.balanced_accuracy_score(true, predicted)
    macro = {"average": "macro", "zero_division": 0}
    assert mine["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(true, predicted))
    assert mine["balanced_accuracy"] == pytest.approx(balanced)
    assert mine["f1"] == pytest.approx(sklearn_metrics.f1_score(true, predicted, **macro))
    assert mine["recall"] == pytest.approx(sklearn_metrics.recall_score(true, predicted, **macro))
    assert mine["precision"] == pytest.approx(
        sklearn_metrics.precision_score(true, predicted, **macro)
    )
    expected = sklearn_metrics.confusion_matrix(true, predicted, labels=range(4))
    assert task.confusion(statistics) == tuple(map(tuple, expected.tolist()))


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=5), seed=st.integers(0, 1000))
def test_any_sharing_of_the_samples_gives_the_same_metrics(cuts: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    outputs = random.standard_normal((40, 4), dtype=np.float32)
    targets = random.integers(0, 4, 40)
    task = classification()
    edges = [0, *sorted(cuts), 40]
    shares = [task.statistics(outputs[a:b], targets[a:b]) for a, b in itertools.pairwise(edges)]
    assert task.metrics(np.sum(shares, axis=0)) == pytest.approx(
        task.metrics(task.statistics(outputs, targets))
    )


def test_an_answer_names_the_class_and_every_probability() -> None:
    [answer] = classification(("a", "b")).decode(np.array([[0.0, np.log(3)]], dtype=np.float32))
    assert answer["label"] == "b"
    assert answer["probability"] == pytest.approx(0.75)
    assert answer["probabilities"] == pytest.approx({"a": 0.25, "b": 0.75})


def test_one_output_decodes_to_two_probabilities() -> None:
    task = classification(("no", "yes"), "binary-cross-entropy")
    yes, no = task.decode(np.array([[np.log(4)], [-1000.0]], dtype=np.float32))
    assert yes["probabilities"] == pytest.approx({"no": 0.2, "yes": 0.8})
    assert no["label"] == "no"
    assert no["probability"] == pytest.approx(1.0)


def test_a_class_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'Dog ' is not one of the classes.*did you mean 'dog'"):
        classification().encode(["cat", "Dog "])


def test_binary_cross_entropy_refuses_three_classes() -> None:
    with pytest.raises(DataError, match="needs two classes, the data has 3") as caught:
        classification(("a", "b", "c"), "binary-cross-entropy")
    assert "cross-entropy" in caught.value.mend
