"""The base of every config section, and the types that several sections use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
"""0 to 1."""

Weight = Annotated[float, Field(ge=0, le=1e6)]
"""0 or more. This limit and those below are far above useful values; they catch mistakes in typing."""

Positive = Annotated[float, Field(gt=0, le=1e6)]
"""More than 0."""

Side = Annotated[int, Field(ge=1, le=65536)]
"""Pixels a side. Larger images take more memory than machines have."""

Size = tuple[Side, Side]
"""(H, W) in pixels."""

Channels = Annotated[int, Field(ge=1, le=16384)]
"""Channels of a layer."""

Layers = Annotated[int, Field(ge=1, le=64)]
"""Layers, or cells of a small grid."""

Slots = Annotated[int, Field(ge=1, le=100_000)]
"""Boxes, RoIs or instances of an image: they take memory whether they are used or not."""

Count = Annotated[int, Field(ge=1, le=10**9)]
"""Iterations, or images of a data set."""

Small = Annotated[int, Field(ge=1, le=8192)]
"""Images of a batch, or files of a folder."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of convolutions and linear layers. auto: bf16 where the device computes it natively, else fp32."""


class Section(BaseModel):
    """Base class of config sections. Keys are read-only; an unknown key is a validation error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
