"""The field's first example in JAX: two convolutions with pooling, two dense layers, on 32 × 32 × 3 pictures."""

import jax
import jax.numpy as jnp
from flax import nnx


class Network(nnx.Module):
    """(n, 3, 32, 32) -> (n, 10)."""

    def __init__(self, outputs: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(8 * 8 * 64, 128, rngs=rngs)
        self.last = nnx.Linear(128, outputs, rngs=rngs)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = jnp.transpose(pictures, (0, 2, 3, 1))
        for kernel in (self.first, self.second):
            x = nnx.max_pool(nnx.relu(kernel(x)), (2, 2), (2, 2))
        return self.last(nnx.relu(self.dense(x.reshape(x.shape[0], -1))))


def build(outputs: int, seed: int) -> nnx.Module:
    return Network(outputs, nnx.Rngs(seed))
