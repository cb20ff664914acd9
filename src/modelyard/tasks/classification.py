"""Classification: one of several classes, from images, tables or tensors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import DataError, did_you_mean
from modelyard.spec.losses import BINARY, FOCAL
from modelyard.spec.records import TaskSpec
from modelyard.tasks.base import Ops, Task, Tensor
from modelyard.tasks.losses import focused, smoothed, weighted

_METRICS = {
    "loss": False,
    "log_loss": False,
    "accuracy": True,
    "balanced_accuracy": True,
    "f1": True,
    "precision": True,
    "recall": True,
}


class Classification(Task):
    """Cross-entropy or focal loss over all classes, or of two classes on a single output."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._index = {name: number for number, name in enumerate(spec.classes)}
        self._binary = spec.loss in BINARY
        self._gamma = spec.focal_gamma if spec.loss in FOCAL else 0.0
        if self._binary and len(spec.classes) != 2:
            raise DataError(
                f"{spec.loss} needs two classes, the data has {len(spec.classes)}",
                f'set task.loss = "{spec.loss.removeprefix("binary-")}"',
            )

    @property
    def output_size(self) -> int:
        return 1 if self._binary else len(self.spec.classes)

    def encode(self, values: Sequence[str | float]) -> NDArray[np.int64]:
        try:
            return np.array([self._index[str(value)] for value in values], dtype=np.int64)
        except KeyError as error:
            name = str(error.args[0])
            hint = did_you_mean(name, self._index)
            raise DataError(
                f"{name!r} is not one of the classes {', '.join(self._index)}{hint}"
            ) from error

    def loss(self, ops: Ops, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of the true class, in nats; focal, smoothed and weighted where asked for.

        Cross-entropy: -log softmax(z)[y] (Goodfellow, Bengio, Courville, *Deep Learning*, 2016, eq. 6.29-6.30).
        On one output z: -(y log s(z) + (1 - y) log s(-z)), s the logistic function
        (same book, section 6.2.2.2), written on log s so that it does not overflow.
        The others are in ``losses.py``.
        """
        spec, gamma, mean = self.spec, self._gamma, None
        if self._binary:
            logit = ops.reshape(outputs, (-1,))
            yes = focused(ops, ops.log_sigmoid(logit), gamma)
            no = focused(ops, ops.log_sigmoid(-logit), gamma)
            label = ops.lookup(
                (0.0, 1.0), targets
            )  # not every framework multiplies whole numbers with others
            losses = label * yes + (1 - label) * no
            mean = 0.5 * (yes + no) if spec.label_smoothing else None
        elif spec.label_smoothing:
            each = focused(ops, ops.log_softmax(outputs), gamma)
            losses, mean = ops.take(each, targets), ops.mean_last(each)
        else:
            losses = focused(ops, ops.take(ops.log_softmax(outputs), targets), gamma)
        if mean is not None:
            losses = smoothed(losses, mean, spec.label_smoothing)
        return weighted(ops, losses, spec.class_weights, targets) if spec.class_weights else losses

    def statistics(
        self, outputs: NDArray[np.float32], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        """``[samples, summed loss, summed log loss, confusion matrix row by row]``."""
        classes = len(self.spec.classes)
        log_probabilities = self._log_probabilities(outputs)
        predicted = log_probabilities.argmax(axis=1)
        log_loss = -log_probabilities[np.arange(len(targets)), targets].sum()
        summed = log_loss if self._plain else self.losses_of_arrays(outputs, targets).sum()
        cells = np.bincount(targets * classes + predicted, minlength=classes * classes)
        return np.concatenate([[len(targets), summed, log_loss], cells]).astype(np.float64)

    def metrics(self, statistics: NDArray[np.float64]) -> dict[str, float]:
        """``loss`` is what is trained, ``log_loss`` the plain cross-entropy, which no option changes.

        f1, precision and recall are macro means (classes that never occur are left out).
        """
        samples = max(statistics[0], 1.0)
        matrix = self._matrix(statistics)
        right, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
        occurs = (true + predicted) > 0
        recall = right / np.maximum(true, 1)
        precision = right / np.maximum(predicted, 1)
        f1 = 2 * right / np.maximum(true + predicted, 1)
        return {
            "loss": float(statistics[1] / samples),
            "log_loss": float(statistics[2] / samples),
            "accuracy": float(right.sum() / samples),
            "balanced_accuracy": float(recall[true > 0].mean()) if (true > 0).any() else 0.0,
            "f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
            "precision": float(precision[occurs].mean()) if occurs.any() else 0.0,
            "recall": float(recall[occurs].mean()) if occurs.any() else 0.0,
        }

    def higher_is_better(self, metric: str) -> bool:
        return self.direction(metric, _METRICS)

    def decode(self, outputs: NDArray[np.float32]) -> list[dict[str, Any]]:
        names = self.spec.classes
        answers = []
        for row in np.exp(self._log_probabilities(outputs)):
            best = int(row.argmax())
            answers.append(
                {
                    "label": names[best],
                    "probability": float(row[best]),
                    "probabilities": dict(zip(names, map(float, row), strict=True)),
                }
            )
        return answers

    def confusion(self, statistics: NDArray[np.float64]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(int(cell) for cell in row) for row in self._matrix(statistics))

    @property
    def _plain(self) -> bool:
        """The loss that is trained is the log loss."""
        changed = self._gamma or self.spec.label_smoothing or self.spec.class_weights
        return self.own_loss is None and not changed

    def _matrix(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        classes = len(self.spec.classes)
        return statistics[3:].reshape(classes, classes)

    def _log_probabilities(self, outputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, classes) log-probabilities in nats, shifted by the largest logit so that nothing overflows."""
        logits = outputs.astype(np.float64)
        if self._binary:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        shifted = logits - logits.max(axis=1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return result
