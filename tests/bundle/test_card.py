"""The model card: true to the run, readable by hubs, harmless whatever the data is called."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from modelyard.bundle.card import write_card
from modelyard.bundle.format import read_manifest
from modelyard.spec.records import Bundle
from modelyard.store import registry


@pytest.fixture(scope="module")
def folder(digits: Any, exported: Bundle) -> Path:
    unpacked: Path = registry.unpack(digits.store, exported.digest)
    return unpacked


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n")[1])


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_front_matter_is_a_model_index(digits: Any, folder: Path) -> None:
    """The form of Hugging Face's hub: model-index > results > task, dataset, metrics."""
    matter = front_matter((folder / "card.md").read_text())
    assert matter["library_name"] == "onnx"
    assert matter["pipeline_tag"] == "image-classification"
    [model] = matter["model-index"]
    assert model["name"] == "digits"
    [result] = model["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "digits", "type": "images", "split": "test"}
    shown = {f"test/{metric['type']}": metric["value"] for metric in result["metrics"]}
    assert shown == pytest.approx(digits.run.metrics)


def test_each_split_has_its_result(digits: Any, folder: Path) -> None:
    metrics = {"test/accuracy": 1e-07, "validation/accuracy": 1e22, "validation/loss": 0.5}
    manifest = msgspec.structs.replace(read_manifest(folder), metrics=metrics)
    run = msgspec.structs.replace(digits.run, metrics=metrics)
    card = write_card(manifest, run, digits.dataset)
    results = front_matter(card)["model-index"][0]["results"]
    found = {
        f"{result['dataset']['split']}/{metric['type']}": metric["value"]
        for result in results
        for metric in result["metrics"]
    }
    assert found == metrics
    assert "| accuracy | 1e-07 | 1e+22 |" in section(card, "Results")


def test_it_tells_the_data_the_training_and_the_parity(
    digits: Any, exported: Bundle, folder: Path
) -> None:
    card = (folder / "card.md").read_text()
    assert "1797 samples from `data` (source `images`)" in section(card, "Data")
    assert "train 1259, validation 269, test 269" in section(card, "Data")
    assert "10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in section(card, "Data")
    assert "| train.epochs | 3 |" in section(card, "Training")
    assert f"{exported.parity.largest_error:.2e} (limit 1e-04" in section(
        card, "Parity with the framework"
    )
    assert digits.run.inputs["code"] in section(card, "Where it comes from")
    assert "not calibrated" in section(card, "Limits and intended use")


def test_nothing_of_the_machine_is_published(digits: Any, folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            assert str(digits.root).encode() not in file.read_bytes(), file.name


def test_the_worst_confusions_come_first(digits: Any, folder: Path) -> None:
    manifest, classes = read_manifest(folder), len(digits.dataset.task.classes)
    confusion = [[0] * classes for _ in range(classes)]
    confusion[3][8], confusion[1][7], confusion[2][2] = 4, 9, 50
    run = msgspec.structs.replace(digits.run, confusion=tuple(map(tuple, confusion)))
    results = section(write_card(manifest, run, digits.dataset), "Results")
    assert results.strip().endswith("| 1 | 7 | 9 |\n| 3 | 8 | 4 |")
    right = msgspec.structs.replace(
        digits.run,
        confusion=tuple(tuple(5 * (i == j) for j in range(classes)) for i in range(classes)),
    )
    assert "No sample of the test split was put into a wrong class" in write_card(
        manifest, right, digits.dataset
    )


def test_names_from_data_cannot_break_the_page(prices: Any) -> None:
    bundle = prices.export(name="prices", description="")
    folder = registry.unpack(prices.store, bundle.digest)
    nasty = msgspec.structs.replace(
        prices.dataset.task, type="classification", classes=("a | b", "<script>\nx", "c")
    )
    dataset = msgspec.structs.replace(prices.dataset, task=nasty)
    manifest = msgspec.structs.replace(read_manifest(folder), task=nasty, name='x": [')
    run = msgspec.structs.replace(prices.run, confusion=((0, 1, 0), (0, 0, 2), (0, 0, 0)))
    card = write_card(manifest, run, dataset)
    assert front_matter(card)["model-index"][0]["name"] == 'x": ['
    assert "| a \\| b | &lt;script&gt; x | 1 |" in card
    assert "<script>" not in card


def test_the_python_of_the_card_runs(folder: Path) -> None:
    usage = section((folder / "card.md").read_text(), "How to use")
    code = usage.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(outputs.shape)"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(1, 10)\n", done.stderr
    assert "curl -F file=@samples/0.png http://127.0.0.1:8080/predict" in usage
