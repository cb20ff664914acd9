"""What a task must do, and the maths it may ask of a backend.

A task is the meaning of the model's outputs. It turns target values into an array, says how large
the output is, gives one loss per sample, and turns outputs into metrics and into an answer for
people. It is written once for every framework: the loss sees only ``Ops``, everything else is NumPy.

Metrics come from *statistics*: an array that can be added up over batches and over workers, so that
an evaluation gives the same numbers whatever the number of workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import UnknownMetric
from modelyard.spec.losses import is_own, metric_name
from modelyard.spec.records import TaskSpec
from modelyard.tasks.numpy_ops import NumpyOps
from modelyard.tasks.own_loss import OwnLoss

Tensor = Any
"""A tensor of whichever framework trains."""


class Ops(Protocol):
    """The maths that losses are written in; each backend gives its own. All act on the last axis or elementwise."""

    def log_softmax(self, x: Tensor) -> Tensor: ...
    def log_sigmoid(self, x: Tensor) -> Tensor: ...
    def take(self, x: Tensor, index: Tensor) -> Tensor:
        """``x[i, index[i]]`` for every row i: (n, k), (n,) -> (n,)."""
        ...

    def lookup(self, values: Sequence[float], index: Tensor) -> Tensor:
        """``values[index[i]]`` for every i, float32: k numbers, (n,) -> (n,)."""
        ...

    def square(self, x: Tensor) -> Tensor: ...
    def exp(self, x: Tensor) -> Tensor: ...
    def absolute(self, x: Tensor) -> Tensor: ...
    def power(self, x: Tensor, exponent: float) -> Tensor:
        """``x ** exponent``, for x > 0."""
        ...

    def minimum(self, x: Tensor, limit: float) -> Tensor: ...
    def mean_last(self, x: Tensor) -> Tensor:
        """Mean over the last axis."""
        ...

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor: ...


class Task(ABC):
    """The contract; one file per task in this folder."""

    spec: TaskSpec
    own_loss: OwnLoss | None = None
    """The user's, where ``spec.loss`` names one and the task was opened to be trained."""

    @property
    @abstractmethod
    def output_size(self) -> int:
        """Numbers per sample that the model must return: its output is float32 (batch, output_size)."""

    @abstractmethod
    def encode(self, values: Sequence[str | float]) -> NDArray[Any]:
        """Target values as they stand in the data -> int64 (n,) class indices or float32 (n,).

        Raises DataError naming the value that does not fit.
        """

    @abstractmethod
    def loss(self, ops: Ops, outputs: Tensor, targets: Tensor) -> Tensor:
        """One loss per sample: (n, output_size), (n,) -> (n,)."""

    def losses(self, ops: Ops, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is trained, (n,): the user's own loss where there is one, else ``loss``."""
        if self.own_loss is not None:
            return self.own_loss(ops, outputs, targets)
        if is_own(self.spec.loss):
            raise RuntimeError(f"the task was opened without its loss {self.spec.loss}")
        return self.loss(ops, outputs, targets)

    def losses_of_arrays(
        self, outputs: NDArray[np.float32], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        """``losses`` in NumPy, (n,) float64: what ``statistics`` adds up as the metric ``loss``."""
        if self.own_loss is not None:
            return self.own_loss.of_arrays(NumpyOps(), outputs, targets)
        found: NDArray[np.float64] = self.loss(NumpyOps(), outputs.astype(np.float64), targets)
        return found

    def direction(self, metric: str, built_in: Mapping[str, bool]) -> bool:
        """Whether more of ``metric`` is better: one of ``built_in`` or of the user's own. Raises UnknownMetric."""
        own = {metric_name(name): True for name in self.spec.metrics}
        known = {**own, **dict.fromkeys(self.spec.lower_is_better, False), **built_in}
        if metric not in known:
            raise UnknownMetric(self.spec.type, metric, known)
        return known[metric]

    @abstractmethod
    def statistics(
        self, outputs: NDArray[np.float32], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        """A flat array of fixed length that may be added up over batches and workers."""

    @abstractmethod
    def metrics(self, statistics: NDArray[np.float64]) -> dict[str, float]:
        """``loss`` and the task's metrics from summed statistics."""

    @abstractmethod
    def higher_is_better(self, metric: str) -> bool:
        """Raises UsageError for a metric that this task does not have."""

    @abstractmethod
    def decode(self, outputs: NDArray[np.float32]) -> list[dict[str, Any]]:
        """One answer per row, JSON-able: ``{"label", "probability", "probabilities"}`` or ``{"value"}``."""

    @abstractmethod
    def confusion(self, statistics: NDArray[np.float64]) -> tuple[tuple[int, ...], ...]:
        """Rows true, columns predicted; empty where the task has no classes."""
