"""The JAX backend keeps the contract, and what is special about JAX."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flax")
import jax
import jax.numpy as jnp
from flax import nnx

from modelyard.backends import recognise
from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
from modelyard.backends.contract import BackendContract, Case, read_result, run_workers
from modelyard.backends.jax import Jax
from modelyard.spec.errors import ModelError, TrainingError
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor
from modelyard.spec.work import World

MODELS = str(Path(__file__).with_name("models"))
sys.path.insert(0, MODELS)
import jax_nets  # noqa: E402

sys.path.remove(MODELS)
REGRESSION = TaskSpec(type="regression", target="y", loss="mean-squared-error")
SIGNATURE = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 4)),),
    outputs=(Tensor(name="value", dtype="float32", shape=(None, 1)),),
)
SGD = OptimizerSettings(name="sgd", momentum=0.0)


class TestModules(BackendContract):
    case = Case(backend="jax", root=MODELS, build="jax_nets:build")


class TestFunctions(BackendContract):
    case = Case(backend="jax", root=MODELS, build="jax_nets:functions")


def batch(count: int = 8, seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(count, 4)).astype(np.float32)
    return Batch(inputs=inputs, targets=inputs.sum(axis=1), global_size=count)


def begin(model: object, optimizer: OptimizerSettings = SGD) -> tuple[Jax, Any]:
    backend = Jax()
    return backend, backend.begin(model, REGRESSION, optimizer, SIGNATURE)


def settings(**fields: Any) -> StepSettings:
    return StepSettings(**{"learning_rate": 0.1, "seed": 0, **fields})


def test_a_step_is_gradient_descent_on_the_mean_loss() -> None:
    model, given = nnx.Linear(4, 1, rngs=nnx.Rngs(0)), batch()
    kernel, bias = model.kernel[...], model.bias[...]

    def loss(kernel: Any) -> Any:
        return jnp.mean((given.inputs @ kernel + bias - given.targets[:, None]) ** 2)

    expected, gradient = jax.value_and_grad(loss)(kernel)
    backend, state = begin(model)
    state, result = backend.step(state, given, settings(clip_norm=1e9, sample_values=True))
    assert float(result.loss) == pytest.approx(float(expected), rel=1e-6)
    after = backend.snapshot(state).tensors["model.kernel"]
    np.testing.assert_allclose(after, kernel - 0.1 * gradient, atol=1e-6)
    assert float(result.gradient_norm) >= float(jnp.linalg.norm(gradient)) - 1e-6
    assert set(result.samples or ()) == {
        f"{kind}/{name}" for kind in ("weights", "gradients") for name in ("kernel", "bias")
    }


def test_dropout_is_drawn_from_the_step_seed_alone() -> None:
    def loss(seed: int, steps_before: int) -> float:
        backend, state = begin(jax_nets.rich((4,), 1))
        first = backend.snapshot(state)
        for number in range(steps_before):
            state, _ = backend.step(state, batch(), settings(seed=number + 77))
        state = backend.restore(state, first)
        return float(backend.step(state, batch(), settings(seed=seed))[1].loss)

    assert loss(2**40 + 5, 0) == loss(2**40 + 5, 3) != loss(2**41 + 5, 0)


def test_evaluation_is_as_in_service() -> None:
    backend, state = begin(jax_nets.rich((4,), 1))
    before = backend.snapshot(state)
    first = backend.evaluate(state, batch(5).inputs)
    np.testing.assert_array_equal(first, backend.evaluate(state, batch(5).inputs))
    for name, array in backend.snapshot(state).tensors.items():
        np.testing.assert_array_equal(array, before.tensors[name], err_msg=name)


def test_pieces_of_a_batch_add_up_to_the_whole() -> None:
    ends = []
    for most in (None, 3):
        chosen = OptimizerSettings(name="adamw", execution=Execution(micro_batch=most))
        backend, state = begin(nnx.Linear(4, 1, rngs=nnx.Rngs(0)), chosen)
        state, result = backend.step(state, batch(), settings(measure_norm=True))
        ends.append((backend.snapshot(state), float(result.loss), float(result.gradient_norm)))
    assert ends[0][1:] == pytest.approx(ends[1][1:], rel=1e-5)
    for name, array in ends[0][0].tensors.items():
        np.testing.assert_allclose(array, ends[1][0].tensors[name], atol=1e-5, err_msg=name)


def test_being_looked_at_does_not_change_a_step() -> None:
    ends = []
    for looked in (False, True):
        backend, state = begin(jax_nets.rich((4,), 1), OptimizerSettings(name="adamw"))
        for seed in range(5):
            asked = settings(seed=seed, measure_norm=looked, sample_values=looked)
            state, _ = backend.step(state, batch(8, seed), asked)
        ends.append(backend.snapshot(state).tensors)
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name], err_msg=name)


def test_memory_that_is_written_again_after_a_step_was_read_by_then() -> None:
    """Programs run beside Python: a batch's memory may hold the next one before they have begun."""
    losses = []
    for again in (False, True):
        backend, state = begin(nnx.Linear(4, 1, rngs=nnx.Rngs(0)))
        given = batch(4096)
        state, result = backend.step(state, given, settings())
        if again:
            given.inputs[:], given.targets[:] = 1e6, 0
        losses.append(float(result.loss))
    assert losses[0] == losses[1]


