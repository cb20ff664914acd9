"""The whole way with a Keras and a JAX model, as a user goes it: trained by two workers, killed, resumed, exported, served."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def yard(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelyard.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module", params=["keras", "jax"])
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip("flax" if name == "jax" else name)
    return name


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, framework: str) -> Iterator[Path]:
    parent = tmp_path_factory.mktemp(framework)
    made = yard(
        parent, "new", "digits", "--template", "image-classification", "--framework", framework
    )
    assert made.returncode == 0, made.stderr
    folder = parent / "digits"
    assert f"import {framework}" in (folder / "model.py").read_text()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (folder / "yard.toml").read_text()
    (folder / "yard.toml").write_text(text.replace("port = 8080", f"port = {port}"))
    yield folder
    assert yard(folder, "down").returncode == 0


def test_a_killed_worker_leaves_no_trace_in_the_weights(digits: Path) -> None:
    """Two workers, a SIGKILL, and the same bits as without it; dropout and jitter included."""
    done = yard(digits, "verify-resume")
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_trained_exported_and_served(digits: Path, framework: str) -> None:
    done = yard(digits, "up", "train.epochs=8", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    way: Any = json.loads(done.stdout)
    assert way["run"]["world_size"] == 2 and way["run"]["backend"] == framework
    assert way["run"]["metrics"]["test/accuracy"] >= 0.95
    assert way["bundle"]["parity"]["largest_error"] <= 1e-4
    picture = sorted((digits / "data" / "7").glob("*.png"))[0]
    request = urllib.request.Request(f"{way['deployment']['url']}/predict", picture.read_bytes())
    with urllib.request.urlopen(request) as response:
        assert json.load(response)["predictions"][0]["label"] == "7"


def test_preflight_tries_the_model(digits: Path) -> None:
    done = yard(digits, "check", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    states = {check["name"]: check["state"] for check in json.loads(done.stdout)}
    assert {"step", "export", "estimate"} <= set(states) and "failed" not in states.values()


def test_the_fields_first_example_is_trained(tmp_path: Path, framework: str) -> None:
    example = Path(__file__).parents[1] / "examples" / f"seed-cnn-{framework}"
    for file in example.glob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    done = yard(tmp_path, "train", "train.epochs=1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["metrics"]["test/accuracy"] > 0.8
