"""A real run, small: digits as PNG files, prepared by the data floor, trained by the PyTorch backend."""

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.backends import open_backend, recognise
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.backends.snapshots import write_snapshot
from modelyard.backends.source import build_model, code_digest
from modelyard.bundle.export import export
from modelyard.data.dataset import open_split, prepare
from modelyard.spec.read import read_project
from modelyard.spec.records import Bundle, Checkpoint, Dataset, Run
from modelyard.spec.work import World
from modelyard.store import Store, open_store
from modelyard.tasks import open_task
from modelyard.tasks.signature import signature_of

MODEL = '''
"""A model of the user's own: one convolution, a norm that acts otherwise in evaluation, dropout."""

import torch
from torch import nn


def build(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    torch.manual_seed(0)
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(8 * height * width, outputs),
    )
'''
TABLE_MODEL = """
from torch import nn


def build(input_shape, outputs, width=8):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, outputs))
"""


@dataclass(frozen=True)
class Trained:
    """Everything that ``export`` asks for."""

    run: Run
    dataset: Dataset
    store: Store
    root: Path
    args: dict[str, Any]

    def export(self, **changed: Any) -> Bundle:
        asked = {
            "name": "digits",
            "description": "Reads one digit.",
            "root": self.root,
            "build": "model:build",
            "args": self.args,
        }
        run = changed.pop("run", self.run)
        store = changed.pop("store", self.store)
        return export(run, self.dataset, store, **asked | changed)


def train(root: Path, toml: str, model: str, *, steps: int, args: dict[str, Any]) -> Trained:
    """Prepare the project's data and take a few real steps on it, as training will."""
    (root / "yard.toml").write_text(toml)
    (root / "model.py").write_text(model)
    project = read_project(root / "yard.toml", environment={})
    store = open_store(root / ".yard")
    dataset = prepare(project, store)
    task, signature = open_task(dataset.task), signature_of(dataset.input, dataset.task)
    built = build_model(root, "model:build", args, signature, dataset.task)
    backend = open_backend(recognise(built))
    rows = np.random.default_rng(0)
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        state = backend.begin(built, dataset.task, OptimizerSettings(name="adamw"), signature)
        split = open_split(dataset, "train")
        for step in range(steps):
            inputs, targets = split.batch(rows.integers(0, len(split), 32))
            batch = Batch(inputs=inputs, targets=targets, global_size=32)
            state, _ = backend.step(state, batch, StepSettings(learning_rate=3e-3, seed=step))
        test = open_split(dataset, "test")
        inputs, targets = test.batch(np.arange(len(test)))
        statistics = task.statistics(backend.evaluate(state, inputs), targets)
        folder = root / "checkpoint"
        folder.mkdir()
        files = write_snapshot(folder, backend.snapshot(state))
    run = Run(
        id="run-1",
        project=project.name,
        state="complete",
        created=datetime.datetime.now(datetime.UTC).isoformat(),
        folder=str(root / "run"),
        dataset=dataset.id,
        inputs={"data": dataset.id, "code": code_digest(root, "model:build"), "train.epochs": "3"},
        backend="pytorch",
        world_size=1,
        step=steps,
        best=Checkpoint(step=steps, epoch=1.0, folder=str(folder), files=files),
        metrics={f"test/{name}": value for name, value in task.metrics(statistics).items()},
        confusion=task.confusion(statistics),
        seconds=12.5,
    )
    return Trained(run=run, dataset=dataset, store=store, root=root, args=args)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from modelyard.templates.image_classification import write

    root = tmp_path_factory.mktemp("digits")
    write(root, "digits")
    toml = """
[project]
name = "digits"
[data]
source = "images"
path = "data"
size = [8, 8]
color = "grey"
[model]
build = "model:build"
"""
    return train(root, toml, MODEL, steps=60, args={})


@pytest.fixture(scope="session")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A regression from a table with a word column, gaps, and targets far from 1."""
    root = tmp_path_factory.mktemp("prices")
    random = np.random.default_rng(1)
    lines = ["size,town,garden,price"]
    for number in range(200):
        size = random.uniform(20, 200)
        town = ["north | east", "süd", "<b>west</b>"][number % 3]
        shown = "" if number % 17 == 0 else f"{size:.1f}"
        lines.append(f"{shown},{town},{'yes' if number % 2 else 'no'},{size * 1000 + 5000:.0f}")
    (root / "prices.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    toml = """
[project]
name = "prices"
[data]
source = "csv"
path = "prices.csv"
target = "price"
[task]
type = "regression"
[model]
build = "model:build"
args = { width = 8 }
"""
    return train(root, toml, TABLE_MODEL, steps=20, args={"width": 8})


@pytest.fixture(scope="session")
def exported(digits: Trained) -> Bundle:
    return digits.export()
