"""A loss of the user's own: what it is, and whether it can be trained with.

It is a function of the project, in one of two forms, told apart by how much it takes:

- ``loss(ops, outputs, targets)``: written over ``Ops``, so that it works on every framework;
- ``loss(outputs, targets)``: in the tensors of the framework that trains.

``outputs`` are float32 (n, output size) as the model gives them, ``targets`` (n,) class indices or
float32; it gives one loss a sample, (n,).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.spec.errors import ModelError, YardError

Array = NDArray[Any]
Differentiate = Callable[[Callable[..., Any], Array, Array], tuple[Array, Array | None]]
"""A backend's: ``(function(outputs, targets), outputs, targets)`` -> its values, and the slope of their sum
by the outputs; None where there is none."""
_SAMPLES = 8


@dataclass(frozen=True)
class OwnLoss:
    """A function that was found in the user's code."""

    name: str
    """``module:function``."""
    function: Callable[..., Any]
    over_ops: bool
    place: str
    """Its file and line."""
    differentiate: Differentiate | None = None
    """Where it is framework code: how its values are found for NumPy arrays."""

    def __call__(self, ops: Any, outputs: Any, targets: Any) -> Any:
        return (
            self.function(ops, outputs, targets)
            if self.over_ops
            else self.function(outputs, targets)
        )

    def on(self, differentiate: Differentiate) -> "OwnLoss":
        """The same, able to be evaluated in the terms of one backend."""
        return self if self.over_ops else replace(self, differentiate=differentiate)

    def of_arrays(self, ops: Any, outputs: Array, targets: Array) -> Array:
        """Its values for NumPy arrays, (n,) float64; ``ops`` are NumPy's."""
        if not len(outputs):  # the user's function need not be ready for nothing
            found = np.zeros(0)
        elif self.over_ops:
            found = self.function(ops, outputs.astype(np.float64), targets)
        elif self.differentiate is None:
            raise RuntimeError(f"{self.name} needs the framework that it is written for")
        else:
            found, _ = self.differentiate(self.function, outputs, targets)
        return np.asarray(found, np.float64)


def try_own_loss(
    own: OwnLoss, ops: Any, differentiate: Differentiate, output_size: int, classes: int
) -> None:
    """One try on made-up outputs; ``classes`` is 0 where targets are numbers.

    Raises ModelError where the function raises, or does not give one finite number a sample that
    changes with the outputs.
    """
    random = np.random.default_rng(0)
    outputs = random.standard_normal((_SAMPLES, output_size), dtype=np.float32)
    numbers = random.standard_normal(_SAMPLES, dtype=np.float32)
    targets = np.arange(_SAMPLES, dtype=np.int64) % classes if classes else numbers
    try:
        losses, slopes = differentiate(
            lambda outputs, targets: own(ops, outputs, targets), outputs, targets
        )
    except YardError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"{_named(own)} raised {type(error).__name__}: {reason}",
            f"mend the code there; it is given {_given(own, output_size, targets)}",
        ) from error
    if losses.shape != (_SAMPLES,):
        single = losses.shape in ((), (1,))
        raise ModelError(
            f"{_named(own)} gave shape {losses.shape} for {_SAMPLES} samples, expected ({_SAMPLES},)",
            "leave out the mean over the samples: Modelyard takes it over all workers"
            if single
            else "return one loss for each sample",
        )
    if not np.isfinite(losses).all():
        bad = float(losses[~np.isfinite(losses)][0])
        raise ModelError(
            f"{_named(own)} gave {bad} for outputs between -3 and 3",
            "the outputs are logits or values as the model gives them: not probabilities, and may be negative",
        )
    if slopes is None or not np.any(slopes):
        raise ModelError(
            f"{_named(own)} cannot be differentiated: its result does not change with the outputs",
            "leave out what has no slope: argmax, rounding, comparisons, a detour over NumPy",
        )
    if not np.isfinite(slopes).all():
        raise ModelError(
            f"{_named(own)} has slopes that are not finite numbers",
            "a square root or a power at 0 does that: add a small number inside",
        )


def _named(own: OwnLoss) -> str:
    return f"task.loss = {own.name!r} ({own.place})"


def _given(own: OwnLoss, output_size: int, targets: Array) -> str:
    ops = "ops, " if own.over_ops else ""
    return f"({ops}outputs of shape (n, {output_size}), targets of shape (n,) {targets.dtype})"
