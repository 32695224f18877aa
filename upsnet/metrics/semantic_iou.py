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
        """A section of `metrics.json`, in percent: `miou`, `pixel_accuracy`, and name and IoU of each class by its id.

        The IoU of a class that never occurs is None, and left out of the mean. mIoU is None if no class occurs, and the
        pixel accuracy if no pixel is labelled.
        """
        hit = np.diag(self.confusion)
        union = self.confusion.sum(0)[:-1] + self.confusion.sum(1) - hit
        iou = [float(100 * hit[i] / union[i]) if union[i] else None for i in range(len(hit))]
        known = [value for value in iou if value is not None]
        pixels = self.confusion.sum()
        return {
            "miou": sum(known) / len(known) if known else None,
            "pixel_accuracy": float(100 * hit.sum() / pixels) if pixels else None,
            "per_class": {
                str(c.id): {"name": c.name, "iou": value}
                for c, value in zip(self.categories.categories, iou, strict=True)
            },
        }
