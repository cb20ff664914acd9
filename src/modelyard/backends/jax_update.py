"""The optimizers' arithmetic in JAX: number for number what PyTorch's optimizers do, so that both learn alike.

The state is a dictionary: a quantity's name to one array for each parameter, and ``step`` to how
many steps there were. Decay is for matrices and kernels only: norms and biases have fewer than two axes.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from modelyard.backends.base import OptimizerSettings
from modelyard.spec.errors import TrainingError, nearest

Arrays = list[jax.Array]
State = dict[str, Any]
Update = Callable[[Arrays, Arrays, State, jax.Array], tuple[Arrays, State]]
"""Parameters, gradients, state, learning rate -> new parameters and state."""
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
QUANTITIES: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
}


def make_update(settings: OptimizerSettings) -> Update:
    """Raises TrainingError for an optimizer that is not there."""
    if settings.name not in QUANTITIES:
        close = nearest(settings.name, QUANTITIES)
        hint = f"; did you mean {close!r}?" if close else ""
        raise TrainingError(
            f"the jax backend has no optimizer {settings.name!r}{hint}", "use sgd, adam or adamw"
        )
    return _sgd(settings) if settings.name == "sgd" else _adam(settings)


def begin_state(settings: OptimizerSettings, parameters: Arrays) -> State:
    state: State = {
        quantity: [jnp.zeros_like(parameter) for parameter in parameters]
        for quantity in QUANTITIES[settings.name]
    }
    return {**state, "step": jnp.zeros((), jnp.float32)}


def _decay(parameter: jax.Array, settings: OptimizerSettings) -> float:
    return settings.weight_decay if parameter.ndim >= 2 else 0.0


def _sgd(settings: OptimizerSettings) -> Update:
    """v <- momentum v + g, p <- p - rate v (Sutskever et al., ICML 2013, in PyTorch's form)."""

    def update(
        parameters: Arrays, gradients: Arrays, state: State, rate: jax.Array
    ) -> tuple[Arrays, State]:
        moved, buffers = [], []
        for parameter, gradient, buffer in zip(
            parameters, gradients, state["momentum_buffer"], strict=True
        ):
            if decay := _decay(parameter, settings):
                gradient = gradient + decay * parameter  # noqa: PLW2901
            buffers.append(settings.momentum * buffer + gradient)
            moved.append(parameter - rate * buffers[-1])
        return moved, {"momentum_buffer": buffers, "step": state["step"] + 1}

    return update


def _adam(settings: OptimizerSettings) -> Update:
    """Kingma & Ba (ICLR 2015); with decay apart from the gradient, Loshchilov & Hutter (ICLR 2019)."""

    def update(
        parameters: Arrays, gradients: Arrays, state: State, rate: jax.Array
    ) -> tuple[Arrays, State]:
        step = state["step"] + 1
        # expm1 keeps the digits that 1 - 0.999^step would lose in float32.
        size = rate / -jnp.expm1(step * math.log(_BETA1))
        root = jnp.sqrt(-jnp.expm1(step * math.log(_BETA2)))
        moved, firsts, seconds = [], [], []
        for parameter, gradient, before, square in zip(
            parameters, gradients, state["exp_avg"], state["exp_avg_sq"], strict=True
        ):
            if settings.name == "adamw" and (decay := _decay(parameter, settings)):
                parameter = parameter * (1 - rate * decay)  # noqa: PLW2901
            first = before + (1 - _BETA1) * (gradient - before)
            second = _BETA2 * square + (1 - _BETA2) * gradient * gradient
            moved.append(parameter - size * first / (jnp.sqrt(second) / root + _EPSILON))
            firsts.append(first)
            seconds.append(second)
        return moved, {"exp_avg": firsts, "exp_avg_sq": seconds, "step": step}

    return update
