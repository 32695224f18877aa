"""The choices of the grouping of pixels into instances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Score = Literal["semantic", "center", "both"]


@dataclass(frozen=True)
class GroupingOptions:
    """How centres are found, what counts as a segment, and how instances are scored.

    Attributes:
        center_threshold: a centre's heat must be above this value (compared in float32); 0 or more.
        nms_kernel: side of the square window in which a centre is the maximum, in pixels of the result; odd.
        top_k: centres of an image at most; the number of instance rows in the table.
        stuff_area_limit: a stuff class with fewer pixels in the image becomes void.
        score: the score of an instance. `semantic`: the mean over its pixels of the softmax of its class; `center`: the
            heat at its centre, at most 1; `both`: the product.
        strict_top_k: the rule of the original program, for tests of parity: every pixel of a plateau is a centre, and
            of `top_k` or more centres only those above the `top_k`-th largest value stay.

    Raises:
        ValueError: a value outside its range.
    """

    center_threshold: float = 0.1
    nms_kernel: int = 7
    top_k: int = 200
    stuff_area_limit: int = 2048
    score: Score = "both"
    strict_top_k: bool = False

    def __post_init__(self) -> None:
        if not self.center_threshold >= 0:
            raise ValueError(f"center_threshold is {self.center_threshold}, expected 0 or more")
        if self.nms_kernel < 1 or self.nms_kernel % 2 == 0:
            raise ValueError(f"nms_kernel is {self.nms_kernel}, expected an odd number, 1 or more")
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected 1 or more")
        if self.stuff_area_limit < 0:
            raise ValueError(f"stuff_area_limit is {self.stuff_area_limit}, expected 0 or more")
        if self.score not in ("semantic", "center", "both"):
            raise ValueError(f"score is {self.score!r}, expected semantic, center or both")
