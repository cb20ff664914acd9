"""Policy: how long to wait before a lost replica is started again, and whether to give up on a new one."""

FIRST_SECONDS, LONGEST_SECONDS, HEALTHY_SECONDS = 0.5, 10.0, 60.0
ATTEMPTS_TO_START = 2
"""A replica of a *new* version that fails this often before it was ever ready ends the roll-out."""


def restart_delay(losses: int) -> float:
    """Seconds to wait after the ``losses``-th loss in a row: at once, then 0.5, 1, 2, … up to 10."""
    if losses <= 1:
        return 0.0
    # The exponent is bounded because 2.0 ** 1100 overflows.
    return float(min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(losses - 2, 16)))


def losses_in_a_row(before: int, ready_seconds: float) -> int:
    """Count a loss; a replica that was ready for a minute starts counting afresh."""
    return 1 if ready_seconds >= HEALTHY_SECONDS else before + 1
