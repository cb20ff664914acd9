"""The moving average of weights (EMA): the same arithmetic in all backends, judged and exported in the weights' place."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from modelyard.backends.average import share_after
from modelyard.backends.base import Batch, Execution, Lora, OptimizerSettings, Snapshot
from modelyard.backends.contract import (
    Case,
    _assert_equal,
    _begin,
    _samples,
    _train,
    read_result,
    run_workers,
)
from modelyard.backends.snapshots import read_snapshot, read_weights, write_snapshot

MODELS = str(Path(__file__).with_name("models"))
CASES = {
    "pytorch": Case(backend="pytorch", build="cnn-small", args={"channels": [4], "hidden": 8}),
    "keras": Case(backend="keras", root=MODELS, build="keras_models:cnn"),
    "jax": Case(backend="jax", root=MODELS, build="jax_nets:build"),
}
EMA = OptimizerSettings(name="adamw", weight_decay=0.01, ema=0.9)
FROZEN = replace(EMA, freeze=("*bias",))
LORA = replace(EMA, lora=Lora(rank=2, alpha=4.0))
SMALL = replace(EMA, execution=Execution(micro_batch=3))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    pytest.importorskip({"pytorch": "torch"}.get(request.param, request.param))
    return CASES[request.param]


def averages(snapshot: Snapshot) -> dict[str, Any]:
    return {k.removeprefix("ema."): v for k, v in snapshot.tensors.items() if k.startswith("ema.")}


def fresh_folder(folder: Path) -> Path:
    (folder / "shipped").mkdir()
    return folder / "shipped"


def test_the_first_steps_weigh_little_and_soon_the_decay_is_what_was_asked_for() -> None:
    shares = [share_after(0.999, count) for count in (0, 1, 90, 8990, 10**6)]
    assert shares == pytest.approx([0.9, 9 / 11, 0.09, 0.001, 0.001])


@pytest.mark.parametrize("optimizer", [EMA, SMALL], ids=["whole", "micro-batches"])
def test_it_is_the_average_that_numpy_computes(case: Case, optimizer: OptimizerSettings) -> None:
    """In float64, from the weights that a look after each step shows."""
    backend, state = _begin(case, optimizer)
    expected = {n: a.astype(np.float64) for n, a in averages(backend.snapshot(state)).items()}
    assert expected
    for count in range(12):
        state, _ = _train(backend, state, case, range(count, count + 1))
        weights, decay = backend.snapshot(state).tensors, min(0.9, (1 + count) / (10 + count))
        for name, average in expected.items():
            expected[name] = decay * average + (1 - decay) * weights[f"model.{name}"]
    found = backend.snapshot(state)
    for name, average in averages(found).items():
        np.testing.assert_allclose(average, expected[name], atol=2e-6, rtol=1e-5)
    moved = [np.abs(a - found.tensors[f"model.{n}"]).max() for n, a in expected.items()]
    assert max(moved) > 1e-3, "average and weights should differ, or nothing was shown"


def test_looking_at_it_changes_nothing_of_the_training(case: Case) -> None:
    plain, state = _begin(case, replace(EMA, ema=0.0))
    state, without = _train(plain, state, case, range(6))
    backend, looked = _begin(case, EMA)
    losses = []
    for step in range(6):
        looked, more = _train(backend, looked, case, range(step, step + 1))
        losses += more
        backend.evaluate(looked, _samples(case, 1, 4)[0])
        if step % 2:
            backend.view(looked)
    assert losses == without
    weights = {k: v for k, v in backend.snapshot(looked).tensors.items() if "ema." not in k}
    _assert_equal(replace(plain.snapshot(state), numbers={}), Snapshot(tensors=weights, numbers={}))


def test_the_average_is_judged_and_exported_and_is_the_weights_of_a_checkpoint(
    case: Case, tmp_path: Path
) -> None:
    backend, state = _begin(case, EMA)
    state, _ = _train(backend, state, case, range(8))
    inputs, _ = _samples(case, 5, 16)
    judged = backend.evaluate(state, inputs)
    files = write_snapshot(tmp_path, backend.snapshot(state))
    other, fresh = _begin(case, OptimizerSettings(name="adamw"), seed=9)
    fresh = other.restore(fresh, read_weights(tmp_path, files))
    np.testing.assert_allclose(other.evaluate(fresh, inputs), judged, atol=1e-6)
    raw = {k: v for k, v in read_snapshot(tmp_path, files).tensors.items() if k[:6] == "model."}
    fresh = other.restore(fresh, Snapshot(tensors=raw, numbers={}))
    assert np.abs(other.evaluate(fresh, inputs) - judged).max() > 1e-3
    if case.backend == "keras" and os.environ.get("KERAS_BACKEND") == "jax":
        return  # writes no ONNX
    import onnxruntime

    backend.export(state, tmp_path / "model.onnx", case.signature)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(["scores"], {"input": inputs})[0], judged, atol=1e-4)


@pytest.mark.parametrize("optimizer", [EMA, FROZEN, LORA], ids=["all", "frozen", "adapters"])
def test_a_resume_goes_on_bit_for_bit(
    case: Case, optimizer: OptimizerSettings, tmp_path: Path
) -> None:
    backend, state = _begin(case, optimizer)
    state, _ = _train(backend, state, case, range(4))
    backend.evaluate(state, _samples(case, 1, 4)[0])
    middle = backend.snapshot(state)
    _assert_equal(backend.view(state), middle)
    files = write_snapshot(tmp_path, middle)
    state, _ = _train(backend, state, case, range(4, 8))
    # Adapters must find the weights that they were trained on; else any weights will do.
    other, fresh = _begin(case, optimizer, seed=0 if optimizer.lora else 99)
    fresh, _ = _train(other, fresh, case, range(2))
    other.evaluate(fresh, _samples(case, 1, 4)[0])
    fresh = other.restore(fresh, read_snapshot(tmp_path, files))
    fresh, _ = _train(other, fresh, case, range(4, 8))
    _assert_equal(other.snapshot(fresh), backend.snapshot(state))
    inputs, _ = _samples(case, 5, 16)
    judged = backend.evaluate(state, inputs)
    np.testing.assert_array_equal(other.evaluate(fresh, inputs), judged)
    # What is shipped is the average, also merged into what its adapters stand on.
    files = write_snapshot(fresh_folder(tmp_path), backend.snapshot(state))
    plain, shipped = _begin(case, replace(optimizer, ema=0.0))
    shipped = plain.restore(shipped, read_weights(tmp_path / "shipped", files))
    np.testing.assert_allclose(plain.evaluate(shipped, inputs), judged, atol=1e-6)
    assert backend.snapshot(state).numbers["averaged"] == 8


def test_the_estimate_counts_the_average(case: Case) -> None:
    if case.backend == "jax":
        pytest.skip("it makes no estimate")
    found = []
    for optimizer in (EMA, replace(EMA, ema=0.0)):
        backend, state = _begin(case, optimizer)
        inputs, targets = _samples(case, 0, 8)
        batch = Batch(inputs=inputs, targets=targets, global_size=8)
        measured = backend.estimate(state, batch)
        assert measured is not None
        found.append(measured)
    assert found[0].optimizer - found[1].optimizer == found[0].gradients > 0


def test_it_begins_with_the_weights_where_a_snapshot_has_none(case: Case) -> None:
    plain, state = _begin(case, replace(EMA, ema=0.0))
    state, _ = _train(plain, state, case, range(3))
    backend, fresh = _begin(case, EMA, seed=5)
    fresh, _ = _train(backend, fresh, case, range(2))
    fresh = backend.restore(fresh, plain.snapshot(state))
    found = backend.snapshot(fresh)
    for name, average in averages(found).items():
        np.testing.assert_array_equal(average, found.tensors[f"model.{name}"])
    assert found.numbers["averaged"] == 0


@pytest.mark.parametrize("parallel", ["replicate", "shard"])
def test_two_workers_keep_what_one_keeps(case: Case, parallel: str, tmp_path: Path) -> None:
    if parallel == "shard" and case.backend != "pytorch":
        pytest.skip("only PyTorch's weights can be spread over workers")
    execution = Execution(parallel=parallel, samples=4)  # type: ignore[arg-type]
    optimizer = replace(EMA, name="sgd", execution=execution)
    run_workers(tmp_path, case, optimizer, steps=6, seeds=(0, 0))
    backend, state = _begin(case, optimizer)
    state, _ = _train(backend, state, case, range(6))
    whole = averages(backend.snapshot(state))
    for rank in (0, 1):
        end = read_result(tmp_path, rank, "end")
        for name, average in averages(end).items():
            part = end.numbers.get("parts", {}).get(f"ema.{name}")
            start = part["offset"][0] if part else 0
            own = whole[name][start : start + len(average)]
            np.testing.assert_allclose(average, own, atol=1e-5, err_msg=name)
