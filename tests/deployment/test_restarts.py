"""The restart policy, as a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.deployment.restarts import losses_in_a_row, restart_delay


@pytest.mark.parametrize(
    ("losses", "seconds"), [(1, 0.0), (2, 0.5), (3, 1.0), (4, 2.0), (5, 4.0), (6, 8.0), (7, 10.0)]
)
def test_the_first_restart_is_at_once_then_ever_later(losses: int, seconds: float) -> None:
    assert restart_delay(losses) == seconds


@given(st.integers(1, 100_000))
def test_never_later_than_ten_seconds_never_sooner_than_before(losses: int) -> None:
    assert 0 <= restart_delay(losses) <= restart_delay(losses + 1) <= 10


def test_a_healthy_minute_starts_the_count_afresh() -> None:
    assert losses_in_a_row(5, 59.0) == 6
    assert losses_in_a_row(5, 60.0) == 1
