"""The moving average of a JAX model's weights: a program beside the step's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from msgspec.structs import replace

from modelyard.backends.average import COUNT, PREFIX, Counted, averages_in
from modelyard.backends.base import Snapshot
from modelyard.backends.jax_model import Arrays, Functional


@partial(jax.jit, donate_argnums=0)
def _followed(held: Arrays, weights: Arrays, share: jax.Array) -> Arrays:
    return [
        old + share.astype(old.dtype) * (new - old) for old, new in zip(held, weights, strict=True)
    ]


class JaxAverage(Counted):
    """Arrays beside the weights: a program is given those that it is to use."""

    def __init__(self, model: Functional, weights: Arrays, decay: float) -> None:
        super().__init__(decay)
        self._names = model.names
        self.arrays = [jnp.array(array) for array in weights]

    def after(self, weights: Arrays) -> None:
        """A step has made these weights."""
        self.arrays = _followed(self.arrays, weights, np.float32(self.next_share()))

    def into(self, snapshot: Snapshot) -> Snapshot:
        """``snapshot`` with ``ema.*`` in it: memory of JAX's own."""
        arrays = {PREFIX + n: np.asarray(a) for n, a in zip(self._names, self.arrays, strict=True)}
        return replace(
            snapshot,
            tensors={**snapshot.tensors, **arrays},
            numbers={**snapshot.numbers, COUNT: self.count},
        )

    def restore(self, snapshot: Snapshot) -> None:
        found, self.count = averages_in(snapshot, dict.fromkeys(self._names))
        self.arrays = [
            jnp.array(np.array(found[name]), dtype=held.dtype)
            for name, held in zip(self._names, self.arrays, strict=True)
        ]
