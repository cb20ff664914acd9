"""Families in Keras whose layers are our own also train on the other frameworks that Keras stands on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")

PROGRAM = """
from modelyard.backends import open_backend
from modelyard.backends.base import Batch, OptimizerSettings, StepSettings
from modelyard.tasks.signature import signature_of
from tests.backends.families.problems import built, lessons

backend = open_backend("keras")
for name in ("rnn", "transformer-encoder", "two-tower", "fusion"):
    lesson = lessons()[name]
    problem = lesson.problem
    signature = signature_of(problem.natural, problem.task)
    backend.seed(0)
    settings = OptimizerSettings(name="adam")
    state = backend.begin(built("keras", lesson), problem.task, settings, signature)
    batch = Batch(inputs=problem.inputs[:32], targets=problem.targets[:32], global_size=32)
    losses = []
    for step in range(4):
        state, result = backend.step(state, batch, StepSettings(learning_rate=0.005, seed=step))
        losses.append(float(result.loss))
    print(name, losses, flush=True)
    assert losses[-1] < losses[0]
"""


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_it_trains_on(framework: str) -> None:
    """Keras chooses what it stands on when it is imported: a process of its own."""
    pytest.importorskip(framework)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "KERAS_BACKEND": framework},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
