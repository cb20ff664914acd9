"""The learning-rate schedules that a project can name, the fields each understands, and their defaults."""

from typing import Any

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "linear": {"floor": 0.0},
    "cosine": {"floor": 0.0},
    "step": {"gamma": 0.1, "every": None, "milestones": (), "floor": 0.0},
    "exponential": {"gamma": 0.9, "floor": 0.0},
    "one-cycle": {"start": 0.04, "floor": 0.0},
    "plateau": {"factor": 0.1, "patience": 3, "min_delta": 0.0, "floor": 0.0},
}
"""Name to field to its value where none is given; ``warmup`` is everyone's."""
WARMUP = {"one-cycle": 0.3}
"""Share of all steps where none is given; else ``WARMUP_OF_OTHERS``."""
WARMUP_OF_OTHERS = 0.05
FIELDS = tuple(dict.fromkeys(field for fields in SCHEDULES.values() for field in fields))


def schedules_with(field: str) -> list[str]:
    """The schedules that understand ``field``."""
    return [name for name, fields in SCHEDULES.items() if field in fields]
