"""What happens at which step."""

import json
import math
import tomllib
from pathlib import Path
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


def section(
    name: str = "cosine",
    warmup: float | None = 0.1,
    floor: float = 0.0,
    lr: float = 0.1,
    **fields: Any,
) -> Any:
    schedule = {"name": name, "warmup": warmup, "floor": floor, **fields}
    return TrainSection.model_validate({"optimizer": {"lr": lr}, "schedule": schedule})


def test_cosine_by_hand() -> None:
    rates = [learning_rate(section(warmup=0.2, lr=1.0, floor=0.1), step, 10) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    # After 2 of warm-up, step 2 is the start of the half wave and step 9 its end.
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * k / 7)) for k in range(8)]
    assert rates[2:] == pytest.approx(expected)


@given(
    st.integers(1, 500),
    shares,
    st.floats(0, 1),
    st.sampled_from(["cosine", "constant", "linear", "exponential", "one-cycle", "step"]),
)
def test_rates_rise_then_never_rise_again(
    steps: int, warmup: float, floor: float, name: str
) -> None:
    chosen = section(name, warmup, floor, **({"every": 40} if name == "step" else {}))
    rates = [learning_rate(chosen, step, steps, steps_per_epoch=2.5) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b - 1e-12 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[0] > 0 and max(rates) == pytest.approx(0.1)
    assert min(rates[top:]) >= 0.1 * floor - 1e-12


def test_constant_stays() -> None:
    assert {learning_rate(section("constant", 0.0), step, 50) for step in range(50)} == {0.1}


def rates_of(chosen: Any, steps: int, per_epoch: float = 1.0) -> list[float]:
    return [learning_rate(chosen, step, steps, steps_per_epoch=per_epoch) for step in range(steps)]


def of_torch(make: Any, steps: int) -> list[float]:
    """The rates of one of torch's schedulers, stepped after each step; the peak is 0.1."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler, found = make(torch.optim.lr_scheduler, optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("chosen", "per_epoch", "make"),
    [
        (section("constant", 0), 1, lambda s, o: s.ConstantLR(o, 1.0)),
        (section("linear", 0, 0.1), 1, lambda s, o: s.LinearLR(o, 1.0, 0.1, 39)),
        (section("cosine", 0, 0.1), 1, lambda s, o: s.CosineAnnealingLR(o, 39, 0.01)),
        (section("step", 0, every=2, gamma=0.5), 5, lambda s, o: s.StepLR(o, 10, 0.5)),
        (section("step", 0, every=4, floor=0.01), 2.5, lambda s, o: s.StepLR(o, 10, 0.1)),
        (section("step", 0, milestones=[2, 3]), 10, lambda s, o: s.MultiStepLR(o, [20, 30])),
        (section("exponential", 0), 8, lambda s, o: s.ExponentialLR(o, 0.9 ** (1 / 8))),
        (
            section("one-cycle", None, 4e-6),
            1,
            lambda s, o: s.OneCycleLR(o, 0.1, 40, cycle_momentum=False),
        ),
    ],
    ids=["constant", "linear", "cosine", "every", "half epochs", "milestones", "exponential", "one-cycle"],
)  # fmt: skip
def test_as_torch_has_them(chosen: Any, per_epoch: float, make: Any) -> None:
    rates = rates_of(chosen, 40, per_epoch)
    floor = 0.1 * chosen.schedule.floor
    wanted = [max(floor, rate) for rate in of_torch(make, 40)]
    assert rates == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_as_optax_has_them_with_a_warm_up() -> None:
    """Whose first step has the rate 0: ours are theirs, one step later."""
    optax = pytest.importorskip("optax")
    wave = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 49, 0.02)
    rates = rates_of(section("cosine", 0.2, 0.2), 50)
    assert rates[:10] == pytest.approx([float(wave(step + 1)) for step in range(10)], rel=1e-5)
    assert rates[10:] == pytest.approx([float(wave(step)) for step in range(10, 50)], rel=1e-5)
    decay = optax.exponential_decay(0.1, 8, 0.5, end_value=0.01)
    fading = rates_of(section("exponential", 0.2, 0.1, gamma=0.5), 50, 8)
    assert fading[10:] == pytest.approx([float(decay(step)) for step in range(40)], rel=1e-5)
    line = optax.linear_schedule(0.1, 0.05, 39)
    falling = rates_of(section("linear", 0.2, 0.5), 50)
    assert falling[10:] == pytest.approx([float(line(step)) for step in range(40)], rel=1e-5)


def test_drops_are_counted_from_the_first_epoch_on() -> None:
    """Also with a warm-up: a milestone is an epoch of the training."""
    rates = rates_of(section("step", 0.1, milestones=[3, 5.5], gamma=0.5), 40, 5)
    changes = [step for step in range(5, 40) if rates[step] != rates[step - 1]]
    assert changes == [15, 28] and rates[-1] == pytest.approx(0.025)


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


def test_the_pictures_in_the_pages_are_what_happens() -> None:
    """Forty steps, four an epoch; a bar of eight eighths is the peak."""
    page = (Path(__file__).parents[2] / "docs" / "how-to.md").read_text()
    rows = [line.split("|") for line in page.splitlines() if line.startswith('| `name = "')]
    drawn = {row[1].split("`")[1]: row[2].split("`")[1] for row in rows if "█" in row[2]}
    assert len(drawn) == 6
    for written, picture in drawn.items():
        schedule = tomllib.loads(f"schedule = {{ {written} }}")["schedule"]
        chosen = TrainSection.model_validate_json(
            json.dumps({"optimizer": {"lr": 1.0}, "schedule": schedule})
        )
        rates = [learning_rate(chosen, step, 40, steps_per_epoch=4.0) for step in range(40)]
        assert "".join(" ▁▂▃▄▅▆▇█"[round(rate * 8)] for rate in rates) == picture, written
