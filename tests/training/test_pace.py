"""How long it will still take."""

from modelyard.training.pace import Pace


def test_steps_evaluations_and_checkpoints_each_count_at_their_own_pace() -> None:
    pace = Pace()
    assert pace.left(0, 100, 10) == 0
    pace.stepped(10, 20.0)
    assert pace.left(10, 100, 10) == 90 * 2  # no evaluation was seen yet
    pace.evaluated(5.0)
    assert (
        pace.left(10, 100, 10) == 90 * 2 + (9 + 2) * 5
    )  # nine to come, and the last look at two splits
    pace.waited(10.0)
    assert pace.left(10, 100, 10) == 90 * 3 + 11 * 5
    assert pace.left(100, 100, 10) == 2 * 5
    assert pace.left(95, 100, 40.0) == 5 * 3 + (1 + 2) * 5
