"""Fields of ``[train]`` that mean nothing beside the others: said, and not passed over."""

from collections.abc import Callable, Iterator
from typing import Any

from modelyard.spec.errors import Mistake
from modelyard.spec.optimizers import NEUTRAL, OPTIMIZERS, names_with
from modelyard.spec.schedules import FIELDS, SCHEDULES, schedules_with

Get = Callable[..., Any]
"""Dotted field and a default -> what the project says, before any type was looked at."""
Say = Callable[..., Mistake]
"""Where, problem, what was expected -> the mistake with its line."""


def training_mistakes(get: Get, say: Say) -> Iterator[Mistake]:
    """Fields that the chosen optimizer or schedule does not understand, and pairs that exclude each other."""
    yield from _optimizer(get, say)
    yield from _schedule(get, say)
    if get("train.clip_norm") is not None and get("train.clip_value") is not None:
        yield say(("train", "clip_value"), "is given beside clip_norm", "one of the two")
    if get("train.freeze") and get("train.lora") is not None:
        yield say(
            ("train", "freeze"),
            "means nothing beside train.lora, which trains nothing but its adapters",
            "one of the two; train.lora.also names what is trained whole",
        )


def _optimizer(get: Get, say: Say) -> Iterator[Mistake]:
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


def _schedule(get: Get, say: Say) -> Iterator[Mistake]:
    place = ("train", "schedule")
    name, section = get("train.schedule.name", "cosine"), get("train.schedule", {})
    if not isinstance(name, str) or name not in SCHEDULES or not isinstance(section, dict):
        return
    for field in FIELDS:
        if field in section and field not in SCHEDULES[name]:
            yield say(
                (*place, field),
                f"means nothing to {name!r}",
                f"it with {' or '.join(map(repr, schedules_with(field)))}, or left out",
            )
    if name == "step" and bool(section.get("every")) == bool(section.get("milestones")):
        both = "has every and milestones" if section.get("every") else "does not say when it drops"
        expected = "every = 30 or milestones = [30, 60, 80], in epochs"
        yield say((*place, "name"), f"'step' {both}", f"one of {expected}")
    if name == "plateau" and get("data.split.validation", 0.15) == 0:
        yield say(
            (*place, "name"),
            "'plateau' waits for evaluations, and data.split.validation is 0",
            "a validation split, or another schedule",
        )
