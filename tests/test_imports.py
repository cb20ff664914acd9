"""What is loaded when: a fresh interpreter imports one module, and says what came with it."""

import json
import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "tensorflow", "keras", "jax"}
HEAVY = FRAMEWORKS | {
    "PIL",
    "matplotlib",
    "numpy",
    "onnx",
    "onnxruntime",
    "optuna",
    "prometheus_client",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "starlette",
    "tensorboard",
    "uvicorn",
}


def loaded_by(module: str) -> set[str]:
    """Top-level names in ``sys.modules`` after a fresh interpreter has imported ``module``."""
    code = f"import sys, json; import {module}; print(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("modelyard", HEAVY),
        ("modelyard.spec.errors", HEAVY),
        ("modelyard.spec.records", HEAVY),
        ("modelyard.store", HEAVY),
        ("modelyard.templates", HEAVY),
        ("modelyard.cli.__main__", HEAVY),
        ("modelyard.flow", FRAMEWORKS),
        ("modelyard.backends", FRAMEWORKS),
        ("modelyard.training.train", FRAMEWORKS),
        ("modelyard.bundle.format", FRAMEWORKS),
        (
            "modelyard.serving.__main__",
            FRAMEWORKS | {"sklearn", "matplotlib", "optuna", "pydantic"},
        ),
        ("modelyard.serving.plane", FRAMEWORKS | {"sklearn", "matplotlib", "optuna", "pydantic"}),
    ],
)
def test_importing_loads_no_more_than_it_needs(module: str, never: set[str]) -> None:
    assert sorted(loaded_by(module) & never) == []


def test_every_verb_is_there_and_lazy() -> None:
    """`dir()` lists the verbs without loading them; an unknown one is an ordinary AttributeError."""
    code = """
import sys, modelyard
assert {"train", "up", "read"} <= set(dir(modelyard))
assert not [name for name in sys.modules if name.startswith("modelyard.")], "loaded too early"
try:
    modelyard.trian
except AttributeError as error:
    assert "trian" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_resolves() -> None:
    code = (
        "import modelyard; print([n for n in modelyard.__all__ if getattr(modelyard, n) is None])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_probe_sees_what_is_loaded() -> None:
    assert "numpy" in loaded_by("numpy")
