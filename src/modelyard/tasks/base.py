"""What a task must do, and the maths it may ask of a backend.

A task is the meaning of the model's outputs. It turns target values into an array, says how large
the output is, gives one loss per sample, and turns outputs into metrics and into an answer for
people. It is written once for every framework: the loss sees only ``Ops``, everything else is NumPy.

Metrics come from *statistics*: an array that can be added up over batches and over workers, so that
an evaluation gives the same numbers whatever the number of workers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.records import TaskSpec

Tensor = Any
"""A tensor of whichever framework trains."""


class Ops(Protocol):
    """The maths that losses are written in; each backend gives its own. All act on the last axis or elementwise."""

    def log_softmax(self, x: Tensor) -> Tensor: ...
    def log_sigmoid(self, x: Tensor) -> Tensor: ...
    def take(self, x: Tensor, index: Tensor) -> Tensor:
        """``x[i, index[i]]`` for every row i: (n, k), (n,) -> (n,)."""
        ...

    def square(self, x: Tensor) -> Tensor: ...
    def mean_last(self, x: Tensor) -> Tensor:
        """Mean over the last axis."""
        ...

    def reshape(self, x: Tensor, shape: tuple[int, ...]) -> Tensor: ...


class Task(ABC):
    """The contract; one file per task in this folder."""

    spec: TaskSpec

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
