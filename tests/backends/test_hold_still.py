"""A model held still: what a step computes depends on no drawn number, and running statistics stay, in each framework."""

from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor
from modelyard.spec.work import World

TASK = TaskSpec(type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c"))
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 6)),),
    outputs=(Tensor(name="output", dtype="float32", shape=(None, 3)),),
)


def pytorch_model() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


def keras_model() -> Any:
    import keras
    from keras import layers

    inner = [layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *inner])


def jax_model() -> Any:
    from flax import nnx

    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(6, 8, rngs=rngs),
        nnx.BatchNorm(8, rngs=rngs),
        nnx.Dropout(0.5, rngs=rngs),
        nnx.Linear(8, 3, rngs=rngs),
    )


MODELS = {"pytorch": pytorch_model, "keras": keras_model, "jax": jax_model}


@pytest.mark.parametrize("still", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_a_model_held_still_draws_and_moves_nothing(name: str, still: bool) -> None:
    """And one that is not does: the test can fail."""
    backend = open_backend(name)
    random = np.random.default_rng(0)
    batch = Batch(
        inputs=random.normal(size=(16, 6)).astype(np.float32),
        targets=random.integers(0, 3, 16),
        global_size=16,
    )
    losses, statistics = [], []
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        for seed in (1, 2):
            backend.seed(0)
            model = MODELS[name]()
            if still:
                assert backend.hold_still(model)
            state = backend.begin(model, TASK, OptimizerSettings(name="sgd"), SIGNATURE)
            before = backend.snapshot(state).tensors
            state, result = backend.step(state, batch, StepSettings(learning_rate=0.1, seed=seed))
            losses.append(float(result.loss))
            after = backend.snapshot(state).tensors
            changed = {key for key in before if (before[key] != after[key]).any()}
            statistics.append({key for key in changed if "mean" in key or "var" in key})
            assert changed  # it trains all the same
    assert (losses[0] == losses[1]) is still
    assert all(not found for found in statistics) is still


def test_functions_that_draw_cannot_be_held_still() -> None:
    backend = open_backend("jax")

    def init(_key: Any) -> dict[str, Any]:
        return {}

    assert backend.hold_still((init, lambda _weights, x: x))
    assert not backend.hold_still((init, lambda _weights, x, _key: x))
    assert not backend.hold_still(object())
