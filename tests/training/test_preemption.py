"""Preemption: SIGTERM to a worker, to the command, or to everything at once, as machines do that are taken away."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from modelyard.spec.records import (
    AnyEvent,
    CheckpointSaved,
    Run,
    RunStarted,
    WorkerJoined,
    WorkerLost,
)
from modelyard.store import open_store
from modelyard.store.events import read_events
from modelyard.training import checkpoints
from modelyard.training.order import Proving
from modelyard.training.train import train
from modelyard.training.witness import seen

pytestmark = pytest.mark.slow
Place = Any
FIELDS = {"epochs": 5, "workers": 2, "checkpoint_seconds": 0.2}


def events_of(run: Run) -> list[AnyEvent]:
    return read_events(Path(run.folder) / "events.jsonl")


def test_a_preempted_worker_saves_and_all_go_on_as_if_nothing_had_happened(
    slow_place: Place,
) -> None:
    """All stop after the same step with a checkpoint, and start again from it: nothing is done twice."""
    project = slow_place.project(**FIELDS)
    dataset = slow_place.dataset(project)
    whole = train(project, dataset, open_store(slow_place.root / "quiet"), proving=Proving())
    pids: dict[int, int] = {}

    def preempt(event: AnyEvent) -> None:
        if isinstance(event, WorkerJoined) and event.attempt == 0:
            pids[event.rank] = event.pid
        if isinstance(event, CheckpointSaved) and event.attempt == 0 and 1 in pids:
            os.kill(pids.pop(1), signal.SIGTERM)

    run = train(project, dataset, slow_place.store, observers=[preempt], proving=Proving())
    assert run.state == "complete" and run.restarts == 1
    events = events_of(run)
    assert any("was asked to stop" in e.reason for e in events if isinstance(e, WorkerLost))
    first, second = (event for event in events if isinstance(event, RunStarted))
    before = seen(Path(run.folder), [first])
    assert 0 < second.step == max(before) + 1
    expected, found = seen(Path(whole.folder), events_of(whole)), seen(Path(run.folder), events)
    assert found == expected  # every sample, and every loss
    ends = [
        checkpoints.load(checkpoints.verified(checkpoints.folder_of(Path(r.folder), r.step)))[0]
        for r in (whole, run)
    ]
    for name, array in ends[0].tensors.items():
        np.testing.assert_array_equal(array, ends[1].tensors[name], err_msg=name)


def yard_train(place: Place) -> "subprocess.Popen[str]":
    fields = [f"train.{name}={value}" for name, value in FIELDS.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "modelyard.cli", "train", "--project", str(place.root), *fields],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{place.root}:{os.environ.get('PYTHONPATH', '')}"},
    )


def is_at_work(process: psutil.Process) -> bool:
    """What has ended may wait for its new parent, the first process of all, to take note."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("whom", ["the command", "everything"])
def test_sigterm_stops_resumably_with_exit_code_130(slow_place: Place, whom: str) -> None:
    """A container's stop reaches the command alone; a machine's shutdown and systemd reach every process."""
    command = yard_train(slow_place)
    deadline = time.monotonic() + 60
    while not list(slow_place.store.root.glob("runs/*/checkpoints/step-*")):
        assert time.monotonic() < deadline and command.poll() is None
        time.sleep(0.02)
    asked = psutil.Process(command.pid)
    below = asked.children(recursive=True)
    assert len(below) == 3  # a forerunner and two workers
    for process in [*below, asked] if whom == "everything" else [asked]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, told = command.communicate(timeout=60)
    assert command.returncode == 130, told
    assert "goes on from step" in told and "Traceback" not in told
    (folder,) = (slow_place.store.root / "runs").iterdir()
    record = Run.from_json((folder / "run.json").read_bytes())
    assert record.state == "interrupted" and 0 < record.step < record.steps
    assert f"goes on from step {record.step} of {record.steps}" in told
    assert not any(is_at_work(process) for process in below)
    again = yard_train(slow_place)
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    events = read_events(folder / "events.jsonl")
    assert [e.step for e in events if isinstance(e, RunStarted)] == [0, record.step]
    assert not any(isinstance(event, WorkerLost) for event in events)  # all could save
