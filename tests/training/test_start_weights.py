"""``model.weights`` is found wherever weights may be, is an input of the run, and begins a training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends.tensors import map_tensors, write_tensors
from modelyard.bundle.export import export
from modelyard.flow import read
from modelyard.spec.errors import ModelError, NotFoundError, YardError
from modelyard.spec.project import Project
from modelyard.spec.records import Run
from modelyard.store import registry
from modelyard.store.events import read_events
from modelyard.training.inputs import inputs_of, run_id
from modelyard.training.reproduce import reproduce
from modelyard.training.start_weights import find_start
from modelyard.training.train import train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""


def project(place: Place, weights: str, **fields: Any) -> Project:
    train = {"epochs": 1, **fields.pop("train", {})}
    asked = {f"train.{key}": value for key, value in train.items()}
    asked |= {"model.weights": weights, **{f"model.{key}": v for key, v in fields.items()}}
    return read(place.root / "yard.toml", asked)


def trained(place: Place, asked: Project) -> Run:
    run: Run = train(asked, place.dataset(asked), place.store)
    return run


def best(run: Run) -> dict[str, Any]:
    assert run.best is not None
    return map_tensors(Path(run.best.folder) / "model.safetensors")


def save(path: Path, names: list[str]) -> None:
    path.unlink(missing_ok=True)
    shapes = {"1.weight": (32, 64), "1.bias": (32,), "4.weight": (10, 32), "4.bias": (10,)}
    write_tensors(path, {name: np.full(shapes[name], 0.01, np.float32) for name in names})


ALL = ["1.weight", "1.bias", "4.weight", "4.bias"]


def test_a_run_goes_on_from_another_in_a_new_task(place: Place) -> None:
    """A head of another size begins anew where it is named; what came in is on the run's record."""
    first = trained(place, place.project(epochs=1))
    asked = project(
        place, f"run:{first.id}", fresh=["4.*"], train={"max_steps": 1, "optimizer.lr": 1e-9}
    )
    second = trained(place, asked)
    assert second.id != first.id and second.inputs["weights"].startswith("sha256:")
    assert second.start is not None and second.start.loaded == 2
    assert second.start.fresh == ("4.weight", "4.bias")
    assert np.allclose(best(second)["1.weight"], best(first)["1.weight"], atol=1e-6)
    assert not np.allclose(best(second)["4.weight"], best(first)["4.weight"], atol=1e-3)
    said = [
        getattr(event, "message", "") for event in read_events(Path(second.folder) / "events.jsonl")
    ]
    assert any(f"weights from run:{first.id}: 2 of 4 tensors loaded" in text for text in said)


def test_two_workers_go_on_from_a_version_of_the_registry_and_it_can_be_repeated(
    place: Place,
) -> None:
    opened = place.project(epochs=1)
    first, dataset = trained(place, opened), place.dataset(opened)
    bundle = export(
        first, dataset, place.store, name="digits", root=place.root, build="model:build", args={}
    )
    version = registry.add(place.store, "digits", bundle.digest, run=first.id, dataset=dataset.id)
    asked = project(place, version.reference, train={"workers": 2})
    found = find_start(asked)
    assert found is not None and found.kind == "checkpoint"
    second = trained(place, asked)
    assert second.start is not None and second.start.loaded == 4
    assert second.metrics["test/accuracy"] > first.metrics["test/accuracy"]
    assert reproduce(second, place.store, place.root).same
    made = export(
        second, dataset, place.store, name="digits", root=place.root, build="model:build", args={}
    )
    folder = registry.unpack(place.store, made.digest)
    assert json.loads((folder / "bundle.json").read_bytes())["lineage"]["start"] == found.digest
    # Without its run the version is what was shipped: an ONNX file, whose weights have their names too.
    place.store.run_folder(first.id).rename(place.root / "away")
    found = find_start(asked)
    assert found is not None and found.kind == "onnx"
    third = trained(place, project(place, "digits:latest", train={"max_steps": 1}))
    assert third.start is not None and third.start.loaded == 4


