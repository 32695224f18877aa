"""What panoptic metrics keep of one image: a few sums for each class that occurs in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from upsnet.data.categories import CategorySet
from upsnet.metrics.matching import Matching, match_counts

FIELDS = ("iou", "tp", "fp", "fn")


def class_sums(found: Matching, num_classes: int) -> npt.NDArray[np.float64]:
    """float64 [num_classes, 4]: sum of IoU, TP, FP, FN of each class in one image."""
    hit = found.truth.classes[found.hit_truth]
    scores = np.empty((num_classes, len(FIELDS)))
    scores[:, 0] = np.bincount(hit, found.iou[found.hit_truth, found.hit_predicted], num_classes)
    scores[:, 1] = np.bincount(hit, minlength=num_classes)
    scores[:, 2] = np.bincount(found.predicted.classes[found.spurious], minlength=num_classes)
    scores[:, 3] = np.bincount(found.truth.classes[found.missed], minlength=num_classes)
    return scores


def stuff_sums(found: Matching, num_classes: int, num_stuff: int) -> npt.NDArray[np.float64]:
    """PQ-dagger's part of one image (Porzi et al. 2019, *Seamless Scene Segmentation*, the section on metrics).

    A stuff class that the truth has counts with the IoU of all its pixels in the image, whatever that is. Crowds are
    no truth; the union leaves out the prediction's pixels on void truth.

    Returns:
        float64 [num_classes, 2]: IoU, and 1 where the truth has the class.
    """
    truth, predicted, inter = found.truth, found.predicted, found.inter
    sums = np.zeros((num_classes, 2))
    rows = np.flatnonzero((truth.classes < num_stuff) & ~truth.is_crowd)
    classes = truth.classes[rows]
    shared = np.where(classes[:, None] == predicted.classes, inter[rows + 1, 1:], 0).sum(1)
    area = np.bincount(classes, inter[rows + 1].sum(1), num_classes)
    claimed = np.bincount(predicted.classes, inter[1:, 1:].sum(0), num_classes)
    both = np.bincount(classes, shared, num_classes)
    sums[:, 1] = area > 0
    sums[:, 0] = both / np.maximum(area + claimed - both, 1)
    return sums


def matched_classes(found: Matching, num_classes: int) -> npt.NDArray[np.int32]:
    """Pairs of segments with IoU above 1/2 of any classes, crowds aside: true channel x num_classes + predicted."""
    rows, columns = np.nonzero((found.iou > 0.5) & ~found.truth.is_crowd[:, None])
    return (found.truth.classes[rows] * num_classes + found.predicted.classes[columns]).astype(np.int32)


@dataclass(frozen=True, slots=True)
class ImageScores:
    """What is kept of an image: the sums of its own classes.

    Attributes:
        channels: int16 [k], the classes that occur.
        sums: float64 [k, 6 or 10], `FIELDS`, `stuff_sums`, and `FIELDS` by boundary.
        confused: int32, see `matched_classes`.
    """

    channels: npt.NDArray[np.int16]
    sums: npt.NDArray[np.float64]
    confused: npt.NDArray[np.int32]

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
        parts = [class_sums(found, size), stuff_sums(found, size, categories.num_stuff)]
        if boundary is not None:
            parts.append(class_sums(match_counts(found.inter, found.truth, found.predicted, boundary), size))
        sums = np.concatenate(parts, axis=1)
        channels = np.flatnonzero(sums.any(1))
        return cls(channels.astype(np.int16), sums[channels], matched_classes(found, size))
