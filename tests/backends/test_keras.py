"""The Keras backend keeps the contract, and what is special about it; `test_keras_elsewhere.py`: not only on TensorFlow."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend
from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
from modelyard.backends.contract import (
    BackendContract,
    Case,
    _begin,
    _train,
    read_result,
    run_workers,
)
from modelyard.spec.errors import ExportError, MissingExtraError, ModelError, TrainingError

keras = pytest.importorskip("keras")
MODELS = Path(__file__).parent / "models"
CNN = Case(backend="keras", root=str(MODELS), build="keras_models:cnn")
ODD = Case(backend="keras", root=str(MODELS), build="keras_models:odd")
ADAMW = OptimizerSettings(name="adamw", weight_decay=0.01)


@pytest.mark.slow
class TestContract(BackendContract):
    case = CNN

    def test_the_export_answers_as_the_model_does(self, tmp_path: Path) -> None:
        if keras.backend.backend() == "jax":
            backend, state = _begin(CNN, ADAMW)
            with pytest.raises(ExportError) as caught:
                backend.export(state, tmp_path / "model.onnx", CNN.signature)
            assert "KERAS_BACKEND=tensorflow" in caught.value.mend
            return
        super().test_the_export_answers_as_the_model_does(tmp_path)


def test_dropout_draws_from_the_steps_seed_alone() -> None:
    """Also in a model that was built later in the process, whose layers have other names."""
    backend, state = _begin(ODD, ADAMW)
    state, _ = _train(backend, state, ODD, range(3))
    middle = backend.snapshot(state)
    state, losses = _train(backend, state, ODD, range(3, 6))
    other, fresh = _begin(ODD, ADAMW, seed=5)
    fresh, _ = _train(other, fresh, ODD, range(2))
    fresh, again = _train(other, other.restore(fresh, middle), ODD, range(3, 6))
    assert again == losses
    ends = backend.snapshot(state).tensors, other.snapshot(fresh).tensors
    assert all(np.array_equal(array, ends[1][name]) for name, array in ends[0].items())


def test_what_is_frozen_stays_and_what_layers_add_counts() -> None:
    backend, state = _begin(ODD, OptimizerSettings(name="sgd"))
    before = backend.snapshot(state).tensors
    state, losses = _train(backend, state, ODD, range(2))
    after = backend.snapshot(state).tensors
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    frozen = {name for name in before if name.endswith(("/dense/kernel", "/dense/bias"))}
    assert len(frozen) == 2 and not changed & frozen
    assert any("moving_mean" in name for name in changed)
    assert not any(name.startswith("optimizer.") and "/dense/" in name for name in before)
    penalty = 0.01 * float(np.sum(before["model.sequential/dense_1/kernel"] ** 2))
    assert losses[0] > penalty > 0.05


def test_what_is_frozen_by_name_or_by_hand_stays_bit_for_bit() -> None:
    """By a pattern, by a layer and by one variable; a batch norm as a whole keeps its statistics too."""
    inputs = keras.Input((4,))
    by_layer = keras.layers.Dense(4, name="by_layer", trainable=False)
    by_hand, by_pattern = (keras.layers.Dense(4, name=name) for name in ("by_hand", "by_pattern"))
    whole, half = (keras.layers.BatchNormalization(name=name) for name in ("whole", "half"))
    inner = half(whole(by_pattern(by_hand(by_layer(inputs)))))
    outputs = keras.layers.Dense(3, name="head")(inner)
    model = keras.Model(inputs, outputs)
    by_hand.bias.trainable = False
    case = Case(backend="keras", build="none:none", input_shape=(4,))
    backend = open_backend("keras")
    freeze = ("by_pattern/*", "whole/*", "half/gamma")
    settings = OptimizerSettings(name="adamw", weight_decay=0.1, freeze=freeze)
    state = backend.begin(model, case.task, settings, case.signature)
    assert not state.subject.others
    before = backend.snapshot(state)
    state, _ = _train(backend, state, case, range(3))
    after = backend.snapshot(state).tensors
    changed = {n for n, a in before.tensors.items() if not np.array_equal(a, after[n])}
    trained = {"by_hand/kernel", "half/beta", "head/kernel", "head/bias"}
    weights = {n.removeprefix("model.") for n in changed if n.startswith("model.")}
    assert weights == trained | {"half/moving_mean", "half/moving_variance"}
    assert {n.split(".")[1] for n in after if n.startswith("optimizer.")} == trained


def test_workers_agree_on_running_statistics(tmp_path: Path) -> None:
    run_workers(tmp_path, ODD, ADAMW, steps=3, seeds=(1, 2))
    first, second = (read_result(tmp_path, rank, "end").tensors for rank in (0, 1))
    assert all(np.array_equal(array, second[name]) for name, array in first.items())


def test_samples_and_pieces_change_nothing() -> None:
    """Looking at weights and gradients is the same program; a share in pieces gives the same step."""
    ends = []
    for micro, look in ((None, False), (None, True), (3, False)):
        optimizer = OptimizerSettings(name="sgd", execution=Execution(micro_batch=micro))
        backend, state = _begin(CNN, optimizer)
        inputs = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype(np.float32)
        batch = Batch(inputs=inputs, targets=np.arange(8) % 3, global_size=8)
        for step in range(2):
            settings = StepSettings(
                learning_rate=0.1, seed=step, measure_norm=look, sample_values=look
            )
            state, result = backend.step(state, batch, settings)
        assert (result.gradient_norm is not None) == (result.samples is not None) == look
        ends.append(backend.snapshot(state).tensors)
    for name, array in ends[0].items():
        np.testing.assert_array_equal(array, ends[1][name])
        np.testing.assert_allclose(array, ends[2][name], atol=1e-6)


def test_memory_that_is_written_again_after_a_step_was_read_by_then() -> None:
    """Programs may run beside Python: a batch's memory may hold the next one before they have begun."""
    losses = []
    for again in (False, True):
        backend, state = _begin(CNN, ADAMW)
        inputs = np.random.default_rng(0).normal(size=(2048, 1, 8, 8)).astype(np.float32)
        batch = Batch(inputs=inputs, targets=np.arange(2048) % 3, global_size=2048)
        for step in range(2):
            state, result = backend.step(state, batch, StepSettings(learning_rate=0.1, seed=step))
        if again:
            batch.inputs[:], batch.targets[:] = 1e6, 0
        losses.append(float(result.loss))
    assert losses[0] == losses[1]


