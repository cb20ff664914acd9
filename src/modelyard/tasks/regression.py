"""Regression: one number per sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import DataError
from modelyard.spec.records import TaskSpec
from modelyard.tasks.base import Ops, Task, Tensor
from modelyard.tasks.losses import huber

_METRICS = {"loss": False, "rmse": False, "mae": False, "r2": True}


class Regression(Task):
    """Squared, absolute or Huber error on one output; the value is predicted in its own unit."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @property
    def output_size(self) -> int:
        return 1

    def encode(self, values: Sequence[str | float]) -> NDArray[np.float32]:
        try:
            numbers = np.array([float(value) for value in values], dtype=np.float64)
        except ValueError as error:
            raise DataError(
                f"the target of a regression must be a number: {error}",
                'mend the column, or set task.type = "classification"',
            ) from error
        if not np.isfinite(numbers).all():
            place = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise DataError(
                f"the target of sample {place} is {numbers[place]}, not a finite number"
            )
        return numbers.astype(np.float32)

    def loss(self, ops: Ops, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of the error e = z - y: e^2, whose mean is the mean squared error (*Deep Learning*, 2016, eq. 5.4); |e|; or Huber's."""
        error = ops.reshape(outputs, (-1,)) - targets
        if self.spec.loss == "mean-absolute-error":
            return ops.absolute(error)
        if self.spec.loss == "huber":
            return huber(ops, error, self.spec.huber_delta)
        return ops.square(error)

    def statistics(
        self, outputs: NDArray[np.float32], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        """``[samples, summed loss, sum of squared errors, of absolute errors, of y, of y^2]``."""
        predicted, true = outputs.reshape(-1).astype(np.float64), targets.astype(np.float64)
        error = predicted - true
        squared, absolute = (error**2).sum(), np.abs(error).sum()
        summed = self.losses_of_arrays(outputs, targets).sum()
        return np.array(
            [len(true), summed, squared, absolute, true.sum(), (true**2).sum()], np.float64
        )

    def metrics(self, statistics: NDArray[np.float64]) -> dict[str, float]:
        samples, summed, squared, absolute, total, total_squared = statistics
        samples = max(samples, 1.0)
        spread = total_squared - total**2 / samples
        return {
            "loss": float(summed / samples),
            "rmse": float(np.sqrt(squared / samples)),
            "mae": float(absolute / samples),
            "r2": float(1 - squared / spread) if spread > 0 else 0.0,
        }

    def higher_is_better(self, metric: str) -> bool:
        return self.direction(metric, _METRICS)

    def decode(self, outputs: NDArray[np.float32]) -> list[dict[str, Any]]:
        return [{"value": float(value)} for value in outputs.reshape(-1)]

    def confusion(self, statistics: NDArray[np.float64]) -> tuple[tuple[int, ...], ...]:
        return ()
