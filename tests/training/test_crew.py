"""With a range of workers: fewer when one cannot be brought back, all again after a while."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from modelyard.backends.base import Batch
from modelyard.data.cursor import Cursor
from modelyard.data.dataset import open_split
from modelyard.spec.errors import ProjectError
from modelyard.spec.records import (
    AnyEvent,
    CheckpointSaved,
    Noticed,
    RunStarted,
    StepDone,
    WorkerJoined,
    WorkerLost,
)
from modelyard.store.events import read_events
from modelyard.training import checkpoints, crew
from modelyard.training.crew import Crew
from modelyard.training.order import Proving
from modelyard.training.schedules import total_steps
from modelyard.training.train import train
from modelyard.training.witness import digests, seen

Place = Any


def test_a_worker_that_is_lost_once_is_replaced() -> None:
    four = Crew(1, 4, room=lambda: 8)
    assert four.lost([2], progressed=False) == "" and four.size == 4


def test_one_that_is_lost_twice_without_a_checkpoint_is_done_without() -> None:
    four = Crew(1, 4, room=lambda: 8, patience=30)
    four.lost([2], progressed=False)
    assert "worker 2 was lost twice" in four.lost([2], progressed=False)
    assert four.size == 3 and not four.may_grow(29) and four.may_grow(30)
    assert four.grow() == "back from 3 to 4 workers" and four.size == 4
    assert not four.may_grow(1000)


def test_a_checkpoint_in_between_forgives() -> None:
    two = Crew(1, 2, room=lambda: 2)
    for _ in range(5):
        assert two.lost([1], progressed=True) == "" and two.size == 2


def test_never_fewer_than_the_fewest_nor_more_than_there_is_room_for() -> None:
    assert Crew(1, 8, room=lambda: 2).size == 2
    assert Crew(3, 8, room=lambda: 2).size == 3
    fixed = Crew(2, 2, room=lambda: 8)
    for _ in range(4):
        assert fixed.lost([0, 1], progressed=False) == ""
    assert fixed.size == 2 and not fixed.may_grow(1e9)


def test_each_try_to_grow_waits_longer_than_the_last() -> None:
    two = Crew(1, 2, room=lambda: 2, patience=10)
    for wait in (10, 20, 40):
        two.lost([1], progressed=False)
        two.lost([1], progressed=False)
        assert not two.may_grow(wait - 1) and two.may_grow(wait)
        two.grow()


def test_there_are_never_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "STEADY_SECONDS", 0.05)
    room = 2
    four = Crew(1, 4, room=lambda: room, patience=30)
    assert four.size == 2 and not four.may_grow(1e9)
    room = 3
    assert not four.may_grow(0)  # it may be gone in a moment
    room = 2
    time.sleep(0.06)
    assert not four.may_grow(0)
    room = 8
    assert not four.may_grow(0)
    time.sleep(0.06)
    assert four.may_grow(0)
    assert four.grow() == "there is room for more: from 2 to 4 workers" and four.size == 4
    room = 3
    assert "there is room for 3 now: going on with 3 of 4" in four.lost([1], progressed=True)
    assert four.size == 3


def batches(place: Place, project: Any) -> list[tuple[bytes, ...]]:
    """What the steps of the whole training must be given, by the cursor."""
    dataset = place.dataset(project)
    split, section = open_split(dataset, "train"), project.train
    cursor = Cursor(len(split), section.batch_size, section.seed)
    steps = total_steps(section.epochs, len(split), section.batch_size)
    made = (split.stored(cursor.indices(step)) for step in range(steps))
    return [
        digests(Batch(inputs=inputs, targets=targets, global_size=len(targets)))
        for inputs, targets in made
    ]


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="room for one worker only")
def test_room_that_returns_is_used_without_a_crash_and_no_sample_is_lost_or_repeated(
    slow_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is held to one core, and allowed a second one after the first checkpoint."""
    monkeypatch.setattr(crew, "STEADY_SECONDS", 0.3)
    cores = sorted(os.sched_getaffinity(0))[:2]
    project = slow_place.project(workers="1:2", epochs=10, checkpoint_seconds=0.2, max_restarts=0)
    room: dict[int, set[int]] = {}

    def look(event: AnyEvent) -> None:
        if isinstance(event, WorkerJoined):
            room[event.attempt] = os.sched_getaffinity(event.pid)
        if isinstance(event, CheckpointSaved) and event.attempt == 0:
            os.sched_setaffinity(0, cores)

    dataset, before = slow_place.dataset(project), os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores[:1])
    try:
        run = train(project, dataset, slow_place.store, observers=[look], proving=Proving())
    finally:
        os.sched_setaffinity(0, before)
    folder = Path(run.folder)
    events = read_events(folder / "events.jsonl")
    starts = [event for event in events if isinstance(event, RunStarted)]
    assert [start.world_size for start in starts] == [1, 2] and run.step == run.steps
    assert not any(isinstance(event, WorkerLost) for event in events)
    assert room == {0: set(cores[:1]), 1: set(cores)}  # a forerunner of before is no bond
    alone = seen(folder, [starts[0]])
    assert 0 < starts[1].step == max(alone) + 1  # in good order: no step was done twice
    taken = seen(folder, events)
    assert [taken[step].samples for step in range(run.steps)] == batches(slow_place, project)


@pytest.mark.slow
def test_two_workers_become_one_and_two_again(
    slow_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 1 is killed at its start, twice; with one worker there is a checkpoint, then it returns."""
    monkeypatch.setattr(crew, "PATIENCE_SECONDS", 0.3)
    # Two as the most that there is room for, whatever the machine.
    monkeypatch.setattr(crew, "available_cores", lambda: 2)
    project = slow_place.project(workers="1:2", epochs=10, checkpoint_seconds=0.2)

    def kill(event: AnyEvent) -> None:
        if isinstance(event, WorkerJoined) and event.rank == 1 and event.attempt < 2:
            with contextlib.suppress(ProcessLookupError):
                os.kill(event.pid, signal.SIGKILL)

    run = train(project, slow_place.dataset(project), slow_place.store, observers=[kill])
    events = read_events(slow_place.store.run_folder(run.id) / "events.jsonl")
    starts = [event for event in events if isinstance(event, RunStarted)]
    assert [event.world_size for event in starts[-2:]] == [1, 2]
    assert starts[-1].step > 0  # it went on, from the checkpoint of the single worker
    told = [event.message for event in events if isinstance(event, Noticed)]
    assert any("going on with 1 of 2 workers" in message for message in told)
    assert any("back from 1 to 2 workers" in message for message in told)
    assert run.state == "complete" and run.step == run.steps and run.world_size == 2
    done = [event.step for event in events if isinstance(event, StepDone)]
    assert done[-1] == run.steps
    newest, skipped = checkpoints.latest(slow_place.store.run_folder(run.id))
    assert newest is not None and newest.step == run.steps and skipped == []


@pytest.mark.parametrize("workers", ["0:2", "4:1", "many", "1:", -1, 0, True, "1:2:3"])
def test_a_range_that_is_none_is_refused(place: Place, workers: Any) -> None:
    with pytest.raises(ProjectError, match=r"train\.workers.*such as .1:4."):
        place.project(workers=workers)
