"""A model of several inputs: a backend takes rows of bytes apart, as they are stored and in model form."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray
from tests.backends.families.problems import built, lessons

from modelyard.backends import open_backend
from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
from modelyard.backends.families import FRAMEWORKS
from modelyard.data.preprocess import finish
from modelyard.spec.errors import ModelError
from modelyard.spec.signature import MixedInput
from modelyard.spec.work import World
from modelyard.tasks.parts import by_name, pack, stored_parts
from modelyard.tasks.signature import signature_of

PACKAGES = {"pytorch": "torch", "keras": "keras", "jax": "flax"}
LESSON = lessons()["fusion"]
TASK, SPEC = LESSON.problem.task, LESSON.problem.natural
SIGNATURE = signature_of(SPEC, TASK)
ALONE = World(rank=0, size=1, rendezvous="")


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(PACKAGES[request.param])
    return str(request.param)


def stored(count: int = 12) -> NDArray[Any]:
    """Rows as a prepared dataset holds them."""
    assert isinstance(SPEC, MixedInput) and SPEC.text
    random, parts = np.random.default_rng(0), stored_parts(SPEC)
    most = {"image": 256, "text": SPEC.text.vocabulary, "table": 3}
    return pack(parts, {p.name: random.integers(0, most[p.name], (count, *p.shape)) for p in parts})


def test_both_forms_give_the_same_answers_and_so_does_the_file(
    framework: str, tmp_path: Path
) -> None:
    backend, rows = open_backend(framework), stored()
    targets = np.arange(12, dtype=np.int64) % 8
    with backend.join(ALONE, device="cpu", threads=1):
        state = backend.begin(
            built(framework, LESSON), TASK, OptimizerSettings(name="adam"), SIGNATURE, SPEC
        )
        batch = Batch(inputs=rows, targets=targets, global_size=12)
        state, _ = backend.step(state, batch, StepSettings(learning_rate=0.01, seed=0))
        trained = backend.snapshot(state)
        answers = backend.evaluate(state, rows)
        other = backend.begin(
            built(framework, LESSON), TASK, OptimizerSettings(name="adam"), SIGNATURE
        )
        other = backend.restore(other, trained)
        whole = finish(SPEC, rows)
        np.testing.assert_allclose(backend.evaluate(other, whole), answers, atol=1e-5)
        backend.export(other, tmp_path / "model.onnx", SIGNATURE)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert {tensor.name for tensor in session.get_inputs()} == {"image", "text", "table"}
    (found,) = session.run(["output"], by_name(SIGNATURE, whole))
    np.testing.assert_allclose(found, answers, atol=1e-5)


@pytest.mark.parametrize("framework", ["pytorch", "keras"])
def test_pieces_of_a_batch_are_rows_too(framework: str) -> None:
    pytest.importorskip(PACKAGES[framework])
    losses = []
    for piece in (None, 5):
        backend, rows = open_backend(framework), stored()
        backend.seed(0)
        settings = OptimizerSettings(name="sgd", execution=replace(Execution(), micro_batch=piece))
        batch = Batch(inputs=rows, targets=np.arange(12, dtype=np.int64) % 8, global_size=12)
        with backend.join(ALONE, device="cpu", threads=1):
            state = backend.begin(built(framework, LESSON), TASK, settings, SIGNATURE, SPEC)
            for step in range(3):
                state, result = backend.step(
                    state, batch, StepSettings(learning_rate=0.1, seed=step)
                )
            losses.append(float(result.loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def takes_one(framework: str) -> Any:
    """A model that wants a single tensor."""
    if framework == "pytorch":
        import torch

        return torch.nn.Linear(3, 8)
    if framework == "keras":
        import keras

        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(8)])
    from flax import nnx

    return nnx.Linear(3, 8, rngs=nnx.Rngs(0))


def test_a_model_of_one_input_is_told_what_it_would_be_given(framework: str) -> None:
    backend = open_backend(framework)
    with backend.join(ALONE, device="cpu", threads=1), pytest.raises(ModelError) as caught:
        backend.begin(takes_one(framework), TASK, OptimizerSettings(name="adam"), SIGNATURE, SPEC)
    assert (
        "a dict of inputs of shapes image (2, 1, 8, 8), text (2, 6), table (2, 1)"
        in caught.value.what
    )
