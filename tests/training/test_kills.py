"""The bar: workers and parents killed at random steps; every run ends complete after at most one repeat.

``MODELYARD_KILL_RUNS=20`` runs it as often as the bar asks.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from modelyard.spec.records import Run, RunStarted, StepDone, WorkerJoined
from modelyard.store.events import read_events
from modelyard.training import checkpoints

Place = Any
RUNS = int(os.environ.get("MODELYARD_KILL_RUNS", "6"))
EPOCHS = 4


def run_folder(place: Place, seed: int) -> Path | None:
    """The folder of the run that was ordered with ``seed``."""
    for order in (place.store.root / "runs").glob("*/order.json"):
        if f'"seed": {seed},' in order.read_text():
            return order.parent
    return None


def wait_for_step(place: Place, seed: int, step: int, command: subprocess.Popen[str]) -> list[int]:
    """Wait until the log says that ``step`` is done; return the workers' process numbers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and command.poll() is None:
        folder = run_folder(place, seed)
        events = read_events(folder / "events.jsonl") if folder else []
        pids = [event.pid for event in events if isinstance(event, WorkerJoined)]
        done = max((event.step for event in events if isinstance(event, StepDone)), default=0)
        if len(pids) == 2 and (done >= step or step == 0):
            return pids
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not seen: {command.communicate(timeout=1)}")


@pytest.mark.slow
@pytest.mark.timeout(60 + 30 * RUNS)
@pytest.mark.parametrize("seed", range(1, RUNS + 1))
def test_killed_at_a_random_step(slow_place: Place, seed: int) -> None:
    rng = random.Random(seed)
    whom = "parent" if seed % 2 else "worker"
    steps = 79
    fields = {"seed": seed, "epochs": EPOCHS, "workers": 2, "checkpoint_seconds": 0.2}
    command = slow_place.command(**fields)
    pids = wait_for_step(slow_place, seed, rng.randrange(0, steps), command)
    time.sleep(rng.uniform(0, 0.3))
    victim = command.pid if whom == "parent" else rng.choice(pids)
    # It may have been quicker; then the run must simply be complete.
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    out, told = command.communicate(timeout=60)
    repeats = 0
    if command.returncode != 0:
        assert whom == "parent", told
        repeats = 1
        command = slow_place.command(**fields)
        out, told = command.communicate(timeout=60)
    assert command.returncode == 0 and "COMPLETE" in out, told
    folder = run_folder(slow_place, seed)
    assert folder is not None
    check_complete(folder, steps, whom, repeats)


def check_complete(folder: Path, steps: int, whom: str, repeats: int) -> None:
    run = Run.from_json((folder / "run.json").read_bytes())
    assert run.state == "complete" and run.step == run.steps == steps
    assert 0 <= run.metrics["test/accuracy"] <= 1 and len(run.confusion) == 10
    assert run.best is not None and checkpoints.verified(Path(run.best.folder))
    newest, skipped = checkpoints.latest(folder)
    assert newest is not None and newest.step == steps and skipped == []
    starts = [e.step for e in read_events(folder / "events.jsonl") if isinstance(e, RunStarted)]
    assert len(starts) <= 2 and starts == sorted(starts)
    print(f"{whom} killed: started at {starts}, {run.restarts} restarts, {repeats} repeats")
