"""JAX (Flax NNX): the family for samples of several parts: fusion."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from modelyard.backends.families.jax_dense import dense, mlp, text_small
from modelyard.backends.families.jax_pictures import cnn


class Fusion(nnx.Module):
    """See ``fusion``."""

    def __init__(
        self,
        encoders: Mapping[str, nnx.Module],
        width: int,
        outputs: int,
        hidden: int,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoders = nnx.Dict(encoders)
        self.first = dense(width * len(encoders), hidden, rngs)
        self.last = dense(hidden, outputs, rngs)
        self.drop = nnx.Dropout(dropout, rngs=rngs)
        self._names = tuple(encoders)

    def __call__(self, parts: Mapping[str, jax.Array]) -> jax.Array:
        said = [self.encoders[name](parts[name]) for name in self._names]
        x = nnx.relu(jnp.concatenate(said, axis=1))
        found: jax.Array = self.last(self.drop(nnx.relu(self.first(x))))
        return found


def fusion(
    input_shapes: Mapping[str, tuple[int, ...]],
    outputs: int,
    seed: int,
    vocabulary: int = 0,
    width: int = 64,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
) -> nnx.Module:
    """A picture, a text and columns, of which two suffice: a dict of arrays -> float32 (n, outputs).

    ``image`` float32 (n, c, h, w) goes through a cnn, ``text`` int32 (n, length) through a text-small,
    ``table`` float32 (n, features) through an mlp, each of ``width`` outputs; what they say stands side by
    side before two dense layers (late fusion: Baltrušaitis, Ahuja, Morency 2019).
    """
    encoders: dict[str, nnx.Module] = {}
    for place, (name, shape) in enumerate(input_shapes.items(), start=1):
        if name == "image":
            encoders[name] = cnn(shape, width, seed + place, channels, hidden)
        elif name == "text":
            encoders[name] = text_small(vocabulary, width, seed + place, width, width, dropout)
        else:
            encoders[name] = mlp(shape, width, seed + place, (width,))
    return Fusion(encoders, width, outputs, hidden, dropout, nnx.Rngs(seed))


FAMILIES: dict[str, Callable[..., nnx.Module]] = {"fusion": fusion}
