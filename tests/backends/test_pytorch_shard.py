"""Sharded weights with everything else: models of other frameworks, compiling, and the export of a live state.

This file is also the program that the two worker processes run.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CASES = ("cnn", "plain", "own loss", "vit", "bert")
SHAPES = {"bert": (10,)}
STEPS = 4


def build(kind: str) -> Any:
    """Imported late: the tests' own process builds models as well, but pytest's collection does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.path.insert(0, str(Path(__file__).parent))
        import test_pytorch_guests as guests
        from torch import nn
    if kind == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )
    if kind in ("plain", "own loss"):
        return guests.Plain() if kind == "plain" else guests.Smoothed()
    return guests.vision() if kind == "vit" else guests.language()


def samples(kind: str, step: int) -> tuple[Any, Any]:
    draws = np.random.default_rng(step)
    shape = (8, *SHAPES.get(kind, (1, 8, 8)))
    if kind == "bert":
        return draws.integers(1, 20, shape).astype(np.float32), np.arange(8) % 3
    return draws.normal(size=shape).astype(np.float32), np.arange(8) % 3


def work(folder: Path, kind: str, compiled: bool, rank: int, size: int) -> None:
    """Train, judge and export as worker ``rank``."""
    from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
    from modelyard.backends.pytorch import PyTorch
    from modelyard.spec.records import TaskSpec
    from modelyard.spec.signature import Signature, Tensor
    from modelyard.spec.work import World

    backend = PyTorch()
    world = World(rank=rank, size=size, rendezvous=(folder / "rendezvous").as_uri())
    shape = SHAPES.get(kind, (1, 8, 8))
    signature = Signature(
        inputs=(Tensor(name="input", dtype="float32", shape=(None, *shape)),),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None, 3)),),
    )
    task = TaskSpec(
        type="classification", target="y", loss="cross-entropy", classes=("a", "b", "c")
    )
    execution = Execution(
        parallel="shard" if size > 1 else "replicate", compile=compiled, samples=8 // size
    )
    with backend.join(world, device="cpu", threads=1):
        backend.seed(0)
        optimizer = OptimizerSettings(name="adamw", execution=execution)
        state = backend.begin(build(kind), task, optimizer, signature)
        losses = []
        for step in range(STEPS):
            inputs, targets = samples(kind, step)
            share = slice(rank * 8 // size, (rank + 1) * 8 // size)
            batch = Batch(inputs=inputs[share], targets=targets[share], global_size=8)
            settings = StepSettings(learning_rate=0.003, seed=step)
            state, result = backend.step(state, batch, settings)
            losses.append(float(result.loss))
        inputs, _ = samples(kind, 99)
        outputs = backend.evaluate(state, inputs)
        backend.export(state, folder / f"model-{rank}.onnx", signature)
        # What was exported is a copy: training goes on, and the next answers are of the same state.
        np.testing.assert_array_equal(backend.evaluate(state, inputs), outputs)
        np.savez(folder / f"end-{rank}.npz", outputs=outputs, losses=losses)


def run(folder: Path, kind: str, *, compiled: bool, size: int) -> list[Any]:
    folder.mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), kind, str(int(compiled)), str(rank), str(size)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]  # fmt: skip
    told = [child.communicate(timeout=250)[0] for child in children]
    assert [child.returncode for child in children] == [0] * size, "\n".join(told)
    return [np.load(folder / f"end-{rank}.npz") for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", CASES)
def test_two_sharded_workers_train_and_export_what_one_does(
    kind: str, compiled: bool, tmp_path: Path
) -> None:
    import onnxruntime

    (one,) = run(tmp_path / "one", kind, compiled=False, size=1)
    two = run(tmp_path / "two", kind, compiled=compiled, size=2)
    np.testing.assert_array_equal(two[0]["outputs"], two[1]["outputs"])
    if kind != "cnn":  # whose batch norm sees half of the batch
        np.testing.assert_allclose(two[0]["losses"] + two[1]["losses"], one["losses"], atol=1e-4)
        np.testing.assert_allclose(two[0]["outputs"], one["outputs"], atol=2e-3)
    inputs, _ = samples(kind, 99)
    for rank in (0, 1):  # every worker holds the whole model once it is exported
        session = onnxruntime.InferenceSession(
            tmp_path / "two" / f"model-{rank}.onnx", providers=["CPUExecutionProvider"]
        )
        for count in (1, 8):
            (answer,) = session.run(["scores"], {"input": inputs[:count]})
            np.testing.assert_allclose(answer, two[rank]["outputs"][:count], atol=1e-4)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]), int(sys.argv[5]))
