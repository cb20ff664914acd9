"""The part of a backend's contract that is about losses: the built-in ones, and the user's own over ``Ops``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.backends import open_backend
from modelyard.backends.base import Backend, Batch, State, StepSettings
from modelyard.spec.errors import ModelError
from modelyard.spec.records import TaskSpec
from modelyard.tasks import open_task
from modelyard.tasks.numpy_ops import NumpyOps
from modelyard.tasks.own_loss import OwnLoss


def classification(loss: str, classes: tuple[str, ...], **options: Any) -> TaskSpec:
    return TaskSpec(type="classification", target="label", loss=loss, classes=classes, **options)


Weights = Mapping[str, NDArray[Any]]
_THREE, _TWO = ("a", "b", "c"), ("no", "yes")
_LOSSES = (
    classification("cross-entropy", _THREE),
    classification("cross-entropy", _THREE, label_smoothing=0.1, class_weights=(0.5, 1.0, 3.0)),
    classification("focal", _THREE, focal_gamma=0.5),
    classification("focal", _THREE, label_smoothing=0.1),
    classification("binary-cross-entropy", _TWO),
    classification("binary-focal", _TWO, label_smoothing=0.1, class_weights=(1.0, 2.0)),
    TaskSpec(type="regression", target="value", loss="mean-squared-error"),
    TaskSpec(type="regression", target="value", loss="mean-absolute-error"),
    TaskSpec(type="regression", target="value", loss="huber", huber_delta=0.7),
)


class LossContract:
    """What ``BackendContract`` takes in."""

    case: ClassVar[Any]

    def begun(self, loss: OwnLoss | None = None) -> tuple[Backend, State]:
        """A training by plain sgd of a model with three classes, always with the same first weights."""
        raise NotImplementedError

    def samples(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Inputs and targets, always the same."""
        raise NotImplementedError

    def after(self, batch: Batch, loss: OwnLoss | None = None) -> Weights:
        """The weights after one step."""
        backend, state = self.begun(loss)
        state, _ = backend.step(state, batch, StepSettings(learning_rate=0.1, seed=0))
        return backend.snapshot(state).tensors

    def test_every_loss_is_what_numpy_computes(self) -> None:
        """Of each built-in loss, with its options: the values, and finite slopes also where a class is certain."""
        backend, random = open_backend(self.case.backend), np.random.default_rng(0)
        for spec in _LOSSES:
            task = open_task(spec)
            outputs = 3 * random.standard_normal((12, task.output_size), dtype=np.float32)
            outputs[0] = 60 * np.eye(task.output_size, dtype=np.float32)[0]
            targets: NDArray[Any] = np.arange(12) % max(1, len(spec.classes))
            if not spec.classes:
                targets = random.standard_normal(12, dtype=np.float32)
            found, slopes = backend.differentiate(partial(task.loss, backend.ops), outputs, targets)
            expected = task.loss(NumpyOps(), outputs.astype(np.float64), targets)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=str(spec))
            assert slopes is not None and np.isfinite(slopes).all() and slopes.any(), spec

    def test_a_loss_of_the_users_own_is_trained(self) -> None:
        """Over ``Ops``: that which is the built-in loss gives the same weights, and a bad one is refused."""

        def plain(ops: Any, outputs: Any, targets: Any) -> Any:
            return -ops.take(ops.log_softmax(outputs), targets)

        own = OwnLoss(name="m:plain", function=plain, over_ops=True, place="m.py:1")
        inputs, targets = self.samples(6)
        batch = Batch(inputs=inputs, targets=targets, global_size=6)
        _assert_close(self.after(batch, own), self.after(batch), 1e-6)
        whole = replace(own, function=lambda ops, *given: ops.mean_last(plain(ops, *given)))
        try:
            self.begun(whole)
        except ModelError as error:
            assert "m.py:1" in error.what and "leave out the mean" in error.mend
        else:
            raise AssertionError("a loss that gives one number for all samples was taken")

    def test_a_blend_of_two_labels_has_a_blend_of_their_losses(self) -> None:
        inputs, targets = self.samples(6)
        others = (targets + 1) % len(_THREE)
        first = np.arange(6, dtype=np.float32) % 2  # which label a sample has, or its share
        blend = Batch(inputs=inputs, targets=targets, global_size=6, other_targets=others)
        plain = Batch(inputs=inputs, targets=np.where(first, targets, others), global_size=6)
        half, swapped = np.full(6, 0.5, np.float32), {"targets": others, "other_targets": targets}
        blends = [msgspec.structs.replace(blend, weight=share) for share in (first, half)]
        _assert_close(self.after(plain), self.after(blends[0]), 1e-6)
        turned = msgspec.structs.replace(blends[1], **swapped)
        _assert_close(self.after(blends[1]), self.after(turned), 1e-6)


def _assert_close(left: Weights, right: Weights, limit: float) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_allclose(array, right[name], atol=limit, err_msg=name)
