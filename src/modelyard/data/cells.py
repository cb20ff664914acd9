"""Cells of a table, as text or as JSON values, become numbers, truths and words."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
"""Words for a value that is not there, in lower case."""
TRUE = frozenset({"true", "yes", "t", "y", "on", "1", "1.0"})
FALSE = frozenset({"false", "no", "f", "n", "off", "0", "0.0"})
NAN = math.nan


def is_missing(value: Any) -> bool:
    """None, NaN, or one of the words in ``MISSING``."""
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return isinstance(value, float | np.floating) and bool(math.isnan(value))


def number(value: Any) -> float:
    """A finite number, or NaN where the cell is missing. Raises ValueError saying what is wrong."""
    if is_missing(value):
        return NAN
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, str | int | float | np.integer | np.floating
    ):
        raise ValueError(f"{_shown(value)} is not a number")
    try:
        # float() also takes "1_000", which no table means.
        result = NAN if isinstance(value, str) and "_" in value else float(value)
    except OverflowError:
        result = math.inf
    except ValueError:
        result = NAN
    if math.isnan(result):
        raise ValueError(f"{_shown(value)} is not a number")
    if math.isinf(result):
        raise ValueError(f"{_shown(value)} is not a finite number")
    return result


def truth(value: Any) -> float:
    """1.0 for true, 0.0 for false, NaN where the cell is missing. Raises ValueError otherwise."""
    if is_missing(value):
        return NAN
    if isinstance(value, str | bool | np.bool_ | int | float | np.integer | np.floating):
        text = str(value).strip().lower()
        if text in TRUE or text in FALSE:
            return float(text in TRUE)
    raise ValueError(f"{_shown(value)} is neither true nor false")


def word(value: Any) -> str | None:
    """A category as text, or None where the cell is missing. Raises ValueError for lists and the like."""
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, str | int | float | np.integer | np.floating):
        return str(value).strip()
    raise ValueError(f"{_shown(value)} is not a word")


def spellings(text: str) -> tuple[str, ...]:
    """Other ways to write a word that JSON may have changed: true as True, 3.0 as 3."""
    if text in ("true", "false"):
        return (text.capitalize(), text.upper(), str(int(text == "true")))
    if text.endswith(".0"):
        return (text[:-2],)
    return (f"{text}.0",)


PARSERS: dict[str, Callable[[Any], Any]] = {
    "numeric": number,
    "boolean": truth,
    "categorical": word,
}
"""By kind of column."""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
