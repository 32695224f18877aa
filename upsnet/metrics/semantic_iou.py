"""Mean intersection over union of semantic maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from upsnet.categories import IGNORE_LABEL, CategorySet
from upsnet.metrics.image_scores import ImageScores


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

    def add(self, images: Iterable[ImageScores]) -> None:
        """Adds panoptic maps, crowds included; predicted void is wrong, and of no class."""
        size = self.confusion.size
        for image in images:
            np.add.at(self.confusion.reshape(-1), image.cells % size, image.pixels)

    def compute(self) -> dict[str, Any]:
        """The `semantic` section of `metrics.json`, in percent; classes that never occur are left out of the mean.

        mIoU is None if no class occurs, and the pixel accuracy if no pixel is labelled.
        """
        hit = np.diag(self.confusion)
        union = self.confusion.sum(0)[:-1] + self.confusion.sum(1) - hit
        iou = {c.name: float(100 * hit[i] / union[i]) for i, c in enumerate(self.categories.categories) if union[i]}
        pixels = self.confusion.sum()
        correct = float(100 * hit.sum() / pixels) if pixels else None
        return {"miou": sum(iou.values()) / len(iou) if iou else None, "pixel_accuracy": correct, "per_class": iou}
