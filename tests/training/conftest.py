"""Small real projects: scikit-learn's digits as arrays, an MLP of the user's own, real processes."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.data.dataset import prepare
from modelyard.engines.forerunner import kept
from modelyard.spec.project import Project
from modelyard.spec.read import read_project
from modelyard.spec.records import Dataset
from modelyard.store import Store, open_store


@pytest.fixture(autouse=True, scope="module")
def warm_workers() -> Iterator[None]:
    """The trainings that a module's tests do in their own process import a framework once, and not each time."""
    with kept(2, apart_from=("PYTEST_CURRENT_TEST",)):
        yield


MODEL = """
from torch import nn

def build(input_shape, outputs, width=32, dropout=0.1):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )
"""
SLOW_MODEL = """
import time
from torch import nn

class Slow(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, outputs))
    def forward(self, x):
        if self.training:
            time.sleep(0.01)
        return self.layers(x)

def build(outputs):
    return Slow(outputs)
"""
LOADER = """
from sklearn.datasets import load_digits

def load():
    digits = load_digits()
    return (digits.images[:, None] / 16).astype("float32"), [str(t) for t in digits.target]
"""
FILE = """
[project]
name = "digits"
[data]
source = "loader:load"
[model]
build = "model:build"
[train]
epochs = 6
batch_size = 64
optimizer = { name = "adamw", lr = 5e-3 }
metric = "accuracy"
device = "cpu"
"""
COMMAND = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from modelyard.data.dataset import prepare
from modelyard.engines.forerunner import kept
from modelyard.spec.errors import YardError
from modelyard.spec.read import read_project
from modelyard.store import open_store
from modelyard.training.train import train
project = read_project(Path(sys.argv[1]) / "yard.toml", json.loads(sys.argv[2]))
store = open_store(project.store_folder)
try:
    run = train(project, prepare(project, store), store, observers=[lambda e: print(e, flush=True)])
except YardError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
assert not {"torch", "jax", "tensorflow"} & set(sys.modules)
print("COMPLETE", run.id)
"""


class Place:
    """A project folder with its store, and commands run on it as a user's shell would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store: Store = open_store(root / ".yard")

    def project(self, **train: Any) -> Project:
        return read_project(self.root / "yard.toml", {f"train.{k}": v for k, v in train.items()})

    def dataset(self, project: Project) -> Dataset:
        return prepare(project, self.store)

    def command(self, **train: Any) -> subprocess.Popen[str]:
        """``train`` in a process of its own."""
        overrides = json.dumps({f"train.{key}": value for key, value in train.items()})
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(COMMAND), str(self.root), overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, content in (("yard.toml", FILE), ("model.py", MODEL), ("loader.py", LOADER)):
        (tmp_path / name).write_text(content)
    return Place(tmp_path)


@pytest.fixture
def slow_place(place: Place) -> Place:
    """The same, but every step takes at least 10 ms, so that there is a middle to interrupt."""
    (place.root / "model.py").write_text(SLOW_MODEL)
    return place
