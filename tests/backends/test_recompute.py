"""Gradient checkpointing: less is kept for the backward pass, and the same numbers come out of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend
from modelyard.backends.base import Batch, Execution, OptimizerSettings
from modelyard.backends.contract import (
    Case,
    _assert_equal,
    _samples,
    _train,
    read_result,
    run_workers,
)
from modelyard.backends.source import build_model
from modelyard.spec.errors import ModelError, TrainingError

MODELS = str(Path(__file__).with_name("models"))
CASES = {
    "blocks": Case(backend="pytorch", root=MODELS, build="deep:torch_blocks"),
    "flat": Case(backend="pytorch", root=MODELS, build="deep:torch_flat"),
    "flax": Case(backend="jax", root=MODELS, build="deep:flax_blocks"),
}


def begin(case: Case, **execution: Any) -> tuple[Any, Any]:
    pytest.importorskip({"jax": "flax", "pytorch": "torch"}.get(case.backend, case.backend))
    backend = open_backend(case.backend)
    backend.seed(0)
    model = build_model(Path(case.root), case.build, case.args, case.signature, case.task)
    settings = OptimizerSettings(name="adamw", execution=Execution(**execution))
    return backend, backend.begin(model, case.task, settings, case.signature)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_same_numbers_come_out_bit_for_bit(name: str, micro_batch: int | None) -> None:
    """Dropout included, also where a batch goes through in pieces."""
    case, ends = CASES[name], []
    for again in (False, True):
        backend, state = begin(case, gradient_checkpointing=again, micro_batch=micro_batch)
        state, losses = _train(backend, state, case, range(4))
        ends.append((losses, backend.snapshot(state).tensors))
        assert backend.execution(state).gradient_checkpointing is again
        assert any("computed again" in note for note in backend.notes(state)) is again
    assert ends[0][1].keys() == ends[1][1].keys()
    if case.backend == "pytorch":
        assert ends[0][0] == ends[1][0]
        assert all(np.array_equal(array, ends[1][1][key]) for key, array in ends[0][1].items())
    else:  # XLA fuses another program in another way
        assert np.allclose(ends[0][0], ends[1][0], rtol=1e-5)
        assert all(np.allclose(a, ends[1][1][k], atol=1e-5) for k, a in ends[0][1].items())


@pytest.mark.parametrize("name", ["blocks", "flat"])
def test_pytorch_keeps_a_fraction_for_the_backward_pass(name: str) -> None:
    case, kept = CASES[name], []
    inputs = np.zeros((64, *case.input_shape), np.float32)
    batch = Batch(inputs=inputs, targets=np.zeros(64, np.int64), global_size=64)
    for again in (False, True):
        backend, state = begin(case, gradient_checkpointing=again)
        found = backend.estimate(state, batch)
        assert found is not None
        kept.append(found.activations)
    assert kept[1] < 0.5 * kept[0]


def test_jax_keeps_a_fraction_for_the_backward_pass() -> None:
    """What the backward function closes over; what XLA makes of it is XLA's matter."""
    jax = pytest.importorskip("jax")
    pytest.importorskip("flax")
    from modelyard.backends.jax_model import functional
    from modelyard.backends.jax_recompute import recompute_blocks

    case, kept = CASES["flax"], []
    for again in (False, True):
        model = build_model(Path(case.root), case.build, case.args, case.signature, case.task)
        if again:
            recompute_blocks(model)
        found = functional(model, jax.random.key(0))
        inputs = np.zeros((64, *case.input_shape), np.float32)

        def backward(parameters: Any, found: Any = found, inputs: Any = inputs) -> Any:
            def outputs(parameters: Any) -> Any:
                return found.forward(parameters, found.kept, inputs, jax.random.key(1))[0]

            return jax.vjp(outputs, parameters)[1]

        held = jax.tree.leaves(jax.eval_shape(backward, found.parameters))
        kept.append(
            sum(array.size * array.dtype.itemsize for array in held if array.shape[:1] == (64,))
        )
    assert kept[1] < 0.5 * kept[0]


def test_an_export_and_an_evaluation_know_nothing_of_it(tmp_path: Path) -> None:
    from modelyard.bundle.verify import compare

    case = CASES["blocks"]
    backend, state = begin(case, gradient_checkpointing=True)
    state, _ = _train(backend, state, case, range(2))
    inputs = np.random.default_rng(0).normal(size=(8, *case.input_shape)).astype(np.float32)
    backend.export(state, tmp_path / "model.onnx", case.signature)
    error = compare(
        tmp_path / "model.onnx", case.signature, inputs, backend.evaluate(state, inputs)
    )
    assert error < 1e-5


