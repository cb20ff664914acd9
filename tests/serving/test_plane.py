import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modelyard.bundle.format import read_manifest
from modelyard.serving.batcher import DeadlineExceeded
from modelyard.serving.plane import load, validate
from modelyard.spec.errors import RequestError, ServingError, StoreError
from modelyard.spec.signature import Signature, Tensor


def prove(folder: Path) -> None:
    plane = load(folder)
    try:
        assert not plane.ready
        asyncio.run(plane.prove())
        assert plane.ready
    finally:
        plane.close()


@pytest.mark.parametrize("kind", ["tensor", "image", "table", "regression"])
def test_a_whole_bundle_proves_itself(bundle: Callable[..., Any], kind: str) -> None:
    prove(bundle(kind).folder)


def test_plain_input_and_tensors_take_the_same_way(bundle: Callable[..., Any]) -> None:
    made = bundle("table")
    plane = load(made.folder, model="risk", version=2, digest="sha256:1")
    rows = [{"age": 71, "color": "green", "smoker": "no"}, {"age": "", "color": None, "smoker": ""}]

    async def ask() -> tuple[list[dict[str, Any]], Any]:
        from modelyard.data.preprocess import encode

        inputs = encode(made.input, rows)
        return await plane.predict(rows), await plane.infer({"input": inputs})

    answers, outputs = asyncio.run(ask())
    assert [a["label"] for a in answers] == [
        made.task.classes[i] for i in outputs["output"].argmax(axis=1)
    ]
    assert plane.metadata()["model"] == "risk"
    json.dumps(plane.metadata())
    plane.close()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "input 'input' is missing"),
        ({"imput": np.zeros((1, 4), np.float32)}, "did you mean 'input'"),
        ({"input": np.zeros((1, 4), np.float64)}, "float64"),
        ({"input": np.zeros((1, 5), np.float32)}, "float32 [rows, 4]"),
        ({"input": np.zeros(4, np.float32)}, "float32 [rows, 4]"),
        ({"input": np.zeros((0, 4), np.float32)}, "shape [0, 4]"),
    ],
)
def test_tensors_must_fit_the_signature(
    bundle: Callable[..., Any], inputs: dict[str, Any], words: str
) -> None:
    plane = load(bundle().folder)
    with pytest.raises(RequestError) as refused:
        asyncio.run(plane.infer(inputs))
    assert words in str(refused.value)
    plane.close()


def test_a_request_may_ask_for_less_time_but_not_for_more(bundle: Callable[..., Any]) -> None:
    plane = load(bundle(work=700).folder, timeout_seconds=0.001)
    with pytest.raises(DeadlineExceeded):
        asyncio.run(plane.infer({"input": np.zeros((1, 4), np.float32)}, deadline=1e18))
    plane.close()


@pytest.mark.parametrize("items", [[], [[1, 2]], [["a"]], [None]])
def test_wrong_plain_input_is_the_requests_fault(
    bundle: Callable[..., Any], items: list[Any]
) -> None:
    plane = load(bundle().folder)
    with pytest.raises(RequestError):
        asyncio.run(plane.predict(items))
    plane.close()


def rewrite_golden(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / "golden.safetensors")
    change(tensors)
    save_file(tensors, folder / "golden.safetensors")


def _shift(tensors: dict[str, np.ndarray]) -> None:
    tensors["outputs"][-1, 0] += 1e-2


def _not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors["outputs"][0, 0] = np.nan


def _narrow(tensors: dict[str, np.ndarray]) -> None:
    tensors["outputs"] = tensors["outputs"][:, :1].copy()


def _empty(tensors: dict[str, np.ndarray]) -> None:
    for name in tensors:
        tensors[name] = tensors[name][:0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_shift, "differ by up to 0.01"),
        (_not_a_number, "differ"),
        (_narrow, "shape"),
        (_empty, "no golden inputs"),
    ],
)
def test_other_answers_than_recorded_are_never_ready(
    bundle: Callable[..., Any], change: Callable[[dict[str, np.ndarray]], None], words: str
) -> None:
    folder = bundle().folder
    rewrite_golden(folder, change)
    plane = load(folder)
    with pytest.raises(ServingError) as refused:
        asyncio.run(plane.prove())
    assert words in str(refused.value)
    assert not plane.ready
    plane.close()


def test_large_values_are_compared_by_their_size(bundle: Callable[..., Any]) -> None:
    """At 1e6 a float32 has a step of 0.06: an absolute limit would refuse every right answer."""
    folder = bundle("regression").folder

    def scale(tensors: dict[str, np.ndarray]) -> None:
        tensors["inputs"] *= 1e6
        tensors["outputs"] = tensors["outputs"] * np.float32(1e6) + np.float32(1.0)

    rewrite_golden(folder, scale)
    prove(folder)


def _other_label(folder: Path) -> None:
    text = (folder / "bundle.json").read_text()
    manifest = json.loads(text)
    answer = manifest["samples"][0]["answer"]
    answer["label"] = "light" if answer["label"] == "dark" else "dark"
    (folder / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_other_label, "samples/0.png gives 'dark', recorded was 'light'"),
        (lambda folder: (folder / "samples/1.png").unlink(), "1.png"),
        (lambda folder: (folder / "samples/0.png").write_bytes(b"no"), "not a readable image"),
        (lambda folder: (folder / "golden.safetensors").write_bytes(b"\0" * 99), "damaged"),
        (lambda folder: (folder / "golden.safetensors").unlink(), "damaged"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"no"), "cannot be loaded"),
        (lambda folder: (folder / "bundle.json").write_text("{}"), "no readable bundle"),
    ],
)
def test_a_damaged_bundle_is_never_ready(
    bundle: Callable[..., Any], damage: Callable[[Path], Any], words: str
) -> None:
    folder = bundle("image").folder
    damage(folder)
    with pytest.raises((ServingError, StoreError)) as refused:
        prove(folder)
    assert words in str(refused.value)


def test_a_signature_that_the_model_does_not_keep_is_refused(bundle: Callable[..., Any]) -> None:
    folder = bundle().folder
    text = (folder / "bundle.json").read_text()
    (folder / "bundle.json").write_text(text.replace('"name": "output"', '"name": "logits"'))
    assert read_manifest(folder).signature.outputs[0].name == "logits"
    with pytest.raises(ServingError, match="does not fit its signature"):
        load(folder)


@pytest.mark.parametrize("number", [-1, 5])
def test_a_number_outside_the_vocabulary_is_refused(number: int) -> None:
    """The runtime would fail on it, or read beside the table of words."""
    tokens = Tensor(name="input", dtype="int64", shape=(None, 3), below=5)
    signature = Signature(inputs=(tokens,), outputs=())
    assert validate(signature, {"input": np.array([[0, 4, 1]])}) == 1
    with pytest.raises(RequestError, match=r"not in 0 … 4"):
        validate(signature, {"input": np.array([[0, number, 1]])})
