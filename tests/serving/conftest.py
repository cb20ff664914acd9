"""Small bundles made by hand, and real server processes that serve them."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file

from modelyard.bundle.format import BundleManifest, Sample
from modelyard.data.preprocess import encode
from modelyard.spec.records import Parity, TaskSpec
from modelyard.spec.signature import (
    BooleanColumn,
    CategoricalColumn,
    ImageInput,
    NaturalInput,
    NumericColumn,
    Signature,
    TableInput,
    TensorInput,
)
from modelyard.spec.signature import Tensor as TensorSpec
from modelyard.tasks import open_task

TENSOR = TensorInput(shape=(4,))
IMAGE = ImageInput(height=8, width=8, color="grey", mean=(0.5,), std=(0.5,))
TABLE = TableInput(
    columns=(
        NumericColumn(name="age", fill=40.0, mean=40.0, std=10.0),
        CategoricalColumn(name="color", categories=("red", "green", "blue")),
        BooleanColumn(name="smoker", fill=0.5),
    )
)


def png(level: int, size: int = 8) -> bytes:
    """A picture of one grey level, 0 black to 255 white."""
    file = io.BytesIO()
    Image.new("L", (size, size), level).save(file, "PNG")
    return file.getvalue()


@dataclass
class Made:
    """A bundle and the plain maths that its model does."""

    folder: Path
    weights: np.ndarray
    bias: np.ndarray
    input: NaturalInput
    task: TaskSpec

    def expected(self, inputs: np.ndarray) -> np.ndarray:
        """What the "framework" says: (n, *shape) -> (n, outputs)."""
        return (inputs.reshape(len(inputs), -1) @ self.weights + self.bias).astype(np.float32)


def make_bundle(
    folder: Path, natural: NaturalInput, items: list[Any], classes: tuple[str, ...], work: int = 0
) -> Made:
    """``x W + b`` as an ONNX file with all that a bundle holds; ``work``: size of extra products."""
    folder.mkdir(parents=True)
    (folder / "samples").mkdir()
    generator = np.random.default_rng(0)
    width = int(np.prod(natural.shape))
    weights = generator.normal(size=(width, max(1, len(classes)))).astype(np.float32)
    if isinstance(natural, ImageInput):  # the brighter, the more it is "light"
        weights = np.tile(np.array([[-0.1, 0.1]], np.float32), (width, 1))
    bias = np.zeros(weights.shape[1], np.float32)
    task = TaskSpec(
        type="classification" if classes else "regression",
        target="label",
        loss="cross-entropy" if classes else "mean-squared-error",
        classes=classes,
    )
    made = Made(folder, weights, bias, natural, task)
    onnx.save(_model(natural.shape, weights, bias, work), folder / "model.onnx")
    inputs = encode(natural, items)
    outputs = made.expected(inputs)
    save_file({"inputs": inputs, "outputs": outputs}, folder / "golden.safetensors")
    samples = []
    for number, (item, answer) in enumerate(
        zip(items, open_task(task).decode(outputs), strict=True)
    ):
        file = f"samples/{number}.{'png' if isinstance(item, bytes) else 'json'}"
        content = item if isinstance(item, bytes) else json.dumps(item).encode()
        (folder / file).write_bytes(content)
        samples.append(Sample(file=file, truth="?", answer=answer))
    manifest = BundleManifest(
        name="small",
        description="a small model",
        created="2026-01-01T00:00:00Z",
        framework="numpy",
        signature=Signature(
            inputs=(TensorSpec(name="input", dtype="float32", shape=(None, *natural.shape)),),
            outputs=(TensorSpec(name="output", dtype="float32", shape=(None, len(bias))),),
        ),
        input=natural,
        task=task,
        parity=Parity(
            samples=len(items),
            largest_error=0.0,
            limit=1e-4,
            framework="numpy",
            runtime="onnxruntime",
        ),
        samples=tuple(samples),
        metrics={"test/accuracy": 1.0},
        lineage={},
    )
    (folder / "bundle.json").write_bytes(manifest.to_json())
    return made


def _model(shape: tuple[int, ...], weights: Any, bias: Any, work: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum" if work else "output"]),
    ]
    constants = {"weights": weights, "bias": bias}
    if work:
        # Products that depend on the input, so that they cannot be folded, and add nothing.
        constants |= {
            "square": np.full((work, work), 1.0 / work, np.float32),
            "zero": np.zeros(1, np.float32),
        }
        nodes += [
            helper.make_node("ReduceMax", ["flat"], ["largest"], keepdims=0),
            helper.make_node("Add", ["square", "largest"], ["a0"]),
            helper.make_node("MatMul", ["a0", "square"], ["a1"]),
            helper.make_node("MatMul", ["a1", "square"], ["a2"]),
            helper.make_node("ReduceMax", ["a2"], ["a3"], keepdims=0),
            helper.make_node("Mul", ["a3", "zero"], ["nothing"]),
            helper.make_node("Add", ["sum", "nothing"], ["output"]),
        ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", len(bias)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


ITEMS: dict[str, tuple[NaturalInput, list[Any], tuple[str, ...]]] = {
    "tensor": (TENSOR, [[1, 2, 3, 4], [0, 0, 1, 0], [-1, 0.5, 0, 2]], ("a", "b", "c")),
    "image": (IMAGE, [png(10), png(240)], ("dark", "light")),
    "table": (
        TABLE,
        [
            {"age": 30, "color": "red", "smoker": True},
            {"age": None, "color": "blue", "smoker": False},
        ],
        ("healthy", "ill"),
    ),
    "regression": (TENSOR, [[1, 2, 3, 4], [4, 3, 2, 1]], ()),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Made]:
    """``bundle("image")`` makes an unpacked bundle of that kind."""

    def make(kind: str = "tensor", work: int = 0) -> Made:
        natural, items, classes = ITEMS[kind]
        return make_bundle(tmp_path / f"bundle-{kind}-{work}", natural, items, classes, work)

    return make


@dataclass
class Server:
    """A real ``python -m modelyard.serving``."""

    process: subprocess.Popen[bytes]
    made: Made
    ready_file: Path
    log: Path
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.about['port']}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def wait_ready(self, seconds: float = 30.0) -> "Server":
        until = time.monotonic() + seconds
        while not self.ready_file.exists():
            assert self.process.poll() is None, f"it ended: {self.log.read_text()}"
            assert time.monotonic() < until, f"never ready: {self.log.read_text()}"
            time.sleep(0.02)
        self.about = json.loads(self.ready_file.read_text())
        return self

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self, seconds: float = 15.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def launch(made: Made, place: Path, *options: str) -> Server:
    place.mkdir(parents=True, exist_ok=True)
    ready, log = place / "ready.json", place / "log"
    command = [sys.executable, "-m", "modelyard.serving", "--bundle", str(made.folder)]
    command += ["--model", "small", "--version", "3", "--digest", "sha256:abc"]
    command += ["--ready-file", str(ready), *options]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stderr=file, stdout=file, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    return Server(process, made, ready, log)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``start(made, "--max-batch", "8")`` starts a server; all are ended after the test."""
    servers: list[Server] = []

    def begin(made: Made, *options: str) -> Server:
        servers.append(launch(made, tmp_path / f"server-{len(servers)}", *options))
        return servers[-1]

    yield begin
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """``served("table")``: one server of that kind, shared by the tests of a module."""
    servers: dict[str, Server] = {}

    def of(kind: str) -> Server:
        if kind not in servers:
            place = tmp_path_factory.mktemp(kind)
            natural, items, classes = ITEMS[kind]
            made = make_bundle(place / "bundle", natural, items, classes)
            servers[kind] = launch(made, place, "--max-request-bytes", "1000000").wait_ready()
        return servers[kind]

    yield of
    for server in servers.values():
        assert server.stop() == 0
