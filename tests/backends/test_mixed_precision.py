"""bfloat16 in each framework: steps compute in it, weights and what is shipped stay float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend
from modelyard.backends.base import Execution, Lora, OptimizerSettings
from modelyard.backends.contract import Case, _train
from modelyard.backends.source import build_model
from modelyard.bundle.verify import compare
from modelyard.spec.errors import TrainingError

MODELS = str(Path(__file__).with_name("models"))
CASES = {
    "pytorch": Case(backend="pytorch", root=MODELS, build="cnn-small", args={"channels": [8]}),
    "keras": Case(backend="keras", root=MODELS, build="keras_models:cnn"),
    "jax": Case(backend="jax", root=MODELS, build="jax_nets:build"),
    "functions": Case(backend="jax", root=MODELS, build="jax_nets:functions"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    name = request.param
    pytest.importorskip({"pytorch": "torch", "functions": "jax", "jax": "flax"}.get(name, name))
    return CASES[name]


def begin(case: Case, precision: Any, lora: Lora | None = None) -> tuple[Any, Any]:
    execution = Execution(precision=precision)
    return begin_with(case, OptimizerSettings(name="adamw", execution=execution, lora=lora))


def begin_with(case: Case, settings: OptimizerSettings) -> tuple[Any, Any]:
    backend = open_backend(case.backend)
    backend.seed(0)
    model = build_model(Path(case.root), case.build, case.args, case.signature, case.task)
    return backend, backend.begin(model, case.task, settings, case.signature)


def test_steps_are_rounded_and_weights_are_not(case: Case, tmp_path: Path) -> None:
    backend, state = begin(case, "bfloat16")
    assert backend.execution(state).precision == "bfloat16"
    state, losses = _train(backend, state, case, range(12))
    plain, whole = begin(case, "float32")
    whole, exact = _train(plain, whole, case, range(12))
    assert losses[-1] < losses[0]
    gap = abs(losses[0] - exact[0]) / exact[0]
    assert 1e-6 < gap < 2e-2  # eight bits of a number: not float32, and not far from it
    floats = [a for a in backend.snapshot(state).tensors.values() if a.dtype.kind == "f"]
    assert floats and all(array.dtype == np.float32 for array in floats)
    steps = np.concatenate([a.ravel() for a in floats])
    rounded = (steps.view(np.uint32) & 0xFFFF) == 0
    assert rounded.mean() < 0.5  # the numbers that are kept have float32's lower bits as well
    inputs = np.random.default_rng(0).normal(size=(8, *case.input_shape)).astype(np.float32)
    outputs = backend.evaluate(state, inputs)
    try:
        backend.export(state, tmp_path / "model.onnx", case.signature)
    except Exception as error:
        if "KERAS_BACKEND" not in str(error):
            raise
        return
    assert compare(tmp_path / "model.onnx", case.signature, inputs, outputs) < 1e-5


def test_adapters_learn_in_it_too(case: Case) -> None:
    if case.backend == "pytorch":
        pytest.importorskip("peft")
    backend, state = begin(case, "bfloat16", Lora(rank=4, alpha=16))
    state, losses = _train(backend, state, case, range(12))
    assert losses[-1] < losses[0]


def test_float16_is_scaled_or_refused(case: Case) -> None:
    """Small gradients would become zero: PyTorch scales them, the others have bfloat16."""
    if case.backend == "pytorch":
        backend, state = begin(case, "float16")
        state, losses = _train(backend, state, case, range(12))
        assert losses[-1] < losses[0] and backend.snapshot(state).numbers["scale"] > 1
        return
    with pytest.raises(TrainingError, match=r"no train\.precision = .float16") as caught:
        begin(case, "float16")
    assert "bfloat16" in caught.value.mend


def test_xla_is_measured_on_tensorflow_where_it_can_pay() -> None:
    """The same choice as PyTorch's: by time, and not for a training of seconds."""
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras stands on another framework")
    case, said = CASES["keras"], []
    for steps in (10, 10_000_000):
        settings = OptimizerSettings(
            name="adamw", execution=Execution(compile="auto", samples=8, steps=steps)
        )
        backend, state = begin_with(case, settings)
        assert backend.execution(state).compile in (True, False)
        said.append(" ".join(backend.notes(state)))
    assert "less than a minute" in said[0] and "times as fast with XLA" in said[1]
