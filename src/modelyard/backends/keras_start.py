"""A Keras model before it is trained: its weights by name, and others in their place."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.backends.base import Weight
from modelyard.backends.keras_input import tried
from modelyard.backends.keras_model import names_of
from modelyard.spec.signature import Signature


def weights_of(model: object, signature: Signature) -> tuple[Weight, ...]:
    """All weights under the names that they have in a checkpoint."""
    tried(model, signature, None)
    return tuple(
        Weight(names=(name,), shape=tuple(variable.shape))
        for name, variable in names_of(model).items()
    )


def put_weights(model: object, tensors: Mapping[str, NDArray[Any]]) -> object:
    own = names_of(model)
    for name, array in tensors.items():
        own[name].assign(np.array(array))
    return model
