"""Parity: which differences count, and what a damaged bundle says."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from modelyard.bundle.format import read_manifest
from modelyard.bundle.golden import read_golden
from modelyard.bundle.verify import compare, largest_error, verify
from modelyard.spec.errors import ExportError, StoreError
from modelyard.spec.records import Bundle
from modelyard.store import registry


@pytest.fixture
def folder(digits: Any, exported: Bundle, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    unpacked = registry.unpack(digits.store, exported.digest)
    return Path(shutil.copytree(unpacked, tmp_path / "bundle"))


def change_golden(folder: Path, **changed: np.ndarray[Any, Any]) -> None:
    save_file(load_file(folder / "golden.safetensors") | changed, folder / "golden.safetensors")


def test_a_whole_bundle_gives_its_own_answers(folder: Path) -> None:
    parity = verify(folder)
    assert parity.samples == 8
    assert parity.largest_error <= parity.limit
    assert parity.runtime.startswith("onnxruntime 1.")


def test_another_answer_is_found(folder: Path) -> None:
    outputs = load_file(folder / "golden.safetensors")["outputs"].copy()
    outputs[5, 3] += 0.01
    change_golden(folder, outputs=outputs)
    with pytest.raises(
        ExportError, match=r"gives other answers than pytorch.*the limit is 0\.0001"
    ):
        verify(folder)


def test_an_image_that_is_read_differently_is_found(folder: Path) -> None:
    Image.new("L", (8, 8), 3).save(folder / "samples" / "2.png")
    with pytest.raises(ExportError, match=r"2\.png becomes another input"):
        verify(folder)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("bundle.json", b"{", "no readable bundle"),
        ("bundle.json", None, "no readable bundle"),
        ("golden.safetensors", b"nonsense", "is damaged"),
        ("golden.safetensors", None, "is damaged"),
        ("samples/0.png", b"nonsense", "is damaged"),
        ("samples/0.png", None, "is damaged"),
        ("model.onnx", None, "holds no model.onnx"),
    ],
)
def test_damage_is_told_with_the_file(
    folder: Path, file: str, content: bytes | None, told: str
) -> None:
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(StoreError, match=told) as caught:
        verify(folder)
    assert str(folder) in caught.value.what


def test_a_model_that_cannot_be_run_is_told_on_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"onnxruntime cannot run .*model\.onnx") as caught:
        verify(folder)
    assert "\n" not in caught.value.what
    assert capfd.readouterr() == ("", ""), "the runtime itself stays quiet"


def test_golden_tensors_must_be_there_in_equal_number(folder: Path) -> None:
    inputs = load_file(folder / "golden.safetensors")["inputs"]
    change_golden(folder, inputs=inputs[:3].copy())
    with pytest.raises(StoreError, match="3 inputs and 8 outputs"):
        read_golden(folder, read_manifest(folder).signature)
    save_file({"inputs": inputs}, folder / "golden.safetensors")
    with pytest.raises(StoreError, match="it holds no 'outputs'"):
        read_golden(folder, read_manifest(folder).signature)


def test_compare_takes_any_number_of_samples(folder: Path) -> None:
    """More than one batch, and single samples: the batch axis is free."""
    inputs, outputs = read_golden(folder, read_manifest(folder).signature)
    many = np.arange(133) % len(inputs)
    signature = read_manifest(folder).signature
    assert compare(folder / "model.onnx", signature, inputs[many], outputs[many]) <= 1e-4
    with pytest.raises(ExportError, match="onnxruntime cannot run"):
        compare(folder / "model.onnx", signature, inputs[:, :, :4], outputs)


def test_differences_are_absolute_up_to_one_and_relative_above() -> None:
    one = np.float32([[0.5, 1000.0]])
    assert largest_error(one, one) == 0.0
    assert largest_error(one, one + np.float32([[0.25, 0]])) == pytest.approx(0.25)
    assert largest_error(one, one + np.float32([[0, 500.0]])) == pytest.approx(0.5)
    assert largest_error(np.empty((0, 2)), np.empty((0, 2))) == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_refused_on_either_side(value: float) -> None:
    good, bad = np.float32([[1.0]]), np.float32([[value]])
    for expected, actual in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(ExportError, match="not finite"):
            largest_error(expected, actual)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ExportError, match=r"shape \(2, 2\), the framework \(2, 1\)"):
        largest_error(np.zeros((2, 1)), np.zeros((2, 2)))
