"""A JAX model before it is trained: its weights by name, and others in their place."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import Weight
from modelyard.backends.jax_model import functional, module_states, named


def weights_of(model: object, key: jax.Array) -> tuple[Weight, ...]:
    """Parameters and what a module keeps, under the names that they have in a checkpoint."""
    found = functional(model, key)
    arrays = zip((*found.names, *found.kept_names), (*found.parameters, *found.kept), strict=True)
    return tuple(Weight(names=(name,), shape=tuple(array.shape)) for name, array in arrays)


def put_weights(model: object, tensors: Mapping[str, NDArray[Any]], key: jax.Array) -> object:
    """A module with other arrays in it; of two functions, another first one."""
    if isinstance(model, tuple):
        names, leaves, outline = named(model[0](key))
        begun = outline.unflatten(_replaced(names, leaves, tensors))
        return (lambda _key: begun, model[1])
    from flax import nnx

    for state in module_states(model):
        names, leaves, outline = named(state)
        nnx.update(model, outline.unflatten(_replaced(names, leaves, tensors)))
    return model


def _replaced(
    names: tuple[str, ...], leaves: list[Any], tensors: Mapping[str, NDArray[Any]]
) -> list[Any]:
    return [
        jnp.array(np.array(tensors[name]), dtype=leaf.dtype) if name in tensors else leaf
        for name, leaf in zip(names, leaves, strict=True)
    ]
