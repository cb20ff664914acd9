"""The optimizers' update rules, written once in Keras' own operations: the formulas of PyTorch's kernels.

The papers are named beside the optimizers' table, in ``spec/optimizers.py``.
"""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from keras import ops
from numpy.typing import NDArray

from modelyard.backends.base import OptimizerSettings
from modelyard.backends.optimizers import check_name, is_decoupled, quantities
from modelyard.backends.parameter_rules import Treatment

Tensor = Any
RATE, STEP_SIZE, ROOT, STEPS = range(4)
"""Places in ``factors``: the learning rate; it with the first moment's bias corrected; the second's root; how many
steps there were, this one included."""
Move = Callable[[Tensor, Tensor, list[Tensor], Tensor], tuple[Tensor, list[Tensor]]]
"""weight, gradient, slots, factors -> weight, slots"""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of a step's gradients; None: none."""

    norm: float | None
    value: float | None
    """Of each number by itself, before the norm."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How one weight changes, and which quantities of its shape are kept for that."""

    name: str
    slots: tuple[str, ...]
    update: Callable[[Tensor, Tensor, list[Tensor], Tensor, Treatment], tuple[Tensor, list[Tensor]]]
    """weight, gradient, slots, factors, how it is treated -> weight, slots"""
    betas: tuple[float, float]
    epsilon: float
    adaptive: bool
    """Of Adam's kind, for which TensorFlow and PyTorch have kernels."""
    decoupled: bool
    """Decay acts on the weights and not through the gradients."""


def choose_rule(settings: OptimizerSettings) -> Rule:
    """Raises TrainingError for an optimizer that is not here."""
    check_name(settings, "keras")
    moves = {"sgd": _sgd, "rmsprop": _rmsprop, "adagrad": _adagrad, "lion": _lion}
    decoupled = is_decoupled(settings)
    return Rule(
        name=settings.name,
        slots=quantities(settings),
        update=_with_decay(moves.get(settings.name, _adam)(settings), decoupled=decoupled),
        betas=settings.betas,
        epsilon=settings.epsilon,
        adaptive=settings.name in ("adam", "adamw"),
        decoupled=decoupled,
    )


def factors(rate: float, steps: int, betas: tuple[float, float]) -> NDArray[np.float32]:
    """Of step number ``steps``, counted from 1; computed in float64 as PyTorch does."""
    first, second = 1 - betas[0] ** steps, 1 - betas[1] ** steps
    return np.array([rate, rate / first, math.sqrt(second), steps], np.float32)


def _with_decay(move: Move, *, decoupled: bool) -> Callable[..., tuple[Tensor, list[Tensor]]]:
    def update(
        weight: Tensor, gradient: Tensor, slots: list[Tensor], factors: Tensor, treated: Treatment
    ) -> tuple[Tensor, list[Tensor]]:
        decay, scale = treated.decay, treated.scale
        if scale != 1.0:
            factors = [factors[RATE] * scale, factors[STEP_SIZE] * scale, factors[ROOT]]
        if decay and decoupled:
            weight = weight * (1.0 - factors[RATE] * decay)
        elif decay:
            gradient = gradient + weight * decay
        return move(weight, gradient, slots, factors)

    return update


def _sgd(settings: OptimizerSettings) -> Move:
    momentum, nesterov = settings.momentum, settings.nesterov

    def move(
        weight: Tensor, gradient: Tensor, slots: list[Tensor], factors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        if slots:
            slots = [slots[0] * momentum + gradient]
            gradient = gradient + slots[0] * momentum if nesterov else slots[0]
        return weight - gradient * factors[RATE], slots

    return move


def _rmsprop(settings: OptimizerSettings) -> Move:
    rho, momentum, epsilon = settings.rho, settings.momentum, settings.epsilon

    def move(
        weight: Tensor, gradient: Tensor, slots: list[Tensor], factors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        square = slots[0] * rho + gradient * gradient * (1 - rho)
        step, kept = gradient / (ops.sqrt(square) + epsilon), [square]
        if momentum:
            step = slots[1] * momentum + step
            kept = [square, step]
        return weight - step * factors[RATE], kept

    return move


def _adagrad(settings: OptimizerSettings) -> Move:
    epsilon = settings.epsilon

    def move(
        weight: Tensor, gradient: Tensor, slots: list[Tensor], factors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        total = slots[0] + gradient * gradient
        return weight - gradient / (ops.sqrt(total) + epsilon) * factors[RATE], [total]

    return move


def _lion(settings: OptimizerSettings) -> Move:
    first, second = settings.betas

    def move(
        weight: Tensor, gradient: Tensor, slots: list[Tensor], factors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        step = ops.sign(slots[0] * first + gradient * (1 - first))
        return weight - step * factors[RATE], [slots[0] * second + gradient * (1 - second)]

    return move


def _adam(settings: OptimizerSettings) -> Move:
    (beta1, beta2), epsilon = settings.betas, settings.epsilon

    def move(
        weight: Tensor, gradient: Tensor, slots: list[Tensor], factors: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        first = slots[0] + (gradient - slots[0]) * (1 - beta1)
        second = slots[1] * beta2 + gradient * gradient * (1 - beta2)
        step = first / (ops.sqrt(second) / factors[ROOT] + epsilon)
        return weight - step * factors[STEP_SIZE], [first, second]

    return move
