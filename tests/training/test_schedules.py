"""What happens at which step."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec.training import TrainSection
from modelyard.training.schedules import (
    is_multiple,
    learning_rate,
    next_multiple,
    step_seed,
    total_steps,
)

shares = st.floats(0, 0.9)


def section(name: str = "cosine", warmup: float = 0.1, floor: float = 0.0, lr: float = 0.1) -> Any:
    schedule = {"name": name, "warmup": warmup, "floor": floor}
    return TrainSection.model_validate({"optimizer": {"lr": lr}, "schedule": schedule})


def test_cosine_by_hand() -> None:
    rates = [learning_rate(section(warmup=0.2, lr=1.0, floor=0.1), step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    # After 2 of warm-up, step 2 is the start of the half wave and step 9 its end.
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * k / 7)) for k in range(8)]
    assert rates[2:] == pytest.approx(expected)


@given(st.integers(1, 500), shares, st.floats(0, 1), st.sampled_from(["cosine", "constant"]))
def test_rates_rise_then_never_rise_again(
    steps: int, warmup: float, floor: float, name: str
) -> None:
    chosen = section(name, warmup, floor)
    rates = [learning_rate(chosen, step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b - 1e-12 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[0] > 0 and max(rates) == pytest.approx(0.1)
    assert min(rates[top:]) >= 0.1 * floor - 1e-12


def test_constant_stays() -> None:
    assert {learning_rate(section("constant", 0.0), step, 50) for step in range(50)} == {0.1}


@given(st.floats(0.01, 20), st.integers(1, 10_000), st.integers(1, 512))
def test_steps_cover_the_epochs_and_no_more(epochs: float, samples: int, batch: int) -> None:
    steps = total_steps(epochs, samples, batch)
    assert steps * batch >= epochs * samples - 1e-6
    assert steps == 1 or (steps - 1) * batch < epochs * samples


@given(st.floats(0.3, 50), st.integers(1, 300))
def test_walking_from_multiple_to_multiple_meets_exactly_the_multiples(
    every: float, steps: int
) -> None:
    visited, step = [], 0
    while step < steps:
        step = next_multiple(step, every, steps)
        visited.append(step)
    assert visited == [s for s in range(1, steps + 1) if is_multiple(s, every, steps)]
    assert visited[-1] == steps
    assert len(visited) <= steps / every + 1


def test_every_20_steps_of_119() -> None:
    every = 1259 / 64
    assert [s for s in range(120) if is_multiple(s, every, 119)] == [20, 40, 60, 79, 99, 119]


def test_seeds_differ_by_step_and_worker_and_repeat() -> None:
    seeds = {step_seed(7, step, rank) for step in range(2000) for rank in range(8)}
    assert len(seeds) == 16_000
    assert max(seeds) < 2**63
    assert step_seed(7, 3, 1) == step_seed(7, 3, 1) != step_seed(8, 3, 1)
