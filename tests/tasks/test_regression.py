"""Regression: its loss against torch, its metrics against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sklearn_metrics

from modelyard.spec.errors import DataError
from modelyard.spec.records import TaskSpec
from modelyard.tasks import open_task
from modelyard.tasks.base import Task
from modelyard.tasks.contract import NumpyOps, TaskContract

REGRESSION = open_task(TaskSpec(type="regression", target="price", loss="mean-squared-error"))
NUMBERS = arrays(
    np.float32, st.shared(st.integers(2, 30), key="rows"), elements=st.floats(-100, 100, width=16)
)


class TestRegression(TaskContract):
    task = REGRESSION
    values = (1.5, "2", -3, 0.0)


def robust(loss: str, delta: float = 1.0) -> Task:
    return open_task(TaskSpec(type="regression", target="price", loss=loss, huber_delta=delta))


class TestAbsolute(TaskContract):
    task = robust("mean-absolute-error")
    values = (1.5, "2", -3, 0.0)


class TestHuber(TaskContract):
    task = robust("huber", 0.5)
    values = (1.5, "2", -3, 0.0)


def test_robust_losses_are_torchs() -> None:
    random = np.random.default_rng(0)
    outputs, targets = 3 * random.standard_normal((32, 1)), random.standard_normal(32)
    given = torch.from_numpy(outputs[:, 0]), torch.from_numpy(targets)
    for delta in (0.3, 1.0, 5.0):
        expected = torch.nn.functional.huber_loss(*given, delta=delta, reduction="none")
        found = robust("huber", delta).loss(NumpyOps(), outputs, targets)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)
    expected = torch.nn.functional.l1_loss(*given, reduction="none")
    found = robust("mean-absolute-error").loss(NumpyOps(), outputs, targets)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)


def test_rmse_and_mae_are_the_same_whatever_is_trained() -> None:
    random = np.random.default_rng(1)
    outputs = random.standard_normal((50, 1), dtype=np.float32)
    targets = random.standard_normal(50).astype(np.float32)
    squared, absolute = (
        task.metrics(task.statistics(outputs, targets))
        for task in (REGRESSION, robust("mean-absolute-error"))
    )
    assert squared["loss"] == pytest.approx(squared["rmse"] ** 2)
    assert absolute["loss"] == pytest.approx(absolute["mae"])
    assert {k: v for k, v in squared.items() if k != "loss"} == {
        k: v for k, v in absolute.items() if k != "loss"
    }


def test_the_loss_is_torchs_squared_error() -> None:
    random = np.random.default_rng(0)
    outputs, targets = random.standard_normal((32, 1)), random.standard_normal(32)
    expected = torch.nn.functional.mse_loss(
        torch.from_numpy(outputs[:, 0]), torch.from_numpy(targets), reduction="none"
    )
    np.testing.assert_allclose(
        REGRESSION.loss(NumpyOps(), outputs, targets), expected.numpy(), rtol=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(true=NUMBERS, predicted=NUMBERS)
def test_metrics_are_scikit_learns(
    true: np.ndarray[tuple[int], np.dtype[np.float32]],
    predicted: np.ndarray[tuple[int], np.dtype[np.float32]],
) -> None:
    mine = REGRESSION.metrics(REGRESSION.statistics(predicted[:, None], true))
    squared = sklearn_metrics.mean_squared_error(true.astype(float), predicted.astype(float))
    assert mine["loss"] == pytest.approx(squared)
    assert mine["rmse"] == pytest.approx(np.sqrt(squared))
    assert mine["mae"] == pytest.approx(
        sklearn_metrics.mean_absolute_error(true.astype(float), predicted.astype(float))
    )
    if true.std() > 0.1:
        expected = sklearn_metrics.r2_score(true.astype(float), predicted.astype(float))
        assert mine["r2"] == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_value_comes_back_in_its_own_unit() -> None:
    assert REGRESSION.decode(np.array([[2.5], [-1.0]], dtype=np.float32)) == [
        {"value": 2.5},
        {"value": -1.0},
    ]


def test_equal_targets_have_no_spread_to_explain() -> None:
    ones = np.ones(5, dtype=np.float32)
    assert REGRESSION.metrics(REGRESSION.statistics(ones[:, None] * 2, ones))["r2"] == 0.0


@pytest.mark.parametrize(("value", "told"), [("cheap", "cheap"), ("nan", "sample 1 is nan")])
def test_a_target_that_is_no_number_is_named(value: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        REGRESSION.encode([1.0, value])
