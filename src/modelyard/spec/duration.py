"""Times as people write them, ``90m`` or ``2h30m``: read as seconds."""

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_WHOLE = re.compile(
    r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?"
)
EXPECTED = 'a time above 0 such as "90m", "2h30m", "45s", or a number of seconds'


def seconds(value: object) -> float:
    """``"2h30m"`` or a number of seconds -> seconds. Raises ValueError that says what is expected."""
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value.replace(" ", "").lower())
        parts = found.groups() if found else ()
        if not any(parts):
            raise ValueError(EXPECTED)
        number = sum(
            float(part) * unit
            for part, unit in zip(parts, _UNITS.values(), strict=True)
            if part is not None
        )
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
    else:
        raise ValueError(EXPECTED)
    if not 0 < number < math.inf:
        raise ValueError(EXPECTED)
    return number


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    Field(),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]
"""A field of the project file that holds a time; kept as seconds."""
