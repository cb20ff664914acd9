"""The work of ``benchmarks.parity``: three small models' first weights, as PyTorch lays them out, and their batches.

Each file beside this one builds the models of one framework from the framework's own layers and gives
them these weights: kernels turned from (out, in) to (in, out), filters from OIHW to HWIO, and what
follows a flattening from (channels, height, width) to (height, width, channels).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = dict[str, NDArray[np.float32]]
CLASSES, BATCH = 10, 32
VOCABULARY, LENGTH, WIDTH, HEADS, INNER = 50, 12, 16, 2, 32
EPSILON = 1e-5
"""Of layer norms, which frameworks choose differently."""


@dataclass(frozen=True)
class Kind:
    """One of the models."""

    name: str
    input_shape: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    """Of the weights, by PyTorch's names."""
    rate: float
    """Learning rate of plain SGD with momentum 0.9."""


MLP = Kind(
    "mlp",
    (24,),
    {"first.weight": (48, 24), "first.bias": (48,), "last.weight": (CLASSES, 48), "last.bias": (CLASSES,)},
    0.05,
)  # fmt: skip
CNN = Kind(
    "cnn",
    (3, 16, 16),
    {
        "first.weight": (8, 3, 3, 3), "first.bias": (8,),
        "second.weight": (16, 8, 3, 3), "second.bias": (16,),
        "last.weight": (CLASSES, 16 * 4 * 4), "last.bias": (CLASSES,),
    },
    0.02,
)  # fmt: skip
TRANSFORMER = Kind(
    "transformer",
    (LENGTH,),
    {
        "words.weight": (VOCABULARY, WIDTH), "places.weight": (LENGTH, WIDTH),
        "before.weight": (WIDTH,), "before.bias": (WIDTH,),
        "attention.in_proj_weight": (3 * WIDTH, WIDTH), "attention.in_proj_bias": (3 * WIDTH,),
        "attention.out_proj.weight": (WIDTH, WIDTH), "attention.out_proj.bias": (WIDTH,),
        "between.weight": (WIDTH,), "between.bias": (WIDTH,),
        "wide.weight": (INNER, WIDTH), "wide.bias": (INNER,),
        "narrow.weight": (WIDTH, INNER), "narrow.bias": (WIDTH,),
        "after.weight": (WIDTH,), "after.bias": (WIDTH,),
        "last.weight": (CLASSES, WIDTH), "last.bias": (CLASSES,),
    },
    0.05,
)  # fmt: skip
KINDS = {kind.name: kind for kind in (MLP, CNN, TRANSFORMER)}
NORMS = {"before.weight", "between.weight", "after.weight"}


def weights_of(kind: Kind) -> Weights:
    """Kernels normal with variance 1 / inputs, biases small, norms around 1."""
    random = np.random.default_rng(7)
    found: Weights = {}
    for name, shape in kind.shapes.items():
        scale = 0.1 if len(shape) == 1 else 1 / np.sqrt(np.prod(shape[1:]))
        drawn = scale * random.standard_normal(shape) + (name in NORMS)
        found[name] = drawn.astype(np.float32)
    return found


def batches(kind: Kind, steps: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Inputs (BATCH, *input_shape), float32 or int64, and targets that can be learnt from them."""
    random = np.random.default_rng(11)
    centres = random.standard_normal((CLASSES, *kind.input_shape))
    for _ in range(steps):
        targets = random.integers(0, CLASSES, BATCH)
        if kind is TRANSFORMER:
            tokens = random.integers(0, VOCABULARY, (BATCH, LENGTH))
            tokens[:, :4] = targets[:, None]
            yield tokens, targets
        else:
            noise = random.standard_normal((BATCH, *kind.input_shape))
            yield (centres[targets] + noise).astype(np.float32), targets
