"""A hang explains itself: who did not arrive, where it is; and then training goes on without it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from modelyard.spec.errors import TrainingError
from modelyard.spec.records import AnyEvent, RunStarted, StepDone, WorkerJoined, WorkerLost
from modelyard.training.hangs import Standing, culprits
from modelyard.training.heartbeat import (
    CHECKPOINT,
    COMPUTE,
    DATA,
    EXCHANGE,
    START,
    Beat,
    Heart,
    read_beat,
    read_stack,
)
from modelyard.training.train import train

Place = Any


def standing(
    rank: int,
    phase: int,
    *,
    still: float = 99.0,
    step: int = 7,
    first: int = 0,
    paused: bool = False,
) -> Standing:
    beat = Beat(phase=phase, step=step, time=0.0, first=first, pid=1, host="h")
    return Standing(rank=rank, beat=beat, still=still, paused=paused)


def guilty(*workers: Standing, patience: float = 10.0, slow_start: bool = False) -> list[int]:
    return [worker.rank for worker in culprits(workers, patience, slow_start=slow_start)]


def test_the_one_that_does_not_wait_is_to_blame() -> None:
    waiting = [standing(rank, EXCHANGE) for rank in (0, 2, 3)]
    assert guilty(*waiting, standing(1, COMPUTE)) == [1]
    assert guilty(*waiting, standing(1, DATA, step=6)) == [1]
    assert guilty(standing(0, DATA)) == [0]


def test_nobody_is_while_all_is_well() -> None:
    assert guilty(standing(0, EXCHANGE), standing(1, COMPUTE, still=9)) == []
    assert guilty(standing(0, EXCHANGE, still=9), standing(1, EXCHANGE)) == []
    assert guilty() == []


def test_where_all_wait_it_is_those_furthest_behind() -> None:
    assert guilty(standing(0, EXCHANGE, step=7), standing(1, EXCHANGE, step=6)) == [1]
    assert guilty(standing(0, EXCHANGE), standing(1, EXCHANGE)) == [0, 1]


def test_a_stopped_process_is_to_blame_wherever_it_was() -> None:
    assert guilty(standing(0, EXCHANGE), standing(1, EXCHANGE, paused=True)) == [1]
    assert guilty(standing(0, COMPUTE), standing(1, START, paused=True)) == [1]


def test_starting_saving_and_a_first_step_that_compiles_may_take_longer() -> None:
    for phase in (START, CHECKPOINT):
        assert guilty(standing(0, EXCHANGE), standing(1, phase, still=99)) == []
        assert guilty(standing(0, EXCHANGE), standing(1, phase, still=100)) == [1]
    first = standing(1, COMPUTE, step=3, first=3)
    assert guilty(first) == [1] and guilty(first, slow_start=True) == []
    assert guilty(standing(1, COMPUTE, step=4, first=3), slow_start=True) == [1]


def test_a_heartbeat_is_read_as_it_was_marked_and_costs_little(tmp_path: Path) -> None:
    assert read_beat(tmp_path, 0) is None
    heart = Heart(tmp_path, 0, 60)
    try:
        heart.begin(5)
        heart.mark(COMPUTE, 41)
        heart.exchange()
        beat = read_beat(tmp_path, 0)
        assert beat is not None
        assert (beat.phase, beat.step, beat.first, beat.pid) == (EXCHANGE, 41, 5, os.getpid())
        began, count = time.perf_counter(), 20_000
        for step in range(count):
            heart.mark(COMPUTE, step)
        assert (time.perf_counter() - began) / count < 5e-6
    finally:
        heart.close()


def test_the_stack_is_written_while_the_worker_does_not_come(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 0, 0.1)
    try:
        time.sleep(0.3)
    finally:
        heart.close()
    assert "in test_the_stack_is_written" in read_stack(tmp_path, 0)[0]


MODEL = """
import ctypes, os, time
from torch import nn

class Stuck(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(64, outputs)
        self.calls = 0  # the first is the look at its dense layers before training

    def forward(self, x):
        if self.training:
            self.calls += 1
            if self.calls > 21 and os.environ["RANK"] == "1" and CONDITION:
                self.never_return()
        return self.layer(x.flatten(1))

    def never_return(self):
        CALL

def build(outputs):
    return Stuck(outputs)
"""
IN_PYTHON = "time.sleep(3600)"
HOLDING_THE_LOCK = "ctypes.PyDLL(None).sleep(3600)"
ONCE = "os.environ['MODELYARD_ATTEMPT'] == '0'"


def stuck(place: Place, call: str, condition: str) -> Place:
    text = MODEL.replace("CALL", call).replace("CONDITION", condition)
    (place.root / "model.py").write_text(text)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("call", [IN_PYTHON, HOLDING_THE_LOCK])
def test_a_stuck_worker_is_named_with_its_stack_and_replaced(place: Place, call: str) -> None:
    stuck(place, call, ONCE)
    project = place.project(workers=2, epochs=3, hang_seconds=2)
    seen: list[AnyEvent] = []
    run = train(project, place.dataset(project), place.store, observers=[seen.append])
    assert run.state == "complete" and run.restarts == 1
    (lost,) = [event for event in seen if isinstance(event, WorkerLost)]
    (pid,) = [e.pid for e in seen if isinstance(e, WorkerJoined) and (e.attempt, e.rank) == (0, 1)]
    assert (lost.rank, lost.pid) == (1, pid)
    for words in (os.uname().nodename, f"process {pid}", "computing step 21 for 2 s",
                  "model.py:", "in never_return", "worker 0 waited"):  # fmt: skip
        assert words in lost.reason, lost.reason


@pytest.mark.slow
def test_a_worker_that_always_hangs_ends_the_run_with_that_as_the_error(place: Place) -> None:
    stuck(place, IN_PYTHON, "True")
    project = place.project(workers=2, epochs=3, hang_seconds=2, max_restarts=1, evaluate_every=9)
    with pytest.raises(TrainingError, match=r"worker 1 .*computing step .*never_return") as caught:
        train(project, place.dataset(project), place.store)
    assert "after 1 restart" in caught.value.what


@pytest.mark.slow
def test_a_stopped_worker_is_named_and_replaced(slow_place: Place) -> None:
    project = slow_place.project(workers=2, epochs=3, hang_seconds=2)
    seen: list[AnyEvent] = []

    def stop(event: AnyEvent) -> None:
        seen.append(event)
        if isinstance(event, StepDone) and sum(isinstance(e, RunStarted) for e in seen) == 1:
            os.kill(
                next(e.pid for e in seen if isinstance(e, WorkerJoined) and e.rank == 1),
                signal.SIGSTOP,
            )

    run = train(project, slow_place.dataset(project), slow_place.store, observers=[stop])
    assert run.state == "complete" and run.restarts == 1
    (lost,) = [event for event in seen if isinstance(event, WorkerLost)]
    assert lost.rank == 1 and "SIGSTOP" in lost.reason, lost.reason
