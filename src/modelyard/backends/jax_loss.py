"""What losses are written in, on JAX arrays, and the slopes of a loss of the user's own."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray


class JaxOps:
    """The maths of losses, on JAX arrays."""

    log_softmax = staticmethod(lambda x: jax.nn.log_softmax(x, axis=-1))
    log_sigmoid = staticmethod(jax.nn.log_sigmoid)
    square = staticmethod(jnp.square)
    exp = staticmethod(jnp.exp)
    absolute = staticmethod(jnp.abs)
    power = staticmethod(jnp.power)
    minimum = staticmethod(jnp.minimum)
    mean_last = staticmethod(lambda x: jnp.mean(x, axis=-1))
    reshape = staticmethod(jnp.reshape)

    @staticmethod
    def take(x: jax.Array, index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]

    @staticmethod
    def lookup(values: Sequence[float], index: jax.Array) -> jax.Array:
        return jnp.asarray(values, jnp.float32)[index]


def differentiate(
    function: Callable[..., Any], outputs: NDArray[Any], targets: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """``function(outputs, targets)``, compiled as in a step, and the slope of its sum by the outputs."""
    (_, found), slopes = _compiled(function)(jnp.asarray(outputs), jnp.asarray(targets))
    return np.asarray(found), np.asarray(slopes)


@lru_cache(maxsize=8)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Once for each function and shape, as an evaluation asks for it batch by batch."""

    def summed(outputs: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = jnp.asarray(function(outputs, targets))
        return found.sum(), found

    program: Callable[..., Any] = jax.jit(jax.value_and_grad(summed, has_aux=True))
    return program
