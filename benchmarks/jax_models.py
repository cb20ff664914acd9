"""The models of ``benchmarks.training_work`` in Flax NNX: the same layers, channels last."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from benchmarks.training_work import CLASSES


class Mlp(nnx.Module):
    """(n, 32) -> (n, 10)"""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(32, 128, rngs=rngs), nnx.Linear(128, 64, rngs=rngs)
        self.last = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(nnx.relu(self.second(nnx.relu(self.first(x)))))


class Cnn(nnx.Module):
    """(n, 3, 32, 32), as ours hands pictures out, or (n, 32, 32, 3) -> (n, 10)"""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.dense, self.last = (
            nnx.Linear(64 * 64, 128, rngs=rngs),
            nnx.Linear(128, CLASSES, rngs=rngs),
        )

    def __call__(self, x: Any) -> Any:
        if x.shape[1] == 3:
            x = x.transpose(0, 2, 3, 1)
        x = nnx.max_pool(nnx.relu(self.first(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.second(x)), (2, 2), (2, 2))
        return self.last(nnx.relu(self.dense(x.reshape(len(x), -1))))


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(128, epsilon=1e-5, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, 128, decode=False, rngs=rngs)
        self.wide, self.narrow = nnx.Linear(128, 512, rngs=rngs), nnx.Linear(512, 128, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norms[0](x))
        return x + self.narrow(nnx.gelu(self.wide(self.norms[1](x)), approximate=False))


class Transformer(nnx.Module):
    """(n, 64, 32) -> (n, 10)"""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed, self.last = (
            nnx.Linear(32, 128, rngs=rngs),
            nnx.Linear(128, CLASSES, rngs=rngs),
        )
        self.places = nnx.Param(0.02 * nnx.initializers.normal(1.0)(rngs.params(), (64, 128)))
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])

    def __call__(self, x: Any) -> Any:
        x = self.embed(x) + self.places
        for block in self.blocks:
            x = block(x)
        return self.last(jnp.mean(x, axis=1))


def build(work: str) -> nnx.Module:
    return {"cnn": Cnn, "mlp": Mlp, "transformer": Transformer}[work](nnx.Rngs(0))
