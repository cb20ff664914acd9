"""From a run to a bundle, with a real model, real data and a real registry."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from modelyard.backends.snapshots import WEIGHTS
from modelyard.backends.source import build_model
from modelyard.bundle.export import export_key
from modelyard.bundle.format import read_manifest
from modelyard.bundle.verify import verify
from modelyard.data.preprocess import encode
from modelyard.spec.errors import ExportError, StoreError, YardError
from modelyard.spec.records import Bundle
from modelyard.store import open_store, registry
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of


@pytest.fixture(scope="module")
def folder(digits: Any, exported: Bundle) -> Path:
    unpacked: Path = registry.unpack(digits.store, exported.digest)
    return unpacked


def answers_of_torch(digits: Any, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same weights in the user's module, without any of Modelyard's backend."""
    signature = signature_of(digits.dataset.input, digits.dataset.task)
    model = build_model(digits.root, "model:build", {}, signature, digits.dataset.task)
    assert isinstance(model, torch.nn.Module)
    weights = load_file(Path(digits.run.best.folder) / WEIGHTS)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with torch.no_grad():
        result: np.ndarray[Any, Any] = model.eval()(torch.from_numpy(inputs)).numpy()
    return result


def test_the_bundle_says_what_it_is(digits: Any, exported: Bundle, folder: Path) -> None:
    assert (exported.name, exported.run) == ("digits", "run-1")
    assert exported.dataset == digits.dataset.id
    assert exported.metrics["test/accuracy"] > 0.8
    assert exported.size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert {path.relative_to(folder).as_posix() for path in folder.iterdir()} == {
        *("bundle.json", "model.onnx", "golden.safetensors", "samples", "card.md")
    }
    manifest = read_manifest(folder)
    assert manifest.framework.startswith("pytorch 2.")
    assert manifest.description == "Reads one digit."
    assert manifest.lineage["code"] == digits.run.inputs["code"]
    assert {"modelyard", "python", "torch", "onnxruntime"} <= set(manifest.environment)


def test_parity_was_measured_on_held_out_samples(exported: Bundle) -> None:
    assert exported.parity.samples == 256
    assert 0 < exported.parity.largest_error <= exported.parity.limit == 1e-4
    assert exported.parity.framework_milliseconds > 0
    assert exported.parity.runtime_milliseconds > 0


def test_golden_answers_are_the_frameworks(digits: Any, folder: Path) -> None:
    golden = load_file(folder / "golden.safetensors")
    assert golden["inputs"].shape == (8, 1, 8, 8)
    np.testing.assert_allclose(
        golden["outputs"], answers_of_torch(digits, golden["inputs"]), atol=1e-5
    )
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    [outputs] = session.run(["output"], {"input": golden["inputs"]})
    np.testing.assert_allclose(outputs, golden["outputs"], atol=1e-4)


def test_the_samples_are_the_users_own_files_with_their_answers(digits: Any, folder: Path) -> None:
    manifest = read_manifest(folder)
    golden = load_file(folder / "golden.safetensors")
    task = open_task(manifest.task)
    originals = {
        path.read_bytes(): path.parent.name for path in (digits.root / "data").rglob("*.png")
    }
    assert len(manifest.samples) == 8
    for number, sample in enumerate(manifest.samples):
        content = (folder / sample.file).read_bytes()
        assert originals[content] == sample.truth
        np.testing.assert_allclose(
            encode(manifest.input, [content])[0], golden["inputs"][number], atol=1e-6
        )
        [answer] = task.decode(golden["outputs"][number : number + 1])
        assert sample.answer["label"] == answer["label"]
        assert sample.answer["probabilities"] == pytest.approx(answer["probabilities"])


def test_the_same_export_again_is_the_one_that_is_there(digits: Any, exported: Bundle) -> None:
    assert digits.export() == exported
    record = digits.store.read(digits.store.export_record(export_key(digits.run)), Bundle)
    assert record == exported