def test_losses_are_those_of_pytorch() -> None:
    """Same weights, same batches: the first to 1e-5, twenty to 1e-3."""
    torch = pytest.importorskip("torch")
    from modelyard.backends.pytorch import PyTorch

    class Net(torch.nn.Module):
        def __init__(self, given: dict[str, Any]) -> None:
            super().__init__()
            self.c, self.a = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Linear(128, 16)
            self.b = torch.nn.Linear(16, 3)
            self.load_state_dict({key: torch.from_numpy(v.copy()) for key, v in given.items()})

        def forward(self, x: Any) -> Any:
            x = torch.nn.functional.max_pool2d(torch.relu(self.c(x)), 2)
            return self.b(torch.relu(self.a(x.permute(0, 2, 3, 1).flatten(1))))

    for name in ("sgd", "adam", "adamw"):
        optimizer = OptimizerSettings(name=name, weight_decay=0.1)
        backend, state = _begin(CNN, optimizer)
        own = {
            key.removeprefix("model.sequential/"): value
            for key, value in backend.snapshot(state).tensors.items()
        }
        weights = {"c.weight": own["conv2d/kernel"].transpose(3, 2, 0, 1)}
        weights |= {
            f"{to}.weight": own[f"{of}/kernel"].T for to, of in (("a", "dense"), ("b", "dense_1"))
        }
        weights |= {
            f"{to}.bias": own[f"{of}/bias"]
            for to, of in (("c", "conv2d"), ("a", "dense"), ("b", "dense_1"))
        }
        theirs = PyTorch()
        reference = theirs.begin(Net(weights), CNN.task, optimizer, CNN.signature)
        _, losses = _train(backend, state, CNN, range(20), uneven=True)
        _, wanted = _train(theirs, reference, CNN, range(20), uneven=True)
        assert abs(losses[0] - wanted[0]) <= 1e-5
        np.testing.assert_allclose(losses, wanted, rtol=1e-3)


@pytest.mark.parametrize(
    ("execution", "words"),
    [
        (Execution(precision="float16"), "float16"),
        (Execution(precision="bfloat16"), ""),
        (Execution(compile=True), ""),
    ],
)
def test_executions(execution: Execution, words: str) -> None:
    optimizer = OptimizerSettings(name="sgd", execution=execution)
    if words:
        with pytest.raises(TrainingError, match=words):
            _begin(CNN, optimizer)
        return
    backend, state = _begin(CNN, optimizer)
    state, losses = _train(backend, state, CNN, range(30))
    assert losses[-1] < 0.8 * losses[0]
    assert backend.execution(state).precision == execution.precision
    assert all(a.dtype == np.float32 for a in backend.snapshot(state).tensors.values())


@pytest.mark.parametrize(
    ("build", "optimizer", "error", "words"),
    [
        ("not_a_model", "sgd", ModelError, "not a keras.Model"),
        ("cnn", "adamm", TrainingError, "did you mean 'adam'"),
    ],
)
def test_what_does_not_fit_is_said(
    build: str, optimizer: str, error: type[Exception], words: str
) -> None:
    case = Case(backend="keras", root=str(MODELS), build=f"keras_models:{build}")
    with pytest.raises(error, match=words):
        _begin(case, OptimizerSettings(name=optimizer))


def test_a_framework_that_cannot_train_is_named() -> None:
    pytest.importorskip("keras")
    code = "from modelyard.backends.keras_execution import framework; framework()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "numpy"},
    )
    assert "TrainingError" in done.stderr and "tensorflow, jax, torch" in done.stderr


def test_a_missing_extra_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [key for key in sys.modules if key.startswith("modelyard.backends.keras")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(MissingExtraError) as caught:
        open_backend("keras")
    assert "modelyard[keras]" in caught.value.mend


def test_importing_it_loads_only_what_keras_stands_on() -> None:
    """TensorFlow itself looks for JAX (its lite/python/util.py), so that one is not asked for here."""
    code = "import sys, modelyard.backends.keras; print([n for n in ('torch', 'tensorflow') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['tensorflow']", done.stderr
