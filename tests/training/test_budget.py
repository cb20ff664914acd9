"""Budgets: the policy without processes, and trainings that a budget ends and another continues."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec.errors import ProjectError
from modelyard.spec.records import (
    AnyEvent,
    Noticed,
    Restarted,
    Run,
    RunFinished,
    RunStarted,
    Spent,
    StepDone,
    WorkerJoined,
)
from modelyard.spec.training import TrainSection
from modelyard.store.events import read_events
from modelyard.training import checkpoints
from modelyard.training.budget import (
    COST,
    STEPS,
    TIME,
    Limits,
    Purse,
    cost_of,
    explain,
    goes_on,
    limits_of,
    spent_in,
)
from modelyard.training.inputs import inputs_of, run_id
from modelyard.training.train import train

Place = Any
"""conftest.Place: a project folder, its store, and commands run on it."""


def spent(seconds: float, workers: int = 1) -> Spent:
    return Spent(seconds=seconds, worker_seconds=seconds * workers)


def test_each_budget_ends_when_it_is_used_up() -> None:
    assert Limits().ended_by(10**9, spent(1e9)) == ""
    assert Limits(steps=10).ended_by(9, spent(0)) == ""
    assert Limits(steps=10).ended_by(10, spent(0)) == STEPS
    assert Limits(seconds=60).ended_by(0, spent(59.9)) == ""
    assert Limits(seconds=60).ended_by(0, spent(60)) == TIME
    two = Limits(cost=1.0, price=2.0)
    assert two.ended_by(0, spent(899, workers=2)) == ""
    assert two.ended_by(0, spent(900, workers=2)) == COST
    assert Limits(cost=1.0).ended_by(0, spent(1e9)) == ""


@given(st.integers(1, 1000), st.integers(0, 1000), st.integers(1, 1000))
def test_a_run_goes_on_only_where_more_is_allowed(budget: int, step: int, later: int) -> None:
    reason = Limits(steps=budget).ended_by(step, Spent())
    section = TrainSection(max_steps=later)
    assert goes_on(section, reason, step, Spent()) == (step >= budget and later > step)
    assert not goes_on(section, "all epochs", step, Spent())


def test_what_a_crash_lost_counts_and_what_the_command_wrote_later_does_not() -> None:
    def step(time: float, attempt: int) -> StepDone:
        return StepDone(
            time=time, attempt=attempt, step=1, epoch=0, loss=1, learning_rate=1,
            samples_per_second=1, eta_seconds=0,
        )  # fmt: skip

    def joined(time: float, attempt: int, rank: int) -> WorkerJoined:
        return WorkerJoined(
            time=time, attempt=attempt, rank=rank, pid=1, host="", device="cpu", start_seconds=3
        )

    events: list[AnyEvent] = [
        joined(103, 0, 0),
        joined(104, 0, 1),
        RunStarted(time=105, attempt=0, steps=9, steps_per_epoch=3, world_size=2),
        step(110, 0),
        Noticed(time=900, message="a day later"),
        Restarted(time=1000, attempt=1, step=0),
        joined(1003, 1, 0),
        RunStarted(time=1004, attempt=1, steps=9, steps_per_epoch=3, world_size=1),
        step(1020, 1),
        RunFinished(time=9999, attempt=1, state="failed", step=1, seconds=0),
    ]
    assert spent_in(events) == Spent(seconds=10 + 20, worker_seconds=2 * 10 + 20)
    assert spent_in(events, without=1) == Spent(seconds=10, worker_seconds=20)
    assert spent_in([]) == Spent()
    assert cost_of(Spent(worker_seconds=1800), 3.0) == 1.5
    assert cost_of(Spent(worker_seconds=1800), None) is None


def test_a_purse_knows_what_is_left() -> None:
    purse = Purse(Limits(seconds=100, cost=1.0, price=36.0), spent(40, workers=2), workers=2)
    left = purse.seconds_left()
    assert (
        left is not None and 9 < left <= 10
    )  # money is shorter: 100 worker-seconds, 80 of them gone
    assert Purse().seconds_left() is None
    assert Purse(Limits(steps=7)).last_step(10) == 7 and Purse(Limits(steps=70)).last_step(10) == 10


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_time": "soon"}, 'a time above 0 such as "90m"'),
        ({"max_time": 0}, "a time above 0"),
        ({"max_steps": 0}, "greater than 0"),
        ({"max_steps": "ten"}, "a valid integer"),
        ({"max_cost": -1, "price_per_worker_hour": 1}, "greater than 0"),
        ({"max_cost": 5}, "price_per_worker_hour"),
    ],
)
def test_a_wrong_budget_is_one_clear_error(
    place: Place, fields: dict[str, object], told: str
) -> None:
    with pytest.raises(ProjectError) as caught:
        place.project(**fields)
    assert len(caught.value.mistakes) == 1 and told in str(caught.value)


def test_budgets_are_no_inputs_of_the_run(place: Place) -> None:
    plain = run_id(inputs_of(place.project(), "data", "code"))
    limited = place.project(max_time="90m", max_steps=3, max_cost=5, price_per_worker_hour=2.5)
    assert limits_of(limited.train) == Limits(steps=3, seconds=5400, cost=5, price=2.5)
    assert run_id(inputs_of(limited, "data", "code")) == plain


def weights(run: Run) -> dict[str, Any]:
    """Of the newest checkpoint."""
    newest, _ = checkpoints.latest(Path(run.folder))
    assert newest is not None
    return dict(checkpoints.load(newest)[0].tensors)


def test_a_step_budget_ends_with_a_result_and_a_larger_one_goes_on_exactly(
    place: Place, tmp_path: Path
) -> None:
    project = place.project(epochs=4, early_stopping={"patience": 3})
    dataset = place.dataset(project)
    whole = train(project, dataset, place.store)
    unbroken, metrics = weights(whole), whole.metrics
    place.store.root.joinpath("runs").rename(tmp_path / "earlier")

    first = train(
        place.project(epochs=4, early_stopping={"patience": 3}, max_steps=30), dataset, place.store
    )
    assert first.id == whole.id and first.state == "complete" and first.reason == STEPS
    assert (first.step, first.steps) == (30, whole.steps)
    assert first.best is not None and first.best.step in (20, 30)
    assert {"validation/accuracy", "test/accuracy"} <= first.metrics.keys()
    assert "raise train.max_steps" in explain(first)
    events = read_events(Path(first.folder) / "events.jsonl")
    assert events[-1].reason == STEPS  # type: ignore[union-attr]

    again = train(
        place.project(epochs=4, early_stopping={"patience": 3}, max_steps=20), dataset, place.store
    )
    assert again == first  # nothing is untrained

    second = train(
        place.project(epochs=4, early_stopping={"patience": 3}, max_steps=45), dataset, place.store
    )
    assert second.reason == STEPS and second.step == 45
    third = train(project, dataset, place.store)
    assert third.reason == "all epochs" and third.metrics == metrics
    assert third.best is not None and whole.best is not None
    assert third.best.step == whole.best.step
    for name, value in weights(third).items():
        assert np.array_equal(value, unbroken[name]), name


@pytest.mark.slow
def test_time_and_cost_count_over_commands_and_crashes(slow_place: Place) -> None:
    project = slow_place.project(epochs=50, workers=2, max_time="6s")
    dataset = slow_place.dataset(project)
    first = train(project, dataset, slow_place.store)
    assert first.reason == TIME and first.state == "complete"
    assert 0 < first.step < first.steps and first.metrics["test/accuracy"] >= 0
    assert 6 <= first.spent.seconds < 20
    assert first.spent.worker_seconds == pytest.approx(2 * first.spent.seconds, rel=0.01)
    assert train(project, dataset, slow_place.store) == first
    price = 3600 / first.spent.worker_seconds  # what was spent costs exactly 1
    dear = {"epochs": 50, "workers": 2, "price_per_worker_hour": price}
    second = train(slow_place.project(**dear, max_cost=2), dataset, slow_place.store)
    assert second.reason == COST and second.step > first.step
    assert second.cost is not None and 2 <= second.cost < 4
    third = train(slow_place.project(**dear, max_cost=1.5), dataset, slow_place.store)
    assert third == second


@pytest.mark.slow
def test_what_a_killed_command_took_is_spent_and_may_end_the_next_at_once(
    slow_place: Place,
) -> None:
    command = slow_place.command(epochs=50, workers=2, checkpoint_seconds=0.5)
    deadline, runs = time.monotonic() + 60, slow_place.store.root / "runs"
    while not list(runs.glob("*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.0)
    command.kill()
    command.communicate()
    project = slow_place.project(epochs=50, workers=2, checkpoint_seconds=0.5, max_time="1s")
    run = train(project, slow_place.dataset(project), slow_place.store)
    assert run.reason == TIME and run.spent.seconds > 1 and run.best is not None
    events = read_events(Path(run.folder) / "events.jsonl")
    began = max(i for i, event in enumerate(events) if isinstance(event, RunStarted))
    assert events[began].step == run.step > 0  # type: ignore[union-attr]
    assert not [event for event in events[began:] if isinstance(event, StepDone)]
    assert run.spent.worker_seconds > 1.5 * run.spent.seconds