def test_a_lost_blob_makes_it_again(digits: Any, exported: Bundle, tmp_path: Path) -> None:
    shutil.copytree(digits.store.root, tmp_path / ".yard")
    store = open_store(tmp_path / ".yard")
    registry.blobs(store).path(exported.digest).unlink()
    shutil.rmtree(store.bundle_folder(exported.digest), ignore_errors=True)
    again = digits.export(store=store)
    assert verify(registry.unpack(store, again.digest)).samples == 8


def test_other_weights_are_another_export(digits: Any) -> None:
    best = msgspec.structs.replace(digits.run.best, files={"model.safetensors": "sha256:0"})
    assert export_key(digits.run) != export_key(msgspec.structs.replace(digits.run, best=best))
    assert export_key(digits.run) == export_key(msgspec.structs.replace(digits.run, seconds=1.0))


def test_a_table_with_words_and_gaps_is_exported_too(prices: Any) -> None:
    bundle = prices.export(name="prices", description="")
    folder = registry.unpack(prices.store, bundle.digest)
    row = json.loads((folder / "samples" / "0.json").read_text())
    assert set(row) == {"size", "town", "garden"}
    assert verify(folder).samples == 8
    assert set(read_manifest(folder).samples[0].answer) == {"value"}


# --- what must not become a bundle -----------------------------------------------------------


def refused(trained: Any, tmp_path: Path, **changed: Any) -> YardError:
    """The error of an export into an empty store, which must stay without a bundle."""
    store = open_store(tmp_path / ".yard")
    with pytest.raises(YardError) as caught:
        trained.export(store=store, **changed)
    assert not list(store.root.glob("exports/*"))
    assert not (store.registry / "blobs").exists()
    assert caught.value.mend
    return caught.value


def test_parity_past_the_limit_is_refused_also_where_an_older_export_is_there(
    digits: Any, exported: Bundle
) -> None:
    before = sorted(digits.store.registry.rglob("*"))
    with pytest.raises(ExportError, match="gives other answers than pytorch") as caught:
        digits.export(parity_limit=1e-12)
    assert "the limit is 1e-12" in caught.value.what
    assert "evaluation" in caught.value.mend
    assert sorted(digits.store.registry.rglob("*")) == before
    assert [path.suffix for path in (digits.store.root / "exports").iterdir()] == [".json"]


def test_a_damaged_checkpoint_is_refused(digits: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(digits.run.best.folder, folder)
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    best = msgspec.structs.replace(digits.run.best, folder=str(folder))
    error = refused(digits, tmp_path, run=msgspec.structs.replace(digits.run, best=best))
    assert isinstance(error, StoreError)
    assert "the hash differs" in error.what


def test_a_run_without_a_checkpoint_is_refused(digits: Any, tmp_path: Path) -> None:
    run = msgspec.structs.replace(digits.run, best=None, state="failed")
    assert "has no checkpoint to export" in refused(digits, tmp_path, run=run).what


def test_a_run_on_other_data_is_refused(digits: Any, tmp_path: Path) -> None:
    run = msgspec.structs.replace(digits.run, dataset="other")
    assert "was trained on other data (other)" in refused(digits, tmp_path, run=run).what


@pytest.fixture
def edited(digits: Any) -> Iterator[None]:
    file = digits.root / "model.py"
    text = file.read_text()
    file.write_text(text.replace("Conv2d(channels, 8", "Conv2d(channels, 9"))
    yield
    file.write_text(text)


def test_code_that_changed_since_training_is_refused(
    digits: Any, tmp_path: Path, edited: None
) -> None:
    error = refused(digits, tmp_path)
    assert "the code of model:build has changed since run run-1" in error.what


def test_data_that_is_read_differently_now_is_refused(
    digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample file that is not what training saw: the service would see something else."""
    sample = Path(digits.dataset.folder) / "samples" / "0.png"
    content = sample.read_bytes()
    Image.new("L", (8, 8), 200).save(sample)
    try:
        error = refused(digits, tmp_path)
    finally:
        sample.write_bytes(content)
    assert "0.png becomes another input for the service" in error.what
