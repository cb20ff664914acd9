"""A run with adapters: over another run's weights, by two workers, exported whole, repeated to the bit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelyard
from modelyard.backends.tensors import map_tensors
from modelyard.flow import read
from modelyard.spec.errors import ModelError
from modelyard.store import registry
from modelyard.store.events import read_events
from modelyard.training.reproduce import reproduce
from modelyard.training.train import train

pytest.importorskip("peft")

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""


def asked(place: Place, **fields: Any) -> Any:
    return read(place.root / "yard.toml", {"train.epochs": 1, **fields})


def test_adapters_over_the_weights_of_another_run(place: Place) -> None:
    (place.root / "model.py").write_text(WIDE)
    first = modelyard.train(asked(place, **{"train.max_steps": 8}))
    lora = {"rank": 2, "alpha": 4, "match": ["1"]}
    adapting = asked(
        place, **{"model.weights": f"run:{first.id}", "train.lora": lora, "train.workers": 2}
    )
    second = modelyard.train(adapting)
    assert second.metrics["test/accuracy"] > first.metrics["test/accuracy"]
    assert first.best is not None and second.best is not None
    sizes = [
        sum(file.stat().st_size for file in Path(run.best.folder).glob("model*.safetensors"))
        for run in (first, second)
    ]
    assert sizes[1] < 0.1 * sizes[0]
    assert second.start is not None and second.start.loaded == 4
    said = [
        getattr(event, "message", "") for event in read_events(Path(second.folder) / "events.jsonl")
    ]
    assert any("LoRA on 1 layer: " in text for text in said)

    dataset = modelyard.prepare(adapting)
    assert reproduce(second, place.store, place.root).same
    bundle = modelyard.export(adapting, second)
    assert bundle.parity.largest_error < 1e-5
    kept = map_tensors(Path(first.best.folder) / "model.safetensors")
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(registry.unpack(place.store, bundle.digest) / "model.onnx").graph
    shipped = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    assert not np.allclose(shipped["1.weight"], kept["1.weight"], atol=1e-4)
    assert np.array_equal(shipped["4.bias"], kept["4.bias"])
    # A start from adapters alone is refused; from the version that was shipped it is not.
    modelyard.add(adapting, bundle)
    with pytest.raises(ModelError, match="holds adapters and not the weights below them"):
        train(asked(place, **{"model.weights": f"run:{second.id}"}), dataset, place.store)
    third = modelyard.train(
        asked(place, **{"model.weights": "digits:latest", "train.max_steps": 1})
    )
    assert third.start is not None and third.start.kind == "onnx" and third.start.loaded == 4
    # Other weights below the adapters than they were trained on are told at the latest in an export.
    shutil.rmtree(place.store.root / "exports")
    with pytest.raises(ModelError, match="trained on other weights"):
        modelyard.export(asked(place, **{"train.lora": lora}), second)


WIDE = """
from torch import nn

def build(input_shape, outputs):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, outputs)
    )
"""
