"""Arguments of model families: what each may be, and what is said where it is something else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arg:
    """One entry of ``model.args``."""

    default: Any
    meaning: str
    expected: str
    """In words, after "needs"."""
    fits: Callable[[Any], bool]

    def complaint(self, value: Any) -> str:
        """What is needed in place of ``value``; empty where it fits."""
        return "" if self.fits(value) else self.expected


def count(default: int, meaning: str) -> Arg:
    """A whole number from 1 on."""
    return Arg(default, meaning, "a whole number from 1 on", _is_count)


def counts(default: Sequence[int], meaning: str) -> Arg:
    """One or more whole numbers from 1 on."""
    return Arg(
        tuple(default),
        meaning,
        "a list of one or more whole numbers from 1 on",
        lambda value: _is_list(value) and len(value) > 0 and all(map(_is_count, value)),
    )


def share(default: float, meaning: str) -> Arg:
    """A number from 0 to less than 1."""
    return Arg(
        default,
        meaning,
        "a number from 0 to less than 1",
        lambda value: (
            isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
        ),
    )


def word(default: str, words: Sequence[str], meaning: str) -> Arg:
    """One of a few words."""
    expected = "one of " + ", ".join(map(repr, words))
    return Arg(default, f"{meaning}: {', '.join(words)}", expected, lambda value: value in words)


def names(meaning: str) -> Arg:
    """A list of names, empty by default."""
    return Arg(
        (),
        meaning,
        "a list of names",
        lambda value: _is_list(value) and all(isinstance(item, str) for item in value),
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
