"""What all sections of the project file have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A section of the project file: frozen, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
