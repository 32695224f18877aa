"""Mean intersection over union of semantic maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.data.categories import IGNORE_LABEL, CategorySet
from upsnet.metrics.matching import Matching

ClassPixels = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""Cells of a flat confusion matrix [C, C + 1], some of them more than once, and the pixels to add to them."""


def class_pixels(found: Matching, num_classes: int) -> ClassPixels:
    """The pixels of an image by true and predicted class, read from its counted pairs of segments.

    Pixels of void truth are left out; those of predicted void are in column C: wrong, and of no class.
    """
    counts = found.inter[1:]
    row, column = np.nonzero(counts)
    predicted = np.concatenate([[num_classes], found.predicted.classes])
    cells = found.truth.classes[row] * (num_classes + 1) + predicted[column]
    return cells.astype(np.int32), counts[row, column]


class SemanticIoU:
    """A confusion matrix over all labelled pixels.

    Args:
        categories: the classes.

    Attributes:
        confusion: int64 [C, C + 1], truth by prediction; the last column is predicted void.
    """

    def __init__(self, categories: CategorySet) -> None:
        self.categories = categories
        size = len(categories)
        self.confusion = np.zeros((size, size + 1), dtype=np.int64)

    def update(self, truth: npt.NDArray[np.integer], predicted: npt.NDArray[np.integer]) -> None:
        """Adds one image: semantic channels [H, W], `IGNORE_LABEL` where the truth is unknown."""
        known = truth != IGNORE_LABEL
        size = len(self.categories)
        pairs = truth[known].astype(np.int64) * (size + 1) + predicted[known]
        self.confusion += np.bincount(pairs, minlength=self.confusion.size).reshape(self.confusion.shape)

    def add(self, pixels: ClassPixels) -> None:
        """Adds the pixels of one image."""
        np.add.at(self.confusion.reshape(-1), *pixels)

    def compute(self) -> dict[str, Any]:
        """The `semantic` section of `metrics.json`, in percent; classes that never occur are left out of the mean."""
        hit = np.diag(self.confusion)
        union = self.confusion.sum(0)[:-1] + self.confusion.sum(1) - hit
        iou = {c.name: float(100 * hit[i] / union[i]) for i, c in enumerate(self.categories.categories) if union[i]}
        correct = float(100 * hit.sum() / max(1, self.confusion.sum()))
        return {"miou": sum(iou.values()) / max(1, len(iou)), "pixel_accuracy": correct, "per_class": iou}
