"""What panoptic metrics keep of one image: a few sums for each class that occurs in it."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import numpy.typing as npt

from upsnet.categories import CategorySet
from upsnet.metrics.error_causes import NO_ERROR, Causes, find_causes
from upsnet.metrics.matching import Matching, SegmentTable, match_counts

FIELDS = ("iou", "tp", "fp", "fn")


@functools.cache
def compiled() -> ModuleType | None:
    """The compiled loop, or None without numba."""
    try:
        from upsnet.metrics import image_scores_numba
    except ImportError:
        return None
    return image_scores_numba


def class_sums(found: Matching, num_classes: int) -> npt.NDArray[np.float64]:
    """float64 [num_classes, 4]: sum of IoU, TP, FP, FN of each class in one image."""
    hit = found.truth.classes[found.hit_truth]
    scores = np.empty((num_classes, len(FIELDS)))
    scores[:, 0] = np.bincount(hit, found.iou[found.hit_truth, found.hit_predicted], num_classes)
    scores[:, 1] = np.bincount(hit, minlength=num_classes)
    scores[:, 2] = np.bincount(found.predicted.classes[found.spurious], minlength=num_classes)
    scores[:, 3] = np.bincount(found.truth.classes[found.missed], minlength=num_classes)
    return scores


def class_pixels(found: Matching, num_classes: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The pixels of an image by true and predicted class, read from its counted pairs of segments.

    Void truth is left out.

    Returns:
        cells int32, true x (num_classes + 1) + predicted, some of them more than once; true is the channel, a crowd's
        is num_classes higher; predicted is num_classes where the prediction is void. And the pixels of each, int32.
    """
    counts = found.inter[1:]
    row, column = np.nonzero(counts)
    true = found.truth.classes + num_classes * found.truth.is_crowd
    predicted = np.concatenate([[num_classes], found.predicted.classes])
    cells = true[row] * (num_classes + 1) + predicted[column]
    return cells.astype(np.int32), counts[row, column].astype(np.int32)


def matched_classes(found: Matching, num_classes: int) -> npt.NDArray[np.int32]:
    """Pairs of segments with IoU above 1/2 of any classes, crowds aside: true channel x num_classes + predicted."""
    true, predicted = found.truth.classes[found.pair_truth], found.predicted.classes[found.pair_predicted]
    return (true * num_classes + predicted).astype(np.int32)


@dataclass(frozen=True, slots=True)
class ScoredSegments:
    """The scored segments of an image: true segments except crowds, then spurious predictions.

    Attributes:
        classes: int16 [k], semantic channels.
        areas: int32 [k], pixels.
        ious: float64 [k], IoU of the matched true segments; 0 for the others.
        causes: int8 [k], indices in `error_causes.CAUSES`; `NO_ERROR` for matches.
        num_true: number of true segments.
    """

    classes: npt.NDArray[np.int16]
    areas: npt.NDArray[np.int32]
    ious: npt.NDArray[np.float64]
    causes: npt.NDArray[np.int8]
    num_true: int

    @classmethod
    def of(cls, found: Matching, causes: Causes) -> ScoredSegments:
        """Lists the segments of a matched image."""
        real, spurious = ~found.truth.is_crowd, found.spurious
        ious = np.zeros(len(real))
        ious[found.hit_truth] = found.iou[found.hit_truth, found.hit_predicted]
        areas = found.inter.sum(1)[1:][real], found.inter.sum(0)[1:][spurious]
        return cls(
            np.concatenate([found.truth.classes[real], found.predicted.classes[spurious]]).astype(np.int16),
            np.concatenate(areas).astype(np.int32),
            np.concatenate([ious[real], np.zeros(len(areas[1]))]),
            np.concatenate([causes.truth[real], causes.predicted[spurious]]),
            len(areas[0]),
        )

    @property
    def is_match(self) -> npt.NDArray[np.bool_]:
        """Bool [k]: the true segments that have a match."""
        return self.causes == NO_ERROR


@dataclass(frozen=True, slots=True)
class ImageScores:
    """The scores of an image: its segments, and the sums of the classes that occur in it.

    Attributes:
        channels: int16 [k], the classes that occur.
        sums: float64 [k, 4 or 8], `FIELDS`, and those by boundary where asked for.
        confused: int32, see `matched_classes`.
        cells, pixels: int32, see `class_pixels`.
        segments: the scored segments.
        file_name: of the image, empty if it has none; size: (H, W).
    """

    channels: npt.NDArray[np.int16]
    sums: npt.NDArray[np.float64]
    confused: npt.NDArray[np.int32]
    cells: npt.NDArray[np.int32]
    pixels: npt.NDArray[np.int32]
    segments: ScoredSegments
    file_name: str = ""
    size: tuple[int, int] = (0, 0)

    @classmethod
    def of(
        cls, found: Matching, categories: CategorySet, boundary: npt.NDArray[np.float64] | None = None
    ) -> ImageScores:
        """Sums up an image.

        Args:
            found: its segments.
            categories: the classes.
            boundary: [n, m], Boundary IoU of its segments, where that is asked for.
        """
        size = len(categories)
        sums = class_sums(found, size)
        if boundary is not None:
            by_boundary = match_counts(found.inter, found.truth, found.predicted, boundary)
            sums = np.concatenate([sums, class_sums(by_boundary, size)], axis=1)
        channels = np.flatnonzero(sums.any(1))
        confused = matched_classes(found, size)
        segments = ScoredSegments.of(found, find_causes(found))
        return cls(channels.astype(np.int16), sums[channels], confused, *class_pixels(found, size), segments)

    @classmethod
    def of_counts(
        cls, inter: npt.NDArray[np.int64], truth: SegmentTable, predicted: SegmentTable, categories: CategorySet
    ) -> ImageScores:
        """`of(match_counts(inter, truth, predicted), categories)`, a few times faster where numba is installed."""
        loops = compiled()
        if loops is None:
            return cls.of(match_counts(inter, truth, predicted), categories)
        size = len(categories)
        found = loops.image_scores(inter, truth.classes, truth.is_crowd, predicted.classes, size)
        channels, sums, confused, cells, pixels = found[:5]
        return cls(channels, sums, confused, cells, pixels, ScoredSegments(*found[5:]))

    def named(self, file_name: str, size: tuple[int, ...]) -> ImageScores:
        """Returns a copy with the name and the size (H, W) of the image."""
        return replace(self, file_name=file_name, size=(int(size[0]), int(size[1])))