def test_bfloat16_learns_with_weights_in_float32() -> None:
    chosen = OptimizerSettings(name="adamw", execution=Execution(precision="bfloat16"))
    backend, state = begin(jax_nets.rich((4,), 1), chosen)
    losses = []
    for seed in range(60):
        state, result = backend.step(
            state, batch(32, seed), settings(learning_rate=0.02, seed=seed)
        )
        losses.append(float(result.loss))
    assert losses[-1] < 0.6 * losses[0]
    assert {array.dtype.name for array in backend.snapshot(state).tensors.values()} == {"float32"}
    assert backend.execution(state).precision == "bfloat16"


def test_workers_keep_running_statistics_equal(tmp_path: Path) -> None:
    case = Case(backend="jax", root=MODELS, build="jax_nets:rich", input_shape=(4,))
    run_workers(tmp_path, case, SGD, seeds=(0, 1), steps=5)
    first, second = (read_result(tmp_path, rank, "end").tensors for rank in (0, 1))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert np.abs(first["model.norm.mean"]).max() > 0.01


@pytest.mark.parametrize(
    ("model", "what", "mend"),
    [
        (lambda: nnx.Linear(4, 3, rngs=nnx.Rngs(0)), "gave float32 of shape (2, 3)", "must have 1 output"),
        (lambda: nnx.Linear(5, 1, rngs=nnx.Rngs(0)), "cannot take an input of shape (2, 4)", "first layers"),
        (lambda: (lambda key: {"w": jnp.ones((4, 1))}, lambda p, x: (x @ p["w"], x)), "returned a tuple", "return only"),
        (lambda: (lambda key: {}, lambda p, x: x[:, :1]), "nothing to train", "nnx.Param"),
        (lambda: (dict, lambda p, x: x), "init(key) raised TypeError", "first function"),
        (lambda: "a string", "returned a str", "(init, apply)"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused(model: Any, what: str, mend: str) -> None:
    with pytest.raises(ModelError) as caught:
        begin(model())
    assert what in caught.value.what and mend in caught.value.mend


def test_two_functions_are_recognised_as_a_model() -> None:
    assert recognise(jax_nets.functions((4,), 1)) == recognise(jax_nets.rich((4,), 1)) == "jax"


def test_what_jax_does_not_do_here_is_said() -> None:
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    with pytest.raises(TrainingError, match="no optimizer 'adamww'; did you mean 'adamw'"):
        begin(model, OptimizerSettings(name="adamww"))
    with pytest.raises(TrainingError, match='precision = "float16"'):
        begin(model, OptimizerSettings(name="sgd", execution=Execution(precision="float16")))
    backend = Jax()
    backend._world = World(rank=0, size=2, rendezvous="")
    shared = OptimizerSettings(name="sgd", execution=Execution(parallel="shard"))
    with pytest.raises(TrainingError, match='parallel = "shard"'):
        backend.begin(model, REGRESSION, shared, SIGNATURE)
    with (
        pytest.raises(TrainingError, match="JAX sees 0 GPUs"),
        Jax().join(World(rank=0, size=1, rendezvous=""), device="cuda", threads=1),
    ):
        pass
