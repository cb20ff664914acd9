"""The same deep stack of blocks with dropout in PyTorch, Flax and Keras: what gradient checkpointing is for."""

import itertools
import math
from typing import Any


def torch_blocks(
    input_shape: tuple[int, ...], outputs: int, width: int = 64, count: int = 6, rate: float = 0.3
) -> Any:
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(rate)

        def forward(self, x: Any) -> Any:
            return x + self.last(self.dropout(nn.functional.gelu(self.first(self.norm(x)))))

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(math.prod(input_shape), width)
            self.blocks = nn.ModuleList(Block() for _ in range(count))
            self.out = nn.Linear(width, outputs)

        def forward(self, x: Any) -> Any:
            x = self.inside(x.flatten(1))
            for block in self.blocks:
                x = block(x)
            return self.out(x)

    return Deep()


def torch_flat(input_shape: tuple[int, ...], outputs: int) -> Any:
    """No blocks, but a long sequence, which is cut into pieces."""
    from torch import nn

    sizes = [math.prod(input_shape), *[64] * 8]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.Tanh(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(64, outputs))


def flax_blocks(
    input_shape: tuple[int, ...], outputs: int, seed: int = 0, width: int = 64, count: int = 6
) -> Any:
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(width, 4 * width, rngs=rngs)
            self.last = nnx.Linear(4 * width, width, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.dropout = nnx.Dropout(0.3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return x + self.last(self.dropout(nnx.gelu(self.first(self.norm(x)))))

    class Deep(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.inside = nnx.Linear(math.prod(input_shape), width, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(count)])
            self.out = nnx.Linear(width, outputs, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            x = self.inside(x.reshape(x.shape[0], -1))
            for block in self.blocks:
                x = block(x)
            return self.out(x)

    return Deep(nnx.Rngs(seed))


def keras_blocks(
    input_shape: tuple[int, ...], outputs: int, width: int = 32, norm: str = "LayerNormalization"
) -> Any:
    import keras
    from keras import layers

    class Block(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.dropout = getattr(layers, norm)(), layers.Dropout(0.3)
            self.first, self.last = layers.Dense(4 * width, activation="gelu"), layers.Dense(width)

        def call(self, x: Any, training: bool = False) -> Any:
            hidden = self.first(
                self.norm(x, training=training) if "Batch" in norm else self.norm(x)
            )
            return x + self.last(self.dropout(hidden, training=training))

    blocks = [Block() for _ in range(3)]
    stack = [layers.Flatten(), layers.Dense(width), *blocks, layers.Dense(outputs)]
    return keras.Sequential([keras.Input(input_shape), *stack])
