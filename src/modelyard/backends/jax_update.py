"""The optimizers' arithmetic in JAX: number for number what PyTorch's optimizers do, so that both learn alike.

The state is a dictionary: a quantity's name to one array for each parameter, and ``step`` to how
many steps there were.
The papers are named beside the optimizers' table, in ``spec/optimizers.py``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from modelyard.backends.base import OptimizerSettings
from modelyard.backends.optimizers import check_name, is_decoupled, quantities
from modelyard.backends.parameter_rules import Treatment

Arrays = list[jax.Array]
State = dict[str, Any]
Update = Callable[[Arrays, Arrays, State, jax.Array], tuple[Arrays, State]]
"""Parameters, gradients, state, learning rate -> new parameters and state."""
Held = tuple[jax.Array, ...]
"""Of one parameter: the quantities that are kept, in their order."""
Move = Callable[[jax.Array, jax.Array, Held, jax.Array], tuple[jax.Array, Held]]
"""Parameter, gradient, what is kept of it, learning rate -> the new ones."""


def make_update(settings: OptimizerSettings, treated: Sequence[Treatment]) -> Update:
    """``treated``: how each parameter is. Raises TrainingError for an optimizer that is not there."""
    check_name(settings, "jax")
    names, decoupled = quantities(settings), is_decoupled(settings)

    def update(
        parameters: Arrays, gradients: Arrays, state: State, rate: jax.Array
    ) -> tuple[Arrays, State]:
        step = state["step"] + 1
        move = _MOVES[settings.name](settings, step)
        moved: Arrays = []
        after: dict[str, Arrays] = {name: [] for name in names}
        for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            decay, scale = treated[place].decay, treated[place].scale
            own_rate = rate if scale == 1.0 else rate * scale
            if decay and decoupled:
                parameter = parameter * (1 - own_rate * decay)  # noqa: PLW2901
            elif decay:
                gradient = gradient + decay * parameter  # noqa: PLW2901
            held = tuple(state[name][place] for name in names)
            parameter, held = move(parameter, gradient, held, own_rate)  # noqa: PLW2901
            moved.append(parameter)
            for name, value in zip(names, held, strict=True):
                after[name].append(value)
        return moved, {**after, "step": step}

    return update


def begin_state(settings: OptimizerSettings, parameters: Arrays) -> State:
    """Zeros, and no step yet."""
    state: State = {
        quantity: [jnp.zeros_like(parameter) for parameter in parameters]
        for quantity in quantities(settings)
    }
    return {**state, "step": jnp.zeros((), jnp.float32)}


def _sgd(settings: OptimizerSettings, step: jax.Array) -> Move:  # noqa: ARG001
    momentum, nesterov = settings.momentum, settings.nesterov

    def move(
        parameter: jax.Array, gradient: jax.Array, held: Held, rate: jax.Array
    ) -> tuple[jax.Array, Held]:
        if held:
            held = (momentum * held[0] + gradient,)
            gradient = gradient + momentum * held[0] if nesterov else held[0]
        return parameter - rate * gradient, held

    return move


def _adam(settings: OptimizerSettings, step: jax.Array) -> Move:
    (beta1, beta2), epsilon = settings.betas, settings.epsilon
    # expm1 keeps the digits that 1 - 0.999^step would lose in float32.
    first_bias, second_bias = (
        -jnp.expm1(step * math.log(beta)) if beta else jnp.float32(1) for beta in (beta1, beta2)
    )
    root = jnp.sqrt(second_bias)

    def move(
        parameter: jax.Array, gradient: jax.Array, held: Held, rate: jax.Array
    ) -> tuple[jax.Array, Held]:
        size = rate / first_bias
        first = held[0] + (1 - beta1) * (gradient - held[0])
        second = beta2 * held[1] + (1 - beta2) * gradient * gradient
        return parameter - size * first / (jnp.sqrt(second) / root + epsilon), (first, second)

    return move


def _rmsprop(settings: OptimizerSettings, step: jax.Array) -> Move:  # noqa: ARG001
    rho, momentum, epsilon = settings.rho, settings.momentum, settings.epsilon

    def move(
        parameter: jax.Array, gradient: jax.Array, held: Held, rate: jax.Array
    ) -> tuple[jax.Array, Held]:
        square = rho * held[0] + (1 - rho) * gradient * gradient
        change = gradient / (jnp.sqrt(square) + epsilon)
        if not momentum:
            return parameter - rate * change, (square,)
        change = momentum * held[1] + change
        return parameter - rate * change, (square, change)

    return move


def _adagrad(settings: OptimizerSettings, step: jax.Array) -> Move:  # noqa: ARG001
    def move(
        parameter: jax.Array, gradient: jax.Array, held: Held, rate: jax.Array
    ) -> tuple[jax.Array, Held]:
        total = held[0] + gradient * gradient
        return parameter - rate * gradient / (jnp.sqrt(total) + settings.epsilon), (total,)

    return move


def _lion(settings: OptimizerSettings, step: jax.Array) -> Move:  # noqa: ARG001
    first, second = settings.betas

    def move(
        parameter: jax.Array, gradient: jax.Array, held: Held, rate: jax.Array
    ) -> tuple[jax.Array, Held]:
        change = jnp.sign(first * held[0] + (1 - first) * gradient)
        return parameter - rate * change, (second * held[0] + (1 - second) * gradient,)

    return move


_MOVES: dict[str, Callable[[OptimizerSettings, jax.Array], Move]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adam,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "lion": _lion,
}
