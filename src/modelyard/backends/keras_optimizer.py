"""The optimizers' update rules, written once in Keras' own operations: the formulas of PyTorch's kernels."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from keras import ops
from numpy.typing import NDArray

from modelyard.backends.base import OptimizerSettings
from modelyard.spec.errors import TrainingError, nearest

Tensor = Any
_BETA1, _BETA2, EPSILON = 0.9, 0.999, 1e-8
RATE, STEP_SIZE, ROOT = range(3)
"""Places in ``factors``: the learning rate; it with the first moment's bias corrected; the second's root."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How one weight changes, and which quantities of its shape are kept for that."""

    name: str
    slots: tuple[str, ...]
    update: Callable[[Tensor, Tensor, list[Tensor], Tensor, float], tuple[Tensor, list[Tensor]]]
    """weight, gradient, slots, factors, weight decay -> weight, slots"""
    adaptive: bool = False
    """Of Adam's kind, for which TensorFlow has a kernel."""
    decoupled: bool = False
    """Decay acts on the weights and not through the gradients."""


def choose_rule(settings: OptimizerSettings) -> Rule:
    """Raises TrainingError for an optimizer that is not here."""
    match settings.name:
        case "sgd":
            kept = ("momentum_buffer",) if settings.momentum else ()
            return Rule(name="sgd", slots=kept, update=_sgd(settings.momentum))
        case "adam" | "adamw":
            slots = ("exp_avg", "exp_avg_sq")
            decoupled = settings.name == "adamw"
            return Rule(
                name=settings.name, slots=slots, update=_adam, adaptive=True, decoupled=decoupled
            )
    known = ("sgd", "adam", "adamw")
    close = nearest(settings.name, known)
    hint = f"; did you mean {close!r}?" if close else ""
    raise TrainingError(
        f"the keras backend has no optimizer {settings.name!r}{hint}", "use sgd, adam or adamw"
    )


def factors(rate: float, steps: int) -> NDArray[np.float32]:
    """Of step number ``steps``, counted from 1; computed in float64 as PyTorch does."""
    first, second = 1 - _BETA1**steps, 1 - _BETA2**steps
    return np.array([rate, rate / first, math.sqrt(second)], np.float32)


def decay_of(settings: OptimizerSettings, shape: tuple[int, ...]) -> float:
    """None for norms and biases, which have fewer than two axes, and none with Adam."""
    return settings.weight_decay if len(shape) >= 2 and settings.name != "adam" else 0.0


def _sgd(momentum: float) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    def update(
        weight: Tensor, gradient: Tensor, slots: list[Tensor], factors: Tensor, decay: float
    ) -> tuple[Tensor, list[Tensor]]:
        if decay:
            gradient = gradient + weight * decay
        if slots:
            gradient = slots[0] * momentum + gradient
            slots = [gradient]
        return weight - gradient * factors[RATE], slots

    return update


def _adam(
    weight: Tensor, gradient: Tensor, slots: list[Tensor], factors: Tensor, decay: float
) -> tuple[Tensor, list[Tensor]]:
    """Adam (Kingma and Ba, 2015); with ``decay`` AdamW (Loshchilov and Hutter, 2019)."""
    if decay:
        weight = weight * (1.0 - factors[RATE] * decay)
    first = slots[0] + (gradient - slots[0]) * (1 - _BETA1)
    second = slots[1] * _BETA2 + gradient * gradient * (1 - _BETA2)
    step = first / (ops.sqrt(second) / factors[ROOT] + EPSILON)
    return weight - step * factors[STEP_SIZE], [first, second]
