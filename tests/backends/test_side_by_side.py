"""Each framework loads alone and works alone, where the two others are not even installed; all three work in one process."""

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PROGRAM = """
import json, os, sys
from importlib.machinery import PathFinder
import numpy as np

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in os.environ.get("NOT_INSTALLED", "").split():
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
from modelyard.backends import open_backend, recognise
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.spec.records import TaskSpec
from modelyard.spec.signature import Signature, Tensor
from modelyard.spec.work import World

def model(name):
    if name == "pytorch":
        from torch import nn
        made = nn.Linear(4, 2)
        nn.init.ones_(made.weight), nn.init.zeros_(made.bias)
        return made
    if name == "keras":
        import keras
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="ones")]
        )
    from flax import nnx
    import jax
    return nnx.Linear(4, 2, kernel_init=jax.nn.initializers.ones, rngs=nnx.Rngs(0))

signature = Signature(
    inputs=(Tensor(name="input", dtype="float32", shape=(None, 4)),),
    outputs=(Tensor(name="output", dtype="float32", shape=(None, 2)),),
)
task = TaskSpec(type="classification", target="x", loss="cross-entropy", classes=("a", "b"))
random, found = np.random.default_rng(0), {}
batches = [
    Batch(inputs=random.standard_normal((8, 4), dtype=np.float32), targets=np.arange(8) % 2, global_size=8)
    for _ in range(4)
]
for name in sys.argv[1:]:
    made = model(name)
    assert recognise(made) == name
    backend = open_backend(name)
    with backend.join(World(rank=0, size=1, rendezvous=""), device="cpu", threads=1):
        state = backend.begin(made, task, OptimizerSettings(name="adamw"), signature)
        losses = []
        for seed, batch in enumerate(batches):
            state, result = backend.step(state, batch, StepSettings(learning_rate=0.1, seed=seed))
            losses.append(float(result.loss))
        assert backend.evaluate(state, batches[0].inputs).shape == (8, 2)
        found[name] = losses
loaded = [n for n in ("torch", "tensorflow", "keras", "jax", "flax") if n in sys.modules]
print(json.dumps({"losses": found, "loaded": loaded}))
"""
OWN = {"pytorch": {"torch"}, "keras": {"keras", "tensorflow"}, "jax": {"jax", "flax"}}
ALL = ("torch", "tensorflow", "keras", "jax", "flax")


def run(*names: str, without: str = "") -> Any:
    for name in names:
        for package in OWN[name]:
            pytest.importorskip(package)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NOT_INSTALLED": without}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        capture_output=True,
        text=True,
        timeout=170,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@cache
def alone(name: str) -> Any:
    """A framework by itself: what it loaded, and its losses."""
    return run(name)


@pytest.mark.parametrize("name", OWN)
def test_a_training_loads_its_own_framework_only(name: str) -> None:
    """TensorFlow itself looks whether there is a JAX (its lite/python/util.py)."""
    others = set(alone(name)["loaded"]) - OWN[name] - ({"jax"} if name == "keras" else set())
    assert not others


@pytest.mark.parametrize("name", OWN)
def test_a_framework_works_where_the_others_are_not_installed(
    name: str,
) -> None:
    missing = [package for package in ALL if package not in OWN[name]]
    assert run(name, without=" ".join(missing))["losses"] == alone(name)["losses"]


@pytest.mark.parametrize("order", [("pytorch", "keras", "jax"), ("jax", "keras", "pytorch")])
def test_all_three_work_in_one_process_as_they_do_alone(
    order: tuple[str, ...],
) -> None:
    together = run(*order)["losses"]
    for name in order:
        assert together[name] == pytest.approx(alone(name)["losses"][name], rel=1e-6)
