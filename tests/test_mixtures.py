"""Mixtures that cannot be: a framework's model with another's options, a loss that does not fit, what is not installed.

Each is a real ``yard`` process on a real project, and ends with one clear error.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = """\
[project]
name = "mixture"
[data]
source = "my_data:load"
[model]
build = "model:build"
[train]
epochs = 1
device = "cpu"
"""
DATA = """
import numpy as np

def load():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    return (random.normal(size=(60, 4)) + labels[:, None]).astype("float32"), list("abc" * 20)
"""
MODELS = {
    "pytorch": """
from torch import nn

def build(outputs):
    return nn.Linear(4, outputs)
""",
    "keras": """
import keras

def build(outputs):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs)])
""",
    "jax": """
from flax import nnx

def build(outputs, seed):
    return nnx.Linear(4, outputs, rngs=nnx.Rngs(seed))
""",
}
BLOCKER = """
import os, sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in os.environ.get("NOT_INSTALLED", "").split():
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "yard.toml").write_text(PROJECT)
    (tmp_path / "my_data.py").write_text(DATA)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(BLOCKER)
    return tmp_path


def train(folder: Path, framework: str, *words: str, **environment: str) -> str:
    """What the command says, which must be one error that names its mend."""
    (folder / "model.py").write_text(MODELS[framework])
    path = os.pathsep.join([str(folder / "start"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "modelyard.cli", "train", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
    )
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train.parallel=fsdp",), "'fsdp' is not possible; expected 'replicate' or 'shard'; did you mean 'shard'?"),
        (("train.precision=bf16",), "did you mean 'bfloat16'?"),
        (("task.loss=huber",), "task.loss: 'huber' is a loss of a regression, not of a classification"),
        (("task.loss=BCE",), "did you mean 'binary-cross-entropy'?"),
        (("task.loss=losses:mine",), "task.loss: there is no losses.py in"),
        (("task.focal_gamma=3",), "task.focal_gamma: has no effect: task.loss is 'cross-entropy'"),
        (("task.type=regression", "task.label_smoothing=0.1"), "task.label_smoothing: has no effect"),
        (("task.metrics=[\"accuracy\"]",), "'accuracy' is not module:function"),
        (("task.metrics=[\"my_data:load\"]", "task.lower_is_better=[\"lod\"]"), "did you mean 'load'?"),
        (("task.class_weights.d=2.0",), "'d' is not one of the classes"),
        (("task.loss=binary-cross-entropy",), "binary-cross-entropy needs two classes, the data has 3"),
        (("train.metric=acc",), "train.metric: 'acc' is not a metric of this classification; expected one of loss,"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_anything_starts(
    folder: Path, words: tuple[str, ...], expected: str
) -> None:
    said = train(folder, "pytorch", *words)
    assert expected in said, said
    assert not list(folder.glob(".yard/runs/*/events.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("framework", "words", "expected"),
    [
        ("keras", ("train.parallel=shard", "train.workers=2"), "the keras backend has no train.parallel"),
        ("keras", ("train.linear=onednn",), "the keras backend has no train.linear"),
        ("jax", ("train.parallel=shard", "train.workers=2"), "the jax backend has no train.parallel"),
        ("jax", ("train.precision=float16",), "the jax backend has no train.precision"),
        ("jax", ("train.channels_last=true",), "the jax backend has no train.channels_last"),
        ("jax", ("train.linear=onednn",), "the jax backend has no train.linear"),
    ],
)  # fmt: skip
def test_a_model_with_options_of_another_framework(
    folder: Path, framework: str, words: tuple[str, ...], expected: str
) -> None:
    pytest.importorskip({"jax": "flax"}.get(framework, framework))
    said = train(folder, framework, *words)
    assert said.count(f"error: {expected}") == 1 and said.count("mend:") == 1, said


@pytest.mark.slow
def test_keras_on_what_cannot_be_distributed(folder: Path) -> None:
    pytest.importorskip("keras")
    said = train(folder, "keras", "train.workers=2", KERAS_BACKEND="numpy")
    assert "Keras stands on 'numpy'" in said and "neither trained nor distributed" in said
    assert "set KERAS_BACKEND to one of: tensorflow, jax, torch" in said


@pytest.mark.parametrize(
    ("framework", "missing", "extra"),
    [
        ("pytorch", "torch", "pytorch"),
        ("keras", "keras", "keras"),
        ("keras", "tensorflow", "keras"),
        ("jax", "flax", "jax"),
        ("jax", "jax flax jaxlib", "jax"),
    ],
)
def test_a_missing_framework_is_named_with_its_pip_line(
    folder: Path, framework: str, missing: str, extra: str
) -> None:
    said = train(folder, framework, NOT_INSTALLED=missing)
    assert f"mend: pip install 'modelyard[{extra}]'" in said, said
    assert "which is not installed" in said or "needs the package" in said
