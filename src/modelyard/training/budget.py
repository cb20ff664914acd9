"""Budgets: when a training has had enough steps, time or money. A policy that only decides.

What counts: the time in which workers were up, in all attempts of all commands on the run, from a
worker's start to the last that was heard of it. So what a crash lost counts as well: the event log
still has the attempt, though no checkpoint has its steps. Cost is that time, once for each worker,
at the price of a worker's hour.

A budget is no input of the run: it changes how far a training goes, never what a step does. A run
that a budget ended is complete for that budget; with a larger one the same run goes on from its
last checkpoint, and comes to what it would have been without the pause.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from modelyard.spec.records import (
    AnyEvent,
    Noticed,
    Restarted,
    Run,
    RunFinished,
    RunStarted,
    Spent,
    WorkerJoined,
)
from modelyard.spec.training import TrainSection

STEPS, TIME, COST = "step budget", "time budget", "cost budget"
ENDINGS = ("", STEPS, TIME, COST)
"""How a budget can have ended a run; workers tell each other the place in this row."""
_FIELDS = {STEPS: "train.max_steps", TIME: "train.max_time", COST: "train.max_cost"}


@dataclass(frozen=True)
class Limits:
    """What may be spent; None is no limit."""

    steps: int | None = None
    seconds: float | None = None
    cost: float | None = None
    price: float | None = None
    """Of one worker for an hour."""

    def ended_by(self, step: int, spent: Spent) -> str:
        """The budget that is used up after ``step`` steps, one of ``ENDINGS``."""
        if self.steps is not None and step >= self.steps:
            return STEPS
        if self.seconds is not None and spent.seconds >= self.seconds:
            return TIME
        cost = cost_of(spent, self.price)
        if self.cost is not None and cost is not None and cost >= self.cost:
            return COST
        return ""


def limits_of(section: TrainSection) -> Limits:
    return Limits(
        steps=section.max_steps,
        seconds=section.max_time,
        cost=section.max_cost,
        price=section.price_per_worker_hour,
    )


def money(cost: float) -> str:
    """``12.50``; small amounts keep three digits that mean something."""
    return f"{cost:,.2f}" if cost >= 1 else f"{cost:.3g}"


def cost_of(spent: Spent, price: float | None) -> float | None:
    return None if price is None else spent.worker_seconds / 3600 * price


def goes_on(section: TrainSection, reason: str, step: int, spent: Spent) -> bool:
    """True where a budget ended a run that today's budgets would not have ended there."""
    return reason in _FIELDS and not limits_of(section).ended_by(step, spent)


def explain(run: Run) -> str:
    """For people, where a budget ended the run: which one, where, and how to go on; else empty."""
    if run.reason not in _FIELDS:
        return ""
    return (
        f"by its {run.reason} at step {run.step} of {run.steps}; "
        f"raise {_FIELDS[run.reason]} and run the same command: it goes on from there"
    )


def spent_in(events: Iterable[AnyEvent], *, without: int | None = None) -> Spent:
    """What the attempts in an event log took, but for the attempt ``without``."""
    began: dict[int, float] = {}
    heard: dict[int, float] = {}
    workers: dict[int, set[int]] = {}
    size: dict[int, int] = {}
    for event in events:
        # Written by the command, perhaps a day after the last worker was lost with its machine.
        if isinstance(event, RunFinished | Restarted | Noticed) or event.attempt == without:
            continue
        attempt, start = event.attempt, event.time
        if isinstance(event, WorkerJoined):
            start -= event.start_seconds
            workers.setdefault(attempt, set()).add(event.rank)
        if isinstance(event, RunStarted):
            size[attempt] = event.world_size
        began[attempt] = min(start, began.get(attempt, start))
        heard[attempt] = max(event.time, heard.get(attempt, event.time))
    took = {attempt: heard[attempt] - began[attempt] for attempt in began}
    return Spent(
        seconds=sum(took.values()),
        worker_seconds=sum(
            seconds * (size.get(attempt) or len(workers.get(attempt, ())) or 1)
            for attempt, seconds in took.items()
        ),
    )


def larger(first: Spent, second: Spent) -> Spent:
    return Spent(
        seconds=max(first.seconds, second.seconds),
        worker_seconds=max(first.worker_seconds, second.worker_seconds),
    )


@dataclass(frozen=True)
class Purse:
    """What one attempt may still spend, by this worker's clock; worker 0's is the one that counts."""

    limits: Limits = Limits()
    before: Spent = field(default_factory=Spent)
    """Of all earlier attempts."""
    workers: int = 1
    began: float = field(default_factory=time.monotonic)
    """When this attempt began, by ``time.monotonic``."""

    def spent(self) -> Spent:
        seconds = time.monotonic() - self.began
        return Spent(
            seconds=self.before.seconds + seconds,
            worker_seconds=self.before.worker_seconds + seconds * self.workers,
        )

    def ended_by(self, step: int) -> str:
        return self.limits.ended_by(step, self.spent())

    def last_step(self, steps: int) -> int:
        """Where training ends at the latest."""
        return steps if self.limits.steps is None else min(steps, self.limits.steps)

    def seconds_left(self) -> float | None:
        """Until time or money is used up; None where neither is limited."""
        spent, left = self.spent(), []
        if self.limits.seconds is not None:
            left.append(self.limits.seconds - spent.seconds)
        if self.limits.cost is not None and self.limits.price:
            hours = (self.limits.cost / self.limits.price) - spent.worker_seconds / 3600
            left.append(hours * 3600 / self.workers)
        return max(0.0, min(left)) if left else None
