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


def work(folder: Path, compiled: bool, rank: int, size: int) -> None:
    """Train, judge and export each kind as worker ``rank``."""
    from modelyard.backends.pytorch import PyTorch
    from modelyard.spec.work import World

    backend = PyTorch()
    world = World(rank=rank, size=size, rendezvous=(folder / "rendezvous").as_uri())
    with backend.join(world, device="cpu", threads=1):
        for kind in CASES:
            print(f"--- {kind}", flush=True)
            train(backend, folder / kind, kind, compiled, rank, size)


def train(backend: Any, folder: Path, kind: str, compiled: bool, rank: int, size: int) -> None:
    from modelyard.backends.base import Batch, Execution, OptimizerSettings, StepSettings
    from modelyard.spec.records import TaskSpec
    from modelyard.spec.signature import Signature, Tensor

    folder.mkdir(exist_ok=True)
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


def run(folder: Path, *, compiled: bool, size: int) -> dict[str, list[Any]]:
    """What each worker found, by kind; all kinds in the same processes, which import for longer than they train."""
    folder.mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(int(compiled)), str(rank), str(size)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]  # fmt: skip
    told = [child.communicate(timeout=280)[0] for child in children]
    assert [child.returncode for child in children] == [0] * size, "\n".join(told)
    return {
        kind: [np.load(folder / kind / f"end-{rank}.npz") for rank in range(size)] for kind in CASES
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_sharded_workers_train_and_export_what_one_does(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", compiled=False, size=1)
    for name, compiled in (("eager", False), ("compiled", True)):
        found = run(tmp_path / name, compiled=compiled, size=2)
        for kind in CASES:
            check(f"{kind}, {name}", tmp_path / name / kind, kind, whole[kind][0], found[kind])


def check(told: str, folder: Path, kind: str, one: Any, two: list[Any]) -> None:
    import onnxruntime

    np.testing.assert_array_equal(two[0]["outputs"], two[1]["outputs"], err_msg=told)
    if kind != "cnn":  # whose batch norm sees half of the batch
        losses = two[0]["losses"] + two[1]["losses"]
        np.testing.assert_allclose(losses, one["losses"], atol=1e-4, err_msg=told)
        np.testing.assert_allclose(two[0]["outputs"], one["outputs"], atol=2e-3, err_msg=told)
    inputs, _ = samples(kind, 99)
    for rank in (0, 1):  # every worker holds the whole model once it is exported
        session = onnxruntime.InferenceSession(
            folder / f"model-{rank}.onnx", providers=["CPUExecutionProvider"]
        )
        for count in (1, 8):
            (answer,) = session.run(["scores"], {"input": inputs[:count]})
            wanted = two[rank]["outputs"][:count]
            np.testing.assert_allclose(answer, wanted, atol=1e-4, err_msg=told)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2] == "1", int(sys.argv[3]), int(sys.argv[4]))
