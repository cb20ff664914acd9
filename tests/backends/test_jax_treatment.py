"""Layers of a JAX model are in the order of their use, whatever the alphabet says, and what is frozen stays out."""

from typing import Any

import pytest

pytest.importorskip("flax")
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
from modelyard.backends.jax import Jax
from modelyard.backends.jax_model import functional
from modelyard.backends.jax_treatment import treat
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor

REGRESSION = TaskSpec(type="regression", target="y", loss="mean-squared-error")
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 4)),),
    outputs=(Tensor(name="value", dtype="float32", shape=(None, 1)),),
)


class Backwards(nnx.Module):
    """The alphabet's last layer comes first; one is behind ``jit`` and one behind ``remat``."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.z_first = nnx.Linear(4, 8, rngs=rngs)
        self.m_second = nnx.BatchNorm(8, rngs=rngs)
        self.k_third = nnx.Linear(8, 8, rngs=rngs)
        self.a_last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.jit(lambda w, b, x: jnp.tanh(x @ w + b))(
            self.z_first.kernel[...], self.z_first.bias[...], x
        )
        x = self.m_second(x)
        third = jax.checkpoint(lambda w, x: jnp.tanh(x @ w))
        return self.a_last(third(self.k_third.kernel[...], x) + self.k_third.bias[...])


def test_layers_are_in_the_order_of_their_use() -> None:
    model = functional(Backwards(), jax.random.key(0))
    settings = OptimizerSettings(name="sgd", layer_decay=0.5)
    treated = treat(model, settings, SIGNATURE)
    assert {name: one.scale for name, one in treated.items()} == {
        "z_first.kernel": 0.25,
        "z_first.bias": 0.25,
        "m_second.scale": 0.25,
        "m_second.bias": 0.25,
        "k_third.kernel": 0.5,
        "k_third.bias": 0.5,
        "a_last.kernel": 1.0,
        "a_last.bias": 1.0,
    }


@pytest.mark.parametrize("norm", [("m_*",), ("m_*.bias",)], ids=["whole norm", "half of it"])
@pytest.mark.parametrize("most", [None, 3])
def test_what_is_frozen_stays_bit_for_bit(most: int | None, norm: tuple[str, ...]) -> None:
    """A norm's statistics too, where all of it is frozen."""
    backend = Jax()
    settings = OptimizerSettings(
        name="adamw",
        weight_decay=0.1,
        freeze=("z_*", *norm, "k_third.bias"),
        execution=Execution(micro_batch=most),
    )
    state = backend.begin(Backwards(), REGRESSION, settings, SIGNATURE)
    before = backend.snapshot(state)
    before.tensors["model.m_second.var"][:] = np.linspace(0.3, 0.7, 8)  # no sum of eighths
    state = backend.restore(state, before)
    inputs = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    batch = Batch(inputs=inputs, targets=inputs.sum(axis=1), global_size=8)
    for step in range(3):
        asked = StepSettings(learning_rate=0.1, seed=step, sample_values=True)
        state, result = backend.step(state, batch, asked)
    after = backend.snapshot(state)
    changed = {
        name
        for name, array in before.tensors.items()
        if not np.array_equal(array, after.tensors[name])
    }
    trained = {"k_third.kernel", "a_last.kernel", "a_last.bias"}
    statistics: set[str] = set()
    if norm == ("m_*.bias",):
        trained.add("m_second.scale")
        statistics = {"model.m_second.mean", "model.m_second.var"}
    models = {f"model.{name}" for name in trained} | statistics
    assert {name for name in changed if name.startswith("model.")} == models
    assert {name for name in after.tensors if name.startswith("optimizer.")} == {
        "optimizer.step",
        *(f"optimizer.{n}.{quantity}" for n in trained for quantity in ("exp_avg", "exp_avg_sq")),
    }
    samples: Any = result.samples
    gradients = {name for name in samples if name.startswith("gradients/")}
    assert gradients == {f"gradients/{name}" for name in trained}
