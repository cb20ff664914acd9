"""How many workers may train together: a number, or a range such as ``1:4``."""

import re
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

EXPECTED = 'a whole number above 0, or the fewest and the most, such as "1:4"'
_RANGE = re.compile(r"([1-9][0-9]{0,3}):([1-9][0-9]{0,3})")


def limits(value: int | str) -> tuple[int, int]:
    """Fewest and most. Raises ValueError that says what is expected."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value, value
    if isinstance(value, str) and (found := _RANGE.fullmatch(value)):
        fewest, most = int(found[1]), int(found[2])
        if fewest <= most:
            return fewest, most
    raise ValueError(EXPECTED)


def _checked(value: int | str) -> int | str:
    limits(value)
    return value


WorkerCount = Annotated[
    int | str,
    BeforeValidator(_checked),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "string", "pattern": "^[1-9][0-9]*:[1-9][0-9]*$"},
            ]
        }
    ),
]
"""A field of the project file."""
