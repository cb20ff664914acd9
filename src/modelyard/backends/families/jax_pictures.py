"""JAX (Flax NNX): families for pictures: cnn, resnet. Samples come channels first and are turned inside."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from modelyard.backends.families.jax_dense import dense, uniform

LARGEST = 8
"""Pixels a side that go into the dense layer of a cnn, so that it stays small for large pictures."""
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class Cnn(nnx.Module):
    """See ``cnn``."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        channels: Sequence[int],
        hidden: int,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        depth, height, width = input_shape
        convolutions = []
        for features in channels:
            rule = uniform(9 * depth)
            convolutions.append(
                nnx.Conv(depth, features, (3, 3), kernel_init=rule, bias_init=rule, rngs=rngs)
            )
            depth, height, width = features, height // 2, width // 2
        self.convolutions = nnx.List(convolutions)
        self._window = (-(-height // LARGEST), -(-width // LARGEST))
        size = depth * (height // self._window[0]) * (width // self._window[1])
        self.first, self.last = dense(size, hidden, rngs), dense(hidden, outputs, rngs)
        self.drop = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.transpose(x, _LAST)
        for convolution in self.convolutions:
            x = nnx.relu(nnx.max_pool(convolution(x), (2, 2), (2, 2)))
        if self._window != (1, 1):
            x = nnx.avg_pool(x, self._window, self._window)
        x = jnp.transpose(x, _FIRST).reshape(x.shape[0], -1)
        found: jax.Array = self.last(self.drop(nnx.relu(self.first(x))))
        return found


def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
) -> nnx.Module:
    """Convolutions and two dense layers: float32 (n, c, h, w) -> float32 (n, outputs).

    Each of ``channels`` is one 3x3 convolution, ReLU and halving of height and width. What is larger than
    8 pixels a side then is averaged in windows of ⌈side / 8⌉ pixels, without overlap. The dense layer's
    inputs are in the order of samples: channels first.
    """
    return Cnn(input_shape, outputs, channels, hidden, dropout, nnx.Rngs(seed))


class Residual(nnx.Module):
    """Two 3x3 convolutions beside a short cut: (n, h, w, before) -> (n, ⌈h/stride⌉, ⌈w/stride⌉, after)."""

    def __init__(self, before: int, after: int, stride: int, rngs: nnx.Rngs) -> None:
        self.first, self.first_norm = (
            _convolution(before, after, 3, stride, rngs),
            _norm(after, rngs),
        )
        self.second, self.second_norm = _convolution(after, after, 3, 1, rngs), _norm(after, rngs)
        self._shortened = stride != 1 or before != after
        if self._shortened:
            self.short = _convolution(before, after, 1, stride, rngs)
            self.short_norm = _norm(after, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        inner = nnx.relu(self.first_norm(self.first(x)))
        inner = self.second_norm(self.second(inner))
        return nnx.relu(inner + (self.short_norm(self.short(x)) if self._shortened else x))


class ResNet(nnx.Module):
    """See ``resnet``."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        widths: Sequence[int],
        blocks: int,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        before = widths[0]
        self.begin, self.begin_norm = (
            _convolution(channels, before, 3, 1, rngs),
            _norm(before, rngs),
        )
        stack = []
        for stage, after in enumerate(widths):
            for block in range(blocks):
                stack.append(Residual(before, after, 2 if stage and not block else 1, rngs))
                before = after
        self.blocks = nnx.List(stack)
        self.drop, self.last = nnx.Dropout(dropout, rngs=rngs), dense(before, outputs, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.begin_norm(self.begin(jnp.transpose(x, _LAST))))
        for block in self.blocks:
            x = block(x)
        found: jax.Array = self.last(self.drop(x.mean(axis=(1, 2))))
        return found


def resnet(
    input_shape: tuple[int, ...],
    outputs: int,
    seed: int,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 2,
    dropout: float = 0.0,
) -> nnx.Module:
    """A residual network for small pictures (He et al. 2016): float32 (n, c, h, w) -> float32 (n, outputs).

    A 3x3 convolution, then a stage of ``blocks`` residual blocks for each of ``widths``; each stage but the
    first halves height and width (rounded up). The mean over all pixels goes into the last layer.
    Convolutions have no bias and begin normal with variance 2 / (outputs · kernel size); batch norms have momentum 0.9
    (as Flax counts) and epsilon 1e-5.
    """
    return ResNet(input_shape[0], outputs, widths, blocks, dropout, nnx.Rngs(seed))


def _convolution(before: int, after: int, size: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    """With as many zeros on each side, also where it strides (Flax' "SAME" is lopsided there)."""
    rule = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
    sides = [(size // 2, size // 2)] * 2
    return nnx.Conv(
        before,
        after,
        (size, size),
        strides=stride,
        padding=sides,
        use_bias=False,
        kernel_init=rule,
        rngs=rngs,
    )


def _norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


FAMILIES: dict[str, Callable[..., nnx.Module]] = {"cnn": cnn, "resnet": resnet}
