"""The base of every config section, and the types that several sections use."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Fraction = Annotated[float, Field(ge=0, le=1)]
"""0 to 1."""

Weight = Annotated[float, Field(ge=0)]
"""0 or more."""

Size = tuple[PositiveInt, PositiveInt]
"""(H, W) in pixels."""


class Section(BaseModel):
    """Base class of config sections. Keys are read-only; an unknown key is a validation error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
