"""Classification: its losses against torch, its metrics against scikit-learn."""

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from modelyard.spec.errors import DataError, UnknownMetric
from modelyard.spec.records import TaskSpec
from modelyard.tasks import open_task
from modelyard.tasks.base import Task
from modelyard.tasks.contract import NumpyOps, TaskContract

ANIMALS = ("cat", "dog", "fox", "owl")


def classification(
    classes: tuple[str, ...] = ANIMALS, loss: str = "cross-entropy", **options: Any
) -> Task:
    spec = TaskSpec(type="classification", target="animal", loss=loss, classes=classes, **options)
    return open_task(spec)


class TestManyClasses(TaskContract):
    task = classification()
    values = ANIMALS


class TestTwoClassesOnOneOutput(TaskContract):
    task = classification(("no", "yes"), "binary-cross-entropy")
    values = ("yes", "no")


class TestEveryOption(TaskContract):
    task = classification(
        loss="focal", focal_gamma=1.5, label_smoothing=0.1, class_weights=(1.0, 0.5, 2.0, 3.0)
    )
    values = ANIMALS


class TestEveryOptionOnOneOutput(TaskContract):
    task = classification(
        ("no", "yes"), "binary-focal", label_smoothing=0.2, class_weights=(0.5, 4.0)
    )
    values = ("yes", "no")


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_smoothed_and_weighted_losses_are_torchs(smoothing: float) -> None:
    random = np.random.default_rng(0)
    outputs, targets = 3 * random.standard_normal((64, 4)), random.integers(0, 4, 64)
    given, weights = (torch.from_numpy(outputs), torch.from_numpy(targets)), (0.5, 1.0, 2.0, 4.0)
    theirs = torch.nn.functional.cross_entropy
    expected = theirs(*given, reduction="none", label_smoothing=smoothing)
    mine = classification(label_smoothing=smoothing).loss(NumpyOps(), outputs, targets)
    np.testing.assert_allclose(mine, expected.numpy(), rtol=1e-9)
    expected = theirs(*given, reduction="none", weight=torch.tensor(weights).double())
    mine = classification(class_weights=weights).loss(NumpyOps(), outputs, targets)
    np.testing.assert_allclose(mine, expected.numpy(), rtol=1e-9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_is_the_papers(gamma: float) -> None:
    """Lin et al. 2017, eq. 4, on softmax; and the same number on one output, whose softmax is over 0 and z."""
    random = np.random.default_rng(0)
    outputs, targets = 3 * random.standard_normal((64, 4)), random.integers(0, 4, 64)
    true = np.take_along_axis(
        np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True), targets[:, None], 1
    )[:, 0]
    expected = -((1 - true) ** gamma) * np.log(true)
    mine = classification(loss="focal", focal_gamma=gamma).loss(NumpyOps(), outputs, targets)
    np.testing.assert_allclose(mine, expected, rtol=1e-9)
    two = classification(("no", "yes"), "focal", focal_gamma=gamma, label_smoothing=0.1)
    one = classification(("no", "yes"), "binary-focal", focal_gamma=gamma, label_smoothing=0.1)
    logit = outputs[:, :1]
    np.testing.assert_allclose(
        one.loss(NumpyOps(), logit, targets % 2),
        two.loss(NumpyOps(), np.concatenate([0 * logit, logit], axis=1), targets % 2),
        rtol=1e-9,
    )


def test_what_is_trained_is_told_beside_the_plain_log_loss() -> None:
    random = np.random.default_rng(0)
    outputs = random.standard_normal((64, 4), dtype=np.float32)
    targets = random.integers(0, 4, 64)
    plain, changed = (
        task.metrics(task.statistics(outputs, targets))
        for task in (
            classification(),
            classification(loss="focal", class_weights=(1.0, 2.0, 3.0, 4.0)),
        )
    )
    assert plain["loss"] == plain["log_loss"] == changed["log_loss"] != changed["loss"]


def test_the_users_own_metrics_have_directions() -> None:
    task = classification(metrics=("mine:top_2", "mine:cost"), lower_is_better=("cost",))
    assert task.higher_is_better("top_2") is True and task.higher_is_better("cost") is False
    with pytest.raises(UnknownMetric, match=r"'csot' is not a metric .*; did you mean 'cost'"):
        task.higher_is_better("csot")


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
