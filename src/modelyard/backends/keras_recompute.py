"""Gradient checkpointing in Keras: what a layer made of layers computes is computed again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost (2016), by ``tf.recompute_grad``. Keras' own
``RematScope`` must be there when a layer is made, and cannot pass ``training`` on.
"""

from collections.abc import Iterator
from typing import Any

import keras

from modelyard.spec.errors import ModelError, TrainingError

Variable = Any


def recompute_blocks(model: Any) -> str:
    """Change ``model`` in place; what was done, in words. Raises TrainingError where it cannot be done."""
    if keras.backend.backend() != "tensorflow":
        raise TrainingError(
            f"the keras backend has no train.gradient_checkpointing on {keras.backend.backend()} (KERAS_BACKEND)",
            "set KERAS_BACKEND=tensorflow, or use train.micro_batch, which needs less memory as well",
        )
    found = list(_blocks(model))
    if not found:
        raise TrainingError(
            f"train.gradient_checkpointing found no blocks in {model.name}",
            "make repeated blocks of one keras.Layer (or keras.Sequential) each, which holds their layers",
        )
    for block in found:
        _refuse_statistics(block)
    for block in found:
        _wrap(block)
    return f"activations of {len(found)} blocks are computed again in the backward pass"


def _blocks(layer: Any) -> Iterator[Any]:
    """Outermost layers that are made of layers with weights."""
    for inner in _parts(layer):
        if inner.trainable_variables and _parts(inner):
            yield inner


def _parts(layer: Any) -> list[Any]:
    return [part for part in getattr(layer, "_layers", ()) if part is not None]


def _refuse_statistics(layer: Any) -> None:
    for part in _parts(layer):
        if isinstance(part, keras.layers.BatchNormalization):
            raise ModelError(
                f"train.gradient_checkpointing would move the statistics of {part.name} twice a step",
                "use LayerNormalization in the blocks, or leave the field out",
            )
        _refuse_statistics(part)


def _wrap(block: Any) -> None:
    import tensorflow as tf

    own = block.call
    seeds = [v for v in block.variables if v.path.endswith("seed_generator_state")]

    def call(*inputs: Any, **more: Any) -> Any:
        if not more.get("training"):
            return own(*inputs, **more)
        states = [tf.convert_to_tensor(seed.value) for seed in seeds]

        def again(*inputs: Any) -> Any:
            for seed, state in zip(seeds, states, strict=True):
                seed.assign(state)  # so that dropout draws the same the second time
            return own(*inputs, **more)

        return tf.recompute_grad(again)(*inputs)

    block.call = call
