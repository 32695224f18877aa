"""Anchors that fit the objects of a data set at the size at which the network sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from upsnet.config import UPSNetConfig
from upsnet.models.base import Limits
from upsnet.models.build import model_limits
from upsnet.ops.sizes import Size

Floats = npt.NDArray[np.float32]

PLAIN_RATIOS = (0.5, 1.0, 2.0)
LONG_RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
SHAPES = ((1, PLAIN_RATIOS), (1, LONG_RATIOS), (2, PLAIN_RATIOS), (3, PLAIN_RATIOS), (2, LONG_RATIOS))
"""(sizes per level, aspect ratios) in order of their cost, the number of anchors in a cell."""
SMALLEST, LARGEST = 8.0, 64.0
"""Pixels of the smallest anchor: 2 to 16 cells of the finest level. Larger ones overlap each other too much there."""
LONG_REACH = 320
"""Pixels a side. If more than 2 % of the objects are larger, a fifth level with a cell every 64 pixels is used."""
FEW_ONE_POSITIVE = 0.25
"""Share of the instances below `positive_iou` that is not worth more anchors."""
FEW_MISSED = 0.01
"""Share of the instances below `negative_iou` that is not worth more anchors."""
MISSED_WEIGHT = 5
"""How much worse an instance below `negative_iou` is than one below `positive_iou`."""
MOST_MEASURED = 4000
"""Instances on which the choices are compared."""


class Coverage(NamedTuple):
    """How the anchors of a model fit instances.

    Attributes:
        below_positive, below_negative: shares of the instances whose best anchor has a smaller IoU than
            `model.rpn.positive_iou` and `negative_iou`.
        mean_iou: of the instances with their best anchors.
    """

    below_positive: float
    below_negative: float
    mean_iou: float

    @property
    def is_enough(self) -> bool:
        """Whether more anchors would change little."""
        return self.below_positive <= FEW_ONE_POSITIVE and self.below_negative <= FEW_MISSED

    @property
    def cost(self) -> float:
        """What training loses; less is better."""
        return self.below_positive + MISSED_WEIGHT * self.below_negative + 1 - self.mean_iou


@dataclass(frozen=True)
class AnchorChoice:
    """Values of `model.rpn`, and how they cover the instances that they were chosen for."""

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]
    coverage: Coverage


def choose_anchors(boxes: Floats, size: Size) -> AnchorChoice:
    """Chooses the fewest anchors that cover the boxes, or of too few the best.

    Args:
        boxes: float32 [n, 4] in pixels of the network input, at least one.
        size: (H, W) of the largest image there.
    """
    boxes = boxes[np.linspace(0, len(boxes) - 1, min(MOST_MEASURED, len(boxes))).astype(int)]
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    levels = 5 if np.percentile(sides, 98) > LONG_REACH else 4
    best = None
    for per_level, ratios in SHAPES:
        for low, high in product(np.percentile(sides, (2, 5, 10)), np.percentile(sides, (90, 95, 98))):
            rows = _rows(float(low), float(high), levels, per_level)
            choice = AnchorChoice(rows, ratios, measure_coverage(limits_of(rows, ratios), [(boxes, size)]))
            if best is None or choice.coverage.cost < best.coverage.cost:
                best = choice
        if best is not None and best.coverage.is_enough:
            break
    assert best is not None
    return best


def limits_of(sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> Limits:
    """The limits of a model with these anchors."""
    return model_limits(UPSNetConfig.model_validate({"rpn": {"anchor_sizes": sizes, "aspect_ratios": ratios}}))


def measure_coverage(limits: Limits, images: Sequence[tuple[Floats, Size]]) -> Coverage:
    """How anchors cover the (boxes, (H, W)) of images, both in pixels of the network input."""
    assert limits.best_iou is not None
    best = torch.cat([limits.best_iou(torch.from_numpy(boxes), size) for boxes, size in images])
    below = [float((best < threshold).float().mean()) for threshold in (limits.positive_iou, limits.negative_iou)]
    return Coverage(below[0], below[1], float(best.mean()))


def _rows(low: float, high: float, levels: int, per_level: int) -> tuple[tuple[float, ...], ...]:
    """Sizes in equal ratios from `low` to `high`; they double from level to level at least, as the strides do."""
    first = min(max(low, SMALLEST), LARGEST)
    steps = levels * per_level - 1
    ratio = max((high / first) ** (1 / steps), 2 ** (1 / per_level))
    sizes = [round(first * ratio**n) for n in range(levels * per_level)]
    return tuple(tuple(sizes[at : at + per_level]) for at in range(0, len(sizes), per_level))