def test_what_the_weights_are_counts_and_not_where_they_lie(place: Place) -> None:
    def identifier(weights: str) -> str:
        return run_id(inputs_of(project(place, weights), "data", "code"))

    save(place.root / "a.safetensors", ALL)
    folder = place.root / "elsewhere"
    folder.mkdir()
    save(folder / "a.safetensors", ALL)
    assert identifier("a.safetensors") == identifier("elsewhere/a.safetensors")
    assert identifier("a.safetensors") != identifier("")
    before = identifier("a.safetensors")
    save(place.root / "a.safetensors", ALL[:2])
    assert identifier("a.safetensors") != before


def test_a_folder_as_hugging_face_writes_it_whole_or_in_parts(place: Place) -> None:
    folder = place.root / "hf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save(folder / "model.safetensors", ALL)
    found = find_start(project(place, "hf"))
    assert found is not None and list(found.files) == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save(folder / names[0], ALL[:3])
    save(folder / names[1], ALL[3:])
    places = {name: names[name == "4.bias"] for name in ALL}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    run = trained(place, project(place, "hf", train={"max_steps": 1}))
    assert run.start is not None and run.start.loaded == 4
    (folder / names[1]).unlink()
    with pytest.raises(NotFoundError, match="00002-of-00002"):
        find_start(project(place, "hf"))
    index.write_text(json.dumps({"weight_map": {"w": "../../secret.safetensors"}}))
    with pytest.raises(ModelError, match="not a file beside it"):
        find_start(project(place, "hf"))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("run:digits-1", "there is no such run"),
        ("nets/a.safetensors", "there is no"),
        ("b.safetensors", "did you mean 'a.safetensors'"),
        ("old.pt", "a pickle, which can run any code"),
        ("old", "a pickle, which can run any code"),
        ("net.keras", "model.load_weights"),
        ("notes.txt", "no kind of file"),
        ("https://example.org/a.safetensors", "nothing is fetched"),
        ("digit", "is no file, and no model called 'digit'"),
        ("empty", "neither safetensors, an ONNX file nor a checkpoint"),
        ("two", "2 safetensors files and no index"),
    ],
)
def test_what_cannot_be_used_is_told_with_a_mend(place: Place, weights: str, words: str) -> None:
    for name in ("old.pt", "net.keras", "notes.txt"):
        (place.root / name).write_bytes(b"x")
    for name in ("old", "empty", "two"):
        (place.root / name).mkdir()
    (place.root / "old" / "pytorch_model.bin").write_bytes(b"x")
    for path in ("a.safetensors", "two/a.safetensors", "two/b.safetensors"):
        save(place.root / path, ALL)
    with pytest.raises(YardError) as caught:
        find_start(project(place, weights))
    assert words in str(caught.value) and "model.weights" in caught.value.what and caught.value.mend


def test_a_worker_tells_what_does_not_fit(place: Place) -> None:
    write_tensors(place.root / "a.safetensors", {"net.4.bias": np.ones(10, np.float32)})
    with pytest.raises(ModelError) as caught:
        trained(place, project(place, "a.safetensors"))
    assert 'model.rename = { "net." = "" }' in caught.value.mend


def test_a_transformers_model_is_fine_tuned_from_its_folder_for_other_classes(place: Place) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, num_channels=1, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(place.root / "vit")
    (place.root / "model.py").write_text(
        "from pathlib import Path\n"
        "from transformers import AutoConfig, AutoModelForImageClassification\n"
        "def build(outputs):\n"
        "    config = AutoConfig.from_pretrained(Path(__file__).with_name('vit'), num_labels=outputs)\n"
        "    return AutoModelForImageClassification.from_config(config)\n"
    )
    run = trained(place, project(place, "vit", fresh=["classifier.*"], train={"max_steps": 2}))
    assert run.start is not None and run.start.fresh == ("classifier.weight", "classifier.bias")
    assert run.start.loaded > 10
    with pytest.raises(ModelError, match=r"classifier\.weight is 10×16 in the model and 3×16"):
        trained(place, project(place, "vit", train={"max_steps": 2}))
