"""Fields of ``[train]`` that mean nothing beside the others: said, and not passed over."""

from collections.abc import Callable, Iterator
from typing import Any

from modelyard.spec.errors import Mistake
from modelyard.spec.optimizers import NEUTRAL, OPTIMIZERS, names_with

Get = Callable[..., Any]
"""Dotted field and a default -> what the project says, before any type was looked at."""
Say = Callable[..., Mistake]
"""Where, problem, what was expected -> the mistake with its line."""


def optimizer_mistakes(get: Get, say: Say) -> Iterator[Mistake]:
    """Fields that the chosen optimizer does not understand."""
    name, section = get("train.optimizer.name", "adamw"), get("train.optimizer")
    known = OPTIMIZERS.get(name) if isinstance(name, str) else None
    if known is None or not isinstance(section, dict):
        return
    for field in NEUTRAL:
        if field in section and field not in known.defaults:
            yield say(
                ("train", "optimizer", field),
                f"means nothing to {name!r}",
                f"it with {' or '.join(map(repr, names_with(field)))}, or left out",
            )
    if section.get("nesterov") is True and section.get("momentum") == 0:
        yield say(
            ("train", "optimizer", "nesterov"),
            "means nothing without momentum",
            "a momentum above 0, e.g. 0.9",
        )
