"""The bar: workers, forerunners and parents killed at random times; every run ends with the very weights.

``MODELYARD_CHAOS_RUNS=100`` runs it as often as the bar asks, ``MODELYARD_CHAOS_FRAMEWORK=jax`` (or
``keras``, ``pytorch``) with this framework only. A checkpoint is due all the time, so that many kills fall into the
writing of one.
"""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from modelyard.backends.base import Snapshot
from modelyard.spec.records import Restarted, Run, RunStarted, StepDone
from modelyard.store import open_store
from modelyard.store.events import read_events
from modelyard.training import checkpoints
from modelyard.training.train import train

Place = Any
RUNS = int(os.environ.get("MODELYARD_CHAOS_RUNS", "6"))
FRAMEWORK = os.environ.get("MODELYARD_CHAOS_FRAMEWORK", "")
SECONDS = 180
FIELDS = {"workers": 2, "checkpoint_seconds": 0.02, "max_restarts": 20, "keep": 3}
EPOCHS = {"pytorch": 2, "keras": 40, "jax": 40}
"""Steps of compiled graphs take a millisecond or two, and no pause can be put into them."""
PYTORCH = """
import time
from torch import nn

class Slow(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, outputs)
        )

    def forward(self, x):
        if self.training:
            time.sleep(0.02)
        return self.layers(x)

def build(outputs):
    return Slow(outputs)
"""
KERAS = """
import keras
from keras import layers

def build(input_shape, outputs):
    return keras.Sequential([
        keras.Input(input_shape), layers.Flatten(), layers.Dense(64, "relu"), layers.Dropout(0.1),
        layers.Dense(outputs),
    ])
"""
JAX = """
from flax import nnx

class Small(nnx.Module):
    def __init__(self, outputs, rngs):
        self.first, self.last = nnx.Linear(64, 64, rngs=rngs), nnx.Linear(64, outputs, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.first(x.reshape(len(x), -1)))))

def build(outputs, seed):
    return Small(outputs, nnx.Rngs(seed))
"""
MODELS = {"pytorch": PYTORCH, "keras": KERAS, "jax": JAX}


def runs() -> list[tuple[str, int]]:
    """(framework, seed): all of one framework, or most of PyTorch's and some of the others'."""
    if FRAMEWORK:
        return [(FRAMEWORK, seed) for seed in range(1, RUNS + 1)]
    return [
        *(("pytorch", seed) for seed in range(1, RUNS + 1)),
        *((other, seed) for other in ("keras", "jax") for seed in range(1, RUNS // 6 + 1)),
    ]


_unbroken: dict[str, Snapshot] = {}


def unbroken(place: Place, framework: str, fields: dict[str, Any]) -> Snapshot:
    """The last weights and optimizer state of a training that nobody disturbs; trained once."""
    if framework not in _unbroken:
        project = place.project(**fields)
        store = open_store(place.root / "quiet")
        run = train(project, place.dataset(project), store)
        assert run.restarts == 0
        _unbroken[framework] = last_state(Path(run.folder), run.steps)
    return _unbroken[framework]


def last_state(folder: Path, steps: int) -> Snapshot:
    return checkpoints.load(checkpoints.verified(checkpoints.folder_of(folder, steps)))[0]


def kill_someone(draw: random.Random, command: "subprocess.Popen[str]") -> str:
    """Kill the parent, or one of its processes; says whom, or nothing where none was left."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(command.pid)
        below = parent.children(recursive=True)
        victim = parent if not below or draw.random() < 0.3 else draw.choice(below)
        name = (
            "parent" if victim is parent else "worker" if victim.children() == [] else "forerunner"
        )
        victim.kill()
        return name
    return ""


def disturb(
    draw: random.Random, command: "subprocess.Popen[str]", ended: "Future[Any]", place: Place
) -> Iterator[str]:
    """Kill up to four times: now and then at any time, mostly while the workers train."""
    for _ in range(draw.randrange(1, 5)):
        if draw.random() < 0.25:
            pause(draw.uniform(0, 4), ended)
        else:
            wait_for_steps(place, ended)
            pause(draw.uniform(0, 0.6), ended)
        if ended.done():
            return
        yield kill_someone(draw, command)


def pause(seconds: float, ended: "Future[Any]") -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not ended.done():
        time.sleep(0.005)


def wait_for_steps(place: Place, ended: "Future[Any]") -> None:
    """Until a step is done that was not done when this was called."""
    before, deadline = len(steps_of(place)), time.monotonic() + 30
    while not ended.done() and len(steps_of(place)) <= before and time.monotonic() < deadline:
        time.sleep(0.01)


def steps_of(place: Place) -> list[StepDone]:
    found = list((place.store.root / "runs").glob("*/events.jsonl"))
    return [e for e in read_events(found[0]) if isinstance(e, StepDone)] if found else []


@pytest.mark.slow
@pytest.mark.timeout(60 + 2 * SECONDS)
@pytest.mark.parametrize(("framework", "seed"), runs())
def test_whatever_is_killed_the_run_ends_with_the_same_weights(
    place: Place, framework: str, seed: int
) -> None:
    draw, fields = random.Random(seed), FIELDS | {"epochs": EPOCHS[framework]}
    (place.root / "model.py").write_text(MODELS[framework])
    expected = unbroken(place, framework, fields)
    killed: list[str] = []
    commands = 0
    with ThreadPoolExecutor(1) as pool:
        while True:
            commands += 1
            command = place.command(**fields)
            ended = pool.submit(command.communicate, timeout=SECONDS)
            if len(killed) < 6:
                killed += disturb(draw, command, ended, place)
            out, told = ended.result()
            if command.returncode == 0:
                break
            assert command.returncode == -9 and commands < 12, told
    assert "COMPLETE" in out
    folder = next((place.store.root / "runs").iterdir())
    run = Run.from_json((folder / "run.json").read_bytes())
    assert run.state == "complete" and run.step == run.steps
    newest, skipped = checkpoints.latest(folder)
    assert newest is not None and newest.step == run.steps and skipped == []
    state = last_state(folder, run.steps)
    assert state.tensors.keys() == expected.tensors.keys()
    for name, array in expected.tensors.items():
        assert (array == state.tensors[name]).all(), f"{name} after {killed}"
    events = read_events(folder / "events.jsonl")
    starts = [event.step for event in events if isinstance(event, RunStarted)]
    assert starts == sorted(starts)
    restarts = sum(isinstance(event, Restarted) for event in events)
    print(f"killed {killed}: started at {starts}, {restarts} restarts, {commands} commands")
