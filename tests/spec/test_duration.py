"""Times as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.spec.duration import EXPECTED, seconds


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("90m", 5400),
        ("2h30m", 9000),
        ("45s", 45),
        ("1d", 86_400),
        ("1.5h", 5400),
        (" 2h 30m ", 9000),
        ("2H", 7200),
        (0.5, 0.5),
        (90, 90),
    ],
)
def test_what_is_meant(written: object, meant: float) -> None:
    assert seconds(written) == meant


@pytest.mark.parametrize(
    "wrong",
    ["", "90", "m", "1x", "-1h", "30m2h", "1h1h", 0, -5, True, None, [], math.inf, math.nan],
)
def test_what_means_nothing(wrong: object) -> None:
    with pytest.raises(ValueError, match="a time above 0") as caught:
        seconds(wrong)
    assert str(caught.value) == EXPECTED


@given(st.text(max_size=20))
def test_any_text_is_a_time_or_one_clear_error(text: str) -> None:
    try:
        assert 0 < seconds(text) < math.inf
    except ValueError as error:
        assert str(error) == EXPECTED


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_parts_add_up(days: int, hours: int, minutes: int, rest: int) -> None:
    assert (
        seconds(f"{days}d{hours}h{minutes}m{rest}s")
        == days * 86_400 + hours * 3_600 + minutes * 60 + rest
    )
