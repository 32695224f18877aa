"""At which size the network should see the images, and which crop training should cut from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from upsnet.doctor.statistics import SplitStatistics

Floats = npt.NDArray[np.float64]

VISIBLE = 12
"""Pixels a side from which an object is learned well: 3 cells of the finest level, which has one every 4 pixels."""
FILLED = 0.8
"""Share of the crop's side. Crops are cut at random, so nearly all of them cut through a longer object."""
CLOSE = 0.02
"""Difference of shares that is not worth a larger size."""
LEARNED = 0.5
"""Share of the objects of a class that must be usable, so that the class can be learned."""
GRID = 32
"""Sizes are multiples of it, because batches are padded to them."""
LARGEST_ZOOM = 3.0
"""Enlargement. Beyond it the pixels grow, and the objects show nothing new."""
LONGEST = 2.5
"""Ratio of the sides up to which an image keeps its short side. Longer ones shrink, so that they fit into memory."""
SPREAD = 4 / 3
"""Factor by which training scales an image up or down at random."""


@dataclass(frozen=True)
class SizeLimits:
    """The sizes that a device can pay for, in pixels.

    Attributes:
        least_short_side: of the network input, where the images have it.
        most_short_side: of the network input.
        least_crop, most_crop: side of the training crop.
    """

    least_short_side: int
    most_short_side: int
    least_crop: int
    most_crop: int


@dataclass(frozen=True)
class View:
    """How large the network sees the images of a split, and what that means for its instances.

    Attributes:
        short_side, max_side: as `data.test_short_side` and `data.test_max_side`.
        crop: side of the square that training cuts.
        jitter: as `data.augment.jitter_scale`; around the scale of testing.
        scales: float64 [N], network pixels per pixel of each image.
        sides: float64 [n], square roots of the areas of the instances, in network pixels.
        is_cut: bool [n], the instances that most crops cut through.
        usable: float64 [classes], share of the instances that are large enough and fit into the crop; NaN without any.
    """

    short_side: int
    max_side: int
    crop: int
    jitter: tuple[float, float]
    scales: Floats
    sides: Floats
    is_cut: npt.NDArray[np.bool_]
    usable: Floats

    @property
    def unlearnable(self) -> int:
        """The number of classes with too few usable objects."""
        return int((self.usable < LEARNED).sum())

    @property
    def share(self) -> float:
        """The mean share of usable objects. Classes count alike, as in PQ; 1 without instances."""
        return 1.0 if np.isnan(self.usable).all() else float(np.nanmean(self.usable))


def choose_view(train: SplitStatistics, limits: SizeLimits) -> View:
    """Chooses the cheapest view that shows nearly as many usable objects as the best one.

    The best view leaves the fewest classes unlearnable; of several such views it has the largest share of usable
    objects. A short side costs time for every image, so the smallest one is taken first, then the smallest crop.

    Args:
        train: the training images.
        limits: of the device.
    """
    found = {}
    for short_side in _short_sides(train, limits):
        for crop in _crops(train, short_side, limits):
            view = look(train, short_side, crop)
            found[short_side, crop] = (view.unlearnable, view.share)
    fewest = min(unlearnable for unlearnable, _ in found.values())
    shares = {key: share for key, (unlearnable, share) in found.items() if unlearnable == fewest}
    enough = max(shares.values()) - CLOSE
    return look(train, *min(key for key, share in shares.items() if share >= enough))


def look(split: SplitStatistics, short_side: int, crop: int) -> View:
    """The view of a split at a short side and a crop, in pixels."""
    max_side = _max_side(split, short_side)
    scales = network_scales(split, short_side, max_side)
    lengths = scales * split.long_sides
    things = split.instances
    scale = scales[things.image]
    sides = np.sqrt(things.areas) * scale
    longest = (things.boxes[:, 2:] - things.boxes[:, :2]).max(1, initial=0) * scale
    is_cut = (longest > FILLED * crop) & (lengths[things.image] > crop)
    count = len(split.categories)
    total = np.bincount(things.channels, minlength=count)
    usable = np.bincount(things.channels, (sides >= VISIBLE) & ~is_cut, minlength=count)
    ratios = lengths / crop  # the jitter is relative to the scale at which the whole image fits into the crop
    low, high = np.percentile(ratios, (10, 90)).tolist()
    jitter = (max(0.01, round(low / SPREAD, 2)), max(0.02, round(high * SPREAD, 2)))
    with np.errstate(invalid="ignore"):
        return View(short_side, max_side, crop, jitter, scales, sides, is_cut, usable / total)


def network_scales(split: SplitStatistics, short_side: int, max_side: int) -> Floats:
    """float64 [N], network pixels per pixel of each image, as `data.transforms.fit_size` scales it."""
    return np.minimum(short_side / split.short_sides, max_side / split.long_sides)


def _short_sides(split: SplitStatistics, limits: SizeLimits) -> range:
    own = float(np.median(split.short_sides))
    most = max(2 * GRID, min(limits.most_short_side, _up(LARGEST_ZOOM * own)))
    least = min(most, max(2 * GRID, min(_up(limits.least_short_side), _up(2 * own))))
    return range(least, most + 1, GRID) if len(split.instances.channels) else range(least, least + 1)


def _crops(split: SplitStatistics, short_side: int, limits: SizeLimits) -> list[int]:
    """Sides of crops, none larger than the largest image."""
    whole = _up(max(2 * GRID, short_side * float(np.max(split.long_sides / split.short_sides))))
    return sorted({min(crop, whole) for crop in range(limits.least_crop, limits.most_crop + 1, 2 * GRID)})


def _max_side(split: SplitStatistics, short_side: int) -> int:
    ratio = min(LONGEST, float(np.max(split.long_sides / split.short_sides)))
    return _up(short_side * ratio)


def _up(length: float) -> int:
    """The next multiple of the grid."""
    return math.ceil(length / GRID) * GRID
