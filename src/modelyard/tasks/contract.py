"""The tests that prove a task; third parties subclass this in their own test suite.

::

    class TestMine(TaskContract):
        task = MyTask(TaskSpec(type="my-task", …))
        values = ["what", "targets", "look", "like", "in", "the", "data"]
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from modelyard.spec.errors import DataError, UsageError
from modelyard.tasks.base import Task
from modelyard.tasks.numpy_ops import NumpyOps as NumpyOps


class TaskContract:
    """Needs ``task``, and ``values``: target values as they stand in the data."""

    task: Task
    values: Sequence[str | float]

    def batch(self, rows: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Outputs of a model that knows nothing, and targets."""
        random = np.random.default_rng(seed)
        outputs = 3 * random.standard_normal((rows, self.task.output_size), dtype=np.float32)
        chosen = [self.values[place] for place in random.integers(0, len(self.values), rows)]
        return outputs, self.task.encode(chosen)

    def test_targets_become_one_number_each(self) -> None:
        targets = self.task.encode(self.values)
        assert targets.shape == (len(self.values),)
        assert targets.dtype in (np.int64, np.float32)
        np.testing.assert_array_equal(targets, self.task.encode(self.values))

    def test_a_value_that_does_not_fit_is_named(self) -> None:
        with pytest.raises(DataError, match="no-such-value"):
            self.task.encode([*self.values, "no-such-value"])

    def test_there_is_one_finite_loss_per_sample(self) -> None:
        outputs, targets = self.batch(17)
        losses = self.task.loss(NumpyOps(), outputs.astype(np.float64), targets)
        assert losses.shape == (17,)
        assert np.isfinite(losses).all()
        assert (losses >= 0).all()

    def test_the_loss_can_be_learnt_from(self) -> None:
        """It changes with the outputs, and by finite amounts."""
        outputs, targets = self.batch(17)
        at, aside = outputs.astype(np.float64), np.zeros(outputs.shape)
        aside[:, 0] = 1e-6
        upper, lower = (self.task.loss(NumpyOps(), at + d, targets) for d in (aside, -aside))
        slopes = (upper - lower) / 2e-6
        assert np.isfinite(slopes).all() and np.abs(slopes).max() > 1e-3

    def test_large_outputs_do_not_overflow_the_loss(self) -> None:
        outputs, targets = self.batch(9)
        losses = self.task.loss(NumpyOps(), 1e4 * outputs.astype(np.float64), targets)
        assert np.isfinite(losses).all()

    def test_the_metric_loss_is_the_mean_of_the_losses(self) -> None:
        outputs, targets = self.batch(23)
        losses = self.task.loss(NumpyOps(), outputs.astype(np.float64), targets)
        metrics = self.task.metrics(self.task.statistics(outputs, targets))
        assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-6)

    @pytest.mark.parametrize("cut", [0, 1, 16, 33])
    def test_statistics_add_up(self, cut: int) -> None:
        """However the samples are shared among batches and workers, an empty share included."""
        outputs, targets = self.batch(33)
        whole = self.task.statistics(outputs, targets)
        parts = self.task.statistics(outputs[:cut], targets[:cut]) + self.task.statistics(
            outputs[cut:], targets[cut:]
        )
        assert whole.ndim == 1
        assert whole.dtype == np.float64
        np.testing.assert_allclose(parts, whole, rtol=1e-12)

    def test_every_metric_is_a_finite_number_with_a_direction(self) -> None:
        metrics = self.task.metrics(self.task.statistics(*self.batch(40)))
        assert "loss" in metrics
        for name, value in metrics.items():
            assert isinstance(value, float)
            assert np.isfinite(value)
            assert isinstance(self.task.higher_is_better(name), bool)
        assert self.task.higher_is_better("loss") is False

    def test_no_samples_give_numbers_too(self) -> None:
        outputs, targets = self.batch(0)
        metrics = self.task.metrics(self.task.statistics(outputs, targets))
        assert all(np.isfinite(value) for value in metrics.values())

    def test_an_unknown_metric_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(UsageError, match=r"'los'.*did you mean 'loss'"):
            self.task.higher_is_better("los")

    def test_every_row_gets_an_answer_that_can_be_sent(self) -> None:
        outputs, _ = self.batch(5)
        answers = self.task.decode(outputs)
        assert len(answers) == 5
        assert json.loads(json.dumps(answers, allow_nan=False)) == answers

    def test_the_confusion_matrix_counts_every_sample_or_is_empty(self) -> None:
        confusion = self.task.confusion(self.task.statistics(*self.batch(50)))
        if confusion:
            assert {len(row) for row in confusion} == {len(confusion)}
            assert sum(map(sum, confusion)) == 50