def test_the_same_comes_out_in_bfloat16() -> None:
    ends = []
    for again in (False, True):
        backend, state = begin(CASES["blocks"], gradient_checkpointing=again, precision="bfloat16")
        ends.append(_train(backend, state, CASES["blocks"], range(4))[1])
    assert ends[0] == ends[1]


@pytest.mark.slow
def test_a_compiled_model_computes_its_blocks_again_too() -> None:
    case = Case(
        backend="pytorch", root=MODELS, build="deep:torch_blocks",
        args={"width": 8, "count": 1, "rate": 0.0},
    )  # fmt: skip
    backend, state = begin(case, gradient_checkpointing=True, compile=True)
    state, compiled = _train(backend, state, case, range(3))
    plain, whole = begin(case)
    whole, losses = _train(plain, whole, case, range(3))
    assert np.allclose(compiled, losses, rtol=1e-4)


@pytest.mark.slow
def test_sharded_blocks_give_the_same_bits(tmp_path: Path) -> None:
    case, ends = CASES["blocks"], []
    for again in (False, True):
        execution = Execution(parallel="shard", gradient_checkpointing=again)
        settings = OptimizerSettings(name="adamw", execution=execution)
        folder = tmp_path / str(again)
        folder.mkdir()
        run_workers(folder, case, settings, seeds=(0, 0), steps=3)
        ends.append(read_result(folder, 0, "end"))
    _assert_equal(*ends)


def test_a_transformers_model_knows_its_own_blocks() -> None:
    transformers = pytest.importorskip("transformers")
    from modelyard.backends.pytorch_recompute import recompute_blocks

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, num_channels=1, num_labels=3,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    assert "own blocks" in recompute_blocks(model)
    layers = [part for part in model.modules() if getattr(part, "gradient_checkpointing", False)]
    assert layers


@pytest.mark.parametrize(
    ("backend", "build", "words"),
    [
        ("pytorch", "odd:build", "found no blocks in Mixed"),
        ("keras", "keras_models:cnn", "found no blocks in sequential|KERAS_BACKEND"),
        ("jax", "jax_nets:build", "found no blocks in Net"),
        ("jax", "jax_nets:functions", "plain functions"),
    ],
)
def test_a_model_without_blocks_is_told_what_to_do(backend: str, build: str, words: str) -> None:
    args = {"kind": "mixed"} if build.startswith("odd") else {}
    case = Case(backend=backend, root=MODELS, build=build, args=args)
    with pytest.raises(TrainingError, match=words) as caught:
        begin(case, gradient_checkpointing=True)
    assert caught.value.mend


def test_keras_blocks_are_computed_twice_in_tensorflows_graph_and_learn_the_same() -> None:
    """Dropout included; operations are fused in another way, so that the last digits may differ."""
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras stands on another framework")
    case, ends, products = Case(backend="keras", root=MODELS, build="deep:keras_blocks"), [], []
    for again in (False, True):
        backend, state = begin(case, gradient_checkpointing=again)
        batch = _samples(case, 0, 8)
        seeds = np.zeros((6, 2), np.int64)
        graph = state.program._gradients._function.get_concrete_function(
            batch[0], (batch[1],), seeds, np.float32(8)
        ).graph
        inner = [node for one in graph.as_graph_def().library.function for node in one.node_def]
        nodes = [*graph.as_graph_def().node, *inner]
        products.append(sum(node.op == "MatMul" for node in nodes))
        state, losses = _train(backend, state, case, range(4))
        ends.append((losses, backend.snapshot(state).tensors))
        assert any("computed again" in note for note in backend.notes(state)) is again
    assert products[1] >= products[0] + 6
    assert np.allclose(ends[0][0], ends[1][0], rtol=1e-4)
    assert all(np.allclose(a, ends[1][1][k], atol=1e-4) for k, a in ends[0][1].items())


def test_keras_blocks_with_running_statistics_are_refused() -> None:
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras stands on another framework")
    case = Case(
        backend="keras", root=MODELS, build="deep:keras_blocks", args={"norm": "BatchNormalization"}
    )
    with pytest.raises(ModelError, match="statistics of batch_normalization") as caught:
        begin(case, gradient_checkpointing=True)
    assert "LayerNormalization" in caught.value.mend
