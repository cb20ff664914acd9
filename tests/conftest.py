"""For all tests: programs that are not Python, and the promise that no process is left behind."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

# The same examples in every run, and no clock: the machine may be busy.
settings.register_profile("steady", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("steady")

# JAX keeps what it has compiled for all processes of a run: tests compile the same few steps again and again, and
# that is most of their time. What is loaded is the same machine code.
COMPILED = Path(tempfile.gettempdir()) / f"modelyard-tests-compiled-{os.getpid()}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(COMPILED)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure() -> None:
    """The first process of a run removes it; those it started have the variable from it."""
    shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture
def require_program() -> Callable[[str], str]:
    """The path of a program; where it is missing the test is skipped, or fails if it must not be.

    ``MODELYARD_REQUIRE_SERVICES=1`` (set by ``.ci/run``) says that it must not.
    """

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            reason = f"the program {name!r} is not installed (Debian: apt-get install {name})"
            if os.environ.get("MODELYARD_REQUIRE_SERVICES"):
                pytest.fail(f"{reason}, and MODELYARD_REQUIRE_SERVICES says that it must be")
            pytest.skip(reason)
        return path

    return find


def processes_about(folder: Path) -> list[psutil.Process]:
    """Running processes that name ``folder`` in their command line, other than this one."""
    found = []
    for process in psutil.process_iter():
        try:
            names_it = any(str(folder) in word for word in process.cmdline())
            if names_it and process.pid != os.getpid() and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[Path]:
    """``tmp_path``, with the check that no process that was given a path in it outlives the test."""
    yield tmp_path
    # One that has just been told to end, or comes after the end and sees it, may take a moment on a busy machine.
    deadline = time.monotonic() + 10
    while (left := processes_about(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    told = [(process.pid, process.cmdline()) for process in left]
    for process in left:
        process.kill()
    assert not told, f"left behind: {told}"


@pytest.fixture
def new_children() -> Callable[[], list[psutil.Process]]:
    """The children of this process that the test has started: a test before it may have left a compiler's process."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


@pytest.fixture(scope="session")
def small_bundle() -> Callable[[Path], Any]:
    """Make a bundle in a folder: ``y = x W``, three classes from four numbers; returns W (4, 3)."""
    return _make_small_bundle


def _make_small_bundle(folder: Path) -> Any:
    # Tests that need no bundle must not pay for these.
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import save_file

    from modelyard.bundle.format import GOLDEN, MANIFEST, MODEL, BundleManifest, Sample
    from modelyard.spec.records import Parity, TaskSpec
    from modelyard.spec.signature import Signature, Tensor, TensorInput
    from modelyard.tasks import open_task

    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weights"], ["output"])],
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = helper.make_opsetid("", 17)
    folder.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), folder / MODEL)
    inputs = np.eye(4, dtype=np.float32)[:3] * 3
    outputs = inputs @ weights
    save_file({"inputs": inputs, "outputs": outputs}, folder / GOLDEN)
    task = TaskSpec(
        type="classification", target="label", loss="cross-entropy", classes=("a", "b", "c")
    )
    (folder / "samples").mkdir()
    samples = []
    for number, answer in enumerate(open_task(task).decode(outputs)):
        sample = Sample(file=f"samples/{number}.json", truth=answer["label"], answer=answer)
        (folder / sample.file).write_text(json.dumps(inputs[number].tolist()))
        samples.append(sample)
    manifest = BundleManifest(
        name="small",
        created="2026-01-01T00:00:00Z",
        framework="numpy",
        signature=Signature(
            inputs=(Tensor(name="input", dtype="float32", shape=(None, 4)),),
            outputs=(Tensor(name="output", dtype="float32", shape=(None, 3)),),
        ),
        input=TensorInput(shape=(4,)),
        task=task,
        parity=Parity(
            samples=3, largest_error=0.0, limit=1e-4, framework="numpy", runtime="onnxruntime"
        ),
        samples=tuple(samples),
        metrics={},
        lineage={},
    )
    (folder / MANIFEST).write_bytes(manifest.to_json())
    return weights
